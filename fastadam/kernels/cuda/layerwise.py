"""Updates whose rates follow norms of whole tensors: LAMB and LARS.

A block has a tile (``tiles`` in ``fastadam.kernels``): sums of squares are kept by tile, in pairs of float32 (see
``exact.py``), and a second launch adds the tiles of a tensor. So a sum has one order, whatever the GPU.
"""

import math

from numba import cuda, float32, uint32

from fastadam.kernels import rules
from fastadam.kernels.cuda import exact
from fastadam.kernels.cuda.flat import THREADS
from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.launch import Launch, op
from fastadam.kernels.cuda.ptx import ZERO, load4, load_rows, store_rows
from fastadam.kernels.cuda.updates import hyper_of

_lamb_moments = device(rules.lamb_moments)
_lamb_step = device(rules.lamb_step)
_lamb_trust = device(rules.lamb_trust)
_lamb = device(rules.lamb)
_lars_trust = device(rules.lars_trust)
_lars = device(rules.lars)

BOTH = 2 * THREADS
NONE, ONE, TWO, THREE, FOUR, ROW = uint32(0), uint32(1), uint32(2), uint32(3), uint32(4), uint32(4 * THREADS)


@device
def _tile(tiles):
    """(this thread's first element, the tile's end, its group, its tensor)."""
    at = uint32(uint32(cuda.blockIdx.x) * FOUR)
    first = uint32(uint32(tiles[at]) + uint32(cuda.threadIdx.x) * FOUR)
    rest = tiles[uint32(at + ONE)], tiles[uint32(at + TWO)], tiles[uint32(at + THREE)]
    return first, uint32(rest[0]), uint32(rest[1]), uint32(rest[2])


@device
def _add_squares(high, low, v):
    """high + low + the squares of four numbers."""
    high, low = exact.add_product(high, low, v[0], v[0])
    high, low = exact.add_product(high, low, v[1], v[1])
    high, low = exact.add_product(high, low, v[2], v[2])
    return exact.add_product(high, low, v[3], v[3])


@device
def _put_squares(squares, shared, count, high, low, other_high, other_low):
    """The block's two sums to those of its tile."""
    high, low = exact.block_sum(shared, high, low, ONE)
    other_high, other_low = exact.block_sum(shared, other_high, other_low, ONE)
    if uint32(cuda.threadIdx.x) == NONE:
        tile = uint32(cuda.blockIdx.x)
        squares[tile] = exact.rounded(high, low)
        squares[uint32(tile + count)] = exact.rounded(other_high, other_low)


@device
def _lamb_row(row, hyper):
    """((new m, new v), step) of (p, m, v, g)."""
    m, v = _lamb_moments(row[1], row[2], row[3], hyper)
    return (m, v), _lamb_step(row[0], m, v, hyper)


@kernel(THREADS)
def _moments(m, v, squares, p, g, h, tiles, count):
    shared = cuda.shared.array(BOTH, float32)
    i, end, group, _ = _tile(tiles)
    hyper = hyper_of(h, group)
    high = low = step_high = step_low = ZERO
    while i < end:
        if uint32(i + FOUR) <= end:
            a, b, c, d = load_rows((p, m, v, g), i, 4)
            a_new, a_step = _lamb_row(a, hyper)
            b_new, b_step = _lamb_row(b, hyper)
            c_new, c_step = _lamb_row(c, hyper)
            d_new, d_step = _lamb_row(d, hyper)
            store_rows((m, v), i, (a_new, b_new, c_new, d_new))
            high, low = _add_squares(high, low, (a[0], b[0], c[0], d[0]))
            step_high, step_low = _add_squares(step_high, step_low, (a_step, b_step, c_step, d_step))
        else:
            k = i
            while k < end:
                (row,) = load_rows((p, m, v, g), k, 1)
                new, step = _lamb_row(row, hyper)
                store_rows((m, v), k, (new,))
                high, low = exact.add_product(high, low, row[0], row[0])
                step_high, step_low = exact.add_product(step_high, step_low, step, step)
                k = uint32(k + ONE)
        i = uint32(i + ROW)
    _put_squares(squares, shared, count, high, low, step_high, step_low)


@op
def lamb_moments(m, v, squares, p, g, h, tiles):
    """First pass of LAMB (``rules.lamb``): new moments, and squares of the parameters and of what they lead to.

    m, v (n,)            in and out: first and second moments
    squares (2, T)       out: by tile, sums of squares of p and of its ``rules.lamb_step``
    p, g (n,)            in: parameters, gradients
    h (G, fields)        in: the numbers of ``rules.Hyper``, a row a group
    tiles (T, 4) int64   in
    """
    count = tiles.shape[0]
    if count:
        yield Launch(_moments, count, (m, v, squares, p, g, h, tiles, count))


@kernel(THREADS)
def _squares(squares, p, g, tiles, count):
    shared = cuda.shared.array(BOTH, float32)
    i, end, _, _ = _tile(tiles)
    high = low = other_high = other_low = ZERO
    while i < end:
        if uint32(i + FOUR) <= end:
            p4, g4 = load4(p, i), load4(g, i)
            high, low = _add_squares(high, low, p4)
            other_high, other_low = _add_squares(other_high, other_low, g4)
        else:
            k = i
            while k < end:
                high, low = exact.add_product(high, low, p[k], p[k])
                other_high, other_low = exact.add_product(other_high, other_low, g[k], g[k])
                k = uint32(k + ONE)
        i = uint32(i + ROW)
    _put_squares(squares, shared, count, high, low, other_high, other_low)


@op
def tile_squares(squares, p, g, tiles):
    """Sums of squares by tile.

    squares (2, T)       out: of p, and of g
    p, g (n,)            in
    tiles (T, 4) int64   in
    """
    count = tiles.shape[0]
    if count:
        yield Launch(_squares, count, (squares, p, g, tiles, count))


@device
def _first_tile(tiles, tensor, count):
    """The first of the tiles of this tensor or a later one; ``count`` if there is none."""
    low, high = NONE, count
    while low < high:
        middle = uint32(uint32(low + high) >> ONE)
        if uint32(tiles[uint32(middle * FOUR + THREE)]) < tensor:
            low = uint32(middle + ONE)
        else:
            high = middle
    return low


@kernel(THREADS)
def _norms(norms, squares, tiles, count):
    """A block has a tensor."""
    shared = cuda.shared.array(BOTH, float32)
    tensor = uint32(cuda.blockIdx.x)
    tile = uint32(_first_tile(tiles, tensor, count) + uint32(cuda.threadIdx.x))
    end = _first_tile(tiles, uint32(tensor + ONE), count)
    high = low = other_high = other_low = ZERO
    while tile < end:
        high, low = exact.add(high, low, squares[tile])
        other_high, other_low = exact.add(other_high, other_low, squares[uint32(tile + count)])
        tile = uint32(tile + uint32(THREADS))
    high, low = exact.block_sum(shared, high, low, ONE)
    other_high, other_low = exact.block_sum(shared, other_high, other_low, ONE)
    if uint32(cuda.threadIdx.x) == NONE:
        norms[uint32(tensor + tensor)] = math.sqrt(exact.rounded(high, low))
        norms[uint32(tensor + tensor + ONE)] = math.sqrt(exact.rounded(other_high, other_low))


@op
def tensor_norms(norms, squares, tiles):
    """Norms of tensors from sums of squares by tile.

    norms (K, 2)         out: by tensor, the root of either sum; 0 for a tensor that has no tiles
    squares (2, T)       in
    tiles (T, 4) int64   in
    """
    yield Launch(_norms, norms.shape[0], (norms, squares, tiles, tiles.shape[0]))


@device
def _lamb_moved(row, trust, hyper):
    """(new p,) of (p, m, v)."""
    return (_lamb(row[0], _lamb_step(row[0], row[1], row[2], hyper), trust, hyper),)


@kernel(THREADS)
def _lamb_tiles(p, m, v, norms, h, tiles):
    i, end, group, tensor = _tile(tiles)
    hyper = hyper_of(h, group)
    trust = _lamb_trust(norms[uint32(tensor + tensor)], norms[uint32(tensor + tensor + ONE)], hyper)
    while i < end:
        if uint32(i + FOUR) <= end:
            a, b, c, d = load_rows((p, m, v), i, 4)
            first, second = _lamb_moved(a, trust, hyper), _lamb_moved(b, trust, hyper)
            third, fourth = _lamb_moved(c, trust, hyper), _lamb_moved(d, trust, hyper)
            store_rows((p,), i, (first, second, third, fourth))
        else:
            k = i
            while k < end:
                (row,) = load_rows((p, m, v), k, 1)
                store_rows((p,), k, (_lamb_moved(row, trust, hyper),))
                k = uint32(k + ONE)
        i = uint32(i + ROW)


@op
def lamb_update(p, m, v, norms, h, tiles):
    """Last pass of LAMB (``rules.lamb``): the parameters move.

    p (n,)                  in and out: parameters
    m, v (n,)               in: the moments, new already
    norms (K, 2)            in: by tensor, norms of p and of its ``rules.lamb_step``
    h (G, fields), tiles    in, as ``lamb_moments``
    """
    if tiles.shape[0]:
        yield Launch(_lamb_tiles, tiles.shape[0], (p, m, v, norms, h, tiles))


@kernel(THREADS)
def _lars_tiles(p, m, g, norms, h, tiles):
    i, end, group, tensor = _tile(tiles)
    hyper = hyper_of(h, group)
    trust = _lars_trust(norms[uint32(tensor + tensor)], norms[uint32(tensor + tensor + ONE)], hyper)
    while i < end:
        if uint32(i + FOUR) <= end:
            a, b, c, d = load_rows((p, m, g), i, 4)
            new = _lars(*a, trust, hyper), _lars(*b, trust, hyper), _lars(*c, trust, hyper), _lars(*d, trust, hyper)
            store_rows((p, m), i, new)
        else:
            k = i
            while k < end:
                (row,) = load_rows((p, m, g), k, 1)
                store_rows((p, m), k, (_lars(*row, trust, hyper),))
                k = uint32(k + ONE)
        i = uint32(i + ROW)


@op
def lars_update(p, m, g, norms, h, tiles):
    """Last pass of LARS (``rules.lars``).

    p, m (n,)               in and out: parameters, momentum buffer
    g (n,)                  in: gradients
    norms (K, 2)            in: by tensor, norms of p and of g, before ``grad_scale``
    h (G, fields), tiles    in, as ``lamb_moments``
    """
    if tiles.shape[0]:
        yield Launch(_lars_tiles, tiles.shape[0], (p, m, g, norms, h, tiles))

"""Updates whose rates follow norms of whole tensors: LAMB and LARS.

A block has a tile (``tiles`` in ``fastadam.kernels``): sums of squares are kept by tile, in pairs of float32 (see
``exact.py``), and a second launch adds the tiles of a tensor. So a sum has one order, whatever the GPU.
"""

import math

from numba import cuda, float32, uint32

from fastadam.kernels import rules
from fastadam.kernels.cuda import exact
from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.launch import Launch, op
from fastadam.kernels.cuda.ptx import ZERO, load4, store4
from fastadam.kernels.rules import Hyper

_lamb_moments = device(rules.lamb_moments)
_lamb_step = device(rules.lamb_step)
_lamb_trust = device(rules.lamb_trust)
_lamb = device(rules.lamb)
_lars_trust = device(rules.lars_trust)
_lars = device(rules.lars)

THREADS = 256
BOTH = 2 * THREADS
FIELDS = len(Hyper._fields)
NONE, ONE, TWO, THREE, FOUR, ROW = uint32(0), uint32(1), uint32(2), uint32(3), uint32(4), uint32(4 * THREADS)


@device
def _hyper(h, group):
    """Row ``group`` of h."""
    i = uint32(group * uint32(FIELDS))
    return Hyper(
        h[i], h[uint32(i + uint32(1))], h[uint32(i + uint32(2))], h[uint32(i + uint32(3))], h[uint32(i + uint32(4))],
        h[uint32(i + uint32(5))], h[uint32(i + uint32(6))], h[uint32(i + uint32(7))], h[uint32(i + uint32(8))],
        h[uint32(i + uint32(9))], h[uint32(i + uint32(10))], h[uint32(i + uint32(11))], h[uint32(i + uint32(12))],
        h[uint32(i + uint32(13))], h[uint32(i + uint32(14))], h[uint32(i + uint32(15))], h[uint32(i + uint32(16))],
        h[uint32(i + uint32(17))], h[uint32(i + uint32(18))], h[uint32(i + uint32(19))], h[uint32(i + uint32(20))],
        h[uint32(i + uint32(21))], h[uint32(i + uint32(22))], h[uint32(i + uint32(23))], h[uint32(i + uint32(24))],
        h[uint32(i + uint32(25))], h[uint32(i + uint32(26))],
    )  # fmt: skip


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


@kernel(THREADS)
def _moments(m, v, squares, p, g, h, tiles, count):
    shared = cuda.shared.array(BOTH, float32)
    i, end, group, _ = _tile(tiles)
    hyper = _hyper(h, group)
    high = low = step_high = step_low = ZERO
    while i < end:
        if uint32(i + FOUR) <= end:
            p4, m4, v4, g4 = load4(p, i), load4(m, i), load4(v, i), load4(g, i)
            m0, v0 = _lamb_moments(m4[0], v4[0], g4[0], hyper)
            m1, v1 = _lamb_moments(m4[1], v4[1], g4[1], hyper)
            m2, v2 = _lamb_moments(m4[2], v4[2], g4[2], hyper)
            m3, v3 = _lamb_moments(m4[3], v4[3], g4[3], hyper)
            store4(m, i, (m0, m1, m2, m3))
            store4(v, i, (v0, v1, v2, v3))
            high, low = _add_squares(high, low, p4)
            step = (
                _lamb_step(p4[0], m0, v0, hyper), _lamb_step(p4[1], m1, v1, hyper),
                _lamb_step(p4[2], m2, v2, hyper), _lamb_step(p4[3], m3, v3, hyper),
            )  # fmt: skip
            step_high, step_low = _add_squares(step_high, step_low, step)
        else:
            k = i
            while k < end:
                first, second = _lamb_moments(m[k], v[k], g[k], hyper)
                m[k], v[k] = first, second
                high, low = exact.add_product(high, low, p[k], p[k])
                last = _lamb_step(p[k], first, second, hyper)
                step_high, step_low = exact.add_product(step_high, step_low, last, last)
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


@kernel(THREADS)
def _lamb_tiles(p, m, v, norms, h, tiles):
    i, end, group, tensor = _tile(tiles)
    hyper = _hyper(h, group)
    trust = _lamb_trust(norms[uint32(tensor + tensor)], norms[uint32(tensor + tensor + ONE)], hyper)
    while i < end:
        if uint32(i + FOUR) <= end:
            p4, m4, v4 = load4(p, i), load4(m, i), load4(v, i)
            p0 = _lamb(p4[0], _lamb_step(p4[0], m4[0], v4[0], hyper), trust, hyper)
            p1 = _lamb(p4[1], _lamb_step(p4[1], m4[1], v4[1], hyper), trust, hyper)
            p2 = _lamb(p4[2], _lamb_step(p4[2], m4[2], v4[2], hyper), trust, hyper)
            p3 = _lamb(p4[3], _lamb_step(p4[3], m4[3], v4[3], hyper), trust, hyper)
            store4(p, i, (p0, p1, p2, p3))
        else:
            k = i
            while k < end:
                p[k] = _lamb(p[k], _lamb_step(p[k], m[k], v[k], hyper), trust, hyper)
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
    hyper = _hyper(h, group)
    trust = _lars_trust(norms[uint32(tensor + tensor)], norms[uint32(tensor + tensor + ONE)], hyper)
    while i < end:
        if uint32(i + FOUR) <= end:
            p4, m4, g4 = load4(p, i), load4(m, i), load4(g, i)
            p0, m0 = _lars(p4[0], m4[0], g4[0], trust, hyper)
            p1, m1 = _lars(p4[1], m4[1], g4[1], trust, hyper)
            p2, m2 = _lars(p4[2], m4[2], g4[2], trust, hyper)
            p3, m3 = _lars(p4[3], m4[3], g4[3], trust, hyper)
            store4(p, i, (p0, p1, p2, p3))
            store4(m, i, (m0, m1, m2, m3))
        else:
            k = i
            while k < end:
                p[k], m[k] = _lars(p[k], m[k], g[k], trust, hyper)
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

"""Updates whose rates follow norms of whole tensors: LAMB and LARS.

A first pass leaves sums of squares by tile (``tiles`` in ``fastadam.kernels``), ``tensor_norms`` adds them up, and the
last pass moves the parameters of each tensor at its own rate. A task has some tiles, one behind the other: whichever
thread has a tile, its sums are the same. The formulas are those of ``fastadam.kernels.rules``, on vectors where they
feed a sum.
"""

import math

from numba import float64
from numpy import float32

from fastadam.kernels import rules
from fastadam.kernels.cpu.jit import inlined, leaf, serial
from fastadam.kernels.cpu.parallel import parallel
from fastadam.kernels.cpu.simd import WIDTH, load, store
from fastadam.kernels.cpu.sums import add_squares, no_sums, sum_of
from fastadam.kernels.cpu.updates import hyper_of

TOGETHER = 16
"""Tiles of a task: long enough for a CPU to follow its arrays by itself."""

_lamb_moments = inlined(rules.lamb_moments)
_lamb_step = inlined(rules.lamb_step)
_lamb_trust = inlined(rules.lamb_trust)
_lamb = inlined(rules.lamb)
_lars_trust = inlined(rules.lars_trust)
_lars = inlined(rules.lars)


@leaf
def _lamb_moments_tile(tile, m, v, squares, p, g, h, tiles):
    i, j, hyper = tiles[tile, 0], tiles[tile, 1], hyper_of(h[tiles[tile, 2]])
    ms, vs, ps, gs = m[i:j], v[i:j], p[i:j], g[i:j]
    whole = ms.size // WIDTH * WIDTH
    of_p, of_step = no_sums(), no_sums()
    for k in range(0, whole, WIDTH):
        value = load(ps, k)
        first, second = _lamb_moments(load(ms, k), load(vs, k), load(gs, k), hyper)
        store(ms, k, first)
        store(vs, k, second)
        of_p = add_squares(of_p, value)
        of_step = add_squares(of_step, _lamb_step(value, first, second, hyper))
    p_squares, step_squares = sum_of(of_p), sum_of(of_step)
    for k in range(whole, ms.size):
        ms[k], vs[k] = _lamb_moments(ms[k], vs[k], gs[k], hyper)
        p_squares += float64(ps[k]) * float64(ps[k])
        step = float64(_lamb_step(ps[k], ms[k], vs[k], hyper))
        step_squares += step * step
    squares[0, tile], squares[1, tile] = float32(p_squares), float32(step_squares)


@leaf
def _lamb_moments_tiles(worker, task, m, v, squares, p, g, h, tiles):
    for tile in range(task * TOGETHER, min((task + 1) * TOGETHER, len(tiles))):
        _lamb_moments_tile(tile, m, v, squares, p, g, h, tiles)


def lamb_moments(m, v, squares, p, g, h, tiles):
    """First pass of LAMB (``rules.lamb``): new moments, and squares of the parameters and of what they lead to.

    m, v (n,)            in and out: first and second moments
    squares (2, T)       out: by tile, sums of squares of p and of its ``rules.lamb_step``
    p, g (n,)            in: parameters, gradients
    h (G, fields)        in: the numbers of ``rules.Hyper``, a row a group
    tiles (T, 4) int64   in
    """
    parallel(_lamb_moments_tiles, -(-len(tiles) // TOGETHER), m, v, squares, p, g, h, tiles)


@leaf
def _tile_squares(tile, squares, p, g, tiles):
    i, j = tiles[tile, 0], tiles[tile, 1]
    ps, gs = p[i:j], g[i:j]
    whole = ps.size // WIDTH * WIDTH
    of_p, of_g = no_sums(), no_sums()
    for k in range(0, whole, WIDTH):
        of_p, of_g = add_squares(of_p, load(ps, k)), add_squares(of_g, load(gs, k))
    p_squares, g_squares = sum_of(of_p), sum_of(of_g)
    for k in range(whole, ps.size):
        p_squares += float64(ps[k]) * float64(ps[k])
        g_squares += float64(gs[k]) * float64(gs[k])
    squares[0, tile], squares[1, tile] = float32(p_squares), float32(g_squares)


@leaf
def _squares_of_tiles(worker, task, squares, p, g, tiles):
    for tile in range(task * TOGETHER, min((task + 1) * TOGETHER, len(tiles))):
        _tile_squares(tile, squares, p, g, tiles)


def tile_squares(squares, p, g, tiles):
    """Sums of squares by tile.

    squares (2, T)       out: of p, and of g
    p, g (n,)            in
    tiles (T, 4) int64   in
    """
    parallel(_squares_of_tiles, -(-len(tiles) // TOGETHER), squares, p, g, tiles)


@serial
def tensor_norms(norms, squares, tiles):
    """Norms of tensors from sums of squares by tile, which are added in their order, in float64.

    norms (K, 2)         out: by tensor, the root of either sum; 0 for a tensor that has no tiles
    squares (2, T)       in
    tiles (T, 4) int64   in
    """
    tile = 0
    for tensor in range(len(norms)):
        first, second = float64(0), float64(0)
        while tile < len(tiles) and tiles[tile, 3] == tensor:
            first += float64(squares[0, tile])
            second += float64(squares[1, tile])
            tile += 1
        norms[tensor, 0], norms[tensor, 1] = float32(math.sqrt(first)), float32(math.sqrt(second))


@leaf
def _lamb_tile(tile, p, m, v, norms, h, tiles):
    i, j, hyper = tiles[tile, 0], tiles[tile, 1], hyper_of(h[tiles[tile, 2]])
    tensor = tiles[tile, 3]
    trust = _lamb_trust(norms[tensor, 0], norms[tensor, 1], hyper)
    ps, ms, vs = p[i:j], m[i:j], v[i:j]
    for k in range(ps.size):
        ps[k] = _lamb(ps[k], _lamb_step(ps[k], ms[k], vs[k], hyper), trust, hyper)


@leaf
def _lamb_tiles(worker, task, p, m, v, norms, h, tiles):
    for tile in range(task * TOGETHER, min((task + 1) * TOGETHER, len(tiles))):
        _lamb_tile(tile, p, m, v, norms, h, tiles)


def lamb_update(p, m, v, norms, h, tiles):
    """Last pass of LAMB (``rules.lamb``): the parameters move.

    p (n,)                  in and out: parameters
    m, v (n,)               in: the moments, new already
    norms (K, 2)            in: by tensor, norms of p and of its ``rules.lamb_step``
    h (G, fields), tiles    in, as ``lamb_moments``
    """
    parallel(_lamb_tiles, -(-len(tiles) // TOGETHER), p, m, v, norms, h, tiles)


@leaf
def _lars_tile(tile, p, m, g, norms, h, tiles):
    i, j, hyper = tiles[tile, 0], tiles[tile, 1], hyper_of(h[tiles[tile, 2]])
    tensor = tiles[tile, 3]
    trust = _lars_trust(norms[tensor, 0], norms[tensor, 1], hyper)
    ps, ms, gs = p[i:j], m[i:j], g[i:j]
    for k in range(ps.size):
        ps[k], ms[k] = _lars(ps[k], ms[k], gs[k], trust, hyper)


@leaf
def _lars_tiles(worker, task, p, m, g, norms, h, tiles):
    for tile in range(task * TOGETHER, min((task + 1) * TOGETHER, len(tiles))):
        _lars_tile(tile, p, m, g, norms, h, tiles)


def lars_update(p, m, g, norms, h, tiles):
    """Last pass of LARS (``rules.lars``).

    p, m (n,)               in and out: parameters, momentum buffer
    g (n,)                  in: gradients
    norms (K, 2)            in: by tensor, norms of p and of g, before ``grad_scale``
    h (G, fields), tiles    in, as ``lamb_moments``
    """
    parallel(_lars_tiles, -(-len(tiles) // TOGETHER), p, m, g, norms, h, tiles)

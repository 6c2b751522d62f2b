"""Muon's step of one matrix: its momentum, orthogonalised by Newton-Schulz iterations as ``orthogonal`` has them.

The matrix stays as it is stored, wide or tall. Its Gram matrix is a product cut along the long side; what follows is
of the short side squared: where one block has all of it, a launch makes all products of a span, else one each.
"""

import math

import numpy as np
from numba import cuda, float32, uint32

from fastadam.kernels import rules
from fastadam.kernels.cuda import exact
from fastadam.kernels.cuda.flat import THREADS, each, flat_launch
from fastadam.kernels.cuda.gemm import NN, NT, TN, gemm_launch, parts_of, plain, product
from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.lanes import add_launch
from fastadam.kernels.cuda.launch import Launch, Scratch, blocks_of, op
from fastadam.kernels.cuda.mma import FLOAT32
from fastadam.kernels.cuda.ptx import ZERO, ZERO64, load4, store4
from fastadam.kernels.cuda.tiles import BK, fetch4, put4, thread_place
from fastadam.kernels.cuda.updates import hyper_of
from fastadam.kernels.orthogonal import SQUARES, spans

BOTH = 2 * THREADS
SUMMED = 16 * THREADS
"""Numbers whose squares a block sums up."""

TILE = 64
TILE_THREADS, BLOCKS = TILE * TILE // 64, 4
SIZE = 2 * BK * (TILE + 4)

ONE, TWO, THREE, FOUR, EIGHT = uint32(1), uint32(2), uint32(3), uint32(4), uint32(8)
FLOAT1, INFINITY = np.float32(1), np.float32(np.inf)

CODES, MOST_CODES = 4, 12
"""Products that a word tells of, and a launch at the most."""

_average = device(rules.muon_average)
_step = device(rules.muon_step)


# The momentum, of norm one ----------------------------------------------------------------------------------


@kernel(THREADS)
def _average_tiles(m, u, part, g, h, row, n):
    """m, what of it is to be orthogonalised, and the sum of squares of each block's."""
    shared = cuda.shared.array(BOTH, float32)
    hyper, block = hyper_of(h, row), uint32(cuda.blockIdx.x)
    i = uint32(block * uint32(SUMMED) + uint32(cuda.threadIdx.x) * FOUR)
    end = min(n, uint32(uint32(block + ONE) * uint32(SUMMED)))
    high = low = ZERO
    while i < end:
        if uint32(i + FOUR) <= end:
            m4, g4 = load4(m, i), load4(g, i)
            m0, u0 = _average(m4[0], g4[0], hyper)
            m1, u1 = _average(m4[1], g4[1], hyper)
            m2, u2 = _average(m4[2], g4[2], hyper)
            m3, u3 = _average(m4[3], g4[3], hyper)
            store4(m, i, (m0, m1, m2, m3))
            store4(u, i, (u0, u1, u2, u3))
            high, low = exact.add_product(high, low, u0, u0)
            high, low = exact.add_product(high, low, u1, u1)
            high, low = exact.add_product(high, low, u2, u2)
            high, low = exact.add_product(high, low, u3, u3)
        else:
            for k in range(i, end):
                at = uint32(k)
                m0, u0 = _average(m[at], g[at], hyper)
                m[at], u[at] = m0, u0
                high, low = exact.add_product(high, low, u0, u0)
        i = uint32(i + uint32(4 * THREADS))
    high, low = exact.block_sum(shared, high, low, ONE)
    if uint32(cuda.threadIdx.x) == uint32(0):
        part[uint32(block * TWO)], part[uint32(block * TWO + ONE)] = high, low


@kernel(THREADS)
def _invert_norm(factor, part, parts, eps):
    """factor[0] = 1 / max(norm, eps); NaN for a norm that is none, or beyond float32: a diverged run must be seen."""
    shared = cuda.shared.array(BOTH, float32)
    i, high, low = uint32(cuda.threadIdx.x), ZERO, ZERO
    while i < parts:
        high, low = exact.add(high, low, part[uint32(i * TWO)])
        low += part[uint32(i * TWO + ONE)]
        i = uint32(i + uint32(THREADS))
    high, low = exact.block_sum(shared, high, low, ONE)
    if uint32(cuda.threadIdx.x) == uint32(0):
        norm = math.sqrt(exact.rounded(high, low))
        if norm == INFINITY:
            norm -= norm
        factor[0] = FLOAT1 / (eps if norm < eps else norm)


@device
def _product(a, b):
    return (a * b,)


@kernel(THREADS)
def _normalise(u, factor, size):
    each(_product, (u,), (u,), (factor[0],), size)


# Products of the short side squared -------------------------------------------------------------------------


@device
def _finish4(out, x, row, col, r, wide, polynomial, a, b, c, v):
    """out[row, col : col + 4] = v; or a I + b x + c v."""
    if polynomial:
        old = fetch4(x, row, col, r, r, r, wide)
        v = (
            c * v[0] + b * old[0] + (a if row == col else ZERO),
            c * v[1] + b * old[1] + (a if row == uint32(col + ONE) else ZERO),
            c * v[2] + b * old[2] + (a if row == uint32(col + TWO) else ZERO),
            c * v[3] + b * old[3] + (a if row == uint32(col + THREE) else ZERO),
        )
    put4(out, row, col, r, r, r, wide, v)


@device
def _finish_row(out, x, row, col, r, wide, polynomial, a, b, c, v):
    _finish4(out, x, row, col, r, wide, polynomial, a, b, c, v[0:4])
    _finish4(out, x, row, uint32(col + uint32(TILE // 2)), r, wide, polynomial, a, b, c, v[4:8])


@kernel(TILE_THREADS, BLOCKS)
def _products(s0, s1, s2, s3, r, a, b, c, count, codes0, codes1, codes2):
    """A tile of ``count`` products in turn: out, x and y in two bits of a code each, then whether it is a polynomial.

    More than one only where one block has the whole: what it has written it reads again.
    """
    sa = cuda.shared.array(SIZE, float32, alignment=16)
    sb = cuda.shared.array(SIZE, float32, alignment=16)
    ty, tx = thread_place(uint32(cuda.threadIdx.x), ONE)
    m0, n0 = uint32(cuda.blockIdx.x * TILE), uint32(cuda.blockIdx.y * TILE)
    m, n, wide = uint32(m0 + ty * FOUR), uint32(n0 + tx * FOUR), r & THREE == uint32(0)
    for k in range(count):
        code = codes0 if k < CODES else (codes1 if k < 2 * CODES else codes2)
        code = uint32(code >> uint32(uint32(k & THREE) * EIGHT))
        i, j, l = uint32(code & THREE), uint32(uint32(code >> TWO) & THREE), uint32(uint32(code >> FOUR) & THREE)
        polynomial = uint32(code >> uint32(6)) & ONE
        out = (s0 if i == uint32(0) else s1) if i < TWO else (s2 if i == TWO else s3)
        x = (s0 if j == uint32(0) else s1) if j < TWO else (s2 if j == TWO else s3)
        y = (s0 if l == uint32(0) else s1) if l < TWO else (s2 if l == TWO else s3)
        rows, columns = (x, r, wide), (y, r, wide)
        acc = product(
            ZERO64, sa, sb, plain, rows, plain, columns, m0, n0, r, r, uint32(0), r, TILE, TILE, False, True, FLOAT32
        )
        _finish_row(out, x, m, n, r, wide, polynomial, a, b, c, acc[0:8])
        _finish_row(out, x, uint32(m + ONE), n, r, wide, polynomial, a, b, c, acc[8:16])
        _finish_row(out, x, uint32(m + TWO), n, r, wide, polynomial, a, b, c, acc[16:24])
        _finish_row(out, x, uint32(m + THREE), n, r, wide, polynomial, a, b, c, acc[24:32])
        low = uint32(m + uint32(TILE // 2))
        _finish_row(out, x, low, n, r, wide, polynomial, a, b, c, acc[32:40])
        _finish_row(out, x, uint32(low + ONE), n, r, wide, polynomial, a, b, c, acc[40:48])
        _finish_row(out, x, uint32(low + TWO), n, r, wide, polynomial, a, b, c, acc[48:56])
        _finish_row(out, x, uint32(low + THREE), n, r, wide, polynomial, a, b, c, acc[56:64])
        cuda.syncthreads()


def _products_launch(squares, r, a, b, c, products):
    """The launch of some products, see ``_products``."""
    codes = [out | x << 2 | y << 4 | polynomial << 6 for out, x, y, polynomial in products]
    words = [sum(code << 8 * i for i, code in enumerate(codes[at : at + CODES])) for at in range(0, MOST_CODES, CODES)]
    grid = blocks_of(r, TILE), blocks_of(r, TILE)
    return Launch(_products, grid, (*squares, r, float(a), float(b), float(c), len(products), *words))


# The step ---------------------------------------------------------------------------------------------------


@device
def _stepped(p, o, rate, hyper):
    return (_step(p, o, rate, hyper),)


@kernel(THREADS)
def _step_kernel(p, o, h, row, rate, size):
    each(_stepped, (p,), (p, o), (rate, hyper_of(h, row)), size)


@op
def muon_update(p, m, g, h, row, rate, a, b, c, eps, steps):
    """One step of Muon on a matrix: ``rules.muon_average``, what it gives orthogonalised, ``rules.muon_step``.

    p               in and out: parameters; (KH, KW, C, OC) stands for (KH * KW * C, OC)
    m               in and out: the average of gradients, like p
    g               in: gradients, like p
    h (G, fields)   in: the numbers of ``rules.Hyper``, of which row ``row`` is used
    rate            factor on the learning rate, by the matrix's shape
    a, b, c         of an iteration X to X (a I + b A + c A A), A = X.T X
    eps             the least norm that X is divided by at first
    steps           iterations, one at least
    Threads own elements, blocks 64 x 64 or more of a product, or of a part of it along k.
    """
    *_, columns = p.shape
    size, rows = p.size, p.size // columns
    wide, long, r = rows < columns, max(rows, columns), min(rows, columns)
    x, y, factor = Scratch(size), Scratch(size), Scratch(1)
    squares = [Scratch(r * r) for _ in range(SQUARES)]
    tiles = blocks_of(size, SUMMED)
    part = Scratch(2 * tiles)
    yield Launch(_average_tiles, tiles, (m, x, part, g, h, row, size))
    yield Launch(_invert_norm, 1, (factor, part, tiles, float(eps)))
    yield flat_launch(_normalise, size, x, factor)
    parts = parts_of(blocks_of(r, TILE) ** 2, long, alone=True)
    gram_parts = Scratch(parts * r * r) if parts > 1 else squares[0]
    for products, total in spans(steps):
        yield gemm_launch(NT if wide else TN, gram_parts, x, x, r, r, long, lanes=parts)
        if parts > 1:
            yield add_launch(squares[0], gram_parts, 1, parts, r * r)
        at_once = len(products) if r <= TILE else 1
        for k in range(0, len(products), at_once):
            yield _products_launch(squares, r, a, b, c, products[k : k + at_once])
        if wide:
            yield gemm_launch(NN, y, squares[total], x, r, long, r)
        else:
            yield gemm_launch(NN, y, x, squares[total], long, r, r)
        x, y = y, x
    yield flat_launch(_step_kernel, size, p, x, h, row, float(rate))

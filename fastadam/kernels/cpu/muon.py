"""Muon's step of one matrix: its momentum, orthogonalised by Newton-Schulz iterations as ``orthogonal`` has them.

The matrix is kept tall, its long side by its short one, in rows of an odd number of cache lines. So both operands of
a product are read in rows of k as they lie: nothing is packed, and rows do not meet in the same sets of a cache. What
is symmetric is computed by halves.
"""

import functools
from typing import NamedTuple

import numpy as np
from numba import float64

from fastadam.kernels import rules
from fastadam.kernels.cpu.gemm import PANEL, TILE_ROWS, product
from fastadam.kernels.cpu.jit import inlined, leaf
from fastadam.kernels.cpu.parallel import parallel
from fastadam.kernels.cpu.pending import copy
from fastadam.kernels.cpu.transpose import transpose
from fastadam.kernels.cpu.updates import hyper_of
from fastadam.kernels.cpu.workspace import aligned, odd_lines, reserve, sized, threaded
from fastadam.kernels.orthogonal import SQUARES, spans

BLOCK = 48
"""Rows and columns of a symmetric product that a task owns: whole tiles, whole panels."""

ROWS, MOST_ROWS = 96, 960
"""Rows of the tall matrix that a task owns, at least and at most: whole tiles."""

ENOUGH = 1 << 21
"""Multiply-adds that a task shall have, and twice what a product has that is left to one thread."""

COLUMNS = 64
"""Columns of a matrix stored wide that a task turns into rows."""

ZERO = np.float32(0)

_average = inlined(rules.muon_average)
_step = inlined(rules.muon_step)


# The momentum, as a tall matrix of norm one -----------------------------------------------------------------


@leaf
def _squares(x, at, size):
    """The sum of squares of ``size`` numbers: four sums, for one would wait for itself."""
    x = x[at : at + size]
    s0 = s1 = s2 = s3 = float64(0)
    for i in range(0, size - 3, 4):
        s0 += float64(x[i]) * float64(x[i])
        s1 += float64(x[i + 1]) * float64(x[i + 1])
        s2 += float64(x[i + 2]) * float64(x[i + 2])
        s3 += float64(x[i + 3]) * float64(x[i + 3])
    for i in range(size // 4 * 4, size):
        s0 += float64(x[i]) * float64(x[i])
    return (s0 + s1) + (s2 + s3)


@leaf
def _average_span(u, u_at, m, g, at, size, h):
    """The average m of a span, and what of it is to be orthogonalised into u; the sum of its squares."""
    us, ms, gs = u[u_at : u_at + size], m[at : at + size], g[at : at + size]
    for i in range(size):
        ms[i], us[i] = _average(ms[i], gs[i], h)
    return _squares(u, u_at, size)


@leaf
def _put_pair(part, at, total):
    """A float64 as two float32 numbers that add up to it; beyond float32 there is no rest."""
    part[at] = np.float32(total)
    rest = np.float32(total - float64(part[at]))
    part[at + 1] = rest if rest - rest == 0 else ZERO


@leaf
def _average_rows(worker, task, m, g, h, row, work, shape, each, sums):
    """``each`` rows of a matrix stored tall."""
    (long, short, pitch), hyper, total = shape, hyper_of(h[row]), float64(0)
    for i in range(task * each, min(long, (task + 1) * each)):
        total += _average_span(work, i * pitch, m, g, i * short, short, hyper)
    _put_pair(work, sums + 2 * task, total)


@leaf
def _average_columns(worker, task, m, g, h, row, work, shape, sums, own):
    """Some columns of a matrix stored wide, turned into rows."""
    (long, short, pitch), hyper, total = shape, hyper_of(h[row]), float64(0)
    first, mine = task * COLUMNS, own[0] + worker * own[1]
    count = min(COLUMNS, long - first)
    for i in range(short):
        total += _average_span(work, mine + i * COLUMNS, m, g, i * long + first, count, hyper)
    transpose(work, first * pitch, pitch, work, mine, COLUMNS, short, count)
    _put_pair(work, sums + 2 * task, total)


@leaf
def _invert_norm(worker, task, work, sums, parts, eps):
    """work[sums] = 1 / max(norm, eps), from the sums of squares there; NaN where they are beyond float32."""
    total = float64(0)
    for i in range(sums, sums + 2 * parts):
        total += float64(work[i])
    norm = np.sqrt(total)
    work[sums] = np.float32(1.0 / (eps if norm < eps else norm)) if norm < np.inf else np.float32(np.nan)


@leaf
def _normalise_rows(worker, task, work, shape, each, factor_at):
    (long, short, pitch), factor = shape, work[factor_at]
    for i in range(task * each, min(long, (task + 1) * each)):
        line = work[i * pitch : i * pitch + short]
        for j in range(short):
            line[j] *= factor


# Products ---------------------------------------------------------------------------------------------------


@leaf
def _symmetric_block(worker, task, work, shape, orders, shares, k, own):
    """A block of out = share * x.T y + old_share * old + diagonal * I, and its mirror image.

    orders (K, 5)   rows (out, x, y, depth, old): where x, y (depth, short), old and out (short, short) begin in the
                    workspace, all in rows ``pitch`` apart; x.T y and old are symmetric
    shares (K, 3)   rows (share, old_share, diagonal); with an old_share of 0 old is not read
    k               the row to use
    """
    (_, short, pitch), i, j = shape, 0, task
    while j > i:
        i += 1
        j -= i
    i, j, block = i * BLOCK, j * BLOCK, own[0] + worker * own[1]
    out, x, y, depth, old = orders[k, 0], orders[k, 1], orders[k, 2], orders[k, 3], orders[k, 4]
    share, old_share, diagonal = shares[k, 0], shares[k, 1], shares[k, 2]
    rows, columns = min(BLOCK, short - i), min(BLOCK, short - j)
    product(rows, columns, depth, work, x + i, 1, pitch, work, y + j, PANEL, pitch, work, block, BLOCK, False)
    for r in range(rows):
        at, count = (i + r) * pitch + j, min(columns, i + r + 1 - j)
        line = work[block + r * BLOCK : block + r * BLOCK + count]
        if old_share != ZERO:
            olds = work[old + at : old + at + count]
            for l in range(count):
                line[l] = share * line[l] + old_share * olds[l]
        if i == j:
            line[r] += diagonal
        work[out + at : out + at + count] = line
        for l in range(count):
            work[out + (j + l) * pitch + i + r] = line[l]


@leaf
def _symmetric_products(worker, task, work, shape, orders, shares, first, end, own):
    """Whole products in turn."""
    blocks = (shape[1] + BLOCK - 1) // BLOCK
    for k in range(first, end):
        for block in range(blocks * (blocks + 1) // 2):
            _symmetric_block(worker, block, work, shape, orders, shares, k, own)


@leaf
def _multiply_rows(worker, task, work, shape, each, y, own):
    """``each`` rows of X, in place: X y."""
    (long, short, pitch), first, rows = shape, task * each, own[0] + worker * own[1]
    count = min(each, long - first)
    copy(work, rows, work, first * pitch, count * pitch)
    product(count, short, short, work, rows, pitch, 1, work, y, PANEL, pitch, work, first * pitch, pitch, False)


# The step ---------------------------------------------------------------------------------------------------


@leaf
def _step_span(p, at, o, o_at, size, rate, h):
    ps, os = p[at : at + size], o[o_at : o_at + size]
    for i in range(size):
        ps[i] = _step(ps[i], os[i], rate, h)


@leaf
def _step_rows(worker, task, p, h, row, rate, wide, work, shape, each, own):
    """The step along ``each`` rows of X: rows of p, or columns of a p stored wide."""
    (long, short, pitch), hyper = shape, hyper_of(h[row])
    first, turned = task * each, own[0] + worker * own[1]
    count = min(each, long - first)
    if wide:
        transpose(work, turned, each, work, first * pitch, pitch, count, short)
        for i in range(short):
            _step_span(p, i * long + first, work, turned + i * each, count, rate, hyper)
    else:
        for i in range(first, first + count):
            _step_span(p, i * short, work, i * pitch, short, rate, hyper)


class Layout(NamedTuple):
    """How a matrix lies in the workspace.

    wide      whether p is stored by its short side
    shape     long side, short side, floats from row to row of the tall matrix and of the squares
    each      rows of the tall matrix that a task owns
    parts     tasks that make the average, and as many sums of squares
    squares   where the squares begin, which follow the tall matrix
    sums      where the sums begin
    own       where the threads' own parts begin, and floats of each
    """

    wide: bool
    shape: tuple[int, int, int]
    each: int
    parts: int
    squares: tuple[int, ...]
    sums: int
    own: tuple[int, int]


def _layout(p):
    columns = p.shape[-1]
    rows = p.size // columns
    long, short, wide = max(rows, columns), min(rows, columns), rows < columns
    pitch, each = odd_lines(short), min(MOST_ROWS, max(ROWS, ENOUGH // short**2 // ROWS * ROWS))
    parts = -(-long // (COLUMNS if wide else each))
    squares = tuple((long + i * short) * pitch for i in range(SQUARES))
    sums = (long + SQUARES * short) * pitch
    shared = sums + aligned(max(2 * parts, TILE_ROWS))  # a tile at the end of the last square reads beyond it
    own = shared, aligned(max(BLOCK * BLOCK, each * pitch))
    return Layout(wide, (long, short, pitch), each, parts, squares, sums, own)


@functools.lru_cache
def _orders(squares, long, short, a, b, c, steps):
    """For each span: (orders, shares) of its products, the Gram matrix first, and where what X is multiplied by is."""
    found = []
    for products, total in spans(steps):
        rows = [(squares[0], 0, 0, long, 0, 1, 0, 0)]
        for out, x, y, polynomial in products:
            places = [squares[i] for i in (out, x, y)]
            rows.append((*places, short, squares[0], *((c, b, a) if polynomial else (1, 0, 0))))
        table = np.array(rows)
        found.append((table[:, :5].astype(np.int64), table[:, 5:].astype(np.float32), squares[total]))
    return found


def _sizes(p, *_):
    return _layout(p).own


@sized(_sizes)
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
    Tasks own rows of the tall matrix, or blocks of a symmetric one with their mirror images.
    """
    wide, shape, each, parts, squares, sums, own = _layout(p)
    (long, short, _), blocks = shape, -(-shape[1] // BLOCK)
    work, rows, rate = reserve(threaded(*own)), -(-long // each), np.float32(rate)
    p, m, g = p.reshape(-1), m.reshape(-1), g.reshape(-1)

    def multiply(orders, shares, first, end):
        if short * short * int(orders[first, 3]) < 2 * ENOUGH:
            parallel(_symmetric_products, 1, work, shape, orders, shares, first, end, own)
        else:
            for k in range(first, end):
                parallel(_symmetric_block, blocks * (blocks + 1) // 2, work, shape, orders, shares, k, own)

    if wide:
        parallel(_average_columns, parts, m, g, h, row, work, shape, sums, own)
    else:
        parallel(_average_rows, parts, m, g, h, row, work, shape, each, sums)
    parallel(_invert_norm, 1, work, sums, parts, float(eps))
    parallel(_normalise_rows, rows, work, shape, each, sums)
    for orders, shares, total in _orders(squares, long, short, a, b, c, steps):
        multiply(orders, shares, 0, 1)
        multiply(orders, shares, 1, len(orders))
        parallel(_multiply_rows, rows, work, shape, each, total, own)
    parallel(_step_rows, rows, p, h, row, rate, wide, work, shape, each, own)

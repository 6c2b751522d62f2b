"""Matrices of few columns: a row is no whole number of 32-byte sectors, so a block moves many as one flat span.

Neighbouring threads touch neighbouring numbers, and no sector is moved twice for the rows that share it. Shared memory
turns a span into what a product reads four at a time, and what a product made into a span.
"""

from numba import cuda, uint32

from fastadam.kernels.cuda.jit import device
from fastadam.kernels.cuda.pending import gradient
from fastadam.kernels.cuda.ptx import ZERO, ZERO4, load4, load_at, store4, store4_at

TILE = 64
"""Rows and columns of a block."""

COLUMNS = 16
"""Columns from which on a matrix is not staged."""

STAGED = TILE * COLUMNS
"""Floats of a block's staged rows."""

ONE, TWO, THREE, FOUR, SEVEN = uint32(1), uint32(2), uint32(3), uint32(4), uint32(7)
ROWS, HALF = uint32(TILE), uint32(TILE // 2)


# Rows from memory -------------------------------------------------------------------------------------------


@device
def is_staged(O):
    """Whether rows of O numbers are staged: few, and not to be had four at a time."""
    return O < uint32(COLUMNS) and O & THREE


@device
def _gradient_at(dz, raw, gscale, ga, gb, gact, i, last, O):
    return gradient(dz, raw, gscale, ga, gb, i, uint32(i % O), gact) if i < last else ZERO


@device
def stage_gradient(s, dz, raw, gscale, ga, gb, gact, first, end, O):
    """Rows ``first`` .. of the pending gradient (N, O) to s as they lie: 64 of them, or those before row ``end``.

    first   a multiple of 4
    s       ``STAGED`` floats that nobody reads any more; all threads of the block may read them afterwards
    """
    t, threads = uint32(cuda.threadIdx.x), uint32(cuda.blockDim.x)
    start, stop = uint32(first * O), uint32(first + ROWS)
    last = uint32((stop if stop < end else end) * O)
    i = uint32(start + t * FOUR)
    while i < last:
        if gact or uint32(i + THREE) >= last:
            v0 = _gradient_at(dz, raw, gscale, ga, gb, gact, i, last, O)
            v1 = _gradient_at(dz, raw, gscale, ga, gb, gact, uint32(i + ONE), last, O)
            v2 = _gradient_at(dz, raw, gscale, ga, gb, gact, uint32(i + TWO), last, O)
            v = (v0, v1, v2, _gradient_at(dz, raw, gscale, ga, gb, gact, uint32(i + THREE), last, O))
        else:
            v = load4(dz, i)
        store4(s, uint32(i - start), v)
        i = uint32(i + threads * FOUR)
    cuda.syncthreads()


@device
def staged4(s, row, col, rows, O):
    """Columns col .. col + 3 of a staged row, zeros outside."""
    v = ZERO4
    if row < rows and col < O:
        i = uint32(row * O + col)
        v1 = load_at(s, i, 1) if uint32(col + ONE) < O else ZERO
        v2 = load_at(s, i, 2) if uint32(col + TWO) < O else ZERO
        v3 = load_at(s, i, 3) if uint32(col + THREE) < O else ZERO
        v = (load_at(s, i, 0), v1, v2, v3)
    return v


# A block's tile to memory -----------------------------------------------------------------------------------


@device
def _gather(s, i, pitch, n, N, v):
    """Four rows of the thread's eight columns, n .. n + 3 and n + TILE / 2 .., to s[i ..]: what is inside of N."""
    i2, i3 = uint32(i + pitch), uint32(i + pitch + pitch)
    i4 = uint32(i3 + pitch)
    if n < N:
        store4(s, i, v[0:4])
        store4(s, i2, v[8:12])
        store4(s, i3, v[16:20])
        store4(s, i4, v[24:28])
    if uint32(n + HALF) < N:
        store4_at(s, i, TILE // 2, v[4:8])
        store4_at(s, i2, TILE // 2, v[12:16])
        store4_at(s, i3, TILE // 2, v[20:24])
        store4_at(s, i4, TILE // 2, v[28:32])


@device
def _put_rows(c, s, first, M, N, pitch):
    """Rows ``first`` .. of c (M, N), half a tile or what there is of it, from the rows of s."""
    t, threads = uint32(cuda.threadIdx.x), uint32(cuda.blockDim.x)
    end = uint32(first + HALF)
    i, last = uint32(first * N + t), uint32((end if end < M else M) * N)
    col, over = uint32(t % N), uint32(threads % N)
    at, step = uint32(uint32(t // N) * pitch + col), uint32(uint32(threads // N) * pitch + over)
    while i < last:
        c[i] = s[at]
        i, at, col = uint32(i + threads), uint32(at + step), uint32(col + over)
        if col >= N:
            at, col = uint32(at + pitch - N), uint32(col - N)


@device
def put_narrow(c, s, ty, tx, m0, M, N, acc):
    """The block's tile of 64 rows, from m0 on, into c (M, N) of at most 64 columns.

    s    2 * 8 * (64 + 4) floats: those of the product's own tiles
    Half of the rows at a time. Their pitch, 4 more than a multiple of 8, keeps stores free of bank conflicts.
    """
    pitch, n = uint32(((N + THREE) | SEVEN) - THREE), uint32(tx * uint32(4))
    i = uint32(uint32(ty * uint32(4)) * pitch + n)
    cuda.syncthreads()
    _gather(s, i, pitch, n, N, acc[0:32])
    cuda.syncthreads()
    _put_rows(c, s, m0, M, N, pitch)
    cuda.syncthreads()
    _gather(s, i, pitch, n, N, acc[32:64])
    cuda.syncthreads()
    _put_rows(c, s, uint32(m0 + HALF), M, N, pitch)

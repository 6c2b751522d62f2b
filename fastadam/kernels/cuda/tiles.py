"""What all products of matrices share: who computes what, tiles in shared memory, the inner product, the epilogues.

A block computes BM x BN numbers of C = A B with BM * BN / 64 threads, 8 x 8 numbers each, BK steps of k at a time. Its
tiles of A and B lie in shared memory k-major, ``sa[k * (BM + 4) + m]`` and ``sb[k * (BN + 4) + n]``, twice: one is
multiplied while the other is filled. The 4 keeps 16-byte alignment and makes transposed stores free of bank conflicts.
A thread owns rows ``ty * 4 .. + 3`` and ``BM / 2 + ty * 4 .. + 3``, and columns likewise, so that 16-byte loads of
shared memory are free of conflicts too.

BM and BN are 64 or 128, and constants wherever they are passed: everything is inlined, and folds.

Epilogues work by tiles of lanes (see ``lanes.py``): a block's rows belong to one lane, ``rows`` of them are there,
and its sums go to ``part[at ..]``. They use the product's tiles again, in a fixed order.
"""

from numba import cuda, uint32

from fastadam.kernels.cuda.jit import device
from fastadam.kernels.cuda.pending import finished, finished4
from fastadam.kernels.cuda.ptx import (
    ZERO,
    ZERO4,
    ZERO8,
    add_each,
    load4,
    load4_at,
    load_at,
    multiply_add_each,
    outer_add,
    store4,
    store4_at,
)

BK = 8
"""Steps of k in a tile."""

ONE = uint32(1)
TWO = uint32(2)
THREE = uint32(3)
FOUR = uint32(4)
SIXTEEN = uint32(16)


# Product ----------------------------------------------------------------------------------------------------


@device
def divided(n, d):
    """(n // d, n % d) by one division, of which the hardware has none: a remainder would be a second one."""
    quotient = uint32(n // d)
    return quotient, uint32(n - quotient * d)


@device
def thread_place(t, warps_n):
    """(ty, tx) of thread t; ``warps_n`` warps stand side by side.

    A warp is 4 x 8, so ordered that lanes i, i ^ 1 share columns and i, i ^ 2 rows: a load takes two wavefronts, not
    four.
    """
    lane, warp = t & uint32(31), t >> uint32(5)
    ty = (lane & ONE) + ((lane >> uint32(4)) << ONE) + (warp // warps_n) * FOUR
    tx = ((lane >> ONE) & uint32(7)) + (warp % warps_n) * uint32(8)
    return uint32(ty), uint32(tx)


@device
def fetch4(a, row, col, rows, cols, ld, wide):
    """a[row, col : col + 4], zeros outside. ``wide``, the same for all: ld and cols are multiples of 4."""
    v = ZERO4
    if row < rows and col < cols:
        i = uint32(row * ld + col)
        if wide:
            v = load4(a, i)
        else:
            v1 = a[uint32(i + ONE)] if uint32(col + ONE) < cols else ZERO
            v2 = a[uint32(i + TWO)] if uint32(col + TWO) < cols else ZERO
            v3 = a[uint32(i + THREE)] if uint32(col + THREE) < cols else ZERO
            v = (a[i], v1, v2, v3)
    return v


@device
def multiply_step(acc, sa, sb, ia, ib, half_a, half_b, ka, kb):
    """acc + one column of A times one row of B."""
    a = load4_at(sa, ia, ka) + load4_at(sa, ia, ka + half_a)
    b = load4_at(sb, ib, kb) + load4_at(sb, ib, kb + half_b)
    return outer_add(acc, a, b)


@device
def multiply_tiles(acc, sa, sb, ia, ib, half_a, half_b, pitch_a, pitch_b):
    """acc + A B over BK steps; ia, ib: where the thread's rows and columns begin in the tiles in turn.

    The steps are spelt out: libNVVM would not unroll them, and would then add every address.
    """
    acc = multiply_step(acc, sa, sb, ia, ib, half_a, half_b, 0, 0)
    acc = multiply_step(acc, sa, sb, ia, ib, half_a, half_b, pitch_a, pitch_b)
    acc = multiply_step(acc, sa, sb, ia, ib, half_a, half_b, 2 * pitch_a, 2 * pitch_b)
    acc = multiply_step(acc, sa, sb, ia, ib, half_a, half_b, 3 * pitch_a, 3 * pitch_b)
    acc = multiply_step(acc, sa, sb, ia, ib, half_a, half_b, 4 * pitch_a, 4 * pitch_b)
    acc = multiply_step(acc, sa, sb, ia, ib, half_a, half_b, 5 * pitch_a, 5 * pitch_b)
    acc = multiply_step(acc, sa, sb, ia, ib, half_a, half_b, 6 * pitch_a, 6 * pitch_b)
    return multiply_step(acc, sa, sb, ia, ib, half_a, half_b, 7 * pitch_a, 7 * pitch_b)


# The tile to memory -----------------------------------------------------------------------------------------


@device
def put4(c, row, col, rows, cols, ld, wide, v):
    """c[row, col : col + 4] = v, what is inside of it."""
    if row < rows and col < cols:
        i = uint32(row * ld + col)
        if wide:
            store4(c, i, v)
        else:
            c[i] = v[0]
            if uint32(col + ONE) < cols:
                c[uint32(i + ONE)] = v[1]
            if uint32(col + TWO) < cols:
                c[uint32(i + TWO)] = v[2]
            if uint32(col + THREE) < cols:
                c[uint32(i + THREE)] = v[3]


@device
def put_row(c, m, n, half_n, M, N, wide, v):
    """A row of the thread's: columns n .. n + 3 and n + half_n .. of c (M, N), what is inside of it."""
    if wide:
        if m < M and n < N:
            i = uint32(m * N + n)
            store4(c, i, v[0:4])
            if uint32(n + half_n) < N:
                store4_at(c, i, half_n, v[4:8])
    else:
        put4(c, m, n, M, N, N, False, v[0:4])
        put4(c, m, uint32(n + half_n), M, N, N, False, v[4:8])


@device
def put_tile(c, m, n, half_m, half_n, M, N, wide, acc):
    """The thread's 8 x 8: rows m .. m + 3 and m + half_m .. of c (M, N); rows from M on are left out."""
    put_row(c, m, n, half_n, M, N, wide, acc[0:8])
    put_row(c, uint32(m + ONE), n, half_n, M, N, wide, acc[8:16])
    put_row(c, uint32(m + TWO), n, half_n, M, N, wide, acc[16:24])
    put_row(c, uint32(m + THREE), n, half_n, M, N, wide, acc[24:32])
    m = uint32(m + half_m)
    put_row(c, m, n, half_n, M, N, wide, acc[32:40])
    put_row(c, uint32(m + ONE), n, half_n, M, N, wide, acc[40:48])
    put_row(c, uint32(m + TWO), n, half_n, M, N, wide, acc[48:56])
    put_row(c, uint32(m + THREE), n, half_n, M, N, wide, acc[56:64])


# Sums of a tile's columns -----------------------------------------------------------------------------------


@device
def put_column_sums(part, at, sa, sb, ty, tx, n0, N, BM, BN, first, second):
    """part[at + n] and part[at + N + n]: two sums by column over the block, from each thread's for its columns.

    Odd rows have groups of sixteen columns swapped: a quarter of a warp stores to both, at once.
    """
    t = uint32(cuda.threadIdx.x)
    i = uint32(ty * uint32(BN) + ((tx * FOUR) ^ ((ty & ONE) * SIXTEEN)))
    cuda.syncthreads()
    store4(sa, i, first[0:4])
    store4(sa, uint32(i + uint32(BN // 2)), first[4:8])
    store4(sb, i, second[0:4])
    store4(sb, uint32(i + uint32(BN // 2)), second[4:8])
    cuda.syncthreads()
    if t < uint32(BN) and uint32(n0 + t) < N:
        p = q = ZERO
        i, j = t, uint32(t ^ SIXTEEN)
        for _ in range(BM // 32):
            p = p + load_at(sa, i, 0) + load_at(sa, j, BN) + load_at(sa, i, 2 * BN) + load_at(sa, j, 3 * BN)
            q = q + load_at(sb, i, 0) + load_at(sb, j, BN) + load_at(sb, i, 2 * BN) + load_at(sb, j, 3 * BN)
            i, j = uint32(i + uint32(4 * BN)), uint32(j + uint32(4 * BN))
        to = uint32(at + n0 + t)
        part[to] = p
        part[uint32(to + N)] = q


@device
def _minus8(v):
    """-v, element by element."""
    return -v[0], -v[1], -v[2], -v[3], -v[4], -v[5], -v[6], -v[7]


@device
def _add_moments(first, second, minus, m, rows, v):
    if m < rows:
        d = add_each(v, minus)
        first, second = add_each(first, d), multiply_add_each(second, d, d)
    return first, second


@device
def put_tile_moments(part, at, sa, sb, ty, tx, rows, n0, N, wide, BM, BN, acc):
    """part[at ..] (3, N): the tile's first row k, sums of y - k and of (y - k)**2 over its ``rows`` rows.

    ``n0``: the tile's first column of N. ``wide``: N is a multiple of 4, and ``at`` too.
    """
    n = uint32(tx * FOUR)
    cuda.syncthreads()
    if ty == uint32(0):
        put_row(part, uint32(0), uint32(at + n0 + n), uint32(BN // 2), ONE, uint32(at + N), wide, acc[0:8])
        store4(sa, n, acc[0:4])
        store4(sa, uint32(n + uint32(BN // 2)), acc[4:8])
    cuda.syncthreads()
    k = _minus8(load4(sa, n) + load4(sa, uint32(n + uint32(BN // 2))))
    m, s, q = uint32(ty * FOUR), ZERO8, ZERO8
    s, q = _add_moments(s, q, k, m, rows, acc[0:8])
    s, q = _add_moments(s, q, k, uint32(m + ONE), rows, acc[8:16])
    s, q = _add_moments(s, q, k, uint32(m + TWO), rows, acc[16:24])
    s, q = _add_moments(s, q, k, uint32(m + THREE), rows, acc[24:32])
    m = uint32(m + uint32(BM // 2))
    s, q = _add_moments(s, q, k, m, rows, acc[32:40])
    s, q = _add_moments(s, q, k, uint32(m + ONE), rows, acc[40:48])
    s, q = _add_moments(s, q, k, uint32(m + TWO), rows, acc[48:56])
    s, q = _add_moments(s, q, k, uint32(m + THREE), rows, acc[56:64])
    put_column_sums(part, uint32(at + N), sa, sb, ty, tx, n0, N, BM, BN, s, q)


# The tail of a backward -------------------------------------------------------------------------------------
# ``tail`` is (x, scale, shift, base, of, centre), ``options`` (act, has_base, has_of): fewer words for numba to type.


@device
def _finish1(dx, tail, options, i, c, C, d):
    v = ZERO
    if c < C:
        x, scale, shift, base, _, _ = tail
        v = finished(d, x, scale, shift, base, i, c, options[0], options[1])
        dx[i] = v
    return v


@device
def finish4(dx, tail, options, row, c, C, wide, d):
    """The tail of ``d`` at a row, channels c .. c + 3, into dx; returns what was written, zeros beyond C."""
    v = ZERO4
    if c < C:
        i = uint32(row * C + c)
        if wide:
            x, scale, shift, base, _, _ = tail
            v = finished4(d, x, scale, shift, base, i, c, options[0], options[1])
            store4(dx, i, v)
        else:
            v1 = _finish1(dx, tail, options, uint32(i + ONE), uint32(c + ONE), C, d[1])
            v2 = _finish1(dx, tail, options, uint32(i + TWO), uint32(c + TWO), C, d[2])
            v3 = _finish1(dx, tail, options, uint32(i + THREE), uint32(c + THREE), C, d[3])
            v = (_finish1(dx, tail, options, i, c, C, d[0]), v1, v2, v3)
    return v


@device
def minus_centre(tail, options, c, C, wide):
    """-centre[c : c + 4], if that is wanted."""
    v = ZERO4
    if options[2]:
        v = fetch4(tail[5], uint32(0), c, ONE, C, C, wide)
    return -v[0], -v[1], -v[2], -v[3]


@device
def finish_terms(s, q, minus, dx, tail, options, row, c, C, wide, d):
    """``finish4``, and its terms of both sums; ``minus`` is -centre."""
    v = finish4(dx, tail, options, row, c, C, wide, d)
    s = add_each(s, v)
    if options[2]:
        q = multiply_add_each(q, v, add_each(fetch4(tail[4], row, c, uint32(row + ONE), C, C, wide), minus))
    return s, q


@device
def finish_pixel(s, q, minus, dx, tail, options, row, n, half_n, C, wide, d):
    """The tail of the thread's columns of a row, and its terms of both sums; ``minus`` is -centre."""
    s0, q0 = finish_terms(s[0:4], q[0:4], minus[0:4], dx, tail, options, row, n, C, wide, d[0:4])
    n = uint32(n + half_n)
    s1, q1 = finish_terms(s[4:8], q[4:8], minus[4:8], dx, tail, options, row, n, C, wide, d[4:8])
    return s0 + s1, q0 + q1

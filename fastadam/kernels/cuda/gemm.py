"""float32 products C (M, N) = A B of row-major operands: the layouts of a linear layer, in batches, in shares of k.

    y (N, O)  = x (N, I) w (O, I).T    NT: rows of both run along k
    dx (N, I) = d (N, O) w (O, I)      NN: rows of A run along k, those of B are k
    dw (O, I) = d (N, O).T x (N, I)    TN: rows of both are k

An operand whose rows are k is copied into shared memory as it lies, another is transposed on the way. What a tile is
fetched from is a function and its arguments: a plain matrix (``plain``), or one that is computed while it is read.
"""

from numba import cuda, float32, uint32

from fastadam.kernels.cuda.choose import SMS
from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.lanes import lane_start
from fastadam.kernels.cuda.launch import Launch, blocks_of
from fastadam.kernels.cuda.mma import (
    FLOAT32,
    column_place,
    multiply,
    pitch_of,
    rows_of,
    starts_of,
    stash_column,
    stash_rows,
)
from fastadam.kernels.cuda.ptx import ZERO4, ZERO64
from fastadam.kernels.cuda.tiles import BK, fetch4, put_tile, thread_place

BLOCKS_PER_SM = {64: 6, 128: 3, 256: 2}
"""By threads of a block: 170, 170 and 128 registers a thread, without spills."""


@device
def plain(operand, row, col, rows, cols):
    """Four numbers of a matrix; ``operand``: the array, its row length, whether that is a multiple of 4."""
    a, ld, wide = operand
    return fetch4(a, row, col, rows, cols, ld, wide)


@device
def fetch(load, operand, first, step, r, c, size, k_end, k_major):
    """Four numbers of a tile: ``first`` its first row or column of the operand, ``step`` its first k."""
    if k_major:
        return load(operand, uint32(step + r), uint32(first + c), k_end, size)
    return load(operand, uint32(first + r), uint32(step + c), size, k_end)


@device
def _place(t, size, twice, k_major, bf16):
    """What thread t stages of a tile: two rows, the column in both, and where that of the first goes to."""
    if k_major:
        r, r2, c, to = rows_of(t, size, twice, bf16)
    else:
        r, c = uint32(t >> uint32(1)), uint32((t & uint32(1)) * uint32(4))
        r2, to = uint32(r + uint32(size // 2)), column_place(c, r, pitch_of(size, bf16), bf16)
    return r, r2, c, to


@device
def _stash(s, i, v, v2, size, twice, k_major, bf16):
    pitch = pitch_of(size, bf16)
    if k_major:
        stash_rows(s, i, pitch, v, v2, twice, bf16)
    else:
        stash_column(s, i, pitch, v, bf16)
        if twice:
            stash_column(s, uint32(i + uint32(size // 2)), pitch, v2, bf16)


@device
def product(acc, sa, sb, load_a, a, load_b, b, m0, n0, M, N, k, k_end, BM, BN, a_k_major, b_k_major, bf16):
    """acc + the thread's 8 x 8 of A B, k .. k_end, rows from m0 and columns from n0 on; k is a multiple of 4.

    ``sa``, ``sb``: shared memory of two tiles each. BM, BN, the layouts and ``bf16``, see ``mma.py``, are
    constants: all of it folds.
    """
    threads = BM * BN // 64
    a_twice, b_twice = BM * BK // 4 > threads, BN * BK // 4 > threads  # a thread fetches 16 bytes of a tile, or twice
    size_a, size_b = uint32(BK * pitch_of(BM, bf16)), uint32(BK * pitch_of(BN, bf16))
    t = uint32(cuda.threadIdx.x)
    first_a, first_b = starts_of(t, BM, BN, bf16)
    ra, ra2, ca, to_a = _place(t, BM, a_twice, a_k_major, bf16)
    rb, rb2, cb, to_b = _place(t, BN, b_twice, b_k_major, bf16)
    stage = uint32(0)
    va = vb = va2 = vb2 = ZERO4
    if k < k_end:
        va = fetch(load_a, a, m0, k, ra, ca, M, k_end, a_k_major)
        vb = fetch(load_b, b, n0, k, rb, cb, N, k_end, b_k_major)
        if a_twice:
            va2 = fetch(load_a, a, m0, k, ra2, ca, M, k_end, a_k_major)
        if b_twice:
            vb2 = fetch(load_b, b, n0, k, rb2, cb, N, k_end, b_k_major)
    while k < k_end:
        ia, ib = uint32(stage * size_a), uint32(stage * size_b)
        _stash(sa, uint32(ia + to_a), va, va2, BM, a_twice, a_k_major, bf16)
        _stash(sb, uint32(ib + to_b), vb, vb2, BN, b_twice, b_k_major, bf16)
        cuda.syncthreads()  # one a tile: whoever fills the other tile next has passed here after using it
        k = uint32(k + uint32(BK))
        if k < k_end:  # the next tile travels while this one is multiplied
            va = fetch(load_a, a, m0, k, ra, ca, M, k_end, a_k_major)
            vb = fetch(load_b, b, n0, k, rb, cb, N, k_end, b_k_major)
            if a_twice:
                va2 = fetch(load_a, a, m0, k, ra2, ca, M, k_end, a_k_major)
            if b_twice:
                vb2 = fetch(load_b, b, n0, k, rb2, cb, N, k_end, b_k_major)
        acc = multiply(acc, sa, sb, uint32(ia + first_a), uint32(ib + first_b), BM, BN, bf16)
        stage ^= uint32(1)
    return acc


@device
def share_of(lane, lanes, samples, pixels, K):
    """(first, end) of a lane's k, where k counts the pixels of samples."""
    end = lane_start(uint32(lane + uint32(1)), lanes, samples, pixels)
    return lane_start(lane, lanes, samples, pixels), min(K, end)


@device
def put_block(c, ty, tx, m0, n0, M, N, BM, BN, acc):
    """The block's tile into c (M, N)."""
    wide = N & uint32(3) == uint32(0)
    m, n = uint32(m0 + ty * uint32(4)), uint32(n0 + tx * uint32(4))
    put_tile(c, m, n, uint32(BM // 2), uint32(BN // 2), M, N, wide, acc)


def make_gemm(BM, BN, a_k_major, b_k_major):
    """The kernel of one tile size and layout: c (lanes, batch, M, N) of plain a (batch, M, K) or (batch, K, M) and b.

    A lane has a share of k, see ``gemm_launch``; grid z has all lanes of all products.
    """
    threads = BM * BN // 64
    size_a, size_b = 2 * BK * (BM + 4), 2 * BK * (BN + 4)

    @kernel(threads, BLOCKS_PER_SM[threads])
    def gemm(c, a, b, M, N, K, batch, lanes, samples, pixels):
        sa = cuda.shared.array(size_a, float32, alignment=16)
        sb = cuda.shared.array(size_b, float32, alignment=16)
        z = uint32(cuda.blockIdx.z)
        lane, which = uint32(z // batch), uint32(z % batch)
        m0, n0 = uint32(cuda.blockIdx.x * BM), uint32(cuda.blockIdx.y * BN)
        k, k_end = share_of(lane, lanes, samples, pixels, K)
        lda, ldb = M if a_k_major else K, N if b_k_major else K
        one = a[uint32(which * uint32(M * K)) :], lda, lda & uint32(3) == uint32(0)
        other = b[uint32(which * uint32(N * K)) :], ldb, ldb & uint32(3) == uint32(0)
        acc = product(
            ZERO64, sa, sb, plain, one, plain, other, m0, n0, M, N, k, k_end, BM, BN, a_k_major, b_k_major, FLOAT32
        )
        ty, tx = thread_place(uint32(cuda.threadIdx.x), uint32(BN // 64))
        put_block(c[uint32(z * uint32(M * N)) :], ty, tx, m0, n0, M, N, BM, BN, acc)

    return gemm


SPEED = {(128, 128): 0.82, (128, 64): 0.77, (64, 64): 0.66}
"""Tiles, and what part of a multiprocessor's instructions multiply; small ones wait for memory more often."""

LAYOUTS = (False, False), (False, True), (True, True)

NT, NN, TN = ({tile: make_gemm(*tile, *k_major) for tile in SPEED} for k_major in LAYOUTS)
"""Kernels by tile; those that run are compiled."""


def tile_of(M, N, batch=1):
    """The tile for so many products: the least time of the multiprocessor that has the most blocks."""

    def time(tile):
        blocks = blocks_of(M, tile[0]) * blocks_of(N, tile[1]) * batch
        return blocks_of(blocks, SMS) * tile[0] * tile[1] / SPEED[tile]

    return min(SPEED, key=time)


def gemm_launch(kernels, c, a, b, M, N, K, batch=1, lanes=1, samples=0, pixels=BK):
    """The launch of plain products; ``kernels``: NT, NN or TN.

    With lanes K is ``samples * pixels`` and c (lanes, batch, M, N) has a product for the share of each lane of
    samples; rows that run along k need ``pixels`` that are a multiple of 4.
    """
    BM, BN = tile = tile_of(M, N, batch * lanes)
    grid = blocks_of(M, BM), blocks_of(N, BN), batch * lanes
    samples = samples or blocks_of(K, pixels)
    return Launch(kernels[tile], grid, (c, a, b, M, N, K, batch, lanes, samples, pixels))


DEPTH, WORTH = 64, 256
"""Steps of k that a part has at least, and that k has where a launch that adds parts would do nothing else."""


def parts_of(blocks, K, alone):
    """Parts that k is cut into, so that a product of few blocks has some for every multiprocessor."""
    if alone and K < WORTH:
        return 1
    return max(1, min(2 * SMS // blocks, K // DEPTH))

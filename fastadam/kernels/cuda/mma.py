"""Products on tensor cores: operands rounded to TF32 or bfloat16, float32 sums. Compute capability 8.0 and up.

``product`` stands in for ``gemm.product`` and its sums for those of ``tiles.py``, given ``mma_place`` for
``thread_place``: as many threads, the same rows and columns a thread, no more shared memory, the same epilogues. For
that a warp's 64 x 32 is 32 + 32 rows and 16 + 16 columns of either half of the tile, and the sixteen rows and eight
columns of each of the tensor core's products are so chosen that a thread gets quads.

Shared memory has words of 32 bits: a TF32 number, or two bfloat16 that follow each other along k. Eight words of a
row, a tile's depth, lie side by side, the rows in the order in which warps read them, quads of every other four rows
swapped: neither fragments nor stores, straight or transposed, have bank conflicts.

Numba's simulator has no tensor cores: there the float32 kernels are tested.
"""

from numba import cuda, float32, uint32

from fastadam.kernels.cuda.gemm import BLOCKS_PER_SM, LAYOUTS, SPEED, fetch, plain, put_block, share_of
from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.ptx import ZERO4, ZERO64, load_at, mma_bf16, mma_tf32, pack_bf16, store4, to_tf32
from fastadam.kernels.cuda.tiles import BK

WORDS = 8
"""Words of k in a tile."""

ONE, TWO, THREE, FOUR, FIVE, SEVEN = uint32(1), uint32(2), uint32(3), uint32(4), uint32(5), uint32(7)
SIX, EIGHT, SIXTEEN = uint32(6), uint32(8), uint32(16)


@device
def mma_place(t, warps_n):
    """(ty, tx) of thread t as ``thread_place`` has them; ``warps_n``, BN / 32, warps stand side by side."""
    lane, warp = uint32(t & uint32(31)), uint32(t >> FIVE)
    ty = uint32(warp // warps_n) * EIGHT + (lane >> TWO)
    tx = uint32(warp % warps_n) * FOUR + (lane & THREE)
    return uint32(ty), uint32(tx)


# From memory to shared memory -------------------------------------------------------------------------------
# Place p of A has row (g, low) of a half: p = warp * 64 + half * 32 + low * 8 + g, the row is warp * 32 + g * 4 + low.
# Place p of B has column (m, low): p = warp * 32 + half * 16 + low // 2 * 8 + (m * 2 + low % 2 ^ warp % 2), the column
# is warp * 16 + m * 4 + low.


@device
def _line_of(p, half, is_a):
    """The row of A, or column of B, at a place; ``half`` of them are in the first half."""
    if is_a:
        return uint32(
            ((p >> FIVE) & ONE) * half + (p >> SIX) * uint32(32) + (p & SEVEN) * FOUR + ((p >> THREE) & THREE)
        )
    n = (p & SEVEN) ^ ((p >> FIVE) & ONE)
    low = ((p >> THREE) & ONE) * TWO + (n & ONE)
    return uint32(((p >> FOUR) & ONE) * half + (p >> FIVE) * SIXTEEN + (n >> ONE) * FOUR + low)


@device
def _word(p, quad):
    """Where the first word of a quad of place p lies."""
    return uint32(p * EIGHT + ((quad ^ ((p >> TWO) & ONE)) << TWO))


@device
def _place(t, again, threads, size, k_major, is_a, numbers):
    """What thread t fetches of a tile, first or ``again``: row, column, and the word that it goes to.

    ``numbers``: bfloat16 in a word, else 1. Rows along k: a quad of words of one place. Rows that are k: a word of
    four places; a warp has four words of k of 32 rows.
    """
    if k_major:
        chunk, lane = uint32((t >> FIVE) + again * uint32(threads // 32)), uint32(t & uint32(31))
        g, quad, block = uint32(lane & SEVEN), uint32(chunk & ONE), uint32(chunk >> ONE)
        half, warp = uint32(block // uint32(size // 64)), uint32(block % uint32(size // 64))
        if is_a:
            p = uint32(warp * uint32(64) + half * uint32(32) + g)
        else:
            odd = uint32(g >> TWO)
            p = uint32((warp * TWO + odd) * uint32(32) + half * SIXTEEN + (g & THREE) * TWO + odd)
        k = uint32(quad * FOUR + (lane >> THREE))
        return uint32(k * uint32(numbers)), uint32(block * uint32(32) + g * FOUR), uint32(_word(p, quad) + (k & THREE))
    p, quad = uint32((t >> ONE) + again * uint32(threads // 2)), uint32(t & ONE)
    return _line_of(p, uint32(size // 2), is_a), uint32(quad * uint32(4 * numbers)), _word(p, quad)


@device
def _words(v, u, k_major, bf16):
    """What is stashed of a fetch: v, or v and what follows it along k, u."""
    if not bf16:
        return to_tf32(v[0]), to_tf32(v[1]), to_tf32(v[2]), to_tf32(v[3])
    if k_major:
        return pack_bf16(v[0], u[0]), pack_bf16(v[1], u[1]), pack_bf16(v[2], u[2]), pack_bf16(v[3], u[3])
    return pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(u[0], u[1]), pack_bf16(u[2], u[3])


@device
def _stash(s, i, v, t, k_major, is_a):
    if k_major:
        if is_a:
            next1, next2 = uint32(64), uint32(128)
        else:
            next1, next2 = uint32(EIGHT - ((t >> TWO) & ONE) * SIXTEEN), uint32(64)  # 8, or -8 in an odd warp's place
        s[i] = v[0]
        s[uint32(i + next1)] = v[1]
        s[uint32(i + next2)] = v[2]
        s[uint32(i + next1 + next2)] = v[3]
    else:
        store4(s, i, v)


# The product ------------------------------------------------------------------------------------------------


@device
def _a_fragment(s, i0, i1, at):
    """16 x 8 words of A; i0, i1: the thread's word in both quads."""
    return load_at(s, i0, at), load_at(s, i0, at + 64), load_at(s, i1, at), load_at(s, i1, at + 64)


@device
def _b_fragment(s, i0, i1, at):
    """8 words x 8 of B."""
    return load_at(s, i0, at), load_at(s, i1, at)


@device
def _multiply(acc, sa, sb, a0, a1, b0, b1, bf16):
    """acc + A B over a tile: 4 x 4 products of fragments."""
    a = _a_fragment(sa, a0, a1, 0) + _a_fragment(sa, a0, a1, 128)
    a = a + (_a_fragment(sa, a0, a1, 256) + _a_fragment(sa, a0, a1, 384))
    b = _b_fragment(sb, b0, b1, 0) + _b_fragment(sb, b0, b1, 64)
    b = b + (_b_fragment(sb, b0, b1, 128) + _b_fragment(sb, b0, b1, 192))
    if bf16:
        return mma_bf16(acc, a, b)
    return mma_tf32(acc, a, b)


@device
def _fetch(load, operand, first, k, place, size, k_end, k_major, bf16):
    """(v, u) of a place of a tile."""
    v, u = fetch(load, operand, first, k, place[0], place[1], size, k_end, k_major), ZERO4
    if bf16:
        following = uint32(k + (ONE if k_major else FOUR))
        u = fetch(load, operand, first, following, place[0], place[1], size, k_end, k_major)
    return v, u


@device
def product(sa, sb, load_a, a, load_b, b, m0, n0, M, N, k, k_end, BM, BN, a_k_major, b_k_major, bf16):
    """The thread's 8 x 8 of A B, as ``gemm.product``; ``bf16``, a constant: bfloat16 instead of TF32."""
    threads, numbers = BM * BN // 64, 2 if bf16 else 1
    a_twice, b_twice = BM * WORDS // 4 > threads, BN * WORDS // 4 > threads
    t = uint32(cuda.threadIdx.x)
    pa = _place(t, uint32(0), threads, BM, a_k_major, True, numbers)
    pb = _place(t, uint32(0), threads, BN, b_k_major, False, numbers)
    pa2 = _place(t, ONE, threads, BM, a_k_major, True, numbers)
    pb2 = _place(t, ONE, threads, BN, b_k_major, False, numbers)
    # fragments: the thread's words of the warp's first product
    lane, warp = uint32(t & uint32(31)), uint32(t >> FIVE)
    down, across = uint32(warp // uint32(BN // 32)), uint32(warp % uint32(BN // 32))
    g, member = uint32(lane >> TWO), uint32(lane & THREE)
    row, column = uint32(down * uint32(64) + g), uint32(across * uint32(32) + (g ^ (across & ONE)))
    a0, a1 = uint32(_word(row, uint32(0)) + member), uint32(_word(row, ONE) + member)
    b0, b1 = uint32(_word(column, uint32(0)) + member), uint32(_word(column, ONE) + member)
    acc, stage = ZERO64, uint32(0)
    va = ua = vb = ub = va2 = ua2 = vb2 = ub2 = ZERO4
    if k < k_end:
        va, ua = _fetch(load_a, a, m0, k, pa, M, k_end, a_k_major, bf16)
        vb, ub = _fetch(load_b, b, n0, k, pb, N, k_end, b_k_major, bf16)
        if a_twice:
            va2, ua2 = _fetch(load_a, a, m0, k, pa2, M, k_end, a_k_major, bf16)
        if b_twice:
            vb2, ub2 = _fetch(load_b, b, n0, k, pb2, N, k_end, b_k_major, bf16)
    while k < k_end:
        ia, ib = uint32(stage * uint32(BM * WORDS)), uint32(stage * uint32(BN * WORDS))
        _stash(sa, uint32(ia + pa[2]), _words(va, ua, a_k_major, bf16), t, a_k_major, True)
        _stash(sb, uint32(ib + pb[2]), _words(vb, ub, b_k_major, bf16), t, b_k_major, False)
        if a_twice:
            _stash(sa, uint32(ia + pa2[2]), _words(va2, ua2, a_k_major, bf16), t, a_k_major, True)
        if b_twice:
            _stash(sb, uint32(ib + pb2[2]), _words(vb2, ub2, b_k_major, bf16), t, b_k_major, False)
        cuda.syncthreads()
        k = uint32(k + uint32(WORDS * numbers))
        if k < k_end:  # the next tile travels while this one is multiplied
            va, ua = _fetch(load_a, a, m0, k, pa, M, k_end, a_k_major, bf16)
            vb, ub = _fetch(load_b, b, n0, k, pb, N, k_end, b_k_major, bf16)
            if a_twice:
                va2, ua2 = _fetch(load_a, a, m0, k, pa2, M, k_end, a_k_major, bf16)
            if b_twice:
                vb2, ub2 = _fetch(load_b, b, n0, k, pb2, N, k_end, b_k_major, bf16)
        acc = _multiply(
            acc, sa, sb, uint32(ia + a0), uint32(ia + a1), uint32(ib + b0), uint32(ib + b1), bf16
        )  # fmt: skip
        stage ^= ONE
    return acc


def make_gemm(BM, BN, a_k_major, b_k_major, bf16):
    """The kernel of one tile size, layout and precision, as ``gemm.make_gemm`` makes them."""
    threads = BM * BN // 64
    size_a, size_b = 2 * BK * (BM + 4), 2 * BK * (BN + 4)  # as the epilogues of tiles.py want them

    @kernel(threads, BLOCKS_PER_SM[threads])
    def mma_gemm(c, a, b, M, N, K, batch, lanes, samples, pixels):
        sa = cuda.shared.array(size_a, float32, alignment=16)
        sb = cuda.shared.array(size_b, float32, alignment=16)
        z = uint32(cuda.blockIdx.z)
        lane, which = uint32(z // batch), uint32(z % batch)
        m0, n0 = uint32(cuda.blockIdx.x * BM), uint32(cuda.blockIdx.y * BN)
        k, k_end = share_of(lane, lanes, samples, pixels, K)
        lda, ldb = M if a_k_major else K, N if b_k_major else K
        one = a[uint32(which * uint32(M * K)) :], lda, lda & THREE == uint32(0)
        other = b[uint32(which * uint32(N * K)) :], ldb, ldb & THREE == uint32(0)
        acc = product(sa, sb, plain, one, plain, other, m0, n0, M, N, k, k_end, BM, BN, a_k_major, b_k_major, bf16)
        ty, tx = mma_place(uint32(cuda.threadIdx.x), uint32(BN // 32))
        put_block(c[uint32(z * uint32(M * N)) :], ty, tx, m0, n0, M, N, BM, BN, acc)

    return mma_gemm


def _kernels(a_k_major, b_k_major, bf16):
    return {tile: make_gemm(*tile, a_k_major, b_k_major, bf16) for tile in SPEED}


NT_TF32, NN_TF32, TN_TF32 = (_kernels(*k_major, False) for k_major in LAYOUTS)
NT_BF16, NN_BF16, TN_BF16 = (_kernels(*k_major, True) for k_major in LAYOUTS)
"""As ``gemm.NT``: for ``gemm.gemm_launch``."""

"""The product of tiles in shared memory, in float32 or on tensor cores.

``bf16``, an argument of all of it, is None for float32 products, False for operands rounded to TF32 and True for
bfloat16, with float32 sums. Branches on None are pruned before typing, those on a constant fold: float32 kernels are
as if there were no others. Tensor cores need compute capability 8.0.

TF32 tiles lie as those of float32, see ``tiles.py``, rounded when they are stored. Words of bfloat16 are two numbers
that follow each other along k, and rows of a tile are pairs of rows of k; a pitch of 8 more than the size frees both
loads and transposed stores of bank conflicts.

A warp has 64 x 32 of a block's sums, 32 + 32 rows and 16 + 16 columns of either half, and a thread quads of rows and
columns as for float32: epilogues are the same. A product of tensor cores takes sixteen rows, eight columns and eight
steps of k, in any order that all agree on; a thread's are so chosen that it loads 16 bytes of A, 8 bytes of B, free
of bank conflicts.
"""

from numba import cuda, uint32

from fastadam.kernels.cuda.jit import device
from fastadam.kernels.cuda.ptx import kept, load4_at, store4, store4_at, store_at
from fastadam.kernels.cuda.tensor import load2_at, mma_bf16, mma_tf32, pack_bf16, store2, to_tf32
from fastadam.kernels.cuda.tiles import multiply_tiles, thread_place

FLOAT32, TF32, BF16 = None, False, True
PRECISIONS = {"float32": FLOAT32, "tf32": TF32, "bf16": BF16}

ONE, TWO, THREE, FOUR, FIVE = uint32(1), uint32(2), uint32(3), uint32(4), uint32(5)
EIGHT, SIXTEEN, LANES = uint32(8), uint32(16), uint32(31)
EVERYONE = 0xFFFFFFFF


@device
def pitch_of(size, bf16):
    """Words from a row of a tile to the next."""
    return size + 8 if bf16 else size + 4


# Who has what -----------------------------------------------------------------------------------------------


@device
def place_of(t, BN, bf16):
    """(ty, tx) of thread t: its rows ``ty * 4 ..`` and columns ``tx * 4 ..`` of either half of the block's sums."""
    if bf16 is None:
        ty, tx = thread_place(t, uint32(BN // 64))
    else:
        lane, warp = uint32(t & LANES), uint32(t >> FIVE)
        ty = uint32(uint32(warp // uint32(BN // 32)) * EIGHT + (lane >> TWO))
        tx = uint32(uint32(warp % uint32(BN // 32)) * FOUR + (lane & THREE))
    return ty, tx


@device
def starts_of(t, BM, BN, bf16):
    """Where thread t begins to read tiles of A and of B, as ``multiply`` wants it."""
    ty, tx = place_of(t, BN, bf16)
    if bf16 is None:
        a, b = uint32(ty * FOUR), uint32(tx * FOUR)
    else:
        # of k the thread has row ``member`` of pairs, or both rows; of B columns 2 g and 2 g + 1 of sixteen
        lane, across = uint32(t & LANES), uint32(uint32(t >> FIVE) % uint32(BN // 32))
        member, g = uint32(lane & THREE), uint32(lane >> TWO)
        row = member if bf16 else uint32(member * TWO)
        a = uint32(row * uint32(pitch_of(BM, bf16)) + ty * FOUR)
        b = uint32(row * uint32(pitch_of(BN, bf16)) + across * SIXTEEN + g * TWO)
    return kept(a), kept(b)


# Tiles to shared memory -------------------------------------------------------------------------------------


@device
def column_place(k, m, pitch, bf16):
    """Where ``stash_column`` puts four values of column m from k on."""
    return uint32((uint32(k >> ONE) if bf16 else k) * uint32(pitch) + m)


@device
def stash_column(s, i, pitch, v, bf16):
    """Four values along k into a column of a tile."""
    if bf16 is None:
        store_at(s, i, 0, v[0])
        store_at(s, i, pitch, v[1])
        store_at(s, i, 2 * pitch, v[2])
        store_at(s, i, 3 * pitch, v[3])
    elif bf16:
        store_at(s, i, 0, pack_bf16(v[0], v[1]))
        store_at(s, i, pitch, pack_bf16(v[2], v[3]))
    else:
        store_at(s, i, 0, to_tf32(v[0]))
        store_at(s, i, pitch, to_tf32(v[1]))
        store_at(s, i, 2 * pitch, to_tf32(v[2]))
        store_at(s, i, 3 * pitch, to_tf32(v[3]))


@device
def rows_of(t, size, twice, bf16):
    """(row, second row, column, where to) of what thread t stages of rows of k: four columns of one row, or of two.

    ``twice``: there are as many threads as columns, else twice as many. Half a warp has a row, the other the next:
    with bfloat16 the two make up words of pairs.
    """
    pitch = uint32(pitch_of(size, bf16))
    if twice:
        r, c = uint32(t // uint32(size // 4)), uint32(t % uint32(size // 4) * FOUR)
        to = uint32(r * pitch + c)
        if bf16:
            first, second = uint32(r * TWO), uint32(r * TWO + ONE)
        else:
            first, second = r, uint32(r + FOUR)
    else:
        half, across = uint32(t >> FOUR), uint32(size // 64)
        first = uint32(uint32(uint32(half >> ONE) // across) * TWO + (half & ONE))
        c = uint32(uint32(uint32(half >> ONE) % across) * uint32(64) + (t & uint32(15)) * FOUR)
        second = first
        to = uint32((uint32(first >> ONE) if bf16 else first) * pitch + c)
    return first, second, c, to


@device
def _rounded(v):
    return to_tf32(v[0]), to_tf32(v[1]), to_tf32(v[2]), to_tf32(v[3])


@device
def _pairs(v):
    """(where to, two words) of a row's four columns: the other half of the warp has the next row's, each packs two."""
    odd = uint32(cuda.threadIdx.x) & SIXTEEN
    u0 = cuda.shfl_xor_sync(EVERYONE, v[0] if odd else v[2], 16)
    u1 = cuda.shfl_xor_sync(EVERYONE, v[1] if odd else v[3], 16)
    if odd:
        words = pack_bf16(u0, v[2]), pack_bf16(u1, v[3])
    else:
        words = pack_bf16(v[0], u0), pack_bf16(v[1], u1)
    return uint32(odd >> THREE), words


@device
def stash_row(s, i, v, there, bf16):
    """Four columns of a row that ``rows_of`` names, if ``there``: all of a warp call it, since halves exchange some."""
    if bf16 is None:
        if there:
            store4(s, i, v)
    elif bf16:
        to, words = _pairs(v)
        if there:
            store2(s, uint32(i + to), words)
    elif there:
        store4(s, i, _rounded(v))


@device
def stash_rows(s, i, pitch, v, u, twice, bf16):
    """What ``rows_of`` names: v and, if ``twice``, u of the second row."""
    if not twice:
        stash_row(s, i, v, True, bf16)
    elif bf16:
        store4(s, i, (pack_bf16(v[0], u[0]), pack_bf16(v[1], u[1]), pack_bf16(v[2], u[2]), pack_bf16(v[3], u[3])))
    else:
        if bf16 is not None:
            v, u = _rounded(v), _rounded(u)
        store4(s, i, v)
        store4_at(s, i, 4 * pitch, u)


# The product ------------------------------------------------------------------------------------------------


@device
def _multiply_fragments(acc, sa, sb, ia, ib, half_a, half_b, pitch_a, pitch_b, bf16):
    a = load4_at(sa, ia, 0) + load4_at(sa, ia, half_a)
    b = load2_at(sb, ib, 0) + load2_at(sb, ib, half_b)
    if bf16:
        acc = mma_bf16(acc, a, b)
    else:
        a2 = load4_at(sa, ia, pitch_a) + load4_at(sa, ia, pitch_a + half_a)
        b2 = load2_at(sb, ib, pitch_b) + load2_at(sb, ib, pitch_b + half_b)
        acc = mma_tf32(acc, a + a2, b + b2)
    return acc


@device
def multiply(acc, sa, sb, ia, ib, BM, BN, bf16):
    """acc + A B over eight steps of k; ia, ib: ``starts_of`` in the tiles in turn."""
    pitch_a, pitch_b = pitch_of(BM, bf16), pitch_of(BN, bf16)
    if bf16 is None:
        acc = multiply_tiles(acc, sa, sb, ia, ib, BM // 2, BN // 2, pitch_a, pitch_b)
    else:
        acc = _multiply_fragments(acc, sa, sb, ia, ib, BM // 2, BN // 2, pitch_a, pitch_b, bf16)
    return acc

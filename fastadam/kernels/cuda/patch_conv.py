"""Convolutions by patches, see ``patches.py``: y and dx. A block owns patches of pixels and BN channels."""

from numba import cuda, float32, uint32

from fastadam.kernels.cuda import choose
from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.lanes import add_launch, join_launch, tile_place, tiles_of
from fastadam.kernels.cuda.launch import Launch, Scratch
from fastadam.kernels.cuda.mma import FLOAT32, PRECISIONS, place_of
from fastadam.kernels.cuda.patches import FOUR, NOUGHT, PATCH, TWO, column_of, patch_product, shared_sizes
from fastadam.kernels.cuda.ptx import ZERO4
from fastadam.kernels.cuda.tiles import finish_terms, minus_centre, put_column_sums, put_row, put_tile_moments

TENSOR = [bf16 for bf16 in PRECISIONS.values() if bf16 is not FLOAT32]


@device
def _place(BM, lanes, tiles, N, H, W):
    """(the block's tile, its first row of pixels in the order of patches, how many rows it has)."""
    block = uint32(cuda.blockIdx.x)
    m0, rows = tile_place(block, tiles, lanes, N, uint32(H * W), uint32(BM))
    return block, m0, rows


def make_forward(BM, BN, bf16):
    """The kernel for y, of BM / 64 patches and BN channels a block, in a precision of ``mma.py``."""
    SIZE_A, SIZE_B = shared_sizes(BM, BN)

    @kernel(*choose.bounds(BM, BN))
    def patches_forward(y, part, x, scale, shift, w, act, has_moments, lanes, tiles, N, H, W, C, OC):
        sa = cuda.shared.array(SIZE_A, float32, alignment=16)
        sb = cuda.shared.array(SIZE_B, float32, alignment=16)
        t = uint32(cuda.threadIdx.x)
        block, m0, rows = _place(BM, lanes, tiles, N, H, W)
        first, patches, n0 = uint32(m0 // uint32(PATCH)), uint32(rows // uint32(PATCH)), uint32(cuda.blockIdx.y * BN)
        source = x, x, scale, shift, shift, act, False
        acc = patch_product(sa, sb, source, first, patches, (H, W, C), w, n0, OC, BM, BN, bf16)
        ty, tx = place_of(t, BN, bf16)
        patch, pixel = column_of(t, first, BN, bf16, H, W)
        n, half, there = uint32(n0 + tx * FOUR), uint32(BN // 2), patch < patches
        end = uint32(N * H * W) if there else NOUGHT
        put_row(y, pixel, n, half, end, OC, True, acc[0:8])
        put_row(y, uint32(pixel + W), n, half, end, OC, True, acc[8:16])
        put_row(y, uint32(pixel + uint32(2) * W), n, half, end, OC, True, acc[16:24])
        put_row(y, uint32(pixel + uint32(3) * W), n, half, end, OC, True, acc[24:32])
        put_row(y, uint32(pixel + uint32(4) * W), n, half, end, OC, True, acc[32:40])
        put_row(y, uint32(pixel + uint32(5) * W), n, half, end, OC, True, acc[40:48])
        put_row(y, uint32(pixel + uint32(6) * W), n, half, end, OC, True, acc[48:56])
        put_row(y, uint32(pixel + uint32(7) * W), n, half, end, OC, True, acc[56:64])
        if has_moments and rows > NOUGHT:
            at = uint32(block * uint32(3) * OC)
            put_tile_moments(part, at, sa, sb, ty, tx, uint32(BM) if there else NOUGHT, n0, OC, True, BM, BN, acc)

    return patches_forward


@device
def _finish_columns(dx, tail, options, pixel, W, c, C, d0, d1, d2, d3, d4, d5, d6, d7):
    """The tail of eight pixels one below the other, channels c .. c + 3, and both sums of it.

    A thread takes a half of its columns after the other: for both at once it has not the registers.
    """
    s = q = ZERO4
    minus = minus_centre(tail, options, c, C, True)
    s, q = finish_terms(s, q, minus, dx, tail, options, pixel, c, C, True, d0)
    pixel = uint32(pixel + W)
    s, q = finish_terms(s, q, minus, dx, tail, options, pixel, c, C, True, d1)
    pixel = uint32(pixel + W)
    s, q = finish_terms(s, q, minus, dx, tail, options, pixel, c, C, True, d2)
    pixel = uint32(pixel + W)
    s, q = finish_terms(s, q, minus, dx, tail, options, pixel, c, C, True, d3)
    pixel = uint32(pixel + W)
    s, q = finish_terms(s, q, minus, dx, tail, options, pixel, c, C, True, d4)
    pixel = uint32(pixel + W)
    s, q = finish_terms(s, q, minus, dx, tail, options, pixel, c, C, True, d5)
    pixel = uint32(pixel + W)
    s, q = finish_terms(s, q, minus, dx, tail, options, pixel, c, C, True, d6)
    return finish_terms(s, q, minus, dx, tail, options, uint32(pixel + W), c, C, True, d7)


def make_data(BM, BN, bf16):
    """The kernel for dx, of BM / 64 patches and BN channels a block, in a precision of ``mma.py``."""
    SIZE_A, SIZE_B = shared_sizes(BM, BN)

    @kernel(*choose.bounds(BM, BN))
    def patches_data(
        dx, part, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre, act, gact,
        has_base, has_of, has_sums, lanes, tiles, N, H, W, C, OC,
    ):  # fmt: skip
        sa = cuda.shared.array(SIZE_A, float32, alignment=16)
        sb = cuda.shared.array(SIZE_B, float32, alignment=16)
        t = uint32(cuda.threadIdx.x)
        block, m0, rows = _place(BM, lanes, tiles, N, H, W)
        first, patches, n0 = uint32(m0 // uint32(PATCH)), uint32(rows // uint32(PATCH)), uint32(cuda.blockIdx.y * BN)
        source = dz, raw, gscale, ga, gb, gact, True
        d = patch_product(sa, sb, source, first, patches, (H, W, OC), w, n0, C, BM, BN, bf16)
        ty, tx = place_of(t, BN, bf16)
        patch, pixel = column_of(t, first, BN, bf16, H, W)
        n, half = uint32(n0 + tx * FOUR), uint32(BN // 2)
        tail, options = (x, scale, shift, base, of, centre), (act, has_base, has_of)
        s0 = s1 = q0 = q1 = ZERO4
        if patch < patches:
            s0, q0 = _finish_columns(
                dx, tail, options, pixel, W, n, C,
                d[0:4], d[8:12], d[16:20], d[24:28], d[32:36], d[40:44], d[48:52], d[56:60],
            )  # fmt: skip
            s1, q1 = _finish_columns(
                dx, tail, options, pixel, W, uint32(n + half), C,
                d[4:8], d[12:16], d[20:24], d[28:32], d[36:40], d[44:48], d[52:56], d[60:64],
            )  # fmt: skip
        if has_sums:
            put_column_sums(part, uint32(block * TWO * C), sa, sb, ty, tx, n0, C, BM, BN, s0 + s1, q0 + q1)

    return patches_data


FORWARD = {(tile, bf16): make_forward(*tile, bf16) for bf16 in TENSOR for tile in choose.PATCHES}
DATA = {(tile, bf16): make_data(*tile, bf16) for bf16 in TENSOR for tile in choose.PATCHES}
"""Kernels by tile and precision; those that run are compiled."""


def forward(y, moments, x, scale, shift, w, act, bf16):
    """Launches of ``conv2d_forward``."""
    (N, H, W, C), OC = x.shape, y.shape[3]
    lanes = moments.shape[0] if moments.size else 1
    BM, BN = tile = choose.tile(lanes, -(-N // lanes) * H * W, OC, choose.PATCHES)
    tiles = tiles_of(lanes, N, H * W, BM)
    part = moments if tiles == 1 or not moments.size else Scratch(lanes * tiles * 3 * OC)
    arguments = y, part, x, scale, shift, w, act, moments.size > 0, lanes, tiles, N, H, W, C, OC
    yield Launch(FORWARD[tile, bf16], (lanes * tiles, -(-OC // BN)), arguments)
    if part is not moments:
        yield join_launch(moments, part, lanes, tiles, N, H * W, BM, OC)


def data(dx, sums, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre, act, gact, bf16):
    """Launches for dx and its sums."""
    (N, H, W, C), OC = x.shape, dz.shape[3]
    lanes = sums.shape[0] if sums.size else 1
    BM, BN = tile = choose.tile(lanes, -(-N // lanes) * H * W, C, choose.PATCHES)
    tiles = tiles_of(lanes, N, H * W, BM)
    part = sums if tiles == 1 or not sums.size else Scratch(lanes * tiles * 2 * C)
    tensors = dx, part, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre
    scalars = act, gact, base.size > 0, of.size > 0, sums.size > 0, lanes, tiles, N, H, W, C, OC
    yield Launch(DATA[tile, bf16], (lanes * tiles, -(-C // BN)), (*tensors, *scalars))
    if part is not sums:
        yield add_launch(sums, part, lanes, tiles, 2 * C)

"""Convolution as implicit GEMM: y and dx. Both are a product of windows and filters, see ``windows.py``.

    forward         y (pixels, OC) = windows of P(x) (pixels, KH KW C) @ w (KH KW C, OC)
    backward data   dx (pixels, C) = windows of d (pixels, taps OC) @ w' (taps OC, C)

With a stride the taps that reach a pixel of dx depend on its row and column modulo the stride. Pixels of one such
class share tiles and pass by the other taps, so that no product is with a zero: the grid of a class has every
``stride``-th pixel, and its windows every ``stride``-th tap.
"""

from numba import cuda, float32, uint32

from fastadam.kernels.cuda import choose, implicit_weights
from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.lanes import add_launch, join_launch, lane_start, tile_place, tiles_of
from fastadam.kernels.cuda.launch import Launch, Scratch
from fastadam.kernels.cuda.mma import FLOAT32, PRECISIONS, place_of
from fastadam.kernels.cuda.ptx import ZERO8
from fastadam.kernels.cuda.tiles import (
    BK,
    finish_pixel,
    minus_centre,
    put_column_sums,
    put_tile,
    put_tile_moments,
)
from fastadam.kernels.cuda.windows import FOUR, NOUGHT, NOWHERE, ONE, THREE, TWO, window, window_product


def make_forward(BM, BN, bf16):
    """The forward kernel for tiles of BM pixels and BN channels, in a precision of ``mma.py``."""
    SIZE_A, SIZE_B = 2 * BK * (BM + 4), 2 * BK * (BN + 4)

    @kernel(*choose.bounds(BM, BN))
    def implicit_forward(
        y, part, x, scale, shift, w, act, stride, pad, has_moments, lanes, tiles, N, H, W, C, OH, OW, OC, KH, KW
    ):  # fmt: skip
        sa = cuda.shared.array(SIZE_A, float32, alignment=16)
        sb = cuda.shared.array(SIZE_B, float32, alignment=16)
        t, block = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
        m0, rows = tile_place(block, tiles, lanes, N, uint32(OH * OW), uint32(BM))
        end = uint32(m0 + rows)
        n0 = uint32(uint32(cuda.blockIdx.y) * uint32(BN))
        grid, image, back = (OH, OW), (H, W, C), uint32(NOUGHT - pad)
        m = uint32(m0 + (t >> ONE))
        place0 = window(m, end, grid, image, stride, back, back)
        place1 = window(uint32(m + uint32(BM // 2)), end, grid, image, stride, back, back)
        acc = window_product(
            sa, sb, x, x, scale, shift, shift, act, place0, place1, KH, KW, image,
            w, (NOUGHT, NOUGHT, NOUGHT, NOUGHT), n0, OC, False, BM, BN, bf16,
        )  # fmt: skip
        ty, tx = place_of(t, BN, bf16)
        m, n, wide = uint32(m0 + ty * FOUR), uint32(n0 + tx * FOUR), OC & THREE == NOUGHT
        put_tile(y, m, n, uint32(BM // 2), uint32(BN // 2), end, OC, wide, acc)
        if has_moments and rows > NOUGHT:
            at = uint32(block * THREE * OC)
            put_tile_moments(part, at, sa, sb, ty, tx, rows, n0, OC, wide, BM, BN, acc)

    return implicit_forward


@device
def _pixel(row, end, of_class):
    """Number of the pixel at a row of a class; NOWHERE where the class has none."""
    GH, GW, H, W, stride, down, right = of_class
    q = uint32(row // GW)
    h, w = uint32(uint32(q % GH) * stride + down), uint32(uint32(row % GW) * stride + right)
    return uint32(uint32(uint32(q // GH) * H + h) * W + w) if row < end and h < H and w < W else NOWHERE


@device
def _finish_row(s, q, minus, dx, tail, options, row, end, of_class, n, half_n, C, d):
    """``finish_pixel`` of a row of the thread's."""
    pixel = _pixel(row, end, of_class)
    if pixel != NOWHERE:
        s, q = finish_pixel(s, q, minus, dx, tail, options, pixel, n, half_n, C, C & THREE == NOUGHT, d)
    return s, q


def make_data(BM, BN, bf16):
    """The kernel for dx, tiles of BM pixels and BN channels, in a precision of ``mma.py``."""
    SIZE_A, SIZE_B = 2 * BK * (BM + 4), 2 * BK * (BN + 4)

    @kernel(*choose.bounds(BM, BN))
    def implicit_data(
        dx, part, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre, act, gact, stride, pad,
        has_base, has_of, has_sums, lanes, tiles, N, H, W, C, OH, OW, OC, KH, KW,
    ):  # fmt: skip
        sa = cuda.shared.array(SIZE_A, float32, alignment=16)
        sb = cuda.shared.array(SIZE_B, float32, alignment=16)
        t, block = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
        # a lane's tiles: classes take turns
        lane, tile, classes = uint32(block // tiles), uint32(block % tiles), uint32(stride * stride)
        member, tile = uint32(tile % classes), uint32(tile // classes)
        down, right = uint32(member // stride), uint32(member % stride)
        grid = uint32(uint32(H + stride - ONE) // stride), uint32(uint32(W + stride - ONE) // stride)
        end = lane_start(uint32(lane + ONE), lanes, N, uint32(grid[0] * grid[1]))
        m0 = uint32(lane_start(lane, lanes, N, uint32(grid[0] * grid[1])) + tile * uint32(BM))
        n0 = uint32(uint32(cuda.blockIdx.y) * uint32(BN))
        # the first tap that reaches the class, and how many do
        kh, kw = uint32(uint32(down + pad) % stride), uint32(uint32(right + pad) % stride)
        taps_h = uint32(uint32(KH - kh + stride - ONE) // stride) if kh < KH else NOUGHT
        taps_w = uint32(uint32(KW - kw + stride - ONE) // stride) if kw < KW else NOUGHT
        image = OH, OW, OC
        dh, dw = uint32(uint32(down + pad) // stride), uint32(uint32(right + pad) // stride)
        m = uint32(m0 + (t >> ONE))
        place0 = window(m, end, grid, image, ONE, dh, dw)
        place1 = window(uint32(m + uint32(BM // 2)), end, grid, image, ONE, dh, dw)
        pair = uint32(C * OC)
        filters = uint32(uint32(kh * KW + kw) * pair), uint32(uint32(stride * KW) * pair), uint32(stride * pair), OC
        acc = window_product(
            sa, sb, dz, raw, gscale, ga, gb, gact, place0, place1, taps_h, taps_w, image,
            w, filters, n0, C, True, BM, BN, bf16,
        )  # fmt: skip
        ty, tx = place_of(t, BN, bf16)
        m, n, half, wide = uint32(m0 + ty * FOUR), uint32(n0 + tx * FOUR), uint32(BN // 2), C & THREE == NOUGHT
        tail, options = (x, scale, shift, base, of, centre), (act, has_base, has_of)
        s, q = ZERO8, ZERO8
        minus = minus_centre(tail, options, n, C, wide) + minus_centre(tail, options, uint32(n + half), C, wide)
        members = grid[0], grid[1], H, W, stride, down, right
        s, q = _finish_row(s, q, minus, dx, tail, options, m, end, members, n, half, C, acc[0:8])
        s, q = _finish_row(s, q, minus, dx, tail, options, uint32(m + ONE), end, members, n, half, C, acc[8:16])
        s, q = _finish_row(s, q, minus, dx, tail, options, uint32(m + TWO), end, members, n, half, C, acc[16:24])
        s, q = _finish_row(s, q, minus, dx, tail, options, uint32(m + THREE), end, members, n, half, C, acc[24:32])
        m = uint32(m + uint32(BM // 2))
        s, q = _finish_row(s, q, minus, dx, tail, options, m, end, members, n, half, C, acc[32:40])
        s, q = _finish_row(s, q, minus, dx, tail, options, uint32(m + ONE), end, members, n, half, C, acc[40:48])
        s, q = _finish_row(s, q, minus, dx, tail, options, uint32(m + TWO), end, members, n, half, C, acc[48:56])
        s, q = _finish_row(s, q, minus, dx, tail, options, uint32(m + THREE), end, members, n, half, C, acc[56:64])
        if has_sums:
            put_column_sums(part, uint32(block * TWO * C), sa, sb, ty, tx, n0, C, BM, BN, s, q)

    return implicit_data


FORWARD = {
    ((BM, BN), bf16): make_forward(BM, BN, bf16)
    for bf16 in PRECISIONS.values()
    for BM, BN in choose.forward_tiles(bf16)
}
DATA = {((BM, BN), bf16): make_data(BM, BN, bf16) for bf16 in PRECISIONS.values() for BM, BN in choose.data_tiles(bf16)}
"""Kernels by tile and precision; those that run are compiled."""


def forward(y, moments, x, scale, shift, w, act, stride, pad, bf16=FLOAT32):
    """Launches of ``conv2d_forward``."""
    (N, H, W, C), (_, OH, OW, OC), (KH, KW) = x.shape, y.shape, w.shape[:2]
    lanes = moments.shape[0] if moments.size else 1
    BM, BN = tile = choose.tile(lanes, -(-N // lanes) * OH * OW, OC, choose.forward_tiles(bf16))
    tiles = tiles_of(lanes, N, OH * OW, BM)
    part = moments if tiles == 1 or not moments.size else Scratch(lanes * tiles * 3 * OC)
    sizes = lanes, tiles, N, H, W, C, OH, OW, OC, KH, KW
    arguments = y, part, x, scale, shift, w, act, stride, pad, moments.size > 0, *sizes
    yield Launch(FORWARD[tile, bf16], (lanes * tiles, -(-OC // BN)), arguments)
    if part is not moments:
        yield join_launch(moments, part, lanes, tiles, N, OH * OW, BM, OC)


def backward(
    dx, sums, dw, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre, act, gact, stride, pad
):  # fmt: skip
    """Launches of ``conv2d_backward`` in float32."""
    yield from implicit_weights.weights(dw, dz, raw, gscale, ga, gb, x, scale, shift, act, gact, stride, pad)
    if dx.size:
        tensors = dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre
        yield from data(dx, sums, *tensors, act, gact, stride, pad)


def data(dx, sums, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre, act, gact, stride, pad, bf16=FLOAT32):
    """Launches for dx and its sums."""
    (N, H, W, C), (_, OH, OW, OC), (KH, KW) = x.shape, dz.shape, w.shape[:2]
    lanes, pixels = sums.shape[0] if sums.size else 1, -(-H // stride) * -(-W // stride)
    BM, BN = tile = choose.tile(lanes, -(-N // lanes) * pixels, C, choose.data_tiles(bf16))
    tiles = stride * stride * tiles_of(lanes, N, pixels, BM)
    part = sums if tiles == 1 or not sums.size else Scratch(lanes * tiles * 2 * C)
    tensors = dx, part, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre
    scalars = act, gact, stride, pad, base.size > 0, of.size > 0, sums.size > 0
    sizes = lanes, tiles, N, H, W, C, OH, OW, OC, KH, KW
    yield Launch(DATA[tile, bf16], (lanes * tiles, -(-C // BN)), (*tensors, *scalars, *sizes))
    if part is not sums:
        yield add_launch(sums, part, lanes, tiles, 2 * C)

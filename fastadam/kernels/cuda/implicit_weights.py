"""Convolution as implicit GEMM: the gradient of the filters.

    dw[lane] (KH KW C, OC) = windows of P(x) (pixels, KH KW C)' @ d (pixels, OC), over the lane's pixels

A lane's pixels are cut into shares where lanes and tiles alone are too few blocks; a second launch adds the shares.
"""

from numba import cuda, float32, uint32

from fastadam.kernels.cuda import choose
from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.lanes import add_launch, lane_start
from fastadam.kernels.cuda.launch import Launch, Scratch
from fastadam.kernels.cuda.pending import cut
from fastadam.kernels.cuda.ptx import ZERO, ZERO4, ZERO64, load4_at, store4
from fastadam.kernels.cuda.tiles import BK, fetch4, multiply_tiles, put_tile, thread_place
from fastadam.kernels.cuda.windows import (
    EIGHT,
    FAR,
    FOUR,
    NOUGHT,
    NOWHERE,
    ONE,
    THREE,
    TWO,
    look4,
    settled4,
    stash,
)

BM, BN = TILE = (64, 64)
THREADS, BLOCKS = choose.bounds(*TILE)
PITCH = BM + 4
SIZE = 2 * BK * PITCH
SIZE_AFFINE = 5 * BM
ROWS = BK // 2
"""Pixels that the block stages at once: a tile takes two goes."""


@device
def _tap(place, there, tap, image):
    """Where the number lies that a tap (row, column, less the padding) falls on, or NOWHERE."""
    H, W, C = image
    start, h, w = place
    h, w = uint32(h + tap[0]), uint32(w + tap[1])
    return uint32(start + uint32(h * W + w) * C) if there and h < H and w < W else NOWHERE


@device
def _on(place, by, span, step, size):
    """A window's place (start of its sample, h, w), ``by`` columns on; ``span``: all rows, and those of a row."""
    start, h, w = place
    w = uint32(w + by)
    while w >= span[1]:
        w = uint32(w - span[1])
        h = uint32(h + step)
        if h == span[0]:
            h = NOUGHT
            start = uint32(start + size)
    return start, h, w


@device
def _narrow1(x, s, h, act, place, there, tap, image):
    at, v = _tap(place, there, tap, image), ZERO
    if at != NOWHERE:
        v = x[at]
        if act & ONE:
            v = v * s + h
        if act & TWO:
            v = cut(v, v)
    return v


@device
def _narrow4(x, s, h, act, place, left, tap, image, span, stride, size):
    """A row of the transposed windows at four pixels, settled, and the next one's place: for C no multiple of 4."""
    v0 = _narrow1(x, s, h, act, place, left > NOUGHT, tap, image)
    place = _on(place, stride, span, stride, size)
    v1 = _narrow1(x, s, h, act, place, left > ONE, tap, image)
    place = _on(place, stride, span, stride, size)
    v2 = _narrow1(x, s, h, act, place, left > TWO, tap, image)
    place = _on(place, stride, span, stride, size)
    v3 = _narrow1(x, s, h, act, place, left > THREE, tap, image)
    return (v0, v1, v2, v3), _on(place, stride, span, stride, size)


@kernel(THREADS, BLOCKS)
def implicit_weights(
    dw, dz, raw, gscale, ga, gb, x, scale, shift, act, gact, stride, pad, lanes, shares,
    N, H, W, C, OH, OW, OC, KH, KW,
):  # fmt: skip
    sa = cuda.shared.array(SIZE, float32, alignment=16)
    sb = cuda.shared.array(SIZE, float32, alignment=16)
    affine = cuda.shared.array(SIZE_AFFINE, float32, alignment=16)
    t, z = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.z)
    m0, n0 = uint32(uint32(cuda.blockIdx.x) * uint32(BM)), uint32(uint32(cuda.blockIdx.y) * uint32(BN))
    image, pixels, M = (H, W, C), uint32(OH * OW), uint32(uint32(KH * KW) * C)
    lane, share = uint32(z // shares), uint32(z % shares)
    p, end = lane_start(lane, lanes, N, pixels), lane_start(uint32(lane + ONE), lanes, N, pixels)
    each = uint32(uint32(uint32(uint32(end - p + uint32(7)) // EIGHT + shares - ONE) // shares) * EIGHT)
    p = uint32(p + share * each)
    end = min(end, uint32(p + each))

    # scale and shift of the tile's rows; gscale, ga and gb of its columns: registers are few
    c, oc = uint32(uint32(m0 + t) % C), uint32(n0 + t)
    affine[t] = scale[c] if act & ONE else ZERO
    affine[uint32(t + uint32(BM))] = shift[c] if act & ONE else ZERO
    if gact:
        affine[uint32(t + uint32(2 * BM))] = gscale[oc] if oc < OC else ZERO
        affine[uint32(t + uint32(3 * BM))] = ga[oc] if oc < OC else ZERO
        affine[uint32(t + uint32(4 * BM))] = gb[oc] if oc < OC else ZERO
    cuda.syncthreads()

    # the thread stages channels oc .. oc + 3 of d at pixels ``row`` and ``row + ROWS`` of a tile; rows m .. m + 3 of
    # the transposed windows at the same pixels, or for narrow channels row m at all pixels
    wide_x, wide_d = C & THREE == NOUGHT, OC & THREE == NOUGHT
    row, column = uint32(t // uint32(BM // 4)), uint32(t % uint32(BM // 4) * FOUR)
    m, oc = uint32(m0 + (column if wide_x else t)), uint32(n0 + column)
    kh, kw = uint32(uint32(m // C) // KW), uint32(uint32(m // C) % KW)
    d_end = end if oc < OC else NOUGHT
    tap = uint32(kh - pad) if kh < KH else FAR, uint32(kw - pad)
    first = uint32(p + row) if wide_x else p
    q = uint32(first // OW)
    size, span, by = uint32(H * W * C), (uint32(OH * stride), uint32(OW * stride)), uint32(stride * uint32(ROWS))
    place = uint32(uint32(q // OH) * size + m % C), uint32(uint32(q % OH) * stride), uint32(first % OW * stride)

    k, more, acc = NOUGHT, p < end, ZERO64
    x0 = x1 = d0 = d1 = r0 = r1 = xs = xt = ds = da = db = ZERO4
    at0 = at1 = NOWHERE
    ty, tx = thread_place(t, ONE)
    while more:
        more = p < end
        p0, p1 = uint32(p + row), uint32(p + row + uint32(ROWS))
        if more:
            if wide_x:
                at0 = _tap(place, p0 < end, tap, image)
                x0 = look4(x, at0, NOUGHT)
                place = _on(place, by, span, stride, size)
                at1 = _tap(place, p1 < end, tap, image)
                x1 = look4(x, at1, NOUGHT)
                place = _on(place, by, span, stride, size)
            else:
                s, h = affine[t], affine[uint32(t + uint32(BM))]
                left = uint32(end - p)
                x0, place = _narrow4(x, s, h, act, place, left, tap, image, span, stride, size)
                left = uint32(left - FOUR) if left > FOUR else NOUGHT
                x1, place = _narrow4(x, s, h, act, place, left, tap, image, span, stride, size)
            if wide_d:
                i = uint32(p0 * OC + oc)
                i, j = i if p0 < d_end else NOWHERE, uint32(i + uint32(ROWS) * OC) if p1 < d_end else NOWHERE
                d0, d1 = look4(dz, i, NOUGHT), look4(dz, j, NOUGHT)
                if gact:
                    r0, r1 = look4(raw, i, NOUGHT), look4(raw, j, NOUGHT)
            else:
                d0, d1 = fetch4(dz, p0, oc, end, OC, OC, False), fetch4(dz, p1, oc, end, OC, OC, False)
                if gact:
                    r0, r1 = fetch4(raw, p0, oc, end, OC, OC, False), fetch4(raw, p1, oc, end, OC, OC, False)
        if k > NOUGHT:
            was = uint32(((k & EIGHT) ^ EIGHT) * uint32(PITCH))
            ia, ib = uint32(was + ty * FOUR), uint32(was + tx * FOUR)
            acc = multiply_tiles(acc, sa, sb, ia, ib, BM // 2, BN // 2, PITCH, PITCH)
        if more:
            i = uint32((k & EIGHT) * uint32(PITCH))
            if wide_x:
                if act & ONE:
                    xs, xt = load4_at(affine, column, 0), load4_at(affine, column, BM)
                j = uint32(i + row * uint32(PITCH) + column)
                store4(sa, j, settled4(x0, x0, at0 != NOWHERE, xs, xt, xt, act, False))
                store4(sa, uint32(j + uint32(ROWS * PITCH)), settled4(x1, x1, at1 != NOWHERE, xs, xt, xt, act, False))
            else:
                stash(sa, uint32(i + t), PITCH, x0)
                stash(sa, uint32(i + t + uint32(ROWS * PITCH)), PITCH, x1)
            if gact:
                ds, da = load4_at(affine, column, 2 * BM), load4_at(affine, column, 3 * BM)
                db = load4_at(affine, column, 4 * BM)
            i = uint32(i + row * uint32(PITCH) + column)
            store4(sb, i, settled4(d0, r0, p0 < d_end, ds, da, db, gact, True))
            store4(sb, uint32(i + uint32(ROWS * PITCH)), settled4(d1, r1, p1 < d_end, ds, da, db, gact, True))
            cuda.syncthreads()
            p, k = uint32(p + EIGHT), uint32(k + EIGHT)
    to, half = uint32(z * M), uint32(BM // 2)
    m, n = uint32(to + m0 + ty * FOUR), uint32(n0 + tx * FOUR)
    put_tile(dw, m, n, half, half, uint32(to + M), OC, wide_d, acc)


def weights(dw, dz, raw, gscale, ga, gb, x, scale, shift, act, gact, stride, pad):
    """Launches for dw (L, KH, KW, C, OC)."""
    (N, H, W, C), (_, OH, OW, OC), (lanes, KH, KW) = x.shape, dz.shape, dw.shape[:3]
    M = KH * KW * C
    grid = -(-M // BM), -(-OC // BN)
    shares = choose.shares(grid[0] * grid[1] * lanes, N * OH * OW // lanes // BK)
    out = Scratch(lanes * shares * M * OC) if shares > 1 else dw
    tensors = out, dz, raw, gscale, ga, gb, x, scale, shift
    sizes = N, H, W, C, OH, OW, OC, KH, KW
    yield Launch(implicit_weights, (*grid, lanes * shares), (*tensors, act, gact, stride, pad, lanes, shares, *sizes))
    if out is not dw:
        yield add_launch(dw, out, lanes, shares, M * OC)

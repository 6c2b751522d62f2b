"""Convolution as implicit GEMM: the gradient of the filters.

    dw[lane] (KH KW C, OC) = windows of P(x) (pixels, KH KW C)' @ d (pixels, OC), over the lane's pixels

A lane's pixels are cut into shares where lanes and tiles alone are too few blocks; a second launch adds the shares.
"""

from numba import cuda, float32, uint32

from fastadam.kernels.cuda import choose
from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.lanes import add_launch, lane_start
from fastadam.kernels.cuda.launch import Launch, Scratch
from fastadam.kernels.cuda.mma import (
    FLOAT32,
    PRECISIONS,
    column_place,
    multiply,
    pitch_of,
    place_of,
    rows_of,
    starts_of,
    stash_column,
    stash_rows,
)
from fastadam.kernels.cuda.pending import cut, cut4
from fastadam.kernels.cuda.ptx import ZERO, ZERO4, ZERO64, kept, load4, load4_at
from fastadam.kernels.cuda.tiles import BK, divided, fetch4, put_tile
from fastadam.kernels.cuda.windows import (
    EIGHT,
    FAR,
    FOUR,
    NOUGHT,
    NOWHERE,
    ONE,
    THREE,
    TWO,
    combined4,
    look4,
    shifted4,
)

BN = 64


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


@device
def _pending4(r, dz, raw, there, at, gact):
    """Four numbers of dz, zeros if they are not there, and with gact of raw, else r: who is not there, needs none."""
    d = ZERO4
    if there:
        d = load4(dz, at)
        if gact:
            r = load4(raw, at)
    return d, r


def make_weights(BM, bf16):
    """The kernel for tiles of BM rows, in a precision of ``mma.py``; a block has as many threads."""
    SIZE_A, SIZE_B, SIZE_AFFINE = 2 * BK * (BM + 4), 2 * BK * (BN + 4), 2 * BM + 3 * BN

    @kernel(*choose.bounds(BM, BN))
    def implicit_weights(
        dw, dz, raw, gscale, ga, gb, x, scale, shift, act, gact, stride, pad, lanes, shares,
        N, H, W, C, OH, OW, OC, KH, KW,
    ):  # fmt: skip
        sa = cuda.shared.array(SIZE_A, float32, alignment=16)
        sb = cuda.shared.array(SIZE_B, float32, alignment=16)
        affine = cuda.shared.array(SIZE_AFFINE, float32, alignment=16)
        t, z = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.z)
        m0, n0 = uint32(uint32(cuda.blockIdx.x) * uint32(BM)), uint32(uint32(cuda.blockIdx.y) * uint32(BN))
        image, pixels, M = (H, W, C), uint32(OH * OW), uint32(uint32(KH * KW) * C)
        lane, share = divided(z, shares)
        p, end = lane_start(lane, lanes, N, pixels), lane_start(uint32(lane + ONE), lanes, N, pixels)
        each = uint32(uint32(uint32(uint32(end - p + uint32(7)) // EIGHT + shares - ONE) // shares) * EIGHT)
        p = uint32(p + share * each)
        end = min(end, uint32(p + each))

        # scale and shift of the tile's rows; gscale, ga and gb of its columns: registers are few
        c, oc = uint32(uint32(m0 + t) % C), uint32(n0 + t)
        affine[t] = scale[c] if act & ONE else ZERO
        affine[uint32(t + uint32(BM))] = shift[c] if act & ONE else ZERO
        if gact and t < uint32(BN):
            affine[uint32(t + uint32(2 * BM))] = gscale[oc] if oc < OC else ZERO
            affine[uint32(t + uint32(2 * BM + BN))] = ga[oc] if oc < OC else ZERO
            affine[uint32(t + uint32(2 * BM + 2 * BN))] = gb[oc] if oc < OC else ZERO
        cuda.syncthreads()

        # the thread stages rows m .. m + 3 of the transposed windows at pixels ``ra`` and ``ra2`` of a tile, or for
        # narrow channels row m at all pixels; channels oc .. oc + 3 of d at pixel ``rb``, and ``rb2``
        B_TWICE, PA, PB = BM == 64, pitch_of(BM, bf16), pitch_of(BN, bf16)
        wide_x, wide_d = C & THREE == NOUGHT, OC & THREE == NOUGHT
        ra, ra2, ca, to_a = rows_of(t, BM, True, bf16)
        rb, rb2, cb, to_b = rows_of(t, BN, B_TWICE, bf16)
        m, oc = uint32(m0 + (ca if wide_x else t)), uint32(n0 + cb)
        window, channel = divided(m, C)
        kh, kw = divided(window, KW)
        # pixels p from which on ``rb`` and ``rb2`` are beyond the end
        last = kept(uint32(end - rb) if oc < OC and rb < end else NOUGHT)
        last2 = kept(uint32(end - rb2) if oc < OC and rb2 < end else NOUGHT)
        i, apart, step = uint32(uint32(p + rb) * OC + oc), uint32(uint32(rb2 - rb) * OC), uint32(OC * EIGHT)
        tap = uint32(kh - pad) if kh < KH else FAR, uint32(kw - pad)
        line, column = divided(uint32(p + ra) if wide_x else p, OW)
        n, row = divided(line, OH)
        size, span = uint32(H * W * C), (uint32(OH * stride), uint32(OW * stride))
        by, by2 = uint32(uint32(ra2 - ra) * stride), uint32(uint32(EIGHT + ra - ra2) * stride)
        place = uint32(n * size + channel), uint32(row * stride), uint32(column * stride)

        k, more, acc = NOUGHT, p < end, ZERO64
        x0 = x1 = d0 = d1 = r0 = r1 = ZERO4
        at0 = at1 = NOWHERE
        first_a, first_b = starts_of(t, BM, BN, bf16)
        while more:
            more = p < end
            if more:
                if wide_x:
                    at0 = _tap(place, uint32(p + ra) < end, tap, image)
                    x0 = look4(x, at0, NOUGHT)
                    place = _on(place, by, span, stride, size)
                    at1 = _tap(place, uint32(p + ra2) < end, tap, image)
                    x1 = look4(x, at1, NOUGHT)
                    place = _on(place, by2, span, stride, size)
                else:
                    s, h = affine[t], affine[uint32(t + uint32(BM))]
                    left = uint32(end - p)
                    x0, place = _narrow4(x, s, h, act, place, left, tap, image, span, stride, size)
                    left = uint32(left - FOUR) if left > FOUR else NOUGHT
                    x1, place = _narrow4(x, s, h, act, place, left, tap, image, span, stride, size)
                if wide_d:
                    d0, r0 = _pending4(r0, dz, raw, p < last, i, gact)
                    if B_TWICE:
                        d1, r1 = _pending4(r1, dz, raw, p < last2, uint32(i + apart), gact)
                    i = uint32(i + step)
                else:
                    p0, p1 = uint32(p + rb), uint32(p + rb2)
                    d0 = fetch4(dz, p0, oc, end, OC, OC, False)
                    if B_TWICE:
                        d1 = fetch4(dz, p1, oc, end, OC, OC, False)
                    if gact:
                        r0 = fetch4(raw, p0, oc, end, OC, OC, False)
                        if B_TWICE:
                            r1 = fetch4(raw, p1, oc, end, OC, OC, False)
            if k > NOUGHT:
                was = uint32((k & EIGHT) ^ EIGHT)
                ia, ib = uint32(was * uint32(PA) + first_a), uint32(was * uint32(PB) + first_b)
                acc = multiply(acc, sa, sb, ia, ib, BM, BN, bf16)
            if more:
                at = uint32((k & EIGHT) * uint32(PA))
                if wide_x:
                    if act & ONE:
                        xs, xt = load4_at(affine, ca, 0), load4_at(affine, ca, BM)
                        x0, x1 = shifted4(x0, xs, xt, at0 != NOWHERE), shifted4(x1, xs, xt, at1 != NOWHERE)
                    if act & TWO:
                        x0, x1 = cut4(x0, x0), cut4(x1, x1)
                    stash_rows(sa, uint32(at + to_a), PA, x0, x1, True, bf16)
                else:
                    stash_column(sa, uint32(at + t), PA, x0, bf16)
                    stash_column(sa, uint32(at + column_place(FOUR, t, PA, bf16)), PA, x1, bf16)
                if gact:
                    ds, da = load4_at(affine, cb, 2 * BM), load4_at(affine, cb, 2 * BM + BN)
                    db = load4_at(affine, cb, 2 * BM + 2 * BN)
                    d0, d1 = combined4(d0, r0, ds, da, db, p < last), combined4(d1, r1, ds, da, db, p < last2)
                stash_rows(sb, uint32((k & EIGHT) * uint32(PB) + to_b), PB, d0, d1, B_TWICE, bf16)
                cuda.syncthreads()
                p, k = uint32(p + EIGHT), uint32(k + EIGHT)
        ty, tx = place_of(t, BN, bf16)
        to = uint32(z * M)
        m, n = uint32(to + m0 + ty * FOUR), uint32(n0 + tx * FOUR)
        put_tile(dw, m, n, uint32(BM // 2), uint32(BN // 2), uint32(to + M), OC, wide_d, acc)

    return implicit_weights


WEIGHTS = {(BM, bf16): make_weights(BM, bf16) for bf16 in PRECISIONS.values() for BM in choose.WEIGHTS_ROWS}


def weights(dw, dz, raw, gscale, ga, gb, x, scale, shift, act, gact, stride, pad, bf16=FLOAT32):
    """Launches for dw (L, KH, KW, C, OC)."""
    (N, H, W, C), (_, OH, OW, OC), (lanes, KH, KW) = x.shape, dz.shape, dw.shape[:3]
    M = KH * KW * C
    BM = choose.weights_rows(M, bf16)
    grid = -(-M // BM), -(-OC // BN)
    shares = choose.shares(grid[0] * grid[1] * lanes, N * OH * OW // lanes // BK)
    out = Scratch(lanes * shares * M * OC) if shares > 1 else dw
    tensors = out, dz, raw, gscale, ga, gb, x, scale, shift
    sizes = N, H, W, C, OH, OW, OC, KH, KW
    yield Launch(WEIGHTS[BM, bf16], (*grid, lanes * shares), (*tensors, act, gact, stride, pad, lanes, shares, *sizes))
    if out is not dw:
        yield add_launch(dw, out, lanes, shares, M * OC)

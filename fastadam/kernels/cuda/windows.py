"""Windows of an image times filters: the matrix of windows exists in shared memory alone, a tile at a time.

A row of that matrix is a pixel of a grid. Its window starts at a place of its own in the image and reaches from there
one pixel a tap, forwards or backwards. Where a tap lies is worked out when the tap changes, without a division.

The next tile is loaded while one is multiplied, and takes on its pending affine when it is put into shared memory.
"""

from numba import cuda, uint32

from fastadam.kernels.cuda.jit import device
from fastadam.kernels.cuda.mma import column_place, multiply, pitch_of, rows_of, starts_of, stash_column, stash_rows
from fastadam.kernels.cuda.pending import activated, cut4, gradient
from fastadam.kernels.cuda.ptx import ZERO, ZERO4, ZERO64, load4
from fastadam.kernels.cuda.tiles import fetch4

NOUGHT, ONE, TWO, THREE, FOUR, EIGHT = uint32(0), uint32(1), uint32(2), uint32(3), uint32(4), uint32(8)
BACKWARDS = uint32(0xFFFFFFFF)
"""-1: a window's taps from the last pixel to the first."""
NOWHERE = uint32(0xFFFFFFFF)
"""Place of what is not in the image: its padding."""
FAR = uint32(0x40000000)
"""A row of pixels beyond any image."""


@device
def advanced(k, count, C, KW):
    """The place k = (kh, kw, c) in a window, ``count`` channels on."""
    kh, kw, c = k
    c = uint32(c + count)
    while c >= C:
        c = uint32(c - C)
        kw = uint32(kw + ONE)
        if kw == KW:
            kw = NOUGHT
            kh = uint32(kh + ONE)
    return kh, kw, c


@device
def window(row, end, grid, image, stride, down, right):
    """(start, h, w) of a grid pixel's window in the image; rows from ``end`` on have theirs far outside."""
    H, W, C = image
    q = uint32(row // grid[1])
    h = uint32(uint32(q % grid[0]) * stride + down)
    w = uint32(uint32(row % grid[1]) * stride + right)
    return uint32((uint32(uint32(q // grid[0]) * H + h) * W + w) * C), h if row < end else FAR, w


@device
def under(place, kh, kw, KH, image, step):
    """Where the pixel under a tap of a window starts, or NOWHERE."""
    start, h, w = place
    H, W, C = image
    there = uint32(h + step * kh) < H and uint32(w + step * kw) < W and kh < KH
    return uint32(start + (step * kh * W + step * kw) * C) if there else NOWHERE


@device
def look4(a, at, c):
    """Channels c .. c + 3 of a pixel, zeros if it is nowhere."""
    v = ZERO4
    if at != NOWHERE:
        v = load4(a, uint32(at + c))
    return v


@device
def shifted4(v, s, t, there):
    """s v + t of four numbers; padding stays 0."""
    if there:
        v = v[0] * s[0] + t[0], v[1] * s[1] + t[1], v[2] * s[2] + t[2], v[3] * s[3] + t[3]
    return v


@device
def combined4(d, r, s, a, b, there):
    """The gradient before a batch norm of four numbers, s d + a + b r; padding stays 0."""
    if there:
        d = (
            s[0] * d[0] + (b[0] * r[0] + a[0]), s[1] * d[1] + (b[1] * r[1] + a[1]),
            s[2] * d[2] + (b[2] * r[2] + a[2]), s[3] * d[3] + (b[3] * r[3] + a[3]),
        )  # fmt: skip
    return d


@device
def settled4(v, r, there, s, t, b, act, back):
    """Four numbers as the product takes them: P(v), or with ``back`` the gradient before a batch norm; padding 0."""
    if back:
        v = combined4(v, r, s, t, b, there and act > NOUGHT)
    else:
        if act & ONE:
            v = shifted4(v, s, t, there)
        if act & TWO:
            v = cut4(v, v)
    return v


@device
def _look1(a, raw, scale, shift, gb, act, place, k, KH, image, step, back):
    at, v = under(place, k[0], k[1], KH, image, step), ZERO
    if at != NOWHERE:
        i, c = uint32(at + k[2]), k[2]
        v = gradient(a, raw, scale, shift, gb, i, c, act) if back else activated(a[i], scale, shift, c, act)
    return v


@device
def narrow4(a, raw, scale, shift, gb, act, place, k, KH, KW, image, step, back):
    """Four numbers of a window from k on, settled: for channels that are not a multiple of 4."""
    v0 = _look1(a, raw, scale, shift, gb, act, place, k, KH, image, step, back)
    k = advanced(k, ONE, image[2], KW)
    v1 = _look1(a, raw, scale, shift, gb, act, place, k, KH, image, step, back)
    k = advanced(k, ONE, image[2], KW)
    v2 = _look1(a, raw, scale, shift, gb, act, place, k, KH, image, step, back)
    k = advanced(k, ONE, image[2], KW)
    return v0, v1, v2, _look1(a, raw, scale, shift, gb, act, place, k, KH, image, step, back)


@device
def _filter1(w, filters, n, k, N, KH):
    v = ZERO
    at = filter_under(filters, n, k[0], k[1], N, KH)
    if at != NOWHERE:
        v = w[uint32(at + k[2])]
    return v


@device
def filter_under(filters, n, kh, kw, N, KH):
    """Where the weights of input channel n start under a tap, or NOWHERE."""
    first, down, right, OC = filters
    return uint32(first + kh * down + kw * right + n * OC) if n < N and kh < KH else NOWHERE


@device
def narrow_filter4(w, filters, n, k, N, KH, KW):
    """Four weights of input channel n from k on, for output channels that are not a multiple of 4."""
    OC = filters[3]
    v0 = _filter1(w, filters, n, k, N, KH)
    k = advanced(k, ONE, OC, KW)
    v1 = _filter1(w, filters, n, k, N, KH)
    k = advanced(k, ONE, OC, KW)
    v2 = _filter1(w, filters, n, k, N, KH)
    k = advanced(k, ONE, OC, KW)
    return v0, v1, v2, _filter1(w, filters, n, k, N, KH)


@device
def window_product(
    sa, sb, a, raw, scale, shift, gb, act, place0, place1, KH, KW, image, w, filters, n0, N, back, BM, BN, bf16
):  # fmt: skip
    """The thread's 8 x 8 of windows (rows, KH KW C) @ filters (KH KW C, N).

    ``a`` is an image of pixels (H, W, C) under its pending affine, or with ``back`` a pending gradient ``a, raw,
    scale, shift, gb``. The thread stages the windows at ``place0`` and ``place1``, BM / 2 rows apart. The filters of
    dx lie transposed: ``filters`` is where the first one starts, and the strides of taps and of columns. ``bf16``, a
    constant: see ``mma.py``.
    """
    PA, PB = pitch_of(BM, bf16), pitch_of(BN, bf16)
    A_TWICE, B_TWICE = BN == 64, BM == 64
    step = BACKWARDS if back else ONE
    t = uint32(cuda.threadIdx.x)
    first_a, first_b = starts_of(t, BM, BN, bf16)
    C = image[2]
    K = uint32(KH * KW * C)
    wide = C & THREE == NOUGHT
    ra, ka = uint32(t >> ONE), uint32((t & ONE) * FOUR)
    rb, rb2, cb, to_b = rows_of(t, BN, B_TWICE, bf16)
    da = column_place(ka, ra, PA, bf16)
    db = column_place(ka, ra, PB, bf16) if back else to_b
    n1, n2 = uint32(n0 + ra), uint32(n0 + ra + uint32(BN // 2))
    tap = advanced((NOUGHT, NOUGHT, NOUGHT), ka, C, KW)
    at0 = at1 = at2 = at3 = NOWHERE
    v0 = v1 = r0 = r1 = f0 = f1 = s = h = b = ZERO4
    acc, k, more = ZERO64, NOUGHT, K > NOUGHT
    while more:
        more = k < K
        if more:
            if wide:
                kh, kw, c = tap
                if c < EIGHT:
                    at0 = under(place0, kh, kw, KH, image, step)
                    at1 = under(place1, kh, kw, KH, image, step)
                    if back:
                        at2 = filter_under(filters, n1, kh, kw, N, KH)
                        at3 = filter_under(filters, n2, kh, kw, N, KH)
                v0 = look4(a, at0, c)
                if A_TWICE:
                    v1 = look4(a, at1, c)
                if back:
                    f0 = look4(w, at2, c)
                    if B_TWICE:
                        f1 = look4(w, at3, c)
                    if act:
                        s, h, b = load4(scale, c), load4(shift, c), load4(gb, c)
                        r0 = look4(raw, at0, c)
                        if A_TWICE:
                            r1 = look4(raw, at1, c)
                elif act & ONE:
                    s, h = load4(scale, c), load4(shift, c)
            else:
                v0 = narrow4(a, raw, scale, shift, gb, act, place0, tap, KH, KW, image, step, back)
                if A_TWICE:
                    v1 = narrow4(a, raw, scale, shift, gb, act, place1, tap, KH, KW, image, step, back)
                if back:
                    f0 = narrow_filter4(w, filters, n1, tap, N, KH, KW)
                    if B_TWICE:
                        f1 = narrow_filter4(w, filters, n2, tap, N, KH, KW)
            if not back:
                f0 = fetch4(w, uint32(k + rb), uint32(n0 + cb), K, N, N, N & THREE == NOUGHT)
                if B_TWICE:
                    f1 = fetch4(w, uint32(k + rb2), uint32(n0 + cb), K, N, N, N & THREE == NOUGHT)
        if k > NOUGHT:
            was = uint32((k & EIGHT) ^ EIGHT)
            ia, ib = uint32(was * uint32(PA) + first_a), uint32(was * uint32(PB) + first_b)
            acc = multiply(acc, sa, sb, ia, ib, BM, BN, bf16)
        if more:
            if wide:
                v0 = settled4(v0, r0, at0 != NOWHERE, s, h, b, act, back)
                v1 = settled4(v1, r1, at1 != NOWHERE, s, h, b, act, back)
            ia, ib = uint32((k & EIGHT) * uint32(PA) + da), uint32((k & EIGHT) * uint32(PB) + db)
            stash_column(sa, ia, PA, v0, bf16)
            if A_TWICE:
                stash_column(sa, uint32(ia + uint32(BM // 2)), PA, v1, bf16)
            if back:
                stash_column(sb, ib, PB, f0, bf16)
                if B_TWICE:
                    stash_column(sb, uint32(ib + uint32(BN // 2)), PB, f1, bf16)
            else:
                stash_rows(sb, ib, PB, f0, f1, B_TWICE, bf16)
            cuda.syncthreads()
            tap = advanced(tap, EIGHT, C, KW)
            k = uint32(k + EIGHT)
    return acc

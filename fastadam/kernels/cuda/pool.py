"""Pooling: 2x2 max-pool with stride 2, and the mean over all pixels, of a pending activation.

Max-pool keeps no indices: backward computes the window's four values again and finds the same winner. The
first of equals in row-major order wins; a NaN wins over everything, so that it is seen (as in PyTorch).
"""

from numba import cuda, float32, uint32

from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.launch import Launch, blocks_of, op
from fastadam.kernels.cuda.ptx import ZERO, ZERO4
from fastadam.kernels.cuda.rows import (
    SUMS,
    THREADS,
    Tiling,
    add_products,
    affine_of,
    block_sum,
    finish_row4,
    finish_seen4,
    give4,
    pending4,
    pixels_of,
    plus4,
    put_sums,
    row_place,
    take4,
    times4,
    width_of,
)

ONE, TWO, THREE, FOUR = (uint32(i) for i in range(1, 5))


@device
def _larger(later, best):
    return later if later > best or later != later else best


@device
def _larger4(v, b):
    return _larger(v[0], b[0]), _larger(v[1], b[1]), _larger(v[2], b[2]), _larger(v[3], b[3])


@kernel(THREADS)
def _max(y, x, scale, shift, act, windows, H, W, C):
    i = uint32(cuda.grid(1))
    quads, OH, OW = uint32((C + THREE) >> TWO), uint32(H >> ONE), uint32(W >> ONE)
    window, c = uint32(i // quads), uint32(uint32(i % quads) * FOUR)
    if window < windows:
        row = uint32(window // OW)
        h = uint32(uint32(row // OH) * H + uint32(row % OH) * TWO)
        at = uint32(uint32(h * W + uint32(window % OW) * TWO) * C + c)
        below = uint32(at + W * C)
        affine = affine_of(scale, shift, c, C, act)
        v = pending4(x, at, c, C, affine, act)
        v = _larger4(pending4(x, uint32(at + C), c, C, affine, act), v)
        v = _larger4(pending4(x, below, c, C, affine, act), v)
        v = _larger4(pending4(x, uint32(below + C), c, C, affine, act), v)
        give4(y, uint32(window * C + c), c, C, v)


@op
def maxpool_forward(y, x, scale, shift, act):
    """y[n, h, w] = maximum of P(x)[n, 2h : 2h + 2, 2w : 2w + 2]; an odd last row or column is dropped.

    y (N, H // 2, W // 2, C)   out
    x (N, H, W, C)             in, raw; scale, shift (C,) its pending affine (act 1); act 2 is a pending ReLU
    """
    _, H, W, C = x.shape
    windows = y.size // C
    arguments = y, x, scale, shift, act, windows, H, W, C
    yield Launch(_max, blocks_of(windows * blocks_of(C, 4), THREADS), arguments)


@device
def _winner(v0, v1, v2, v3):
    """Which of a window's four wins."""
    best, k = v0, uint32(0)
    if v1 > best or v1 != v1:
        best, k = v1, ONE
    if v2 > best or v2 != v2:
        best, k = v2, TWO
    return THREE if v3 > best or v3 != v3 else k


@device
def _given4(d, winner, k):
    """d where k is the winner, 0 elsewhere."""
    return (
        d[0] if winner[0] == k else ZERO, d[1] if winner[1] == k else ZERO,
        d[2] if winner[2] == k else ZERO, d[3] if winner[3] == k else ZERO,
    )  # fmt: skip


@device
def _put(dx, s, q, d, v, base, of, middle, i, c, C, act, has_base, has_of):
    """Writes one pixel of dx; the sums with it added."""
    d = finish_seen4(dx, d, v, base, i, c, C, act, has_base)
    if has_of:
        q = add_products(q, d, of, middle, i, c, C)
    return plus4(s, d), q


@kernel(THREADS, 3)
def _unmax(
    dx, part, dy, x, scale, shift, base, of, centre, act, has_base, has_of, has_sums,
    quads, tiles, lanes, samples, windows, C, H, W,
):  # fmt: skip
    """A thread has windows of a lane, those at an odd edge too, which have no winner."""
    first = cuda.shared.array(SUMS, float32, alignment=16)
    second = cuda.shared.array(SUMS, float32, alignment=16)
    window, left, c = row_place(quads, tiles, lanes, samples, windows)
    slots, wide = uint32(uint32(THREADS) >> quads), uint32((W + ONE) >> ONE)
    s = q = ZERO4
    if c < C:
        middle = take4(centre, c, c, C) if has_of else ZERO4
        affine = affine_of(scale, shift, c, C, act)
        while left > uint32(0):
            n, rest = uint32(window // windows), uint32(window % windows)
            h, w = uint32(uint32(rest // wide) * TWO), uint32(uint32(rest % wide) * TWO)
            i0 = uint32(uint32(uint32(n * H + h) * W + w) * C + c)
            i1, i2 = uint32(i0 + C), uint32(i0 + W * C)
            i3 = uint32(i2 + C)
            right, below = uint32(w + ONE) < W, uint32(h + ONE) < H
            d = v1 = v2 = v3 = ZERO4
            # each number of x is read once, for the maximum and for the mask
            v0 = pending4(x, i0, c, C, affine, act)
            if right:
                v1 = pending4(x, i1, c, C, affine, act)
            if below:
                v2 = pending4(x, i2, c, C, affine, act)
            if right and below:
                v3 = pending4(x, i3, c, C, affine, act)
                at = uint32(uint32(n * uint32(H >> ONE) + uint32(h >> ONE)) * uint32(W >> ONE) + uint32(w >> ONE))
                d = take4(dy, uint32(at * C + c), c, C)
            winner = (
                _winner(v0[0], v1[0], v2[0], v3[0]), _winner(v0[1], v1[1], v2[1], v3[1]),
                _winner(v0[2], v1[2], v2[2], v3[2]), _winner(v0[3], v1[3], v2[3], v3[3]),
            )  # fmt: skip
            d0 = _given4(d, winner, uint32(0))
            s, q = _put(dx, s, q, d0, v0, base, of, middle, i0, c, C, act, has_base, has_of)
            if right:
                d1 = _given4(d, winner, ONE)
                s, q = _put(dx, s, q, d1, v1, base, of, middle, i1, c, C, act, has_base, has_of)
            if below:
                d2 = _given4(d, winner, TWO)
                s, q = _put(dx, s, q, d2, v2, base, of, middle, i2, c, C, act, has_base, has_of)
            if right and below:
                d3 = _given4(d, winner, THREE)
                s, q = _put(dx, s, q, d3, v3, base, of, middle, i3, c, C, act, has_base, has_of)
            window = uint32(window + slots)
            left = uint32(left - slots) if left > slots else uint32(0)
    if has_sums:
        put_sums(part, first, second, s, q, quads, c, C)


@op
def maxpool_backward(dx, sums, dy, x, scale, shift, base, of, centre, act):
    """Gradient of ``maxpool_forward``: d is dy at the first maximum of each window, 0 elsewhere.

    dx (N, H, W, C)                out: [base +] mask(P(x)) * d, see ``fastadam.kernels``
    sums (L, 2, C)                 out, optional: lane sums of dx and of dx * (of - centre)
    dy (N, H // 2, W // 2, C)      in
    x, scale, shift                in, as in forward
    base, of like dx, centre (C,)  in, optional
    """
    _, H, W, _ = x.shape
    tiling = Tiling(dx.shape, sums, -(-H // 2) * -(-W // 2))
    yield Launch(
        _unmax, tiling.grid,
        (dx, tiling.part, dy, x, scale, shift, base, of, centre, act, base.size > 0, of.size > 0, sums.size > 0,
         *tiling.scalars, H, W),
    )  # fmt: skip
    yield from tiling.joined()


@kernel(THREADS)
def _mean(y, x, scale, shift, act, share, quads, pixels, C):
    """A block has a sample."""
    shared = cuda.shared.array(SUMS, float32, alignment=16)
    t, n = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
    c = uint32((uint32(cuda.blockIdx.y << quads) + (t & uint32((ONE << quads) - ONE))) * FOUR)
    pixel, slots = uint32(t >> quads), uint32(uint32(THREADS) >> quads)
    total = ZERO4
    if c < C:
        at = uint32(uint32(n * pixels + pixel) * C + c)
        affine = affine_of(scale, shift, c, C, act)
        while pixel < pixels:
            total = plus4(total, pending4(x, at, c, C, affine, act))
            pixel, at = uint32(pixel + slots), uint32(at + slots * C)
    total = block_sum(shared, total, quads)
    if t < uint32(ONE << quads) and c < C:
        give4(y, uint32(n * C + c), c, C, times4(total, share))


@op
def avgpool_forward(y, x, scale, shift, act):
    """y[n] = mean of P(x)[n] over all pixels.

    y (N, C)         out
    x (N, H, W, C)   in, raw; scale, shift (C,) its pending affine (act 1); act 2 is a pending ReLU
    """
    N, C = y.shape
    pixels, quads = pixels_of(x), width_of(C)
    yield Launch(_mean, (N, blocks_of(C, 4 << quads)), (y, x, scale, shift, act, 1.0 / pixels, quads, pixels, C))


@kernel(THREADS)
def _unmean(
    dx, part, dy, x, scale, shift, base, of, centre, act, share, has_base, has_of, has_sums,
    quads, tiles, lanes, samples, pixels, C,
):  # fmt: skip
    first = cuda.shared.array(SUMS, float32, alignment=16)
    second = cuda.shared.array(SUMS, float32, alignment=16)
    row, left, c = row_place(quads, tiles, lanes, samples, pixels)
    slots = uint32(uint32(THREADS) >> quads)
    s = q = ZERO4
    if c < C:
        middle = take4(centre, c, c, C) if has_of else ZERO4
        affine = affine_of(scale, shift, c, C, act)
        while left > uint32(0):
            i = uint32(row * C + c)
            d = times4(take4(dy, uint32(uint32(row // pixels) * C + c), c, C), share)
            d = finish_row4(dx, d, x, affine, base, i, c, C, act, has_base)
            s = plus4(s, d)
            if has_of:
                q = add_products(q, d, of, middle, i, c, C)
            row = uint32(row + slots)
            left = uint32(left - slots) if left > slots else uint32(0)
    if has_sums:
        put_sums(part, first, second, s, q, quads, c, C)


@op
def avgpool_backward(dx, sums, dy, x, scale, shift, base, of, centre, act):
    """Gradient of ``avgpool_forward``: d is dy / (H * W) at every pixel.

    dx (N, H, W, C)                out: [base +] mask(P(x)) * d, see ``fastadam.kernels``
    sums (L, 2, C)                 out, optional: lane sums of dx and of dx * (of - centre)
    dy (N, C)                      in
    x, scale, shift                in, as in forward
    base, of like dx, centre (C,)  in, optional
    """
    pixels = pixels_of(dx)
    tiling = Tiling(dx.shape, sums, pixels)
    yield Launch(
        _unmean, tiling.grid,
        (dx, tiling.part, dy, x, scale, shift, base, of, centre, act, 1.0 / pixels, base.size > 0, of.size > 0,
         sums.size > 0, *tiling.scalars),
    )  # fmt: skip
    yield from tiling.joined()

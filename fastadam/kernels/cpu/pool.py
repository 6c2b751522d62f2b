"""Pooling: 2x2 max-pool with stride 2, and the mean over all pixels, of a pending activation.

Max-pool keeps no indices: backward computes the window's four values again and finds the same winner. The
first of equals in row-major order wins; a NaN wins over everything, so that it is seen (as in PyTorch).
"""

from numpy import float32, inf

from fastadam.kernels.cpu.jit import inlined, leaf
from fastadam.kernels.cpu.lanes import lane_range
from fastadam.kernels.cpu.parallel import parallel
from fastadam.kernels.cpu.pending import activate, finish_gradient
from fastadam.kernels.cpu.simd import FAR, LINE, WIDTH, cut, load, prefetch, put, splat, store, where_beaten, zeros
from fastadam.kernels.cpu.workspace import aligned, reserve, sized, threaded

ZERO, ONE, TWO, THREE = float32(0), float32(1), float32(2), float32(3)
NO_FLOOR = float32(-inf)


@inlined
def _relu(v, floor):
    """ReLU for floor 0, nothing for minus infinity; a NaN compares false and stays."""
    return floor if v <= floor else v


@inlined
def _beats(v, best):
    """Whether a later value of the window replaces the best so far; ``|``: a branch would not vectorise."""
    return (v > best) | (v != v)


@leaf
def _max_row(y, top, low, columns, channels, scale, shift, act):
    """One row of y from two rows of x; the next two are asked for on the way."""
    floor = ZERO if act & 2 else NO_FLOOR
    for column in range(columns):
        at = 2 * column * channels
        for i in range(at + 2 * top.size, at + 2 * (top.size + channels), LINE):
            prefetch(top, i)
            prefetch(low, i)
        out = y[column * channels : (column + 1) * channels]
        x0, x1 = top[at : at + channels], top[at + channels : at + 2 * channels]
        x2, x3 = low[at : at + channels], low[at + channels : at + 2 * channels]
        if act & 1:
            for c in range(channels):
                best = _relu(x0[c] * scale[c] + shift[c], floor)
                v = _relu(x1[c] * scale[c] + shift[c], floor)
                best = v if _beats(v, best) else best
                v = _relu(x2[c] * scale[c] + shift[c], floor)
                best = v if _beats(v, best) else best
                v = _relu(x3[c] * scale[c] + shift[c], floor)
                out[c] = v if _beats(v, best) else best
        else:
            for c in range(channels):
                best = _relu(x0[c], floor)
                v = _relu(x1[c], floor)
                best = v if _beats(v, best) else best
                v = _relu(x2[c], floor)
                best = v if _beats(v, best) else best
                v = _relu(x3[c], floor)
                out[c] = v if _beats(v, best) else best


@leaf
def _max_sample(worker, n, y, x, scale, shift, height, width, channels, act):
    row, out = width * channels, width // 2 * channels
    for h in range(height // 2):
        to, at = (n * (height // 2) + h) * out, (n * height + 2 * h) * row
        top, low = x[at : at + row], x[at + row : at + 2 * row]
        _max_row(y[to : to + out], top, low, width // 2, channels, scale, shift, act)


def maxpool_forward(y, x, scale, shift, act):
    """y[n, h, w] = maximum of P(x)[n, 2h : 2h + 2, 2w : 2w + 2]; an odd last row or column is dropped.

    y (N, H // 2, W // 2, C)   out
    x (N, H, W, C)             in, raw; scale, shift (C,) its pending affine (act 1); act 2 is a pending ReLU
    A sample of y has one owner.
    """
    samples, height, width, channels = x.shape
    parallel(_max_sample, samples, y.reshape(-1), x.reshape(-1), scale, shift, height, width, channels, int(act))


@leaf
def _give_to_winners(rows, dy, row, columns, channels):
    """In place: two rows of activated values become dy where a value won its window, else 0."""
    if rows.size < 2 * row:  # an odd last row is in no window
        rows[:] = ZERO
        return
    top, low = rows[:row], rows[row:]
    for column in range(columns):
        at = 2 * column * channels
        d = dy[column * channels : (column + 1) * channels]
        x0, x1 = top[at : at + channels], top[at + channels : at + 2 * channels]
        x2, x3 = low[at : at + channels], low[at + channels : at + 2 * channels]
        for c in range(channels):
            best, winner = x0[c], ZERO
            won = _beats(x1[c], best)
            best, winner = (x1[c] if won else best), (ONE if won else winner)
            won = _beats(x2[c], best)
            best, winner = (x2[c] if won else best), (TWO if won else winner)
            winner = THREE if _beats(x3[c], best) else winner
            x0[c] = d[c] if winner == ZERO else ZERO
            x1[c] = d[c] if winner == ONE else ZERO
            x2[c] = d[c] if winner == TWO else ZERO
            x3[c] = d[c] if winner == THREE else ZERO
    top[2 * columns * channels :] = ZERO  # nor is an odd last column
    low[2 * columns * channels :] = ZERO


@leaf
def _unpool_rows(
    dx, at, row, dy, d_at, columns, channels, x, scale, shift, base, act, sums, lane, of, centre, far
):  # fmt: skip
    """``_give_to_winners`` and ``finish_gradient`` of two rows in one pass, for whole vectors of channels."""
    affine, relu, total = act & 1 != 0, act & 2 != 0, 2 * lane * channels
    for c in range(0, channels, WIDTH):
        s, b, k, t, q = splat(ONE), zeros(), zeros(), zeros(), zeros()
        if affine:
            s, b = load(scale, c), load(shift, c)
        if of.size > 0:
            k = load(centre, c)
        for column in range(columns):
            at0 = at + 2 * column * channels + c
            at2 = at0 + row
            at1, at3 = at0 + channels, at2 + channels
            for i in (at0, at1, at2, at3):  # the next two rows
                prefetch(x, i + 2 * row)
            x0, x1, x2, x3 = load(x, at0) * s + b, load(x, at1) * s + b, load(x, at2) * s + b, load(x, at3) * s + b
            if relu:
                x0, x1, x2, x3 = cut(x0, x0), cut(x1, x1), cut(x2, x2), cut(x3, x3)
            d, none = load(dy, d_at + column * channels + c), zeros()
            d0, d1, best = where_beaten(x1, x0, none, d), where_beaten(x1, x0, d, none), where_beaten(x1, x0, x1, x0)
            d0, d1 = where_beaten(x2, best, none, d0), where_beaten(x2, best, none, d1)
            d2, best = where_beaten(x2, best, d, none), where_beaten(x2, best, x2, best)
            d0, d1 = where_beaten(x3, best, none, d0), where_beaten(x3, best, none, d1)
            d2, d3 = where_beaten(x3, best, none, d2), where_beaten(x3, best, d, none)
            for i, v, seen in ((at0, d0, x0), (at1, d1, x1), (at2, d2, x2), (at3, d3, x3)):
                if act & 4 != 0 and base.size > 0:
                    v = v + load(base, i)
                if relu:
                    v = cut(v, seen)
                if act & 4 == 0 and base.size > 0:
                    v = v + load(base, i)
                put(dx, i, v, far)
                t = t + v
                if of.size > 0:
                    q = q + v * (load(of, i) - k)
        if sums.size > 0:
            store(sums, total + c, load(sums, total + c) + t)
            store(sums, total + channels + c, load(sums, total + channels + c) + q)


@leaf
def _unpool_lane(
    worker, lane, dx, sums, dy, x, scale, shift, base, of, centre, work, own, lanes, samples, height, width, channels,
    act,
):  # fmt: skip
    row, out, mine = width * channels, width // 2 * channels, worker * own
    if sums.size > 0:
        sums[lane] = ZERO
    first, last = lane_range(lane, lanes, samples)
    if channels % WIDTH == 0 and width % 2 == 0 and height % 2 == 0:
        for n in range(first, last):
            for h in range(0, height, 2):
                at, d = (n * height + h) * row, (n * (height // 2) + h // 2) * out
                _unpool_rows(
                    dx, at, row, dy, d, width // 2, channels, x, scale, shift, base, act, sums, lane, of, centre,
                    dx.size >= FAR,
                )  # fmt: skip
        return
    for n in range(first, last):
        for h in range(0, height, 2):
            at, pixels = (n * height + h) * row, width * min(2, height - h)
            d = (n * (height // 2) + h // 2) * out
            activate(work, mine, x, at, pixels, channels, scale, shift, act)
            _give_to_winners(work[mine : mine + pixels * channels], dy[d : d + out], row, width // 2, channels)
            finish_gradient(
                dx, at, work, mine, pixels, channels, x, scale, shift, base, act, sums, lane, of, centre, dx.size >= FAR
            )  # fmt: skip


def _backward_sizes(dx, sums, dy, x, *_):
    return 0, 2 * x.shape[2] * x.shape[3]


@sized(_backward_sizes)
def maxpool_backward(dx, sums, dy, x, scale, shift, base, of, centre, act):
    """Gradient of ``maxpool_forward``: d is dy at the first maximum of each window, 0 elsewhere.

    dx (N, H, W, C)                out: [base +] mask(P(x)) * d, see ``fastadam.kernels``
    sums (L, 2, C)                 out, optional: lane sums of dx and of dx * (of - centre)
    dy (N, H // 2, W // 2, C)      in
    x, scale, shift                in, as in forward
    base, of like dx, centre (C,)  in, optional
    A lane owns its samples of dx and its share of sums.
    """
    samples, height, width, channels = x.shape
    lanes, own = sums.shape[0] if sums.size else samples, aligned(2 * width * channels)
    parallel(
        _unpool_lane, lanes, dx.reshape(-1), sums, dy.reshape(-1), x.reshape(-1), scale, shift, base.reshape(-1),
        of.reshape(-1), centre, reserve(threaded(0, own)), own, lanes, samples, height, width, channels, int(act),
    )  # fmt: skip


@leaf
def _mean_pixel(worker, n, means, values, scale, shift, pixels, channels, act):
    """Sample n of y = mean over the pixels of P(x), summed in their order."""
    y, x = means[n * channels : (n + 1) * channels], values[n * pixels * channels : (n + 1) * pixels * channels]
    floor = ZERO if act & 2 else NO_FLOOR
    y[:] = ZERO
    for p in range(pixels):
        pixel = x[p * channels : (p + 1) * channels]
        if act & 1:
            for c in range(channels):
                y[c] += _relu(pixel[c] * scale[c] + shift[c], floor)
        else:
            for c in range(channels):
                y[c] += _relu(pixel[c], floor)
    share = ONE / float32(pixels)
    for c in range(channels):
        y[c] *= share


def avgpool_forward(y, x, scale, shift, act):
    """y[n] = mean of P(x)[n] over all pixels.

    y (N, C)         out
    x (N, H, W, C)   in, raw; scale, shift (C,) its pending affine (act 1); act 2 is a pending ReLU
    A sample of y has one owner, who adds its pixels in row-major order.
    """
    samples, channels = y.shape
    pixels = x.shape[1] * x.shape[2]
    parallel(_mean_pixel, samples, y.reshape(-1), x.reshape(-1), scale, shift, pixels, channels, int(act))


@leaf
def _spread_mean(dx, dy, pixels, channels):
    """Every pixel gets its share of dy (C,)."""
    share = ONE / float32(pixels)
    for p in range(pixels):
        pixel = dx[p * channels : (p + 1) * channels]
        for c in range(channels):
            pixel[c] = dy[c] * share


@leaf
def _unmean_lane(
    worker, lane, dx, sums, dy, x, scale, shift, base, of, centre, lanes, samples, pixels, channels, act
):  # fmt: skip
    size = pixels * channels
    if sums.size > 0:
        sums[lane] = ZERO
    first, last = lane_range(lane, lanes, samples)
    for n in range(first, last):
        at = n * size
        _spread_mean(dx[at : at + size], dy[n * channels : (n + 1) * channels], pixels, channels)
        finish_gradient(dx, at, dx, at, pixels, channels, x, scale, shift, base, act, sums, lane, of, centre, False)


def avgpool_backward(dx, sums, dy, x, scale, shift, base, of, centre, act):
    """Gradient of ``avgpool_forward``: d is dy / (H * W) at every pixel.

    dx (N, H, W, C)                out: [base +] mask(P(x)) * d, see ``fastadam.kernels``
    sums (L, 2, C)                 out, optional: lane sums of dx and of dx * (of - centre)
    dy (N, C)                      in
    x, scale, shift                in, as in forward
    base, of like dx, centre (C,)  in, optional
    A lane owns its samples of dx and its share of sums.
    """
    samples, height, width, channels = x.shape
    lanes = sums.shape[0] if sums.size else samples
    parallel(
        _unmean_lane, lanes, dx.reshape(-1), sums, dy.reshape(-1), x.reshape(-1), scale, shift, base.reshape(-1),
        of.reshape(-1), centre, lanes, samples, height * width, channels, int(act),
    )  # fmt: skip

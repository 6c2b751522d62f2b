"""What readers and writers of a tensor share: pending activations, pending gradients, and their sums.

Leaves work on a span of whole pixels: flat arrays, offsets in elements, ``channels`` numbers a pixel.
``act``: 1 affine (``x * scale + shift`` by channel), 2 ReLU, 4 the mask covers the base too.
The negated comparisons let a NaN through: ``v <= 0`` is false for it, so it is neither cut nor masked.

What goes by channel walks a block of pixels for a vector of channels at a time: scale, shift and sums then stay
in registers. Channels beyond the last whole vector are done one number at a time. Plain loops slice their spans
first: a signed offset in an index has numba check for wrap-around, which keeps a loop from vectorising.
"""

from numpy import float32

from fastadam.kernels.cpu.jit import inlined, leaf
from fastadam.kernels.cpu.simd import WIDTH, cut, load, prefetch, put, splat, store, zeros

ZERO, ONE = float32(0), float32(1)

_BLOCK = 4096
"""Floats of one array in a block of pixels: what several arrays may have of a first-level cache."""


@inlined
def _cut(value, where):
    return ZERO if where <= ZERO else value


@leaf
def copy(y, y_at, x, x_at, size):
    """``size`` numbers of x to y, which may be other parts of one array."""
    whole = size // WIDTH * WIDTH
    for i in range(0, whole, WIDTH):
        store(y, y_at + i, load(x, x_at + i))
    for i in range(whole, size):
        y[y_at + i] = x[x_at + i]


@leaf
def _block_pixels(channels):
    return max(1, _BLOCK // channels)


@leaf
def activate(y, y_at, x, x_at, pixels, channels, scale, shift, act):
    """y = P(x): the value a reader sees of a tensor stored raw."""
    if act & 1:
        step = _block_pixels(channels)
        for p in range(0, pixels, step):
            count, at = min(step, pixels - p), p * channels
            _activate_block(y, y_at + at, x, x_at + at, count, channels, scale, shift, act)
        return
    size = pixels * channels
    if act & 2:
        y, x = y[y_at : y_at + size], x[x_at : x_at + size]
        for i in range(size):
            y[i] = _cut(x[i], x[i])
    else:
        copy(y, y_at, x, x_at, size)


@leaf
def _activate_block(y, y_at, x, x_at, pixels, channels, scale, shift, act):
    whole = channels // WIDTH * WIDTH
    for c in range(0, whole, WIDTH):
        s, b = load(scale, c), load(shift, c)
        if act & 2:
            for i in range(c, pixels * channels, channels):
                v = load(x, x_at + i) * s + b
                store(y, y_at + i, cut(v, v))
        else:
            for i in range(c, pixels * channels, channels):
                store(y, y_at + i, load(x, x_at + i) * s + b)
    for c in range(whole, channels):
        for i in range(c, pixels * channels, channels):
            v = x[x_at + i] * scale[c] + shift[c]
            y[y_at + i] = _cut(v, v) if act & 2 else v


@leaf
def pull_gradient(d, d_at, dz, raw, at, pixels, channels, gscale, ga, gb, gact):
    """d = dz, or with ``gact`` the batch norm's ``gscale * dz + ga + gb * raw`` by channel."""
    if gact:
        step = _block_pixels(channels)
        for p in range(0, pixels, step):
            count, i = min(step, pixels - p), p * channels
            _pull_block(d, d_at + i, dz, raw, at + i, count, channels, gscale, ga, gb)
        return
    copy(d, d_at, dz, at, pixels * channels)


@leaf
def _pull_block(d, d_at, dz, raw, at, pixels, channels, gscale, ga, gb):
    whole, following = channels // WIDTH * WIDTH, at + pixels * channels
    for c in range(0, whole, WIDTH):
        s, a, b = load(gscale, c), load(ga, c), load(gb, c)
        for i in range(c, pixels * channels, channels):
            prefetch(dz, following + i)
            prefetch(raw, following + i)
            store(d, d_at + i, load(dz, at + i) * s + (load(raw, at + i) * b + a))
    for c in range(whole, channels):
        for i in range(c, pixels * channels, channels):
            d[d_at + i] = gscale[c] * dz[at + i] + (gb[c] * raw[at + i] + ga[c])


@leaf
def finish_gradient(
    dx, at, d, d_at, pixels, channels, x, scale, shift, base, act, sums, lane, of, centre, far
):  # fmt: skip
    """The tail of every backward over a span: dx from d, and the lane's sums of it. ``d`` may be dx itself.

    dx = [base +] mask * d, or mask * (base + d) with act 4; mask is 0 where the pending ReLU cut x.
    sums[lane] += (sum dx, sum dx * (of - centre)), if there are sums; without ``of`` the second row is left.
    far: dx is stored past the caches.
    """
    step = _block_pixels(channels)
    for p in range(0, pixels, step):
        count, i = min(step, pixels - p), p * channels
        _finish_block(
            dx, at + i, d, d_at + i, count, channels, x, scale, shift, base, act, sums, lane, of, centre, far
        )  # fmt: skip


@leaf
def _finish_block(
    dx, at, d, d_at, pixels, channels, x, scale, shift, base, act, sums, lane, of, centre, far
):  # fmt: skip
    affine, relu, whole = act & 1 != 0, act & 2 != 0, channels // WIDTH * WIDTH
    base_first, base_last = base.size > 0 and act & 4 != 0, base.size > 0 and act & 4 == 0
    has_sums, has_of, total = sums.size > 0, of.size > 0, 2 * lane * channels
    for c in range(0, whole, WIDTH):
        s, b, k, t, q = splat(ONE), zeros(), zeros(), zeros(), zeros()
        if affine:
            s, b = load(scale, c), load(shift, c)
        if has_of:
            k = load(centre, c)
        for i in range(c, pixels * channels, channels):
            v = load(d, d_at + i)
            if base_first:
                v = v + load(base, at + i)
            if relu:
                v = cut(v, load(x, at + i) * s + b)
            if base_last:
                v = v + load(base, at + i)
            put(dx, at + i, v, far)
            t = t + v
            if has_of:
                q = q + v * (load(of, at + i) - k)
        if has_sums:
            store(sums, total + c, load(sums, total + c) + t)
            store(sums, total + channels + c, load(sums, total + channels + c) + q)
    for c in range(whole, channels):
        first, second = ZERO, ZERO
        for i in range(c, pixels * channels, channels):
            v = d[d_at + i]
            if base_first:
                v += base[at + i]
            if relu:
                v = _cut(v, x[at + i] * scale[c] + shift[c] if affine else x[at + i])
            if base_last:
                v += base[at + i]
            dx[at + i] = v
            first += v
            if has_of:
                second += v * (of[at + i] - centre[c])
        if has_sums:
            sums[lane, 0, c] += first
            sums[lane, 1, c] += second


@leaf
def add_sums(sums, lane, dx, at, pixels, channels, of, centre):
    """``sums[lane] += (sum dx, sum dx * (of - centre))`` over the span; without ``of`` the second row is left."""
    step = _block_pixels(channels)
    for p in range(0, pixels, step):
        count, i = min(step, pixels - p), at + p * channels
        if of.size > 0:
            _add_products(sums[lane, 0], sums[lane, 1], dx, i, count, channels, of, centre)
        else:
            _add(sums[lane, 0], dx, i, count, channels)


@leaf
def _add(total, dx, at, pixels, channels):
    whole = channels // WIDTH * WIDTH
    for c in range(0, whole, WIDTH):
        t = load(total, c)
        for i in range(at + c, at + pixels * channels, channels):
            t = t + load(dx, i)
        store(total, c, t)
    for c in range(whole, channels):
        for i in range(at + c, at + pixels * channels, channels):
            total[c] += dx[i]


@leaf
def _add_products(total, product, dx, at, pixels, channels, of, centre):
    whole = channels // WIDTH * WIDTH
    for c in range(0, whole, WIDTH):
        t, q, k = load(total, c), load(product, c), load(centre, c)
        for i in range(at + c, at + pixels * channels, channels):
            d = load(dx, i)
            t = t + d
            q = q + d * (load(of, i) - k)
        store(total, c, t)
        store(product, c, q)
    for c in range(whole, channels):
        for i in range(at + c, at + pixels * channels, channels):
            total[c] += dx[i]
            product[c] += dx[i] * (of[i] - centre[c])


@leaf
def start_moments(moments, lane, x, at, channels):
    """The lane's pivot is its first pixel, so that little cancels in the sums of squares."""
    for c in range(channels):
        moments[lane, 0, c] = x[at + c]
        moments[lane, 1, c] = ZERO
        moments[lane, 2, c] = ZERO


@leaf
def add_moments(moments, lane, x, at, pixels, channels):
    """``moments[lane] += (., sum x - k, sum (x - k)**2)`` over the span, k the pivot set by ``start_moments``."""
    step = _block_pixels(channels)
    for p in range(0, pixels, step):
        count, i = min(step, pixels - p), at + p * channels
        _add_moments(moments[lane, 0], moments[lane, 1], moments[lane, 2], x, i, count, channels)


@leaf
def _add_moments(pivot, first, second, x, at, pixels, channels):
    whole = channels // WIDTH * WIDTH
    for c in range(0, whole, WIDTH):
        k, a, b = load(pivot, c), load(first, c), load(second, c)
        for i in range(at + c, at + pixels * channels, channels):
            v = load(x, i) - k
            a = a + v
            b = b + v * v
        store(first, c, a)
        store(second, c, b)
    for c in range(whole, channels):
        for i in range(at + c, at + pixels * channels, channels):
            v = x[i] - pivot[c]
            first[c] += v
            second[c] += v * v


@inlined
def pending_value(x, i, scale, shift, c, act):
    """P(x) of one number: ``x[i]`` of channel c."""
    v = x[i]
    if act & 1:
        v = v * scale[c] + shift[c]
    if act & 2 and v <= ZERO:
        v = ZERO
    return v

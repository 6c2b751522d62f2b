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
from fastadam.kernels.cpu.simd import WIDTH, cut, load, store

ZERO = float32(0)

_BLOCK = 4096
"""Floats of one array in a block of pixels: what several arrays may have of a first-level cache."""


@inlined
def _cut(value, where):
    return ZERO if where <= ZERO else value


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
    y, x = y[y_at : y_at + size], x[x_at : x_at + size]
    if act & 2:
        for i in range(size):
            y[i] = _cut(x[i], x[i])
    else:
        for i in range(size):
            y[i] = x[i]


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
    size = pixels * channels
    o, z = d[d_at : d_at + size], dz[at : at + size]
    for i in range(size):
        o[i] = z[i]


@leaf
def _pull_block(d, d_at, dz, raw, at, pixels, channels, gscale, ga, gb):
    whole = channels // WIDTH * WIDTH
    for c in range(0, whole, WIDTH):
        s, a, b = load(gscale, c), load(ga, c), load(gb, c)
        for i in range(c, pixels * channels, channels):
            store(d, d_at + i, load(dz, at + i) * s + (load(raw, at + i) * b + a))
    for c in range(whole, channels):
        for i in range(c, pixels * channels, channels):
            d[d_at + i] = gscale[c] * dz[at + i] + (gb[c] * raw[at + i] + ga[c])


@leaf
def finish_gradient(dx, at, pixels, channels, x, scale, shift, base, act):
    """In place, dx holding d: ``[base +] mask * d``, or ``mask * (base + d)`` with act 4; mask is 0 where ReLU cut."""
    size = pixels * channels
    has_base = base.size > 0
    part = dx[at : at + size]
    if has_base:
        base = base[at : at + size]
        if act & 4:
            for i in range(size):
                part[i] += base[i]
    if act & 3 == 3:
        step = _block_pixels(channels)
        for p in range(0, pixels, step):
            _mask_block(dx, x, at + p * channels, min(step, pixels - p), channels, scale, shift)
    elif act & 2:
        x = x[at : at + size]
        for i in range(size):
            part[i] = _cut(part[i], x[i])
    if has_base and not act & 4:
        for i in range(size):
            part[i] += base[i]


@leaf
def _mask_block(dx, x, at, pixels, channels, scale, shift):
    whole = channels // WIDTH * WIDTH
    for c in range(0, whole, WIDTH):
        s, b = load(scale, c), load(shift, c)
        for i in range(at + c, at + pixels * channels, channels):
            store(dx, i, cut(load(dx, i), load(x, i) * s + b))
    for c in range(whole, channels):
        for i in range(at + c, at + pixels * channels, channels):
            dx[i] = _cut(dx[i], x[i] * scale[c] + shift[c])


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

"""What readers and writers of a tensor share: pending activations, pending gradients, and their sums.

Leaves work on a span of whole pixels: flat arrays, offsets in elements, ``channels`` numbers a pixel.
``act``: 1 affine (``x * scale + shift`` by channel), 2 ReLU, 4 the mask covers the base too.
The negated comparisons let a NaN through: ``v <= 0`` is false for it, so it is neither cut nor masked.
Spans are sliced before they are walked: a signed offset in an index has numba check for wrap-around, which
keeps the loop from vectorising, as does a store under a condition.
"""

from numpy import float32

from fastadam.kernels.cpu.jit import inlined, leaf

ZERO = float32(0)


@leaf
def activate(y, y_at, x, x_at, pixels, channels, scale, shift, act):
    """y = P(x): the value a reader sees of a tensor stored raw."""
    size = pixels * channels
    y, x = y[y_at : y_at + size], x[x_at : x_at + size]
    if act & 3 == 0:
        for i in range(size):
            y[i] = x[i]
    elif act & 3 == 2:
        for i in range(size):
            v = x[i]
            y[i] = ZERO if v <= ZERO else v
    elif act & 3 == 1:
        for p in range(pixels):
            to, v = y[p * channels : (p + 1) * channels], x[p * channels : (p + 1) * channels]
            for c in range(channels):
                to[c] = v[c] * scale[c] + shift[c]
    else:
        for p in range(pixels):
            to, at = y[p * channels : (p + 1) * channels], x[p * channels : (p + 1) * channels]
            for c in range(channels):
                v = at[c] * scale[c] + shift[c]
                to[c] = ZERO if v <= ZERO else v


@leaf
def pull_gradient(d, d_at, dz, raw, at, pixels, channels, gscale, ga, gb, gact):
    """d = dz, or with ``gact`` the batch norm's ``gscale * dz + ga + gb * raw`` by channel."""
    if gact:
        for p in range(pixels):
            to, i = d_at + p * channels, at + p * channels
            o, z, r = d[to : to + channels], dz[i : i + channels], raw[i : i + channels]
            for c in range(channels):
                o[c] = gscale[c] * z[c] + ga[c] + gb[c] * r[c]
    else:
        size = pixels * channels
        o, z = d[d_at : d_at + size], dz[at : at + size]
        for i in range(size):
            o[i] = z[i]


@leaf
def finish_gradient(dx, at, pixels, channels, x, scale, shift, base, act):
    """In place, dx holding d: ``[base +] mask * d``, or ``mask * (base + d)`` with act 4; mask is 0 where ReLU cut."""
    size = pixels * channels
    has_base = base.size > 0
    dx = dx[at : at + size]
    if has_base:
        base = base[at : at + size]
    if act & 2:
        x = x[at : at + size]
    if has_base and act & 4:
        for i in range(size):
            dx[i] += base[i]
    if act & 3 == 3:
        for p in range(pixels):
            i = p * channels
            to, v = dx[i : i + channels], x[i : i + channels]
            for c in range(channels):
                to[c] = ZERO if v[c] * scale[c] + shift[c] <= ZERO else to[c]
    elif act & 2:
        for i in range(size):
            dx[i] = ZERO if x[i] <= ZERO else dx[i]
    if has_base and not act & 4:
        for i in range(size):
            dx[i] += base[i]


@leaf
def add_sums(sums, lane, dx, at, pixels, channels, of, centre):
    """``sums[lane] += (sum dx, sum dx * (of - centre))`` over the span; without ``of`` the second row is left."""
    total, product = sums[lane, 0], sums[lane, 1]
    if of.size > 0:
        for p in range(pixels):
            i = at + p * channels
            d, v = dx[i : i + channels], of[i : i + channels]
            for c in range(channels):
                total[c] += d[c]
                product[c] += d[c] * (v[c] - centre[c])
    else:
        for p in range(pixels):
            i = at + p * channels
            d = dx[i : i + channels]
            for c in range(channels):
                total[c] += d[c]


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
    pivot, first, second = moments[lane, 0], moments[lane, 1], moments[lane, 2]
    for p in range(pixels):
        i = at + p * channels
        row = x[i : i + channels]
        for c in range(channels):
            v = row[c] - pivot[c]
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

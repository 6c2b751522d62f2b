"""Winograd's F(4 x 4, 3 x 3): the six transforms of a tile, vectors of channels at a time.

Four outputs of a correlation with three taps are y = A' [(G g) * (B' d)] of six inputs d (Winograd 1980; Lavin
and Gray 2016, section 4), and a tile applies this to rows and to columns. The matrices follow from the six points
at which the polynomials are multiplied (Toom and Cook). Here these are 0, 1, -1, 1/2, -2 and infinity: rounding
errors are smaller than with Lavin's 0, 1, -1, 2, -2, because the powers are.

    B' =  1  -3/2  -2    3/2   1   0     A' = 1  1   1   1    1  0     G = 1       0      0
          0  -1    1/2   5/2   1   0          0  1  -1  1/2  -2  0         1/3    1/3    1/3
          0   1   -5/2   1/2   1   0          0  1   1  1/4   4  0        -1/3    1/3   -1/3
          0  -2   -1     2     1   0          0  1  -1  1/8  -8  1       -16/15  -8/15  -4/15
          0   1/2 -1    -1/2   1   0                                      1/15   -2/15   4/15
          0   1   -3/2  -2    3/2  1                                      0       0      1

Backward needs no other algorithm, only the adjoints: dM = A dY A', dV = dM U', dX += B dV B', dU = V' dM and
dw = G' dU G. Each 1-D transform below is its matrix with common terms taken out.
"""

from numpy import float32

from fastadam.kernels.cpu.jit import leaf
from fastadam.kernels.cpu.simd import WIDTH, load, load4, load6, put, store, store6, zeros

TILE = 4
"""Outputs of a tile along each axis."""

PATCH = 6
"""Inputs of a tile along each axis: neighbours share two."""

POINTS = PATCH * PATCH
"""Products a tile and pair of channels."""

SCRATCH = TILE * PATCH * WIDTH
"""Floats that ``output_transform`` keeps between columns and rows."""

_F0125, _F025, _F05, _F15, _F2, _F4, _F8 = map(float32, (0.125, 0.25, 0.5, 1.5, 2, 4, 8))
_THIRD, _16_15, _8_15, _4_15, _2_15, _1_15 = map(float32, (1 / 3, 16 / 15, 8 / 15, 4 / 15, 2 / 15, 1 / 15))


@leaf
def _b_transposed(d0, d1, d2, d3, d4, d5):
    e, q = d4 - d2, d3 - d1
    even, odd = e + d3 * _F15, q + d2 * _F15
    return (
        (d0 - d2) + e + q * _F15, even + odd, even - odd,
        e + q * _F2, e - q * _F05, (d5 + d1) - d3 * _F2 + e * _F15,
    )  # fmt: skip


@leaf
def _b_upper(d):
    """The first three of ``_b_transposed``."""
    e, q = d[4] - d[2], d[3] - d[1]
    even, odd = e + d[3] * _F15, q + d[2] * _F15
    return (d[0] - d[2]) + e + q * _F15, even + odd, even - odd


@leaf
def _b_lower(d):
    """The last three of ``_b_transposed``."""
    e, q = d[4] - d[2], d[3] - d[1]
    return e + q * _F2, e - q * _F05, (d[5] + d[1]) - d[3] * _F2 + e * _F15


@leaf
def _store_three(v, to, step, d0, d1, d2, d3, d4, d5):
    """Three columns of points of the rows that these begin."""
    store6(v, to, PATCH * step, _b_transposed(d0[0], d1[0], d2[0], d3[0], d4[0], d5[0]))
    store6(v, to + step, PATCH * step, _b_transposed(d0[1], d1[1], d2[1], d3[1], d4[1], d5[1]))
    store6(v, to + 2 * step, PATCH * step, _b_transposed(d0[2], d1[2], d2[2], d3[2], d4[2], d5[2]))


@leaf
def _b(v0, v1, v2, v3, v4, v5):
    s, m = v1 + v2, v1 - v2
    e, q = (v0 + s) + (v3 + v4) + v5 * _F15, (v5 - m) + v4 * _F05 - v0 * _F15 - v3 * _F2
    return v0, q, m * _F15 - e - v0, s * _F15 - q - v5, e, v5


@leaf
def _b_odd(v):
    """The first, second and fourth of ``_b``."""
    q = (v[5] - (v[1] - v[2])) + v[4] * _F05 - v[0] * _F15 - v[3] * _F2
    return v[0], q, (v[1] + v[2]) * _F15 - q - v[5]


@leaf
def _b_even(v):
    """The third, fifth and sixth of ``_b``."""
    e = (v[0] + (v[1] + v[2])) + (v[3] + v[4]) + v[5] * _F15
    return (v[1] - v[2]) * _F15 - e - v[0], e, v[5]


@leaf
def _a_transposed(m):
    s, d = m[1] + m[2], m[1] - m[2]
    return (
        m[0] + s + (m[3] + m[4]), d + m[3] * _F05 - m[4] * _F2,
        s + m[3] * _F025 + m[4] * _F4, d + m[3] * _F0125 - m[4] * _F8 + m[5],
    )  # fmt: skip


@leaf
def _a(y0, y1, y2, y3):
    even, odd = y0 + y2, y1 + y3
    return (
        y0, even + odd, even - odd, y0 + (y1 + (y2 + y3 * _F05) * _F05) * _F05, y0 - (y1 - (y2 - y3 * _F2) * _F2) * _F2,
        y3,
    )  # fmt: skip


@leaf
def _g(g0, g1, g2):
    even = g0 + g2
    return (
        g0, (even + g1) * _THIRD, (g1 - even) * _THIRD, g0 * -_16_15 - g1 * _8_15 - g2 * _4_15,
        g0 * _1_15 - g1 * _2_15 + g2 * _4_15, g2,
    )  # fmt: skip


@leaf
def _g_transposed(u):
    s, d = (u[1] + u[2]) * _THIRD, (u[1] - u[2]) * _THIRD
    return (
        u[0] + d - u[3] * _16_15 + u[4] * _1_15, s - u[3] * _8_15 - u[4] * _2_15,
        d - u[3] * _4_15 + u[4] * _4_15 + u[5],
    )  # fmt: skip


@leaf
def ring(start, i):
    """Row i of a strip whose first row is at place ``start`` of its six: strips are rings, moved on by four."""
    place = start + i
    return place - PATCH if place >= PATCH else place


@leaf
def input_transform(v, at, step, width, strip, row, start, tiles, channels):
    """V = B' d B of a row of tiles.

    v        out: point p of tile t has its channels at ``v[at + p * step + t * width]``
    strip    in: a ring of six rows of pixels, ``row`` floats each; tile t begins at pixel 4 t
    """
    r0, r1, r2 = ring(start, 0) * row, ring(start, 1) * row, ring(start, 2) * row
    r3, r4, r5 = ring(start, 3) * row, ring(start, 4) * row, ring(start, 5) * row
    for t in range(tiles):
        for c in range(0, channels, WIDTH):
            p, to = t * TILE * channels + c, at + t * width + c
            d0, d1, d2 = load6(strip, p + r0, channels), load6(strip, p + r1, channels), load6(strip, p + r2, channels)
            d3, d4, d5 = load6(strip, p + r3, channels), load6(strip, p + r4, channels), load6(strip, p + r5, channels)
            _store_three(
                v, to, step, _b_upper(d0), _b_upper(d1), _b_upper(d2), _b_upper(d3), _b_upper(d4), _b_upper(d5)
            )  # fmt: skip
            d0, d1, d2 = load6(strip, p + r0, channels), load6(strip, p + r1, channels), load6(strip, p + r2, channels)
            d3, d4, d5 = load6(strip, p + r3, channels), load6(strip, p + r4, channels), load6(strip, p + r5, channels)
            _store_three(
                v, to + 3 * step, step,
                _b_lower(d0), _b_lower(d1), _b_lower(d2), _b_lower(d3), _b_lower(d4), _b_lower(d5),
            )  # fmt: skip


@leaf
def output_transform(
    y, y_at, row, high, wide, m, at, step, width, tiles, channels, scratch, far, moments, sums_at, fresh
):  # fmt: skip
    """Y = A' M A of a row of tiles: ``high`` rows of ``wide`` pixels of y, ``row`` floats apart; M laid out as V.

    far       y is stored past the caches
    moments   in and out, optional: those of a lane at ``sums_at``, y being added; ``fresh``: the first pixel is
              the pivot, so that little cancels in the sums of squares
    """
    counted = moments.size > 0
    for t in range(tiles):
        columns = wide - t * TILE
        for c in range(0, channels, WIDTH):
            p = at + t * width + c
            for j in range(PATCH):
                r = _a_transposed(load6(m, p + j * step, PATCH * step))
                store(scratch, j * WIDTH, r[0])
                store(scratch, (PATCH + j) * WIDTH, r[1])
                store(scratch, (2 * PATCH + j) * WIDTH, r[2])
                store(scratch, (3 * PATCH + j) * WIDTH, r[3])
            to, sums = y_at + t * TILE * channels + c, sums_at + c
            pivot, first, second = zeros(), zeros(), zeros()
            if counted and fresh and t == 0:
                pivot = _a_transposed(load6(scratch, 0, WIDTH))[0]
                store(moments, sums, pivot)
            elif counted:
                pivot, first = load(moments, sums), load(moments, sums + channels)
                second = load(moments, sums + 2 * channels)
            for i in range(high):
                r = _a_transposed(load6(scratch, i * PATCH * WIDTH, WIDTH))
                o = to + i * row
                put(y, o, r[0], far)
                v = r[0] - pivot
                first, second = first + v, second + v * v
                if columns > 1:
                    put(y, o + channels, r[1], far)
                    v = r[1] - pivot
                    first, second = first + v, second + v * v
                if columns > 2:
                    put(y, o + 2 * channels, r[2], far)
                    v = r[2] - pivot
                    first, second = first + v, second + v * v
                if columns > 3:
                    put(y, o + 3 * channels, r[3], far)
                    v = r[3] - pivot
                    first, second = first + v, second + v * v
            if counted:
                store(moments, sums + channels, first)
                store(moments, sums + 2 * channels, second)


@leaf
def _pulled(dz, raw, i, step, s, a, b):
    """The row transform of four pixels of a pending gradient, ``step`` floats apart."""
    d, r = load4(dz, i, step), load4(raw, i, step)
    return _a(
        d[0] * s + (r[0] * b + a), d[1] * s + (r[1] * b + a), d[2] * s + (r[2] * b + a), d[3] * s + (r[3] * b + a)
    )


@leaf
def _loaded(dz, i, step):
    """The row transform of four pixels, ``step`` floats apart."""
    return _a(*load4(dz, i, step))


@leaf
def gradient_transform(d, at, step, width, dz, raw, dz_at, row, tiles, channels, gscale, ga, gb, gact):
    """dM = A dY A' of a row of tiles, dY being the pending gradient of four whole rows, ``row`` floats apart."""
    for t in range(tiles):
        for c in range(0, channels, WIDTH):
            p, q, to = dz_at + t * TILE * channels + c, dz_at + t * TILE * channels + c + 2 * row, at + t * width + c
            if gact:
                s, a, b = load(gscale, c), load(ga, c), load(gb, c)
                d0, d1 = _pulled(dz, raw, p, channels, s, a, b), _pulled(dz, raw, p + row, channels, s, a, b)
                d2, d3 = _pulled(dz, raw, q, channels, s, a, b), _pulled(dz, raw, q + row, channels, s, a, b)
            else:
                d0, d1 = _loaded(dz, p, channels), _loaded(dz, p + row, channels)
                d2, d3 = _loaded(dz, q, channels), _loaded(dz, q + row, channels)
            store6(d, to, PATCH * step, _a(d0[0], d1[0], d2[0], d3[0]))
            store6(d, to + step, PATCH * step, _a(d0[1], d1[1], d2[1], d3[1]))
            store6(d, to + 2 * step, PATCH * step, _a(d0[2], d1[2], d2[2], d3[2]))
            to += 3 * step
            store6(d, to, PATCH * step, _a(d0[3], d1[3], d2[3], d3[3]))
            store6(d, to + step, PATCH * step, _a(d0[4], d1[4], d2[4], d3[4]))
            store6(d, to + 2 * step, PATCH * step, _a(d0[5], d1[5], d2[5], d3[5]))


@leaf
def _add_row(strip, o, channels, d):
    """Six pixels, added to a strip."""
    e = load6(strip, o, channels)
    store6(strip, o, channels, (e[0] + d[0], e[1] + d[1], e[2] + d[2], e[3] + d[3], e[4] + d[4], e[5] + d[5]))


@leaf
def _begin_row(strip, o, channels, d):
    """Six pixels into a strip, the first two added to those of the tile before."""
    e = load6(strip, o, channels)
    store6(strip, o, channels, (e[0] + d[0], e[1] + d[1], d[2], d[3], d[4], d[5]))


@leaf
def input_adjoint(strip, row, start, v, at, step, width, tiles, channels):
    """d = B dV B' of a row of tiles, added where tiles overlap.

    strip   out: a ring as in ``input_transform``. Its first two rows are added to, they are the last two of the tiles
            above; so are two pixels at the head of every tile, of the tile before. All else is overwritten.
    """
    r0, r1, r2 = ring(start, 0) * row, ring(start, 1) * row, ring(start, 2) * row
    r3, r4, r5 = ring(start, 3) * row, ring(start, 4) * row, ring(start, 5) * row
    for i in range(2, PATCH):
        head = ring(start, i) * row
        strip[head : head + 2 * channels] = float32(0)
    for t in range(tiles):
        for c in range(0, channels, WIDTH):
            p, down, o = at + t * width + c, PATCH * step, t * TILE * channels + c
            v0, v1, v2 = load6(v, p, down), load6(v, p + step, down), load6(v, p + 2 * step, down)
            p += 3 * step
            v3, v4, v5 = load6(v, p, down), load6(v, p + step, down), load6(v, p + 2 * step, down)
            v0, v1, v2, v3, v4, v5 = _b_odd(v0), _b_odd(v1), _b_odd(v2), _b_odd(v3), _b_odd(v4), _b_odd(v5)
            _add_row(strip, o + r0, channels, _b(v0[0], v1[0], v2[0], v3[0], v4[0], v5[0]))
            _add_row(strip, o + r1, channels, _b(v0[1], v1[1], v2[1], v3[1], v4[1], v5[1]))
            _begin_row(strip, o + r3, channels, _b(v0[2], v1[2], v2[2], v3[2], v4[2], v5[2]))
            v3, v4, v5 = load6(v, p, down), load6(v, p + step, down), load6(v, p + 2 * step, down)
            p -= 3 * step
            v0, v1, v2 = load6(v, p, down), load6(v, p + step, down), load6(v, p + 2 * step, down)
            v0, v1, v2, v3, v4, v5 = _b_even(v0), _b_even(v1), _b_even(v2), _b_even(v3), _b_even(v4), _b_even(v5)
            _begin_row(strip, o + r2, channels, _b(v0[0], v1[0], v2[0], v3[0], v4[0], v5[0]))
            _begin_row(strip, o + r4, channels, _b(v0[1], v1[1], v2[1], v3[1], v4[1], v5[1]))
            _begin_row(strip, o + r5, channels, _b(v0[2], v1[2], v2[2], v3[2], v4[2], v5[2]))


@leaf
def filter_transform(u, step, panel, w, taps, first, count, channels, out):
    """U = G g G' of ``count`` input channels from ``first``, packed for the micro-kernel.

    u   out: point p of (input c, output o) at ``u[p * step + (o // panel * channels + c) * panel + o % panel]``
    w   in, flat (3, 3, channels, out), tap k at ``taps + k * channels * out``
    """
    tap = channels * out
    for c in range(first, first + count):
        for o in range(0, out, WIDTH):
            p, to = taps + c * out + o, (o // panel * channels + c) * panel + o % panel
            g0 = _g(load(w, p), load(w, p + tap), load(w, p + 2 * tap))
            g1 = _g(load(w, p + 3 * tap), load(w, p + 4 * tap), load(w, p + 5 * tap))
            g2 = _g(load(w, p + 6 * tap), load(w, p + 7 * tap), load(w, p + 8 * tap))
            store6(u, to, PATCH * step, _g(g0[0], g1[0], g2[0]))
            store6(u, to + step, PATCH * step, _g(g0[1], g1[1], g2[1]))
            store6(u, to + 2 * step, PATCH * step, _g(g0[2], g1[2], g2[2]))
            to += 3 * step
            store6(u, to, PATCH * step, _g(g0[3], g1[3], g2[3]))
            store6(u, to + step, PATCH * step, _g(g0[4], g1[4], g2[4]))
            store6(u, to + 2 * step, PATCH * step, _g(g0[5], g1[5], g2[5]))


@leaf
def filter_adjoint(dw, at, du, du_at, count, size):
    """dw = G' dU G of ``count`` pairs of channels, which are ``size`` a tap and a point."""
    row = PATCH * size
    for o in range(0, count, WIDTH):
        p, to = du_at + o, at + o
        u0, u1 = _g_transposed(load6(du, p, size)), _g_transposed(load6(du, p + row, size))
        p += 2 * row
        u2, u3 = _g_transposed(load6(du, p, size)), _g_transposed(load6(du, p + row, size))
        p += 2 * row
        u4, u5 = _g_transposed(load6(du, p, size)), _g_transposed(load6(du, p + row, size))
        for column in (
            (u0[0], u1[0], u2[0], u3[0], u4[0], u5[0]), (u0[1], u1[1], u2[1], u3[1], u4[1], u5[1]),
            (u0[2], u1[2], u2[2], u3[2], u4[2], u5[2]),
        ):  # fmt: skip
            d = _g_transposed(column)
            store(dw, to, d[0])
            store(dw, to + 3 * size, d[1])
            store(dw, to + 6 * size, d[2])
            to += size

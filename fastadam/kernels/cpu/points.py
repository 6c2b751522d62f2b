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
from fastadam.kernels.cpu.simd import WIDTH, load, store, stream, zeros

TILE = 4
"""Outputs of a tile along each axis."""

PATCH = 6
"""Inputs of a tile along each axis: neighbours share two."""

POINTS = PATCH * PATCH
"""Products a tile and pair of channels."""

SCRATCH = POINTS * WIDTH
"""Floats that a transform keeps between rows and columns."""

_F0125, _F025, _F05, _F15, _F2, _F4, _F8 = map(float32, (0.125, 0.25, 0.5, 1.5, 2, 4, 8))
_THIRD, _16_15, _8_15, _4_15, _2_15, _1_15 = map(float32, (1 / 3, 16 / 15, 8 / 15, 4 / 15, 2 / 15, 1 / 15))


@leaf
def _b_transposed(d0, d1, d2, d3, d4, d5):
    e, q = d4 - d2, d3 - d1
    r1, r2 = e + q, e - q
    return (
        (d0 - d2) + q * _F15 + e, r1 + (d2 + d3) * _F15, r2 + (d3 - d2) * _F15,
        e + q * _F2, e - q * _F05, (d5 - d3) - q + e * _F15,
    )  # fmt: skip


@leaf
def _b(v0, v1, v2, v3, v4, v5):
    s, m = v1 + v2, v1 - v2
    e = (v0 + s) + (v3 + v4) + v5 * _F15
    q = v0 * _F15 + m + v3 * _F2 - v4 * _F05 - v5
    return v0, v4 * _F05 + v5 - v0 * _F15 - m - v3 * _F2, m * _F15 - e - v0, q + s * _F15 - v5, e, v5


@leaf
def _a_transposed(m0, m1, m2, m3, m4, m5):
    s, d = m1 + m2, m1 - m2
    return (
        m0 + s + m3 + m4, d + m3 * _F05 - m4 * _F2,
        s + m3 * _F025 + m4 * _F4, d + m3 * _F0125 - m4 * _F8 + m5,
    )  # fmt: skip


@leaf
def _a(y0, y1, y2, y3):
    even, odd = y0 + y2, y1 + y3
    return (
        y0, even + odd, even - odd, y0 + y1 * _F05 + y2 * _F025 + y3 * _F0125,
        y0 - y1 * _F2 + y2 * _F4 - y3 * _F8, y3,
    )  # fmt: skip


@leaf
def _g(g0, g1, g2):
    even = g0 + g2
    return (
        g0, (even + g1) * _THIRD, (g1 - even) * _THIRD, g0 * -_16_15 - g1 * _8_15 - g2 * _4_15,
        g0 * _1_15 - g1 * _2_15 + g2 * _4_15, g2,
    )  # fmt: skip


@leaf
def _g_transposed(u0, u1, u2, u3, u4, u5):
    s, d = (u1 + u2) * _THIRD, (u1 - u2) * _THIRD
    return (
        u0 + d - u3 * _16_15 + u4 * _1_15, s - u3 * _8_15 - u4 * _2_15,
        d - u3 * _4_15 + u4 * _4_15 + u5,
    )  # fmt: skip


@leaf
def _load6(x, at, step):
    return (
        load(x, at), load(x, at + step), load(x, at + 2 * step),
        load(x, at + 3 * step), load(x, at + 4 * step), load(x, at + 5 * step),
    )  # fmt: skip


@leaf
def _store6(x, at, step, v):
    store(x, at, v[0])
    store(x, at + step, v[1])
    store(x, at + 2 * step, v[2])
    store(x, at + 3 * step, v[3])
    store(x, at + 4 * step, v[4])
    store(x, at + 5 * step, v[5])


@leaf
def ring(start, i):
    """Row i of a strip whose first row is at place ``start`` of its six: strips are rings, moved on by four."""
    place = start + i
    return place - PATCH if place >= PATCH else place


@leaf
def input_transform(v, at, step, width, strip, row, start, tiles, channels, scratch):
    """V = B' d B of a row of tiles.

    v        out: point p of tile t has its channels at ``v[at + p * step + t * width]``
    strip    in: a ring of six rows of pixels, ``row`` floats each; tile t begins at pixel 4 t
    """
    r0, r1, r2 = ring(start, 0) * row, ring(start, 1) * row, ring(start, 2) * row
    r3, r4, r5 = ring(start, 3) * row, ring(start, 4) * row, ring(start, 5) * row
    for t in range(tiles):
        for c in range(0, channels, WIDTH):
            for j in range(PATCH):
                p = (t * TILE + j) * channels + c
                column = _b_transposed(
                    load(strip, p + r0), load(strip, p + r1), load(strip, p + r2),
                    load(strip, p + r3), load(strip, p + r4), load(strip, p + r5),
                )  # fmt: skip
                _store6(scratch, j * WIDTH, PATCH * WIDTH, column)
            to = at + t * width + c
            for i in range(PATCH):
                column = _b_transposed(*_load6(scratch, i * PATCH * WIDTH, WIDTH))
                _store6(v, to + i * PATCH * step, step, column)


@leaf
def _put(y, at, value, far):
    if far:
        stream(y, at, value)
    else:
        store(y, at, value)


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
                r = _a_transposed(*_load6(m, p + j * step, PATCH * step))
                store(scratch, j * WIDTH, r[0])
                store(scratch, (PATCH + j) * WIDTH, r[1])
                store(scratch, (2 * PATCH + j) * WIDTH, r[2])
                store(scratch, (3 * PATCH + j) * WIDTH, r[3])
            to, sums = y_at + t * TILE * channels + c, sums_at + c
            pivot, first, second = zeros(), zeros(), zeros()
            if counted and fresh and t == 0:
                pivot = _a_transposed(*_load6(scratch, 0, WIDTH))[0]
                store(moments, sums, pivot)
            elif counted:
                pivot, first = load(moments, sums), load(moments, sums + channels)
                second = load(moments, sums + 2 * channels)
            for i in range(high):
                r = _a_transposed(*_load6(scratch, i * PATCH * WIDTH, WIDTH))
                o = to + i * row
                _put(y, o, r[0], far)
                v = r[0] - pivot
                first, second = first + v, second + v * v
                if columns > 1:
                    _put(y, o + channels, r[1], far)
                    v = r[1] - pivot
                    first, second = first + v, second + v * v
                if columns > 2:
                    _put(y, o + 2 * channels, r[2], far)
                    v = r[2] - pivot
                    first, second = first + v, second + v * v
                if columns > 3:
                    _put(y, o + 3 * channels, r[3], far)
                    v = r[3] - pivot
                    first, second = first + v, second + v * v
            if counted:
                store(moments, sums + channels, first)
                store(moments, sums + 2 * channels, second)


@leaf
def _pulled(dz, raw, i, s, a, b, gact):
    """A vector of the pending gradient."""
    return load(dz, i) * s + (load(raw, i) * b + a) if gact else load(dz, i)


@leaf
def gradient_transform(d, at, step, width, dz, raw, dz_at, row, tiles, channels, gscale, ga, gb, gact, scratch):
    """dM = A dY A' of a row of tiles, dY being the pending gradient of four whole rows, ``row`` floats apart."""
    for t in range(tiles):
        for c in range(0, channels, WIDTH):
            s, a, b = zeros(), zeros(), zeros()
            if gact:
                s, a, b = load(gscale, c), load(ga, c), load(gb, c)
            for j in range(TILE):
                q = dz_at + (t * TILE + j) * channels + c
                r = _a(
                    _pulled(dz, raw, q, s, a, b, gact), _pulled(dz, raw, q + row, s, a, b, gact),
                    _pulled(dz, raw, q + 2 * row, s, a, b, gact), _pulled(dz, raw, q + 3 * row, s, a, b, gact),
                )  # fmt: skip
                _store6(scratch, j * WIDTH, TILE * WIDTH, r)
            to = at + t * width + c
            for i in range(PATCH):
                k = i * TILE * WIDTH
                r = _a(
                    load(scratch, k), load(scratch, k + WIDTH), load(scratch, k + 2 * WIDTH),
                    load(scratch, k + 3 * WIDTH),
                )  # fmt: skip
                _store6(d, to + i * PATCH * step, step, r)


@leaf
def input_adjoint(strip, row, start, v, at, step, width, tiles, channels, scratch):
    """d = B dV B' of a row of tiles, added where tiles overlap.

    strip   out: a ring as in ``input_transform``. Its first two rows are added to, they are the last two of the tiles
            above; so are two pixels at the head of every tile, of the tile before. All else is overwritten.
    """
    for i in range(2, PATCH):
        head = ring(start, i) * row
        strip[head : head + 2 * channels] = float32(0)
    for t in range(tiles):
        for c in range(0, channels, WIDTH):
            p = at + t * width + c
            for j in range(PATCH):
                _store6(scratch, j * WIDTH, PATCH * WIDTH, _b(*_load6(v, p + j * step, PATCH * step)))
            for i in range(PATCH):
                r = _b(*_load6(scratch, i * PATCH * WIDTH, WIDTH))
                o = ring(start, i) * row + t * TILE * channels + c
                store(strip, o, load(strip, o) + r[0])
                store(strip, o + channels, load(strip, o + channels) + r[1])
                for j in range(2, PATCH):
                    q = o + j * channels
                    store(strip, q, load(strip, q) + r[j] if i < 2 else r[j])


@leaf
def filter_transform(u, step, panel, w, taps, first, count, channels, out, scratch):
    """U = G g G' of ``count`` input channels from ``first``, packed for the micro-kernel.

    u   out: point p of (input c, output o) at ``u[p * step + (o // panel * channels + c) * panel + o % panel]``
    w   in, flat (3, 3, channels, out), tap k at ``taps + k * channels * out``
    """
    tap = channels * out
    for c in range(first, first + count):
        for o in range(0, out, WIDTH):
            p = taps + c * out + o
            for j in range(3):
                q = p + j * tap
                _store6(scratch, j * WIDTH, 3 * WIDTH, _g(load(w, q), load(w, q + 3 * tap), load(w, q + 6 * tap)))
            to = (o // panel * channels + c) * panel + o % panel
            for i in range(PATCH):
                k = i * 3 * WIDTH
                r = _g(load(scratch, k), load(scratch, k + WIDTH), load(scratch, k + 2 * WIDTH))
                _store6(u, to + i * PATCH * step, step, r)


@leaf
def filter_adjoint(dw, at, du, du_at, size, scratch):
    """dw = G' dU G: ``size`` numbers a tap (pairs of channels) from as many a point."""
    for o in range(0, size, WIDTH):
        for j in range(PATCH):
            r = _g_transposed(*_load6(du, du_at + o + j * size, PATCH * size))
            store(scratch, j * WIDTH, r[0])
            store(scratch, (PATCH + j) * WIDTH, r[1])
            store(scratch, (2 * PATCH + j) * WIDTH, r[2])
        for i in range(3):
            r = _g_transposed(*_load6(scratch, i * PATCH * WIDTH, WIDTH))
            to = at + i * 3 * size + o
            store(dw, to, r[0])
            store(dw, to + size, r[1])
            store(dw, to + 2 * size, r[2])

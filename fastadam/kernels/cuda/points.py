"""Winograd's F(4 x 4, 3 x 3): its 1-D transforms, on numbers of one channel, and how patches are read and written.

The matrices are those of the CPU's twin, where they are derived: the points are 0, 1, -1, 1/2, -2 and infinity.

    B' =  1  -3/2  -2    3/2   1   0     A' = 1  1   1   1    1  0     G = 1       0      0
          0  -1    1/2   5/2   1   0          0  1  -1  1/2  -2  0         1/3    1/3    1/3
          0   1   -5/2   1/2   1   0          0  1   1  1/4   4  0        -1/3    1/3   -1/3
          0  -2   -1     2     1   0          0  1  -1  1/8  -8  1       -16/15  -8/15  -4/15
          0   1/2 -1    -1/2   1   0                                      1/15   -2/15   4/15
          0   1   -3/2  -2    3/2  1                                      0       0      1

The first and the last row of B have a single 1. So the two pixels at which tiles overlap are, of the tile they are
the first or the last of, a point as it is: a pixel of dX = B dV B' takes little from its neighbour tiles.
"""

import numpy as np
from numba import uint32

from fastadam.kernels.cuda.jit import device

TILE = 4
"""Outputs of a tile along each axis."""

PATCH = 6
"""Inputs of a tile along each axis: neighbours share two."""

POINTS = PATCH * PATCH
"""Products a tile and pair of channels."""

NOUGHT, ONE, TWO, THREE, FOUR, FIVE, SIX = map(uint32, range(7))
_F0125, _F025, _F05, _F15, _F2, _F4, _F8 = map(np.float32, (0.125, 0.25, 0.5, 1.5, 2, 4, 8))
_THIRD, _16_15, _8_15, _4_15, _2_15, _1_15 = map(np.float32, (1 / 3, 16 / 15, 8 / 15, 4 / 15, 2 / 15, 1 / 15))


@device
def b_transposed(d):
    """B' d: six to six."""
    e, q = d[4] - d[2], d[3] - d[1]
    r1, r2 = e + q, e - q
    return (
        (d[0] - d[2]) + q * _F15 + e, r1 + (d[2] + d[3]) * _F15, r2 + (d[3] - d[2]) * _F15,
        e + q * _F2, e - q * _F05, (d[5] - d[3]) - q + e * _F15,
    )  # fmt: skip


@device
def b_inner(v):
    """B v without its first and last row, which are v[0] and v[5]: six to four."""
    s, m = v[1] + v[2], v[1] - v[2]
    e = (v[0] + s) + (v[3] + v[4]) + v[5] * _F15
    q = v[0] * _F15 + m + v[3] * _F2 - v[4] * _F05 - v[5]
    return v[4] * _F05 + v[5] - v[0] * _F15 - m - v[3] * _F2, m * _F15 - e - v[0], q + s * _F15 - v[5], e


@device
def a_transposed(m):
    """A' m: six to four."""
    s, d = m[1] + m[2], m[1] - m[2]
    return (
        m[0] + s + m[3] + m[4], d + m[3] * _F05 - m[4] * _F2,
        s + m[3] * _F025 + m[4] * _F4, d + m[3] * _F0125 - m[4] * _F8 + m[5],
    )  # fmt: skip


@device
def a(y):
    """A y: four to six."""
    even, odd = y[0] + y[2], y[1] + y[3]
    return (
        y[0], even + odd, even - odd, y[0] + y[1] * _F05 + y[2] * _F025 + y[3] * _F0125,
        y[0] - y[1] * _F2 + y[2] * _F4 - y[3] * _F8, y[3],
    )  # fmt: skip


@device
def g(w):
    """G w: three to six."""
    even = w[0] + w[2]
    return (
        w[0], (even + w[1]) * _THIRD, (w[1] - even) * _THIRD, w[0] * -_16_15 - w[1] * _8_15 - w[2] * _4_15,
        w[0] * _1_15 - w[1] * _2_15 + w[2] * _4_15, w[2],
    )  # fmt: skip


@device
def g_transposed(u):
    """G' u: six to three."""
    s, d = (u[1] + u[2]) * _THIRD, (u[1] - u[2]) * _THIRD
    return (
        u[0] + d - u[3] * _16_15 + u[4] * _1_15, s - u[3] * _8_15 - u[4] * _2_15,
        d - u[3] * _4_15 + u[4] * _4_15 + u[5],
    )  # fmt: skip


# Patches ----------------------------------------------------------------------------------------------------


@device
def places(first, size):
    """Places first .. first + 5, the first inside for those that are not; and which are."""
    edge = first if first < size else NOUGHT
    i1, i2, i3 = uint32(first + ONE), uint32(first + TWO), uint32(first + THREE)
    i4, i5 = uint32(first + FOUR), uint32(first + FIVE)
    inside = first < size, i1 < size, i2 < size, i3 < size, i4 < size, i5 < size
    return (
        edge, i1 if inside[1] else edge, i2 if inside[2] else edge, i3 if inside[3] else edge,
        i4 if inside[4] else edge, i5 if inside[5] else edge,
    ), inside  # fmt: skip


@device
def times(places, step):
    """Offsets of places that lie ``step`` apart."""
    return (
        uint32(places[0] * step), uint32(places[1] * step), uint32(places[2] * step),
        uint32(places[3] * step), uint32(places[4] * step), uint32(places[5] * step),
    )  # fmt: skip


@device
def pick4(x, row, columns):
    """x[row + columns[k]], four of them."""
    return (
        x[uint32(row + columns[0])], x[uint32(row + columns[1])],
        x[uint32(row + columns[2])], x[uint32(row + columns[3])],
    )  # fmt: skip


@device
def pick6(x, row, columns):
    """x[row + columns[k]], six of them."""
    return (*pick4(x, row, columns), x[uint32(row + columns[4])], x[uint32(row + columns[5])])


@device
def load6(x, at, step):
    """Six numbers, ``step`` apart."""
    i1 = uint32(at + step)
    i2 = uint32(i1 + step)
    i3 = uint32(i2 + step)
    i4 = uint32(i3 + step)
    return x[at], x[i1], x[i2], x[i3], x[i4], x[uint32(i4 + step)]


@device
def load36(x, at, step):
    """All points of a tile: point (i, j) is the (6 i + j)-th."""
    row = uint32(SIX * step)
    i1 = uint32(at + row)
    i2 = uint32(i1 + row)
    i3 = uint32(i2 + row)
    i4 = uint32(i3 + row)
    low = load6(x, at, step) + load6(x, i1, step) + load6(x, i2, step)
    return low + load6(x, i3, step) + load6(x, i4, step) + load6(x, uint32(i4 + row), step)


@device
def store6(x, at, step, v):
    """Six numbers, ``step`` apart."""
    i1 = uint32(at + step)
    i2 = uint32(i1 + step)
    i3 = uint32(i2 + step)
    i4 = uint32(i3 + step)
    x[at] = v[0]
    x[i1] = v[1]
    x[i2] = v[2]
    x[i3] = v[3]
    x[i4] = v[4]
    x[uint32(i4 + step)] = v[5]


@device
def place_of(tile, high, wide):
    """(sample, row, column) of a tile."""
    q = uint32(tile // wide)
    return uint32(q // high), uint32(q % high), uint32(tile % wide)

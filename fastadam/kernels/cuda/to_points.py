"""Winograd's transforms of what a convolution reads: V = B' P(x) B, dM = A d A' and U = G w G'.

A thread transforms one tile of one channel (or a pair of channels of w), its neighbours the next channels, so that a
warp reads and writes runs of memory. The loads of a tile have no branches among them, so that all are under way at
once: what lies outside is read from the nearest place inside, and dropped.
"""

from numba import cuda, float32, uint32

from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.points import (
    FIVE,
    FOUR,
    NOUGHT,
    ONE,
    SIX,
    THREE,
    TWO,
    a,
    b_transposed,
    g,
    pick4,
    pick6,
    place_of,
    places,
    store6,
    times,
)  # fmt: skip
from fastadam.kernels.cuda.ptx import ZERO, ZERO4

THREADS = 256
UNIT = float32(1)


@device
def _activated(v, s, t, relu, inside):
    v = v * s + t
    return ZERO if not inside or (relu and v <= ZERO) else v


@device
def _patch_column(v, s, t, relu, rows, inside):
    """B' of a column of the patch, activated, zeros round the image."""
    return b_transposed((
        _activated(v[0], s, t, relu, rows[0] and inside), _activated(v[1], s, t, relu, rows[1] and inside),
        _activated(v[2], s, t, relu, rows[2] and inside), _activated(v[3], s, t, relu, rows[3] and inside),
        _activated(v[4], s, t, relu, rows[4] and inside), _activated(v[5], s, t, relu, rows[5] and inside),
    ))  # fmt: skip


@device
def _input_points(v, x, scale, shift, act, pad, i, grid, image, step):
    """V of a tile and channel, element i of a point."""
    H, W, C = image
    c = uint32(i % C)
    n, ty, tx = place_of(uint32(i // C), *grid)
    s, t, relu = UNIT, ZERO, (act & TWO) != NOUGHT
    if act & ONE:
        s, t = scale[c], shift[c]
    rows, high = places(uint32(ty * FOUR - pad), H)
    columns, wide = places(uint32(tx * FOUR - pad), W)
    rows, columns = times(rows, uint32(W * C)), times(columns, C)
    at = uint32(n * uint32(H * W * C) + c)
    p = (
        pick6(x, uint32(at + rows[0]), columns) + pick6(x, uint32(at + rows[1]), columns)
        + pick6(x, uint32(at + rows[2]), columns) + pick6(x, uint32(at + rows[3]), columns)
        + pick6(x, uint32(at + rows[4]), columns) + pick6(x, uint32(at + rows[5]), columns)
    )  # fmt: skip
    q = (
        _patch_column(p[0::6], s, t, relu, high, wide[0]) + _patch_column(p[1::6], s, t, relu, high, wide[1])
        + _patch_column(p[2::6], s, t, relu, high, wide[2]) + _patch_column(p[3::6], s, t, relu, high, wide[3])
        + _patch_column(p[4::6], s, t, relu, high, wide[4]) + _patch_column(p[5::6], s, t, relu, high, wide[5])
    )  # fmt: skip
    row = uint32(SIX * step)
    store6(v, i, step, b_transposed(q[0::6]))
    store6(v, uint32(i + row), step, b_transposed(q[1::6]))
    store6(v, uint32(i + TWO * row), step, b_transposed(q[2::6]))
    store6(v, uint32(i + THREE * row), step, b_transposed(q[3::6]))
    store6(v, uint32(i + FOUR * row), step, b_transposed(q[4::6]))
    store6(v, uint32(i + FIVE * row), step, b_transposed(q[5::6]))


@device
def _pulled(d, raw, s, ga, gb, inside):
    """The pending gradient, zero outside."""
    return s * d + (gb * raw + ga) if inside else ZERO


@device
def _block_column(d, r, s, ga, gb, rows, inside):
    """A of a column of the block's pending gradient."""
    return a((
        _pulled(d[0], r[0], s, ga, gb, rows[0] and inside), _pulled(d[1], r[1], s, ga, gb, rows[1] and inside),
        _pulled(d[2], r[2], s, ga, gb, rows[2] and inside), _pulled(d[3], r[3], s, ga, gb, rows[3] and inside),
    ))  # fmt: skip


@device
def _block16(x, at, rows, columns):
    return (
        pick4(x, uint32(at + rows[0]), columns) + pick4(x, uint32(at + rows[1]), columns)
        + pick4(x, uint32(at + rows[2]), columns) + pick4(x, uint32(at + rows[3]), columns)
    )  # fmt: skip


@device
def _gradient_points(dm, dz, raw, gscale, ga, gb, gact, i, grid, image, step):
    """dM of a tile and channel, element i of a point."""
    OH, OW, OC = image
    c = uint32(i % OC)
    n, ty, tx = place_of(uint32(i // OC), *grid)
    rows, high = places(uint32(ty * FOUR), OH)
    columns, wide = places(uint32(tx * FOUR), OW)
    rows, columns = times(rows, uint32(OW * OC)), times(columns, OC)
    at = uint32(n * uint32(OH * OW * OC) + c)
    d, s, t, b = _block16(dz, at, rows, columns), UNIT, ZERO, ZERO
    r = ZERO4 + ZERO4 + ZERO4 + ZERO4
    if gact:
        r = _block16(raw, at, rows, columns)
        s, t, b = gscale[c], ga[c], gb[c]
    q = (
        _block_column(d[0::4], r[0::4], s, t, b, high, wide[0])
        + _block_column(d[1::4], r[1::4], s, t, b, high, wide[1])
        + _block_column(d[2::4], r[2::4], s, t, b, high, wide[2])
        + _block_column(d[3::4], r[3::4], s, t, b, high, wide[3])
    )
    row = uint32(SIX * step)
    store6(dm, i, step, a(q[0::6]))
    store6(dm, uint32(i + row), step, a(q[1::6]))
    store6(dm, uint32(i + TWO * row), step, a(q[2::6]))
    store6(dm, uint32(i + THREE * row), step, a(q[3::6]))
    store6(dm, uint32(i + FOUR * row), step, a(q[4::6]))
    store6(dm, uint32(i + FIVE * row), step, a(q[5::6]))


@device
def _filter_points(u, w, i, pairs):
    """U of a pair of channels, element i of a tap and of a point."""
    row = uint32(THREE * pairs)
    i1, i2 = uint32(i + pairs), uint32(i + TWO * pairs)
    q = (
        g((w[i], w[uint32(i + row)], w[uint32(i + TWO * row)]))
        + g((w[i1], w[uint32(i1 + row)], w[uint32(i1 + TWO * row)]))
        + g((w[i2], w[uint32(i2 + row)], w[uint32(i2 + TWO * row)]))
    )
    row = uint32(SIX * pairs)
    store6(u, i, pairs, g(q[0::6]))
    store6(u, uint32(i + row), pairs, g(q[1::6]))
    store6(u, uint32(i + TWO * row), pairs, g(q[2::6]))
    store6(u, uint32(i + THREE * row), pairs, g(q[3::6]))
    store6(u, uint32(i + FOUR * row), pairs, g(q[4::6]))
    store6(u, uint32(i + FIVE * row), pairs, g(q[5::6]))


@kernel(THREADS, 4)
def to_points(
    v, x, scale, shift, dm, dz, raw, gscale, ga, gb, u, w, act, gact, pad, blocks_v, blocks_d,
    tiles, TH, TW, H, W, C, OH, OW, OC,
):  # fmt: skip
    """V, dM and U, whichever has blocks: first those of V, then those of dM."""
    block, t = uint32(cuda.blockIdx.x), uint32(cuda.threadIdx.x)
    if block < blocks_v:
        i = uint32(block * uint32(THREADS) + t)
        if i < uint32(tiles * C):
            _input_points(v, x, scale, shift, act, pad, i, (TH, TW), (H, W, C), uint32(tiles * C))
    elif block < uint32(blocks_v + blocks_d):
        i = uint32(uint32(block - blocks_v) * uint32(THREADS) + t)
        if i < uint32(tiles * OC):
            _gradient_points(dm, dz, raw, gscale, ga, gb, gact, i, (TH, TW), (OH, OW, OC), uint32(tiles * OC))
    else:
        i = uint32(uint32(block - blocks_v - blocks_d) * uint32(THREADS) + t)
        if i < uint32(C * OC):
            _filter_points(u, w, i, uint32(C * OC))

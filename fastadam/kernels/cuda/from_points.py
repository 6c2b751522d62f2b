"""Winograd's transforms back: y = A' M A with its moments, dX = B dV B' with its tail and sums, dw = G' dU G.

dX is gathered, not scattered: a thread owns 4 x 4 pixels and takes from every tile that reaches them. Such a block
begins one pixel after a tile's patch does and is its inner 4 x 4; of eight neighbours it takes a row, a column or a
point. With padding 1, blocks of pixels and tiles lie alike.

Sums go by lanes, see ``lanes.py``: a group of a lane's tiles, and 32 channels of them, is a block's.
"""

from numba import cuda, float32, uint32

from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.lanes import lane_start, tile_place
from fastadam.kernels.cuda.points import (
    FIVE,
    FOUR,
    NOUGHT,
    ONE,
    POINTS,
    SIX,
    THREE,
    TWO,
    a_transposed,
    b_inner,
    g_transposed,
    load6,
    load36,
    pick4,
    place_of,
    places,
    store6,
    times,
)  # fmt: skip
from fastadam.kernels.cuda.ptx import WARP, ZERO, ZERO4, add_each

UNIT = float32(1)

SLOTS = 16
"""Warps of a block: each has every 16th tile of its group, one channel a thread."""

SUMMING = SLOTS * WARP
"""Threads of a block that adds sums up."""

FILTER_THREADS = 64


@device
def _add_slots(part, at, C, sums, squares, c, s, q):
    """part[at + c] and part[at + C + c]: two sums over the block's slots, in their order."""
    t = uint32(cuda.threadIdx.x)
    cuda.syncthreads()
    sums[t] = s
    squares[t] = q
    cuda.syncthreads()
    if t < uint32(WARP) and c < C:
        for k in range(1, SLOTS):
            s += sums[uint32(t + uint32(k) * uint32(WARP))]
            q += squares[uint32(t + uint32(k) * uint32(WARP))]
        part[uint32(at + c)] = s
        part[uint32(at + C + c)] = q


@device
def _first_pixel(m, i, step):
    """y at the first pixel of a tile, to the last bit as it is stored."""
    v = load36(m, i, step)
    top = (
        a_transposed(v[0::6])[0], a_transposed(v[1::6])[0], a_transposed(v[2::6])[0],
        a_transposed(v[3::6])[0], a_transposed(v[4::6])[0], ZERO,
    )  # fmt: skip
    return a_transposed(top)[0]


@device
def _output_row(y, at, OC, inside, wide, k, s, q, m):
    """A row of a tile into y, and its terms of both sums about k."""
    v = a_transposed(m)
    if inside:
        y[at] = v[0]
        d = v[0] - k
        s, q = s + d, q + d * d
        if wide[1]:
            y[uint32(at + OC)] = v[1]
            d = v[1] - k
            s, q = s + d, q + d * d
        if wide[2]:
            y[uint32(at + TWO * OC)] = v[2]
            d = v[2] - k
            s, q = s + d, q + d * d
        if wide[3]:
            y[uint32(at + THREE * OC)] = v[3]
            d = v[3] - k
            s, q = s + d, q + d * d
    return s, q


@kernel(SUMMING, 1)
def output_from_points(y, part, m, has_moments, lanes, groups, rows, samples, TH, TW, OH, OW, OC):
    """y = A' M A, and moments about the lane's first pixel: only its first group of ``rows`` tiles writes the pivot."""
    sums = cuda.shared.array(SUMMING, float32)
    squares = cuda.shared.array(SUMMING, float32)
    pivots = cuda.shared.array(WARP, float32)
    t, block = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
    c, slot = uint32(uint32(cuda.blockIdx.y) * uint32(WARP) + (t & uint32(31))), uint32(t >> FIVE)
    step = uint32(samples * TH * TW * OC)
    first, count = tile_place(block, groups, lanes, samples, uint32(TH * TW), rows)
    k, s, q, at = ZERO, ZERO, ZERO, uint32(block * THREE * OC)
    if has_moments:
        if slot == NOUGHT:
            if c < OC:
                lane = uint32(block // groups)
                k = _first_pixel(m, uint32(lane_start(lane, lanes, samples, uint32(TH * TW)) * OC + c), step)
                part[uint32(at + c)] = k if lane * groups == block else ZERO
            pivots[t] = k
        cuda.syncthreads()
        k = pivots[t & uint32(31)]
    i = slot
    while i < count and c < OC:
        n, ty, tx = place_of(uint32(first + i), TH, TW)
        v = load36(m, uint32(uint32(first + i) * OC + c), step)
        o = (
            a_transposed(v[0::6]) + a_transposed(v[1::6]) + a_transposed(v[2::6])
            + a_transposed(v[3::6]) + a_transposed(v[4::6]) + a_transposed(v[5::6])
        )  # fmt: skip
        _, high = places(uint32(ty * FOUR), OH)
        _, wide = places(uint32(tx * FOUR), OW)
        to, row = uint32(uint32(uint32(n * OH + ty * FOUR) * OW + tx * FOUR) * OC + c), uint32(OW * OC)
        s, q = _output_row(y, to, OC, True, wide, k, s, q, o[0::4])
        s, q = _output_row(y, uint32(to + row), OC, high[1], wide, k, s, q, o[1::4])
        s, q = _output_row(y, uint32(to + TWO * row), OC, high[2], wide, k, s, q, o[2::4])
        s, q = _output_row(y, uint32(to + THREE * row), OC, high[3], wide, k, s, q, o[3::4])
        i = uint32(i + uint32(SLOTS))
    if has_moments:
        _add_slots(part, uint32(at + OC), OC, sums, squares, c, s, q)


@device
def _reaching(place, size):
    """Tile rows (or columns) before, at and after a block's: where to read them, and which are there."""
    before, after = uint32(place - ONE), uint32(place + ONE)
    there = before < size, place < size, after < size
    edge = place if there[1] else after if there[2] else before
    return (before if there[0] else edge, edge, after if there[2] else edge), there


@device
def _reach8(dv, tiles, point, step):
    """Of a column of points: the last of the tile above, the six of the block's own, the first of the one below."""
    row = uint32(SIX * step)
    up = dv[uint32(tiles[0] + point + FIVE * row)]
    return (up, *load6(dv, uint32(tiles[1] + point), row), dv[uint32(tiles[2] + point)])


@device
def _kept(v, there):
    return v if there else ZERO


@device
def _reach_column(v, rows, there):
    """B of what ``_reach8`` read, at the four rows of the block."""
    own = there and rows[1]
    p = b_inner((
        _kept(v[1], own), _kept(v[2], own), _kept(v[3], own), _kept(v[4], own), _kept(v[5], own), _kept(v[6], own),
    ))  # fmt: skip
    return p[0] + _kept(v[0], there and rows[0]), p[1], p[2], p[3] + _kept(v[7], there and rows[2])


@device
def _finished(d, v, b, s, t, relu, has_base, mask_base):
    """The tail of one number, see ``pending.finished``."""
    if has_base and mask_base:
        d += b
    if relu and v * s + t <= ZERO:
        d = ZERO
    if has_base and not mask_base:
        d += b
    return d


@device
def _finish_row(tail, at, columns, inside, wide, sums, own, left, right):
    """The four pixels of a row: B across, the tail, and their terms of both sums."""
    dx, x, base, of = tail[0]
    act, has_base, has_of = tail[1]
    s, t, k = tail[2]
    v = b = r = ZERO4
    if act & TWO:
        v = pick4(x, at, columns)
    if has_base:
        b = pick4(base, at, columns)
    if has_of:
        r = pick4(of, at, columns)
    relu, mask_base = (act & TWO) != NOUGHT, (act & FOUR) != NOUGHT
    p = b_inner(own)
    d0 = _finished(p[0] + left, v[0], b[0], s, t, relu, has_base, mask_base)
    d1 = _finished(p[1], v[1], b[1], s, t, relu, has_base, mask_base)
    d2 = _finished(p[2], v[2], b[2], s, t, relu, has_base, mask_base)
    d3 = _finished(p[3] + right, v[3], b[3], s, t, relu, has_base, mask_base)
    first, second = sums
    if inside:
        if wide[0]:
            dx[uint32(at + columns[0])] = d0
            first, second = first + d0, second + d0 * (r[0] - k)
        if wide[1]:
            dx[uint32(at + columns[1])] = d1
            first, second = first + d1, second + d1 * (r[1] - k)
        if wide[2]:
            dx[uint32(at + columns[2])] = d2
            first, second = first + d2, second + d2 * (r[2] - k)
        if wide[3]:
            dx[uint32(at + columns[3])] = d3
            first, second = first + d3, second + d3 * (r[3] - k)
    return first, second


@kernel(SUMMING, 1)
def input_from_points(
    dx, part, dv, x, scale, shift, base, of, centre, act, pad, has_base, has_of, has_sums,
    lanes, groups, rows, samples, BH, BW, TH, TW, H, W, C,
):  # fmt: skip
    """dX = B dV B', its tail and sums; BH x BW blocks of 4 x 4 pixels a sample, ``rows`` of them in a group."""
    sums = cuda.shared.array(SUMMING, float32)
    squares = cuda.shared.array(SUMMING, float32)
    t, block = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
    c = uint32(uint32(cuda.blockIdx.y) * uint32(WARP) + (t & uint32(31)))
    step = uint32(samples * TH * TW * C)
    first, count = tile_place(block, groups, lanes, samples, uint32(BH * BW), rows)
    s, h, k, both = UNIT, ZERO, ZERO, (ZERO, ZERO)
    if c < C and act & ONE:
        s, h = scale[c], shift[c]
    if c < C and has_of:
        k = centre[c]
    corner = uint32(0xFFFFFFFF) if pad == NOUGHT else NOUGHT  # without padding a first block lies before all tiles
    i = uint32(t >> FIVE)
    while i < count and c < C:
        n, ty, tx = place_of(uint32(first + i), BH, BW)
        ty, tx = uint32(ty + corner), uint32(tx + corner)
        down, there = _reaching(ty, TH)
        across, beside = _reaching(tx, TW)
        at = (
            uint32(uint32(uint32(n * TH + down[0]) * TW) * C + c),
            uint32(uint32(uint32(n * TH + down[1]) * TW) * C + c),
            uint32(uint32(uint32(n * TH + down[2]) * TW) * C + c),
        )
        west, mid, east = uint32(across[0] * C), uint32(across[1] * C), uint32(across[2] * C)
        vl = _reach8(dv, at, uint32(west + FIVE * step), step)
        v0 = _reach8(dv, at, mid, step)
        v1 = _reach8(dv, at, uint32(mid + step), step)
        v2 = _reach8(dv, at, uint32(mid + TWO * step), step)
        v3 = _reach8(dv, at, uint32(mid + THREE * step), step)
        v4 = _reach8(dv, at, uint32(mid + FOUR * step), step)
        v5 = _reach8(dv, at, uint32(mid + FIVE * step), step)
        vr = _reach8(dv, at, east, step)
        left = _reach_column(vl, there, beside[0])
        own = (
            _reach_column(v0, there, beside[1]) + _reach_column(v1, there, beside[1])
            + _reach_column(v2, there, beside[1]) + _reach_column(v3, there, beside[1])
            + _reach_column(v4, there, beside[1]) + _reach_column(v5, there, beside[1])
        )  # fmt: skip
        right = _reach_column(vr, there, beside[2])
        down, high = places(uint32(ty * FOUR + ONE - pad), H)
        across, wide = places(uint32(tx * FOUR + ONE - pad), W)
        down, across = times(down, uint32(W * C)), times(across, C)
        o = uint32(n * uint32(H * W * C) + c)
        tail = (dx, x, base, of), (act, has_base, has_of), (s, h, k)
        both = _finish_row(tail, uint32(o + down[0]), across, high[0], wide, both, own[0::4], left[0], right[0])
        both = _finish_row(tail, uint32(o + down[1]), across, high[1], wide, both, own[1::4], left[1], right[1])
        both = _finish_row(tail, uint32(o + down[2]), across, high[2], wide, both, own[2::4], left[2], right[2])
        both = _finish_row(tail, uint32(o + down[3]), across, high[3], wide, both, own[3::4], left[3], right[3])
        i = uint32(i + uint32(SLOTS))
    if has_sums:
        _add_slots(part, uint32(block * TWO * C), C, sums, squares, c, both[0], both[1])


@kernel(FILTER_THREADS)
def filter_from_points(dw, du, lanes, shares, pairs):
    """dw = G' dU G by lanes, shares added in their order: a pair of channels a thread."""
    i = uint32(cuda.grid(1))
    lane, pair = uint32(i // pairs), uint32(i % pairs)
    if lane < lanes:
        at, whole = uint32(uint32(lane * shares * uint32(POINTS)) * pairs + pair), uint32(uint32(POINTS) * pairs)
        v = load36(du, at, pairs)
        for _ in range(1, shares):
            at = uint32(at + whole)
            v = add_each(v, load36(du, at, pairs))
        q = (
            g_transposed(v[0::6]) + g_transposed(v[1::6]) + g_transposed(v[2::6])
            + g_transposed(v[3::6]) + g_transposed(v[4::6]) + g_transposed(v[5::6])
        )  # fmt: skip
        to = uint32(uint32(lane * uint32(9)) * pairs + pair)
        r = g_transposed(q[0::3]) + g_transposed(q[1::3]) + g_transposed(q[2::3])
        store6(dw, to, pairs, r[0:6])
        to = uint32(to + SIX * pairs)
        dw[to] = r[6]
        dw[uint32(to + pairs)] = r[7]
        dw[uint32(to + TWO * pairs)] = r[8]

"""3 x 3 convolution of stride 1 by Winograd's minimal filtering, forward and backward.

A row of tiles at a time is brought into a strip of padded pixels, the pending activation applied on the way,
and transformed (``points``); a block of such rows then makes 36 matrix products, (tiles, C) @ (C, OC), whose
results are transformed back. A block is small enough for the second-level cache. Backward transforms x again
rather than store V: that costs less than the memory would.

Any height, width and padding; C and OC are multiples of a panel. What hangs over the edge is zero on the way
in and not written on the way out.
"""

import math

import numpy as np

from fastadam.kernels import MOST_LANES
from fastadam.kernels.cpu.gemm import PANEL, TILE_ROWS, product
from fastadam.kernels.cpu.jit import inlined, leaf
from fastadam.kernels.cpu.lanes import lane_range
from fastadam.kernels.cpu.parallel import parallel
from fastadam.kernels.cpu.pending import (
    activate,
    finish_gradient,
    pull_gradient,
)
from fastadam.kernels.cpu.points import (
    PATCH,
    POINTS,
    SCRATCH,
    TILE,
    filter_adjoint,
    filter_transform,
    gradient_transform,
    input_adjoint,
    input_transform,
    output_transform,
    ring,
)
from fastadam.kernels.cpu.simd import FAR, prefetch
from fastadam.kernels.cpu.transpose import transpose
from fastadam.kernels.cpu.workspace import ALIGN, aligned, odd_lines, reserve, threaded

BLOCK_BYTES = 3 << 19
"""Of V and M together in one block, beside which the filters pass through the second-level cache."""

RUN = 128
"""Most channels that are summed in one run: longer float32 sums lose digits, and the transforms magnify that."""

BLOCK_TILES = 48
"""A block has a multiple of so many tiles, whole tiles of the micro-kernel for every width of 2, 4 and 8 tiles."""


def tiles(size: int) -> int:
    return -(-size // TILE)


def _most_rows(wide: int, c: int, oc: int) -> int:
    """Rows of tiles that a block should have, of a convolution whose output is ``wide`` tiles wide."""
    tiles = max(BLOCK_TILES, BLOCK_BYTES // (4 * POINTS * (c + oc)) // BLOCK_TILES * BLOCK_TILES)
    return max(1, min(4 * BLOCK_TILES, tiles) // wide)


def _block_rows(wide: int, c: int, oc: int, share: int) -> int:
    """Rows of tiles in a block, where a task has ``share`` of them: about equal blocks, of whole micro-kernel tiles."""
    whole = TILE_ROWS // math.gcd(TILE_ROWS, wide)
    blocks = max(1, round(share / _most_rows(wide, c, oc)))
    return min(share, -(-share // (blocks * whole)) * whole)


def point_step(rows: int, wide: int, channels: int) -> int:
    """Floats from one point to the next: whole tiles of the micro-kernel."""
    return -(-rows * wide // TILE_ROWS) * TILE_ROWS * odd_lines(channels) + PANEL


@leaf
def fill_strip(work, at, row, start, fresh, x, n, first, high, wide, pad, channels, scale, shift, act):
    """Six padded rows of P(x) of sample n, a ring; the first is input row ``first``, outside there are zeros.

    Unless ``fresh``, the first two are there already.
    """
    for i in range(0 if fresh else 2, PATCH):
        h, to = first + i, at + ring(start, i) * row + pad * channels
        if 0 <= h < high:
            activate(work, to, x, (n * high + h) * wide * channels, wide, channels, scale, shift, act)
        else:
            work[to : to + wide * channels] = np.float32(0)


@leaf
def _ask_ahead(array, row, begin, rows, part, parts):
    """Prefetch one part of rows ``begin`` to ``begin + rows - 1`` of ``row`` floats.

    Parts are asked for between small products: many at once would wait for each other.
    """
    share = (rows * row + parts - 1) // parts
    first = begin * row + part * share
    for i in range(first, min(first + share, array.size), ALIGN):
        prefetch(array, i)


@leaf
def pack_panel(worker, panel, work, w, c, oc, turned):
    """U of a panel of C at the head of ``work``; or, ``turned``, of those filters that lead from OC back to C."""
    first = panel * PANEL
    if turned:
        taps = POINTS * c * oc
        for tap in range(9):
            begin = tap * c * oc
            transpose(work, taps + begin + first * c, c, w, begin + first, oc, c, PANEL)
        filter_transform(work, c * oc, PANEL, work, taps, first, PANEL, oc, c)
    else:
        filter_transform(work, c * oc, PANEL, w, 0, first, PANEL, c, oc)


@leaf
def _forward_task(
    worker, task, y, moments, x, scale, shift, work, own_at, own_size, act, pad, lanes, tasks, rows,
    width_v, step_v, width_m, step_m,
):  # fmt: skip
    """The samples of a task's lanes, block by block."""
    mine = own_at + worker * own_size
    samples, high, wide, c = x.shape
    out_h, out_w, oc = y.shape[1], y.shape[2], y.shape[3]
    x, y = x.reshape(-1), y.reshape(-1)
    down, across = (out_h + TILE - 1) // TILE, (out_w + TILE - 1) // TILE
    row, start, panels = (across * TILE + PATCH - TILE) * c, 0, oc // PANEL
    v_at = mine + SCRATCH + PATCH * row
    scratch, strip = work[mine : mine + SCRATCH], work[mine + SCRATCH : v_at]
    m_at = v_at + POINTS * step_v
    strip[:] = np.float32(0)
    lane, last_lane = lane_range(task, tasks, lanes)
    first, end = lane_range(lane, lanes, samples)
    stop = lane_range(last_lane - 1, lanes, samples)[1]
    for begin in range(first * down, stop * down, rows):
        count = min(rows, stop * down - begin)
        for r in range(count):
            n, ty = (begin + r) // down, (begin + r) % down
            start = ring(start, TILE)
            fill_strip(strip, 0, row, start, ty == 0, x, n, ty * TILE - pad, high, wide, pad, c, scale, shift, act)
            input_transform(work, v_at + r * across * width_v, step_v, width_v, strip, row, start, across, c)
        for part in range(POINTS * panels):
            p, o = part // panels, part % panels * PANEL
            for k in range(0, c, RUN):
                product(
                    count * across, PANEL, min(RUN, c - k), work, v_at + p * step_v + k, width_v, 1,
                    work, (part * c + k) * PANEL, 0, PANEL, work, m_at + p * step_m + o, width_m, k > 0,
                )  # fmt: skip
            _ask_ahead(x, TILE * wide * c, begin + count, rows, part, POINTS * panels)
        for r in range(count):
            n, ty = (begin + r) // down, (begin + r) % down
            lines = min(TILE, out_h - ty * TILE)
            at = (n * out_h + ty * TILE) * out_w * oc
            m = m_at + r * across * width_m
            if n == end:
                lane += 1
                first, end = lane_range(lane, lanes, samples)
            output_transform(
                y, at, out_w * oc, lines, out_w, work, m, step_m, width_m, across, oc, scratch, y.size >= FAR,
                moments, 3 * lane * oc, n == first and ty == 0,
            )  # fmt: skip


def _forward_shares(y, moments, w):
    """(lanes, tasks, rows of tiles in a block): a task has whole lanes, about as many as make a block."""
    samples, down, across = y.shape[0], tiles(y.shape[1]), tiles(y.shape[2])
    c, oc = w.shape[2:]
    lanes = moments.shape[0] if moments.size else min(samples, MOST_LANES)
    tasks = min(lanes, -(-samples * down // _most_rows(across, c, oc)))
    share = -(-lanes // tasks) * -(-samples // lanes) * down
    return lanes, tasks, _block_rows(across, c, oc, share)


def forward_sizes(y, moments, w):
    """Floats of workspace: (shared by all threads, of each thread)."""
    c, oc = w.shape[2:]
    across, (_, _, rows) = tiles(y.shape[2]), _forward_shares(y, moments, w)
    strip = PATCH * (across * TILE + PATCH - TILE) * c
    each = SCRATCH + strip + POINTS * (point_step(rows, across, c) + point_step(rows, across, oc))
    return POINTS * c * oc, each


def forward(y, moments, x, scale, shift, w, act, pad):
    """``conv2d_forward`` for 3 x 3 and stride 1."""
    c, oc = w.shape[2:]
    across, (lanes, tasks, rows) = tiles(y.shape[2]), _forward_shares(y, moments, w)
    shared, each = (aligned(size) for size in forward_sizes(y, moments, w))
    work = reserve(threaded(shared, each))
    parallel(pack_panel, c // PANEL, work, w.reshape(-1), c, oc, False)
    parallel(
        _forward_task, tasks, y, moments, x, scale, shift, work, shared, each, act, pad, lanes, tasks, rows,
        odd_lines(c), point_step(rows, across, c), odd_lines(oc), point_step(rows, across, oc),
    )  # fmt: skip


@inlined
def transform_gradient(
    work, d, step, width, strip, dz, raw, n, ty, out_h, out_w, oc, across, gscale, ga, gb, gact
):  # fmt: skip
    """dM of row ``ty`` of the tiles of sample n; ``strip``, four rows of whole tiles, is zero beyond ``out_w``."""
    at, row = (n * out_h + ty * TILE) * out_w * oc, across * TILE * oc
    if across * TILE == out_w and (ty + 1) * TILE <= out_h:
        gradient_transform(work, d, step, width, dz, raw, at, out_w * oc, across, oc, gscale, ga, gb, gact)
        return
    for i in range(TILE):  # tiles that hang over the edge are made whole
        if ty * TILE + i < out_h:
            pull_gradient(strip, i * row, dz, raw, at + i * out_w * oc, out_w, oc, gscale, ga, gb, gact)
        else:
            strip[i * row : i * row + out_w * oc] = np.float32(0)
    gradient_transform(work, d, step, width, strip, raw, 0, row, across, oc, gscale, ga, gb, 0)


@inlined
def give_rows(
    dx, sums, strip, row, start, work, v, step, width, n, ty, down, across, high, wide, c, pad, lane, x, scale, shift,
    base, of, centre, act,
):  # fmt: skip
    """The rows of dx that row ``ty`` of the tiles of sample n completes; their dV is at ``v``, as V was.

    strip   in and out: the ring of ``input_adjoint``, row ``start`` its first; what the next tiles add to stays there
    """
    if ty == 0:
        for i in range(2):
            head = ring(start, i) * row
            strip[head : head + row] = np.float32(0)
    input_adjoint(strip, row, start, work, v, step, width, across, c)
    top = ty * TILE - pad  # the input row at the head of the strip
    for h in range(max(0, top), min(high, top + (TILE if ty < down - 1 else PATCH))):
        at, here = (n * high + h) * wide * c, ring(start, h - top) * row + pad * c
        finish_gradient(
            dx, at, strip, here, wide, c, x, scale, shift, base, act, sums, lane, of, centre, dx.size >= FAR
        )  # fmt: skip


@leaf
def _backward_lane(
    worker, lane, dx, sums, dw, dz, raw, gscale, ga, gb, x, scale, shift, base, of, centre, work, own_at, own_size,
    act, gact, pad, rows, width_v, step_v, width_d, step_d,
):  # fmt: skip
    """The samples of a lane, block by block; its share of dw at the end."""
    mine = own_at + worker * own_size
    samples, high, wide, c = x.shape
    out_h, out_w, oc = dz.shape[1], dz.shape[2], dz.shape[3]
    lanes, pairs, start = dw.shape[0], c * oc, 0
    x, dx, dw, dz, raw = x.reshape(-1), dx.reshape(-1), dw.reshape(-1), dz.reshape(-1), raw.reshape(-1)
    base, of = base.reshape(-1), of.reshape(-1)
    down, across = (out_h + TILE - 1) // TILE, (out_w + TILE - 1) // TILE
    row, row_d = (across * TILE + PATCH - TILE) * c, across * TILE * oc
    strip_d_at = mine + PATCH * row
    strip_dx_at = strip_d_at + TILE * row_d
    du = strip_dx_at + PATCH * row
    v_at = du + POINTS * pairs
    d_at = v_at + POINTS * step_v
    strip = work[mine:strip_d_at]
    strip_d, strip_dx = work[strip_d_at:strip_dx_at], work[strip_dx_at:du]
    strip[:], strip_d[:] = np.float32(0), np.float32(0)
    if sums.size > 0:
        sums[lane] = np.float32(0)
    first, stop = lane_range(lane, lanes, samples)
    for begin in range(first * down, stop * down, rows):
        count = min(rows, stop * down - begin)
        before = start
        for r in range(count):
            n, ty = (begin + r) // down, (begin + r) % down
            start = ring(start, TILE)
            fill_strip(strip, 0, row, start, ty == 0, x, n, ty * TILE - pad, high, wide, pad, c, scale, shift, act)
            input_transform(work, v_at + r * across * width_v, step_v, width_v, strip, row, start, across, c)
            d = d_at + r * across * width_d
            transform_gradient(
                work, d, step_d, width_d, strip_d, dz, raw, n, ty, out_h, out_w, oc, across, gscale, ga, gb, gact
            )  # fmt: skip
        for p in range(POINTS):
            for o in range(0, oc, PANEL):
                product(
                    c, PANEL, count * across, work, v_at + p * step_v, 1, width_v,
                    work, d_at + p * step_d + o, 0, width_d, work, du + p * pairs + o, oc, begin > first * down,
                )  # fmt: skip
                part, parts = (p * oc + o) // PANEL, POINTS * oc // PANEL
                _ask_ahead(dz, TILE * out_w * oc, begin + count, rows, part, parts)
                _ask_ahead(raw, TILE * out_w * oc, begin + count, rows, part, parts)
            for i in range(0, c if dx.size > 0 else 0, PANEL):  # V is not needed any more: dV takes its place
                for k in range(0, oc, RUN):
                    product(
                        count * across, PANEL, min(RUN, oc - k), work, d_at + p * step_d + k, width_d, 1,
                        work, p * pairs + i * oc + k * PANEL, 0, PANEL, work, v_at + p * step_v + i, width_v, k > 0,
                    )  # fmt: skip
                _ask_ahead(x, TILE * wide * c, begin + count, rows, (p * c + i) // PANEL, POINTS * c // PANEL)
        if dx.size > 0:
            start = before  # the ring of dx's strip goes with that of x's
        for r in range(count if dx.size > 0 else 0):
            n, ty = (begin + r) // down, (begin + r) % down
            start = ring(start, TILE)
            give_rows(
                dx, sums, strip_dx, row, start, work, v_at + r * across * width_v, step_v, width_v, n, ty, down,
                across, high, wide, c, pad, lane, x, scale, shift, base, of, centre, act,
            )  # fmt: skip
    filter_adjoint(dw, lane * 9 * pairs, work, du, pairs, pairs)


def _backward_block(dw, dz, w):
    """Rows of tiles in a block of a lane."""
    share = -(-dz.shape[0] // dw.shape[0]) * tiles(dz.shape[1])
    return _block_rows(tiles(dz.shape[2]), w.shape[2], w.shape[3], share)


def backward_sizes(dx, dw, dz, w):
    """Floats of workspace: (shared by all threads, of each thread)."""
    c, oc = w.shape[2:]
    across, rows = tiles(dz.shape[2]), _backward_block(dw, dz, w)
    strips = 2 * PATCH * (across * TILE + PATCH - TILE) * c + TILE * across * TILE * oc
    blocks = POINTS * (point_step(rows, across, c) + point_step(rows, across, oc))
    return (POINTS + 9) * c * oc if dx.size else 0, strips + POINTS * c * oc + blocks


def backward(dx, sums, dw, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre, act, gact, pad):
    """``conv2d_backward`` for 3 x 3 and stride 1. A lane owns its samples of dx and its share of dw and of sums."""
    c, oc = w.shape[2:]
    across, rows = tiles(dz.shape[2]), _backward_block(dw, dz, w)
    shared, each = (aligned(size) for size in backward_sizes(dx, dw, dz, w))
    work = reserve(threaded(shared, each))
    if dx.size:
        parallel(pack_panel, oc // PANEL, work, w.reshape(-1), c, oc, True)
    parallel(
        _backward_lane, len(dw), dx, sums, dw, dz, raw, gscale, ga, gb, x, scale, shift, base, of, centre,
        work, shared, each, act, gact, pad, rows,
        odd_lines(c), point_step(rows, across, c), odd_lines(oc), point_step(rows, across, oc),
    )  # fmt: skip

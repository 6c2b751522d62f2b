"""Backward of a 3 x 3 convolution with many channels by Winograd's minimal filtering, point by point.

``winograd`` has each lane take its samples through all 36 points, beside filters and a gradient of 36 numbers a
pair of channels. With many channels both are larger than a second-level cache, and lanes are few, as each writes a
gradient of its own. So here a group of samples is transformed first; then a point of all its tiles, the point's
filters and their gradient, a 36th of all, meet in two products; and the input's gradient is transformed back.
Threads share samples or lanes in the transforms, points with tiles or channels in the products, and the filters'
gradient has one lane.
"""

import numpy as np

from fastadam.kernels import MOST_LANES
from fastadam.kernels.cpu.gemm import PANEL, TILE_ROWS, row_product
from fastadam.kernels.cpu.jit import leaf
from fastadam.kernels.cpu.lanes import lane_range
from fastadam.kernels.cpu.parallel import parallel
from fastadam.kernels.cpu.points import PATCH, POINTS, TILE, filter_adjoint, input_transform, ring
from fastadam.kernels.cpu.winograd import (
    RUN,
    fill_strip,
    give_rows,
    pack_panel,
    point_step,
    tiles,
    transform_gradient,
)
from fastadam.kernels.cpu.workspace import aligned, odd_lines, reserve, threaded

GROUP_TILES = 512
"""Tiles of a group, about: enough for the gradient of the filters to be written seldom."""

ROWS, CHANNELS = 144, 48
"""Tiles, and input channels, that a task of the products owns: whole tiles of the micro-kernel of any width."""

PAIRS = 8192
"""Pairs of channels whose gradient is transformed back in a task."""


@leaf
def _transform_sample(
    worker, task, first, x, scale, shift, dz, raw, gscale, ga, gb, work, own_at, own_size, act, gact, pad,
    v_at, width_v, step_v, d_at, width_d, step_d,
):  # fmt: skip
    """V and dM of sample ``first + task``, sample ``task`` of its group."""
    strip_at, n = own_at + worker * own_size, first + task
    _, high, wide, c = x.shape
    _, out_h, out_w, oc = dz.shape
    x, dz, raw = x.reshape(-1), dz.reshape(-1), raw.reshape(-1)
    down, across, start = (out_h + TILE - 1) // TILE, (out_w + TILE - 1) // TILE, 0
    row, row_d = (across * TILE + PATCH - TILE) * c, across * TILE * oc
    strip_d_at = strip_at + PATCH * row
    strip, strip_d = work[strip_at:strip_d_at], work[strip_d_at : strip_d_at + TILE * row_d]
    strip[:], strip_d[:] = np.float32(0), np.float32(0)
    for ty in range(down):
        place = (task * down + ty) * across
        start = ring(start, TILE)
        fill_strip(strip, 0, row, start, ty == 0, x, n, ty * TILE - pad, high, wide, pad, c, scale, shift, act)
        input_transform(work, v_at + place * width_v, step_v, width_v, strip, row, start, across, c)
        transform_gradient(
            work, d_at + place * width_d, step_d, width_d, strip_d, dz, raw, n, ty, out_h, out_w, oc, across,
            gscale, ga, gb, gact,
        )  # fmt: skip


@leaf
def _filter_rows(
    worker, task, work, du, count, c, oc, more, v_at, width_v, step_v, d_at, width_d, step_d
):  # fmt: skip
    """dU[p] (+)= V[p]' @ dM[p] for a point and some input channels, over the ``count`` tiles of a group."""
    parts = (c + CHANNELS - 1) // CHANNELS
    p, first = task // parts, task % parts * CHANNELS
    for i in range(first, min(c, first + CHANNELS), TILE_ROWS):
        row_product(
            min(TILE_ROWS, c - i), oc, count, RUN, work, v_at + p * step_v + i, 1, width_v,
            work, d_at + p * step_d, PANEL, width_d, work, du + (p * c + i) * oc, oc, more,
        )  # fmt: skip


@leaf
def _input_rows(worker, task, work, count, c, oc, v_at, width_v, step_v, d_at, width_d, step_d):
    """dV[p] = dM[p] @ U[p]' for a point and some tiles, in place of V."""
    parts = (count + ROWS - 1) // ROWS
    p, first = task // parts, task % parts * ROWS
    for i in range(first, min(count, first + ROWS), TILE_ROWS):
        row_product(
            min(TILE_ROWS, count - i), c, oc, RUN, work, d_at + p * step_d + i * width_d, width_d, 1,
            work, p * c * oc, oc * PANEL, PANEL, work, v_at + p * step_v + i * width_v, width_v, False,
        )  # fmt: skip


@leaf
def _input_lane(
    worker, task, lane, lanes, first, dx, sums, x, scale, shift, base, of, centre, work, own_at, own_size, act, pad,
    down, across, v_at, width, step,
):  # fmt: skip
    """dx and sums of lane ``lane + task``, the group's first lane being ``lane`` and its first sample ``first``."""
    strip_at, lane = own_at + worker * own_size, lane + task
    samples, high, wide, c = x.shape
    row, start = (across * TILE + PATCH - TILE) * c, 0
    strip = work[strip_at : strip_at + PATCH * row]
    dx, x, base, of = dx.reshape(-1), x.reshape(-1), base.reshape(-1), of.reshape(-1)
    if sums.size > 0:
        sums[lane] = np.float32(0)
    begin, end = lane_range(lane, lanes, samples)
    for n in range(begin, end):
        for ty in range(down):
            start = ring(start, TILE)
            give_rows(
                dx, sums, strip, row, start, work, v_at + ((n - first) * down + ty) * across * width, step, width, n,
                ty, down, across, high, wide, c, pad, lane, x, scale, shift, base, of, centre, act,
            )  # fmt: skip


@leaf
def _filter_part(worker, task, dw, work, du, pairs):
    first = task * PAIRS
    filter_adjoint(dw, first, work, du + first, min(PAIRS, pairs - first), pairs)


def _lanes(sums, samples):
    return sums.shape[0] if sums.size else min(samples, MOST_LANES)


def _groups(lanes, samples, each):
    """(groups of whole lanes that a batch is cut into, tiles of the largest), of ``each`` tiles a sample."""
    groups = min(lanes, max(1, round(samples * each / GROUP_TILES)))
    return groups, -(-lanes // groups) * -(-samples // lanes) * each


def backward_sizes(dx, sums, dz, w):
    """Floats of workspace: (shared by all threads, of each thread)."""
    (c, oc), (samples, high, wide, _) = w.shape[2:], dz.shape
    down, across = tiles(high), tiles(wide)
    _, most = _groups(_lanes(sums, samples), samples, down * across)
    strips = PATCH * (across * TILE + PATCH - TILE) * c + TILE * across * TILE * oc
    filters = 2 * POINTS * c * oc if dx.size else POINTS * c * oc
    return filters + POINTS * (point_step(most, 1, c) + point_step(most, 1, oc)), strips


def backward(dx, sums, dw, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre, act, gact, pad):
    """``conv2d_backward`` for 3 x 3, stride 1 and many channels: dw has one lane."""
    (c, oc), (samples, high, wide, _) = w.shape[2:], dz.shape
    pairs, down, across, lanes = c * oc, tiles(high), tiles(wide), _lanes(sums, samples)
    groups, most = _groups(lanes, samples, down * across)
    shared, each = (aligned(size) for size in backward_sizes(dx, sums, dz, w))
    work = reserve(threaded(shared, each))
    du = POINTS * pairs if dx.size else 0  # where the turned filters lie while they are packed
    v_at = du + POINTS * pairs
    v = v_at, odd_lines(c), point_step(most, 1, c)
    d = v_at + POINTS * v[2], odd_lines(oc), point_step(most, 1, oc)
    if dx.size:
        parallel(pack_panel, oc // PANEL, work, w.reshape(-1), c, oc, True)
    for group in range(groups):
        lane, last = group * lanes // groups, (group + 1) * lanes // groups
        first, end = lane * samples // lanes, last * samples // lanes
        count = (end - first) * down * across
        parallel(
            _transform_sample, end - first, first, x, scale, shift, dz, raw, gscale, ga, gb, work, shared, each,
            act, gact, pad, *v, *d,
        )  # fmt: skip
        parallel(_filter_rows, POINTS * -(-c // CHANNELS), work, du, count, c, oc, group > 0, *v, *d)
        if dx.size:
            parallel(_input_rows, POINTS * -(-count // ROWS), work, count, c, oc, *v, *d)
            parallel(
                _input_lane, last - lane, lane, lanes, first, dx, sums, x, scale, shift, base, of, centre, work,
                shared, each, act, pad, down, across, *v,
            )  # fmt: skip
    parallel(_filter_part, -(-pairs // PAIRS), dw.reshape(-1), work, du, pairs)

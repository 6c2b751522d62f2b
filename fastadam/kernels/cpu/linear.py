"""Linear layers: three products on the micro-kernel, the activation applied while the input is copied.

Rows of a power of two of floats, as they are common here, fall into the same few sets of a cache. So what a product
reads again and again is copied first, into panels or into rows that are an odd number of cache lines apart.
"""

import numpy as np

from fastadam.kernels import MOST_LANES
from fastadam.kernels.cpu.gemm import DEPTH_BLOCK, PANEL, TILE_ROWS, product
from fastadam.kernels.cpu.jit import leaf
from fastadam.kernels.cpu.lanes import lane_range
from fastadam.kernels.cpu.parallel import parallel
from fastadam.kernels.cpu.pending import (
    activate,
    add_moments,
    copy,
    finish_gradient,
    pull_gradient,
    start_moments,
)
from fastadam.kernels.cpu.simd import prefetch
from fastadam.kernels.cpu.transpose import transpose
from fastadam.kernels.cpu.workspace import aligned, odd_lines, reserve, sized, threaded

ROWS = 2 * TILE_ROWS
"""Outputs that one task of the forward product owns: few, so that there are tasks for all threads."""

COLUMNS = 4 * PANEL
"""Inputs that one task of the backward products owns."""

_ROW = odd_lines(DEPTH_BLOCK)
"""Floats from row to row of a block of w."""


@leaf
def _pack_samples(worker, panel, packed, own_at, own_size, x, scale, shift, act, samples, pixels, channels):
    """P(x) of up to 16 samples as a panel, ``[k, j]`` of sample j; missing samples are zero."""
    inputs, mine, first = pixels * channels, own_at + worker * own_size, panel * PANEL
    count = min(PANEL, samples - first)
    activate(packed, mine, x, first * inputs, count * pixels, channels, scale, shift, act)
    if count < PANEL:
        packed[first * inputs : (first + PANEL) * inputs] = np.float32(0)
    transpose(packed, first * inputs, PANEL, packed, mine, inputs, count, inputs)


@leaf
def _forward_rows(worker, task, y, w, work, own_at, own_size, samples):
    """Some outputs of all samples: a block of w, the packed samples, and y turned back."""
    outputs, inputs = w.shape
    y, w = y.reshape(-1), w.reshape(-1)
    first, block, width = task * ROWS, own_at + worker * own_size, (samples + PANEL - 1) // PANEL * PANEL
    count, turned, panels = min(ROWS, outputs - first), block + ROWS * _ROW, width // PANEL
    for k in range(0, inputs, DEPTH_BLOCK):
        depth = min(DEPTH_BLOCK, inputs - k)
        for o in range(count):
            copy(work, block + o * _ROW, w, (first + o) * inputs + k, depth)
        for p in range(panels):
            product(
                count, PANEL, depth, work, block, _ROW, 1,
                work, (p * inputs + k) * PANEL, 0, PANEL, work, turned + p * PANEL, width, k > 0,
            )  # fmt: skip
            for o in range(p * count // panels, (p + 1) * count // panels):  # rows of the next block, a share each
                at = (first + o) * inputs
                for i in range(at + k + depth, at + min(k + 2 * depth, inputs), PANEL):
                    prefetch(w, i)
    transpose(y, first, outputs, work, turned, width, count, samples)


@leaf
def _row_moments(worker, lane, moments, y, samples, outputs):
    start, stop = lane_range(lane, moments.shape[0], samples)
    start_moments(moments, lane, y, start * outputs, outputs)
    add_moments(moments, lane, y, start * outputs, stop - start, outputs)


def _forward_sizes(y, moments, x, scale, shift, w, act):
    panels, inputs = -(-x.shape[0] // PANEL), w.shape[1]
    return panels * PANEL * inputs, max(PANEL * inputs, ROWS * (_ROW + panels * PANEL))


@sized(_forward_sizes)
def linear_forward(y, moments, x, scale, shift, w, act):
    """y = P(x) @ w.T, without the bias: that is an affine of y, pending for whoever reads it.

    y (N, O)             out
    moments (L, 3, O)    out, optional: lane moments of y
    x (N, ..., C)        in, raw; its I = ... * C numbers a sample in the order H, W, C
    scale, shift (C,)    in, pending affine (act 1); act 2 is a pending ReLU
    w (O, I)             in, columns in the order H, W, C
    Tasks own rows of w, which are read once.
    """
    samples, (outputs, inputs), channels = x.shape[0], w.shape, x.shape[-1]
    shared, each = (aligned(size) for size in _forward_sizes(y, moments, x, scale, shift, w, act))
    work = reserve(threaded(shared, each))
    parallel(
        _pack_samples, -(-samples // PANEL), work, shared, each, x.reshape(-1), scale, shift, act,
        samples, inputs // channels, channels,
    )  # fmt: skip
    parallel(_forward_rows, -(-outputs // ROWS), y, w, work, shared, each, samples)
    if moments.size:
        parallel(_row_moments, len(moments), moments, y.reshape(-1), samples, outputs)


@leaf
def _copy_sample(
    worker, n, work, own_at, own_size, x, scale, shift, act, samples, pixels, channels, d_at, row_d, dz, raw, outputs,
    gscale, ga, gb, gact,
):  # fmt: skip
    """A sample's P(x), its row in each panel of 16 inputs, and the gradient of its y, a row of the workspace."""
    inputs, mine = pixels * channels, own_at + worker * own_size
    whole = (inputs + PANEL - 1) // PANEL * PANEL
    activate(work, mine, x, n * inputs, pixels, channels, scale, shift, act)
    work[mine + inputs : mine + whole] = np.float32(0)
    for i in range(0, whole, PANEL):
        copy(work, i * samples + n * PANEL, work, mine + i, PANEL)
    pull_gradient(work, d_at + n * row_d, dz, raw, n * outputs, 1, outputs, gscale, ga, gb, gact)


@leaf
def _backward_columns(worker, task, dx, dw, w, work, d_at, row_d, own_at, own_size, samples):
    """Some columns of dw and, panel by panel, of dx."""
    outputs, inputs = w.shape
    w, dw = w.reshape(-1), dw.reshape(-1)
    first, panel = task * COLUMNS, own_at + worker * own_size
    count = min(COLUMNS, inputs - first)
    product(
        outputs, count, samples, work, d_at, 1, row_d,
        work, first * samples, PANEL * samples, PANEL, dw, first, inputs, False,
    )  # fmt: skip
    for j in range(first, first + count if dx.size > 0 else first, PANEL):
        columns = min(PANEL, inputs - j)
        for o in range(outputs):
            to = panel + o * PANEL
            copy(work, to, w, o * inputs + j, columns)
            work[to + columns : to + PANEL] = np.float32(0)
        product(
            samples, columns, outputs, work, d_at, row_d, 1, work, panel, 0, PANEL, dx, j, inputs, False
        )  # fmt: skip


@leaf
def _finish_lane(worker, lane, dx, sums, x, scale, shift, base, of, centre, act, lanes, samples, pixels, channels):
    start, stop = lane_range(lane, lanes, samples)
    at, span = start * pixels * channels, (stop - start) * pixels
    if sums.size > 0:
        sums[lane] = np.float32(0)
    finish_gradient(dx, at, dx, at, span, channels, x, scale, shift, base, act, sums, lane, of, centre, False)


def _backward_parts(x, w):
    """Where the rows of d begin and how long they are, and where the threads' own parts begin."""
    (outputs, inputs), whole = w.shape, -(-x.shape[0] // TILE_ROWS) * TILE_ROWS
    d_at, row_d = x.shape[0] * aligned(inputs), odd_lines(outputs)
    return d_at, row_d, d_at + whole * row_d + aligned(TILE_ROWS)


def _backward_sizes(dx, sums, dw, dz, raw, gscale, ga, gb, w, x, *_):
    return _backward_parts(x, w)[2], max(aligned(w.shape[1]), w.shape[0] * PANEL if dx.size else 0)


@sized(_backward_sizes)
def linear_backward(
    dx, sums, dw, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre, act, gact
):  # fmt: skip
    """Gradients of ``linear_forward``, d being the pending gradient of y.

    dx (N, ..., C)     out, optional: [base +] mask(P(x)) * (d @ w), see ``fastadam.kernels``
    sums (L, 2, C)     out, optional: lane sums of dx and of dx * (of - centre)
    dw (O, I)          out: d.T @ P(x), summed over N
    dz, raw (N, O), gscale, ga, gb (O,)   in: d = dz, or gscale * dz + ga + gb * raw with gact
    w (O, I), x, scale, shift             in, as in forward
    base, of like dx, centre (C,)         in, optional
    Tasks own columns of dw and dx; then lanes of samples own rows of dx and their sums.
    """
    samples, (outputs, inputs), channels = x.shape[0], w.shape, x.shape[-1]
    d_at, row_d, _ = _backward_parts(x, w)
    sizes = _backward_sizes(dx, sums, dw, dz, raw, gscale, ga, gb, w, x)
    shared, each = (aligned(size) for size in sizes)
    work, flat_x, pixels = reserve(threaded(shared, each)), x.reshape(-1), inputs // channels
    parallel(
        _copy_sample, samples, work, shared, each, flat_x, scale, shift, act, samples, pixels, channels, d_at,
        row_d, dz.reshape(-1), raw.reshape(-1), outputs, gscale, ga, gb, gact,
    )  # fmt: skip
    tasks = -(-inputs // COLUMNS)
    flat_dx = dx.reshape(-1)
    parallel(_backward_columns, tasks, flat_dx, dw, w, work, d_at, row_d, shared, each, samples)
    if dx.size:
        lanes = len(sums) if sums.size else min(samples, MOST_LANES)
        parallel(
            _finish_lane, lanes, flat_dx, sums, flat_x, scale, shift, base.reshape(-1), of.reshape(-1), centre, act,
            lanes, samples, pixels, channels,
        )  # fmt: skip

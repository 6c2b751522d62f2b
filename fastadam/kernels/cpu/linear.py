"""Linear layers: three products on the micro-kernel, the activation applied while the input is copied."""

from functools import lru_cache

import numpy as np
from numba import get_thread_id, prange

from fastadam.kernels import MOST_LANES
from fastadam.kernels.cpu.gemm import PANEL, gather_product
from fastadam.kernels.cpu.jit import driver, leaf
from fastadam.kernels.cpu.lanes import lane_range
from fastadam.kernels.cpu.pending import (
    activate,
    add_moments,
    add_sums,
    finish_gradient,
    pull_gradient,
    start_moments,
)
from fastadam.kernels.cpu.workspace import aligned, reserve, sized, threaded

ROWS = 48
"""Outputs that one task of the forward product owns: a few tiles, so that the packed input is read seldom."""

COLUMNS = 4 * PANEL
"""Inputs that one task of the backward products owns."""


@lru_cache(maxsize=256)
def _steps(count: int, step: int) -> np.ndarray:
    """Offsets 0, step, 2 step ...: one axis of a plain matrix."""
    return np.arange(count, dtype=np.int64) * step


@leaf
def _pack_transposed(packed, source, samples, columns):
    """``packed[k, j] = source[j, k]`` for a panel of up to 16 rows of ``source``; missing rows are zero."""
    for k in range(columns):
        for j in range(samples):
            packed[k * PANEL + j] = source[j * columns + k]
        for j in range(samples, PANEL):
            packed[k * PANEL + j] = np.float32(0)


@driver
def _forward(y, moments, x, scale, shift, w, work, own_at, own_size, act, rows, columns):
    samples, inputs, channels = x.shape[0], x.shape[1] * x.shape[2], x.shape[2]
    outputs = w.shape[0]
    flat_x, flat_w, flat_y = x.reshape(-1), w.reshape(-1), y.reshape(-1)
    panels = (samples + PANEL - 1) // PANEL
    width = panels * PANEL
    for p in prange(panels):
        mine = own_at + get_thread_id() * own_size
        count = min(PANEL, samples - p * PANEL)
        at = p * PANEL * inputs
        activate(work, mine, flat_x, at, count * x.shape[1], channels, scale, shift, act)
        _pack_transposed(work[at : at + PANEL * inputs], work[mine : mine + count * inputs], count, inputs)
    tasks = (outputs + ROWS - 1) // ROWS
    for task in prange(tasks):
        mine = own_at + get_thread_id() * own_size
        first = task * ROWS
        count = min(ROWS, outputs - first)
        gather_product(
            count, width, inputs, flat_w, first * inputs, rows, 0, columns, 0,
            work, 0, PANEL * inputs, PANEL, work, mine, width, False,
        )  # fmt: skip
        for n in range(samples):
            for o in range(count):
                flat_y[n * outputs + first + o] = work[mine + o * width + n]
    if moments.size > 0:
        for lane in range(moments.shape[0]):
            start, stop = lane_range(lane, moments.shape[0], samples)
            start_moments(moments, lane, flat_y, start * outputs, outputs)
            add_moments(moments, lane, flat_y, start * outputs, stop - start, outputs)


def _forward_sizes(y, moments, x, scale, shift, w, act):
    panels = -(-x.shape[0] // PANEL)
    return panels * PANEL * w.shape[1], PANEL * max(w.shape[1], ROWS * panels)


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
    samples, inputs = x.shape[0], w.shape[1]
    shared, each = (aligned(size) for size in _forward_sizes(y, moments, x, scale, shift, w, act))
    _forward(
        y, moments, x.reshape(samples, -1, x.shape[-1]), scale, shift, w,
        reserve(threaded(shared, each)), shared, each, act,
        _steps(ROWS, inputs), _steps(inputs, 1),
    )  # fmt: skip


@driver
def _backward(
    dx, sums, dw, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre,
    work, d_at, edge_at, act, gact, lanes, row_d, col_d, row_t, col_t,
):  # fmt: skip
    samples, pixels, channels = x.shape
    inputs, outputs = pixels * channels, w.shape[0]
    width = (inputs + PANEL - 1) // PANEL * PANEL
    flat_x, flat_w, flat_dx, flat_dw = x.reshape(-1), w.reshape(-1), dx.reshape(-1), dw.reshape(-1)
    flat_dz, flat_raw, flat_base, flat_of = dz.reshape(-1), raw.reshape(-1), base.reshape(-1), of.reshape(-1)
    for n in prange(samples):
        activate(work, n * width, flat_x, n * inputs, pixels, channels, scale, shift, act)
        work[n * width + inputs : (n + 1) * width] = np.float32(0)
        pull_gradient(work, d_at + n * outputs, flat_dz, flat_raw, n * outputs, 1, outputs, gscale, ga, gb, gact)
    whole = inputs // PANEL * PANEL
    for o in range(outputs if whole < inputs and dx.size > 0 else 0):  # the panel that sticks out of w
        for j in range(PANEL):
            inside = whole + j < inputs
            work[edge_at + o * PANEL + j] = flat_w[o * inputs + whole + j] if inside else np.float32(0)
    for task in prange((inputs + COLUMNS - 1) // COLUMNS):
        first = task * COLUMNS
        count = min(COLUMNS, inputs - first)
        gather_product(
            outputs, count, samples, work, d_at, row_t, 0, col_t, 0,
            work, first, PANEL, width, flat_dw, first, inputs, False,
        )  # fmt: skip
        if dx.size > 0:
            inside = min(count, whole - first)
            gather_product(
                samples, inside, outputs, work, d_at, row_d, 0, col_d, 0,
                flat_w, first, PANEL, inputs, flat_dx, first, inputs, False,
            )  # fmt: skip
            gather_product(
                samples, count - inside, outputs, work, d_at, row_d, 0, col_d, 0,
                work, edge_at, PANEL, PANEL, flat_dx, whole, inputs, False,
            )  # fmt: skip
    if dx.size > 0:
        for lane in prange(lanes):
            start, stop = lane_range(lane, lanes, samples)
            at, span = start * inputs, (stop - start) * pixels
            finish_gradient(flat_dx, at, span, channels, flat_x, scale, shift, flat_base, act)
            if sums.size > 0:
                sums[lane] = np.float32(0)
                add_sums(sums, lane, flat_dx, at, span, channels, flat_of, centre)


def _backward_parts(x, w):
    """Where d and the edge panel of w begin in the workspace, and its end."""
    d_at = aligned(x.shape[0] * aligned(w.shape[1]))
    edge_at = d_at + aligned(x.shape[0] * w.shape[0])
    return d_at, edge_at, edge_at + w.shape[0] * PANEL


def _backward_sizes(dx, sums, dw, dz, raw, gscale, ga, gb, w, x, *_):
    return _backward_parts(x, w)[2], 0


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
    samples, channels = x.shape[0], x.shape[-1]
    outputs = w.shape[0]
    shape = (samples, -1, channels)
    d_at, edge_at, size = _backward_parts(x, w)
    work = reserve(threaded(size, 0))
    lanes = sums.shape[0] if sums.size else min(samples, MOST_LANES)
    _backward(
        dx.reshape(shape) if dx.size else dx.reshape(0, 0, 0), sums, dw, dz, raw, gscale, ga, gb, w,
        x.reshape(shape), scale, shift,
        base.reshape(shape) if base.size else base.reshape(0, 0, 0),
        of.reshape(shape) if of.size else of.reshape(0, 0, 0), centre, work, d_at, edge_at, act, gact, lanes,
        _steps(samples, outputs), _steps(outputs, 1), _steps(outputs, 1), _steps(samples, outputs),
    )  # fmt: skip

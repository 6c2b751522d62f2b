"""Convolution of any size, stride and padding as a matrix product without an im2col buffer.

Each image is copied once into a padded buffer, the pending activation applied on the way. There every
filter tap of every output pixel is at (offset of the pixel) + (offset of the tap), so the micro-kernel's
two tables make the buffer look like the im2col matrix: forward multiplies it by the weights, the weight
gradient multiplies its transpose by dy, and the data gradient is a forward product over padded dy.
With stride s the data gradient falls into s x s phases: input pixels of one phase see the same taps.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastadam.kernels import MOST_LANES
from fastadam.kernels.cpu.gemm import PANEL, gather_product
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
from fastadam.kernels.cpu.workspace import aligned, reserve, threaded


def _panels(columns: int) -> int:
    """``columns`` rounded up to whole panels."""
    return -(-columns // PANEL) * PANEL


@lru_cache(maxsize=256)
def _forward_tables(width: int, c: int, kh: int, kw: int, oh: int, ow: int, stride: int):
    """(offsets of output pixels, offsets of taps) in a padded image ``width`` pixels wide."""
    rows, columns = np.arange(oh)[:, None] * stride * width, np.arange(ow)[None, :] * stride
    taps = (np.arange(kh)[:, None] * width + np.arange(kw))[:, :, None] * c + np.arange(c)
    return ((rows + columns) * c).ravel().astype(np.int64), taps.ravel().astype(np.int64)


class _Phase(NamedTuple):
    """One phase of the data gradient: which pixels, which taps, and where its tables begin."""

    top: int
    left: int
    height: int
    width: int
    tap_top: int
    tap_left: int
    taps_high: int
    taps_wide: int
    row_at: int
    col_at: int
    weight_at: int


class _Adjoint(NamedTuple):
    """Tables of the data gradient: dy is padded by ``low`` before and to ``height, width`` in all."""

    low_h: int
    low_w: int
    height: int
    width: int
    rows: np.ndarray
    columns: np.ndarray
    phases: np.ndarray


def _reach(size: int, out: int, kernel: int, stride: int, pad: int) -> tuple[int, int]:
    """(rows missing before dy, rows of padded dy): input pixel h reads dy at (h + pad - tap) / stride."""
    low = max(0, -((pad - kernel + 1) // stride))
    high = max(0, (size - 1 + pad) // stride - (out - 1))
    return low, low + out + high


def _used_taps(size: int, kernel: int, stride: int, pad: int) -> int:
    """Taps along one axis that meet any of the ``size`` input pixels: all, unless the stride leaps over some."""
    return sum(max(0, -(-(kernel - (top + pad) % stride) // stride)) for top in range(min(stride, size)))


@lru_cache(maxsize=256)
def _adjoint_tables(h, w, c, kh, kw, oh, ow, oc, stride, pad) -> _Adjoint:
    (low_h, height), (low_w, width) = _reach(h, oh, kh, stride, pad), _reach(w, ow, kw, stride, pad)
    panels = _panels(c)
    rows, columns, phases = [], [], []
    row_at = col_at = weight_at = 0
    for top in range(min(stride, h)):
        for left in range(min(stride, w)):
            ph, pw = -(-(h - top) // stride), -(-(w - left) // stride)
            tap_top, tap_left = (top + pad) % stride, (left + pad) % stride
            th, tw = max(0, -(-(kh - tap_top) // stride)), max(0, -(-(kw - tap_left) // stride))
            at_h = np.arange(ph)[:, None] + (top + pad - tap_top) // stride + low_h
            at_w = np.arange(pw)[None, :] + (left + pad - tap_left) // stride + low_w
            rows.append(((at_h * width + at_w) * oc).ravel())
            back = -(np.arange(th)[:, None] * width + np.arange(tw))
            columns.append((back[:, :, None] * oc + np.arange(oc)).ravel())
            phases.append(_Phase(top, left, ph, pw, tap_top, tap_left, th, tw, row_at, col_at, weight_at))
            row_at, col_at = row_at + ph * pw, col_at + th * tw * oc
            weight_at += th * tw * oc * panels
    join = lambda parts: np.concatenate([*parts, np.zeros(1)]).astype(np.int64)  # noqa: E731
    return _Adjoint(low_h, low_w, height, width, join(rows), join(columns), np.array(phases, np.int64))


@leaf
def _pack(worker, panel, packed, w, depth, columns):
    """``packed[panel, k, j] = w[k, 16 panel + j]``, columns beyond the last are zero."""
    at, first = panel * depth * PANEL, panel * PANEL
    count = min(PANEL, columns - first)
    for k in range(depth):
        to, row = packed[at + k * PANEL : at + (k + 1) * PANEL], w[k * columns + first : (k + 1) * columns]
        for j in range(PANEL):
            to[j] = row[j] if j < count else np.float32(0)


@leaf
def _pack_adjoint(worker, number, work, w, phases, stride, kw, c, oc):
    """The taps of a phase as B[(tap, oc), c], in panels of 16 input channels."""
    phase = phases[number]
    tap_top, tap_left, high, wide, at = phase[4], phase[5], phase[6], phase[7], phase[10]
    for first in range(0, c, PANEL):
        for i in range(high):
            for j in range(wide):
                tap = (tap_top + i * stride) * kw + tap_left + j * stride
                for o in range(oc):
                    for k in range(PANEL):
                        inside = first + k < c
                        work[at + k] = w[(tap * c + first + k) * oc + o] if inside else np.float32(0)
                    at += PANEL


@leaf
def _forward_lane(
    worker, lane, y, moments, x, scale, shift, work, own_at, own_size, act, pad, lanes, rows, columns
):  # fmt: skip
    samples, high, wide, channels = x.shape
    out, outputs, depth = y.shape[1] * y.shape[2], y.shape[3], columns.size
    flat_x, flat_y = x.reshape(-1), y.reshape(-1)
    row, padded = (wide + 2 * pad) * channels, own_at + worker * own_size
    work[padded : padded + (high + 2 * pad) * row] = np.float32(0)
    start, stop = lane_range(lane, lanes, samples)
    for n in range(start, stop):
        for h in range(high):
            to = padded + (h + pad) * row + pad * channels
            at = (n * high + h) * wide * channels
            activate(work, to, flat_x, at, wide, channels, scale, shift, act)
        at = n * out * outputs
        gather_product(
            out, outputs, depth, work, padded, rows, 0, columns, 0,
            work, 0, depth * PANEL, PANEL, flat_y, at, outputs, False,
        )  # fmt: skip
        if moments.size > 0:
            if n == start:
                start_moments(moments, lane, flat_y, at, outputs)
            add_moments(moments, lane, flat_y, at, out, outputs)


def forward_sizes(y, moments, x, scale, shift, w, act, stride, pad):
    """Floats of workspace: (shared by all threads, of each thread)."""
    _, high, wide, c = x.shape
    kh, kw, _, oc = w.shape
    return kh * kw * c * _panels(oc), (high + 2 * pad) * (wide + 2 * pad) * c


def forward(y, moments, x, scale, shift, w, act, stride, pad):
    """``conv2d_forward``; a lane owns its samples of y."""
    samples, _, wide, c = x.shape
    kh, kw = w.shape[:2]
    rows, columns = _forward_tables(wide + 2 * pad, c, kh, kw, y.shape[1], y.shape[2], stride)
    shared, each = (aligned(size) for size in forward_sizes(y, moments, x, scale, shift, w, act, stride, pad))
    lanes = moments.shape[0] if moments.size else min(samples, MOST_LANES)
    work = reserve(threaded(shared, each))
    outputs = y.shape[3]
    parallel(_pack, _panels(outputs) // PANEL, work, w.reshape(-1), columns.size, outputs)
    parallel(
        _forward_lane, lanes, y, moments, x, scale, shift, work, shared, each, act, pad, lanes, rows, columns
    )  # fmt: skip


@leaf
def _data_gradient(flat_dx, at, phases, rows, columns, work, padded, spread, wide, c, oc, stride):
    """dx of one image from its padded dy, phase by phase; each phase is a product, spread if stride > 1."""
    for p in range(phases.shape[0]):
        phase = phases[p]
        top, left, ph, pw = phase[0], phase[1], phase[2], phase[3]
        depth = phase[6] * phase[7] * oc
        if stride == 1:
            gather_product(
                ph * pw, c, depth, work, padded, rows, phase[8], columns, phase[9],
                work, phase[10], depth * PANEL, PANEL, flat_dx, at, c, False,
            )  # fmt: skip
            continue
        gather_product(
            ph * pw, c, depth, work, padded, rows, phase[8], columns, phase[9],
            work, phase[10], depth * PANEL, PANEL, work, spread, c, False,
        )  # fmt: skip
        for i in range(ph):
            for j in range(pw):
                to = at + ((top + i * stride) * wide + left + j * stride) * c
                copy(flat_dx, to, work, spread + (i * pw + j) * c, c)


@leaf
def _backward_lane(
    worker, lane, dx, sums, dw, dz, raw, gscale, ga, gb, x, scale, shift, base, of, centre, work, own_at, own_size,
    act, gact, stride, pad, rows, columns, low_h, low_w, padded_h, padded_w, adjoint_rows, adjoint_columns, phases,
):  # fmt: skip
    samples, high, wide, c = x.shape
    out_h, out_w, oc = dz.shape[1], dz.shape[2], dz.shape[3]
    lanes, taps, out = dw.shape[0], columns.size, dz.shape[1] * dz.shape[2]
    width = (oc + PANEL - 1) // PANEL * PANEL
    flat_x, flat_dx, flat_dw = x.reshape(-1), dx.reshape(-1), dw.reshape(-1)
    flat_dz, flat_raw, flat_base, flat_of = dz.reshape(-1), raw.reshape(-1), base.reshape(-1), of.reshape(-1)
    row = (wide + 2 * pad) * c
    image, padded_image = (high + 2 * pad) * row, padded_h * padded_w * oc
    activated = own_at + worker * own_size
    dense = activated + image
    padded = dense + out * width
    spread = padded + padded_image
    work[activated : activated + image + out * width + padded_image] = np.float32(0)
    dw[lane] = np.float32(0)
    if sums.size > 0:
        sums[lane] = np.float32(0)
    start, stop = lane_range(lane, lanes, samples)
    for n in range(start, stop):
        for h in range(high):
            to = activated + (h + pad) * row + pad * c
            activate(work, to, flat_x, (n * high + h) * wide * c, wide, c, scale, shift, act)
        span = out if oc == width else 1  # rows of d are whole panels wide
        for p in range(0, out, span):
            at = (n * out + p) * oc
            pull_gradient(work, dense + p * width, flat_dz, flat_raw, at, span, oc, gscale, ga, gb, gact)
        gather_product(
            taps, oc, out, work, activated, columns, 0, rows, 0,
            work, dense, PANEL, width, flat_dw, lane * taps * oc, oc, True,
        )  # fmt: skip
        if dx.size > 0:
            pixels = out_w if oc == width else 1
            for h in range(out_h):
                for v in range(0, out_w, pixels):
                    to = padded + ((h + low_h) * padded_w + v + low_w) * oc
                    copy(work, to, work, dense + (h * out_w + v) * width, pixels * oc)
            at = n * high * wide * c
            _data_gradient(
                flat_dx, at, phases, adjoint_rows, adjoint_columns, work, padded, spread, wide, c, oc, stride
            )  # fmt: skip
            finish_gradient(
                flat_dx, at, flat_dx, at, high * wide, c, flat_x, scale, shift, flat_base, act,
                sums, lane, flat_of, centre, False,
            )  # fmt: skip


def backward_sizes(
    dx, sums, dw, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre, act, gact, stride, pad
):  # fmt: skip
    """Floats of workspace: (shared by all threads, of each thread)."""
    _, high, wide, c = x.shape
    kh, kw, _, oc = w.shape
    each = (high + 2 * pad) * (wide + 2 * pad) * c + dz.shape[1] * dz.shape[2] * _panels(oc)
    if not dx.size:
        return 0, each
    _, height = _reach(high, dz.shape[1], kh, stride, pad)
    _, width = _reach(wide, dz.shape[2], kw, stride, pad)
    each += height * width * oc
    if stride > 1:  # the first phase is the largest
        each += -(-high // stride) * -(-wide // stride) * c
    return _used_taps(high, kh, stride, pad) * _used_taps(wide, kw, stride, pad) * oc * _panels(c), each


def backward(
    dx, sums, dw, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre, act, gact, stride, pad
):  # fmt: skip
    """``conv2d_backward``; a lane owns its samples of dx and its share of dw and of sums."""
    _, high, wide, c = x.shape
    kh, kw, _, oc = w.shape
    oh, ow = dz.shape[1:3]
    rows, columns = _forward_tables(wide + 2 * pad, c, kh, kw, oh, ow, stride)
    adjoint = _adjoint_tables(high, wide, c, kh, kw, oh, ow, oc, stride, pad)
    sizes = backward_sizes(
        dx, sums, dw, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre, act, gact, stride, pad
    )  # fmt: skip
    shared, each = (aligned(size) for size in sizes)
    work = reserve(threaded(shared, each))
    if dx.size:
        parallel(_pack_adjoint, len(adjoint.phases), work, w.reshape(-1), adjoint.phases, stride, kw, c, oc)
    parallel(
        _backward_lane, len(dw), dx, sums, dw, dz, raw, gscale, ga, gb, x, scale, shift, base, of, centre,
        work, shared, each, act, gact, stride, pad, rows, columns, adjoint.low_h, adjoint.low_w,
        adjoint.height if dx.size else 0, adjoint.width, adjoint.rows, adjoint.columns, adjoint.phases,
    )  # fmt: skip

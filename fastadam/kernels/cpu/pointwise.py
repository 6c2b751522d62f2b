"""Ops that touch each number once: store a pending value, add two of them, join gradients, fill."""

from numpy import float32, inf

from fastadam.kernels.cpu.jit import leaf
from fastadam.kernels.cpu.lanes import lane_range
from fastadam.kernels.cpu.parallel import parallel
from fastadam.kernels.cpu.pending import activate, finish_gradient, pull_gradient

ZERO = float32(0)
NO_FLOOR = float32(-inf)

BLOCK = 4096
"""Numbers worked on at a time where several passes follow each other: 16 KiB an array stay in L1 or L2."""


@leaf
def _affine_sample(worker, n, y, x, scale, shift, pixels, channels, act):
    at = n * pixels * channels
    activate(y, at, x, at, pixels, channels, scale, shift, act)


def affine_forward(y, x, scale, shift, act):
    """y = P(x), stored: for readers that cannot apply a pending activation themselves.

    y (N, ..., C)    out
    x (N, ..., C)    in, raw; scale, shift (C,) its pending affine (act 1); act 2 is a pending ReLU
    """
    samples, channels = x.shape[0], x.shape[-1]
    pixels = x.size // (samples * channels)
    parallel(_affine_sample, samples, y.reshape(-1), x.reshape(-1), scale, shift, pixels, channels, int(act))


@leaf
def _add_activated(y, x, pixels, channels, scale, shift, act):
    """y += P(x)."""
    floor = ZERO if act & 2 else NO_FLOOR  # one loop with and without ReLU; a NaN passes either
    if act & 1:
        for p in range(pixels):
            out, pixel = y[p * channels : (p + 1) * channels], x[p * channels : (p + 1) * channels]
            for c in range(channels):
                v = pixel[c] * scale[c] + shift[c]
                out[c] += floor if v <= floor else v
    else:
        for i in range(pixels * channels):
            y[i] += floor if x[i] <= floor else x[i]


@leaf
def _add_sample(worker, n, y, a, a_scale, a_shift, b, b_scale, b_shift, pixels, channels, a_act, b_act):
    block, start = max(1, BLOCK // channels), n * pixels
    for p in range(start, start + pixels, block):
        count = min(block, start + pixels - p)
        first, last = p * channels, (p + count) * channels
        activate(y, first, a, first, count, channels, a_scale, a_shift, a_act)
        _add_activated(y[first:last], b[first:last], count, channels, b_scale, b_shift, b_act)


def add_forward(y, a, a_scale, a_shift, b, b_scale, b_shift, a_act, b_act):
    """y = P(a) + P(b).

    y (N, ..., C)          out
    a, b (N, ..., C)       in, raw; with their pending affines a_scale, a_shift, b_scale, b_shift (C,)
    a_act, b_act           which parts of either activation are pending: 1 affine, 2 ReLU
    """
    samples, channels = y.shape[0], y.shape[-1]
    pixels = y.size // (samples * channels)
    parallel(
        _add_sample, samples, y.reshape(-1), a.reshape(-1), a_scale, a_shift, b.reshape(-1), b_scale, b_shift,
        pixels, channels, int(a_act), int(b_act),
    )  # fmt: skip


@leaf
def _join_lane(
    worker, lane, dx, sums, dz, raw, gscale, ga, gb, x, scale, shift, base, of, centre,
    lanes, samples, pixels, channels, act, gact,
):  # fmt: skip
    block = max(1, BLOCK // channels)
    if sums.size > 0:
        sums[lane] = ZERO
    start, stop = lane_range(lane, lanes, samples)
    for p in range(start * pixels, stop * pixels, block):
        at, count = p * channels, min(block, stop * pixels - p)
        pull_gradient(dx, at, dz, raw, at, count, channels, gscale, ga, gb, gact)
        finish_gradient(dx, at, dx, at, count, channels, x, scale, shift, base, act, sums, lane, of, centre, False)


def join_backward(dx, sums, dz, raw, gscale, ga, gb, x, scale, shift, base, of, centre, act, gact):
    """dx = [base +] mask(P(x)) * d: a gradient joined, masked or made dense in a call of its own.

    dx (N, ..., C)                 out
    sums (L, 2, C)                 out, optional: lane sums of dx and of dx * (of - centre)
    dz, raw (N, ..., C), gscale, ga, gb (C,)   in: d = dz, or gscale * dz + ga + gb * raw with gact
    x (N, ..., C), scale, shift (C,)           in: what the mask is made of; x may be absent without act 2
    base, of like dx, centre (C,)  in, optional; act 4 puts the mask over the base too
    A lane owns its samples of dx and its share of sums.
    """
    samples, channels = dx.shape[0], dx.shape[-1]
    pixels = dx.size // (samples * channels)
    lanes = sums.shape[0] if sums.size else samples
    parallel(
        _join_lane, lanes, dx.reshape(-1), sums, dz.reshape(-1), raw.reshape(-1), gscale, ga, gb, x.reshape(-1),
        scale, shift, base.reshape(-1), of.reshape(-1), centre, lanes, samples, pixels, channels, int(act), int(gact),
    )  # fmt: skip


def fill(y, value):
    """y (any shape), out: every element is ``value``."""
    y.fill(value)

"""Batch norm (Ioffe & Szegedy 2015) as numbers by channel, and the sums over lanes that it lives on.

There is no normalising pass: statistics become an affine that readers of the raw tensor apply, and in
backward three numbers by channel that readers of its gradient apply. What is left is small and done in
float64, because sums cancel here.
"""

import math

from numba import float64
from numpy import float32

from fastadam.kernels.cpu.jit import leaf, serial
from fastadam.kernels.cpu.lanes import lane_range
from fastadam.kernels.cpu.parallel import parallel
from fastadam.kernels.cpu.pending import add_moments, add_sums, start_moments
from fastadam.kernels.cpu.simd import LINE, WIDTH, load, prefetch, store
from fastadam.kernels.cpu.sums import add_values, no_sums, rounded

ZERO = float32(0)

SPAN = 4096
"""Numbers of y that one task of ``sum_lanes`` owns."""

BLOCK = 4 * WIDTH
"""Numbers that ``sum_lanes`` adds at once, the next being asked for: there are more lanes than streams that a CPU
follows by itself."""


@leaf
def _moments_of_lane(worker, lane, moments, x, samples, pixels, channels):
    first, last = lane_range(lane, moments.shape[0], samples)
    at = first * pixels * channels
    start_moments(moments, lane, x, at, channels)
    add_moments(moments, lane, x, at, (last - first) * pixels, channels)


def lane_moments(moments, x):
    """What batch norm needs of a tensor whose producer did not gather it.

    moments (L, 3, C)   out, by lane of samples: k, the lane's first pixel; sum of x - k; sum of (x - k)**2
    x (N, ..., C)       in
    """
    samples, channels = x.shape[0], x.shape[-1]
    pixels = x.size // (samples * channels)
    parallel(_moments_of_lane, len(moments), moments, x.reshape(-1), samples, pixels, channels)


@leaf
def _sums_of_lane(worker, lane, sums, dz, of, centre, samples, pixels, channels):
    sums[lane] = ZERO
    first, last = lane_range(lane, sums.shape[0], samples)
    add_sums(sums, lane, dz, first * pixels * channels, (last - first) * pixels, channels, of, centre)


def lane_sums(sums, dz, of, centre):
    """Sums of a gradient whose writer did not gather them.

    sums (L, 2, C)     out, by lane of samples: sum of dz; sum of dz * (of - centre), 0 without ``of``
    dz (N, ..., C)     in
    of like dz, centre (C,)   in, optional
    """
    samples, channels = dz.shape[0], dz.shape[-1]
    pixels = dz.size // (samples * channels)
    parallel(_sums_of_lane, len(sums), sums, dz.reshape(-1), of.reshape(-1), centre, samples, pixels, channels)


@serial
def _bn_finalize(
    scale, shift, mean, rstd, running_mean, running_var,
    moments, gamma, beta, bias, step, samples, pixels, eps,
):  # fmt: skip
    lanes, count = moments.shape[0], float64(samples * pixels)
    momentum = float64(step[1])
    for c in range(scale.size):
        total = 0.0
        for lane in range(lanes):
            first, last = lane_range(lane, lanes, samples)
            total += float64((last - first) * pixels) * float64(moments[lane, 0, c]) + float64(moments[lane, 1, c])
        m = total / count
        square = 0.0  # Chan, Golub & LeVeque 1979: within the lanes, and between their means
        for lane in range(lanes):
            first, last = lane_range(lane, lanes, samples)
            n = float64((last - first) * pixels)
            offset = float64(moments[lane, 1, c]) / n
            between = float64(moments[lane, 0, c]) + offset - m
            square += float64(moments[lane, 2, c]) - n * offset * offset + n * between * between
        if square < 0.0:  # rounding, where a channel is constant but for its pivot; a NaN stays
            square = 0.0
        r = 1.0 / math.sqrt(square / count + eps)
        mean[c], rstd[c] = float32(m), float32(r)
        scale[c] = float32(float64(gamma[c]) * r)
        shift[c] = float32(float64(beta[c]) - m * float64(scale[c]))  # of the rounded scale, so that they match
        if momentum != 0.0:
            seen = m + float64(bias[c]) if bias.size > 0 else m
            unbiased = square / max(count - 1.0, 1.0)
            running_mean[c] = float32((1.0 - momentum) * float64(running_mean[c]) + momentum * seen)
            running_var[c] = float32((1.0 - momentum) * float64(running_var[c]) + momentum * unbiased)


def bn_finalize(
    scale, shift, mean, rstd, running_mean, running_var,
    moments, gamma, beta, bias, step, samples, pixels, eps,
):  # fmt: skip
    """Batch statistics from lane moments, the affine they make, and the running statistics.

    scale, shift (C,)          out: gamma * rstd and beta - mean * scale, the pending affine of the raw tensor
    mean, rstd (C,)            out: batch mean and 1 / sqrt(biased variance + eps)
    running_mean, running_var (C,)   in and out: (1 - momentum) * old + momentum * new, the variance
                               unbiased (divided by samples * pixels - 1); momentum 0 leaves even a NaN alone
    moments (L, 3, C)          in, see ``lane_moments``
    gamma, beta (C,)           in
    bias (C,)                  in, optional: of the layer before; only the running mean is to know it
    step (2,)                  in: loss scale, momentum
    samples, pixels            N and H * W of the raw tensor; the lanes share out the samples
    """
    _bn_finalize(
        scale, shift, mean, rstd, running_mean, running_var, moments, gamma, beta, bias, step,
        int(samples), int(pixels), float(eps),
    )  # fmt: skip


@serial
def _bn_inference(scale, shift, running_mean, running_var, gamma, beta, bias, eps):
    for c in range(scale.size):
        scale[c] = float32(float64(gamma[c]) / math.sqrt(float64(running_var[c]) + eps))
        centre = float64(running_mean[c]) - (float64(bias[c]) if bias.size > 0 else 0.0)
        shift[c] = float32(float64(beta[c]) - centre * float64(scale[c]))


def bn_inference(scale, shift, running_mean, running_var, gamma, beta, bias, eps):
    """The affine of batch norm from running statistics.

    scale, shift (C,)              out: gamma / sqrt(running_var + eps), beta + (bias - running_mean) * scale
    running_mean, running_var (C,)   in
    gamma, beta (C,)                 in; bias (C,) optional: of the layer before, not yet in the raw tensor
    """
    _bn_inference(scale, shift, running_mean, running_var, gamma, beta, bias, float(eps))


@serial
def _bn_backward_finalize(dgamma, dbeta, ga, gb, sums, mean, rstd, scale, count):
    for c in range(scale.size):
        total, product = 0.0, 0.0
        for lane in range(sums.shape[0]):
            total += float64(sums[lane, 0, c])
            product += float64(sums[lane, 1, c])
        slope = float64(rstd[c]) * product
        dbeta[c], dgamma[c] = float32(total), float32(slope)
        gb[c] = float32(-float64(scale[c]) * float64(rstd[c]) * slope / count)
        # Of the rounded gb, so that ga + gb * raw cancels at raw = mean as it should.
        ga[c] = float32(-float64(scale[c]) * total / count - float64(gb[c]) * float64(mean[c]))


def bn_backward_finalize(dgamma, dbeta, ga, gb, sums, mean, rstd, scale, count):
    """Gradients of gamma and beta, and the pending gradient of the raw tensor: scale * dz + ga + gb * raw.

    dgamma, dbeta (C,)       out: sum of dz * xhat; sum of dz
    ga, gb (C,)              out: gb = -scale * rstd * dgamma / count, ga = -scale * dbeta / count - gb * mean
    sums (L, 2, C)           in: lane sums of dz and of dz * (raw - mean)
    mean, rstd, scale (C,)   in, of ``bn_finalize``
    count                    N * H * W
    """
    _bn_backward_finalize(dgamma, dbeta, ga, gb, sums, mean, rstd, scale, float(count))


@leaf
def _sum_span(worker, task, y, part, lanes, stride):
    """y[i] = sum over lanes of ``part[lane * stride + i]``, in float64; four vectors at a time, in registers."""
    start, stop = task * SPAN, min((task + 1) * SPAN, y.size)
    blocks, whole = start + (stop - start) // BLOCK * BLOCK, start + (stop - start) // WIDTH * WIDTH
    for i in range(start, blocks, BLOCK):
        a, b, c, d = no_sums(), no_sums(), no_sums(), no_sums()
        for at in range(i, i + lanes * stride, stride):
            for k in range(at + BLOCK, at + 2 * BLOCK, LINE):
                prefetch(part, k)
            a, b = add_values(a, load(part, at)), add_values(b, load(part, at + WIDTH))
            c, d = add_values(c, load(part, at + 2 * WIDTH)), add_values(d, load(part, at + 3 * WIDTH))
        store(y, i, rounded(a))
        store(y, i + WIDTH, rounded(b))
        store(y, i + 2 * WIDTH, rounded(c))
        store(y, i + 3 * WIDTH, rounded(d))
    for i in range(blocks, whole, WIDTH):
        a = no_sums()
        for at in range(i, i + lanes * stride, stride):
            a = add_values(a, load(part, at))
        store(y, i, rounded(a))
    for i in range(whole, stop):
        total = 0.0
        for lane in range(lanes):
            total += float64(part[lane * stride + i])
        y[i] = float32(total)


def sum_lanes(y, part):
    """y = sum over the lanes of the first ``y.size`` numbers of each, in lane order, in float64.

    y (any shape)   out
    part (L, ...)   in; a pair of sums (L, 2, C) gives its first row to y (C,)
    A task owns a span of y.
    """
    lanes = part.shape[0]
    parallel(_sum_span, -(-y.size // SPAN), y.reshape(-1), part.reshape(-1), lanes, part.size // lanes)

"""Batch norm (Ioffe & Szegedy 2015) as numbers by channel, and the sums over lanes that it lives on.

There is no normalising pass: statistics become an affine that readers of the raw tensor apply, and in
backward three numbers by channel that readers of its gradient apply. What is left is small; sums cancel in it, so
they are kept in pairs (see ``exact.py``). Its blocks have eight channels, as many as the 32 bytes that memory
delivers, and 32 threads for each, which share out the lanes.
"""

import math

import numpy as np
from numba import cuda, float32, uint32

from fastadam.kernels.cuda import exact
from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.lanes import join_launch, lane_start, tile_place, tiles_of
from fastadam.kernels.cuda.launch import Launch, Scratch, blocks_of, op
from fastadam.kernels.cuda.ptx import ZERO, ZERO4
from fastadam.kernels.cuda.rows import (
    ROWS,
    SUMS,
    THREADS,
    Tiling,
    add_products,
    block_sum,
    give4,
    pixels_of,
    plus4,
    put_sums,
    row_place,
    take4,
    width_of,
)

COLUMNS = 8
SLOTS = THREADS // COLUMNS
BOTH = 2 * THREADS

MOST_COLUMNS = THREADS // 8
"""Numbers of which eight rows, whole sectors of memory, fit the threads of a block."""

FLOAT1 = np.float32(1)
ONE, TWO, THREE, SEVEN = (uint32(i) for i in (1, 2, 3, 7))


# Sums by lane -----------------------------------------------------------------------------------------------


@kernel(THREADS)
def _sums(part, dz, of, centre, has_of, quads, tiles, lanes, samples, pixels, C):
    first = cuda.shared.array(SUMS, float32, alignment=16)
    second = cuda.shared.array(SUMS, float32, alignment=16)
    row, left, c = row_place(quads, tiles, lanes, samples, pixels)
    slots = uint32(uint32(THREADS) >> quads)
    s = q = ZERO4
    if c < C:
        middle = take4(centre, c, c, C) if has_of else ZERO4
        i = uint32(row * C + c)
        while left > uint32(0):
            d = take4(dz, i, c, C)
            s = plus4(s, d)
            if has_of:
                q = add_products(q, d, of, middle, i, c, C)
            i = uint32(i + slots * C)
            left = uint32(left - slots) if left > slots else uint32(0)
    put_sums(part, first, second, s, q, quads, c, C)


@op
def lane_sums(sums, dz, of, centre):
    """Sums of a gradient whose writer did not gather them.

    sums (L, 2, C)     out, by lane of samples: sum of dz; sum of dz * (of - centre), 0 without ``of``
    dz (N, ..., C)     in
    of like dz, centre (C,)   in, optional
    """
    tiling = Tiling(dz.shape, sums, pixels_of(dz))
    yield Launch(_sums, tiling.grid, (tiling.part, dz, of, centre, of.size > 0, *tiling.scalars))
    yield from tiling.joined()


@kernel(THREADS)
def _moments(part, x, quads, tiles, lanes, samples, pixels, C):
    """Moments (L, T, 3, C) of tiles about their first rows."""
    first = cuda.shared.array(SUMS, float32, alignment=16)
    second = cuda.shared.array(SUMS, float32, alignment=16)
    row, left, c = row_place(quads, tiles, lanes, samples, pixels)
    slots = uint32(uint32(THREADS) >> quads)
    start, _ = tile_place(uint32(cuda.blockIdx.x), tiles, lanes, samples, pixels, uint32(ROWS))
    s = q = k = ZERO4
    if c < C and start < samples * pixels:
        k = take4(x, uint32(start * C + c), c, C)
        i = uint32(row * C + c)
        while left > uint32(0):
            v = take4(x, i, c, C)
            v = (v[0] - k[0], v[1] - k[1], v[2] - k[2], v[3] - k[3])
            s = plus4(s, v)
            q = (q[0] + v[0] * v[0], q[1] + v[1] * v[1], q[2] + v[2] * v[2], q[3] + v[3] * v[3])
            i = uint32(i + slots * C)
            left = uint32(left - slots) if left > slots else uint32(0)
    s, q = block_sum(first, s, quads), block_sum(second, q, quads)
    if uint32(cuda.threadIdx.x) < uint32(ONE << quads) and c < C:
        to = uint32(uint32(cuda.blockIdx.x) * THREE * C + c)
        give4(part, to, c, C, k)
        give4(part, uint32(to + C), c, C, s)
        give4(part, uint32(to + TWO * C), c, C, q)


@op
def lane_moments(moments, x):
    """What batch norm needs of a tensor whose producer did not gather it.

    moments (L, 3, C)   out, by lane of samples: k, the lane's first pixel; sum of x - k; sum of (x - k)**2
    x (N, ..., C)       in
    """
    N, *_, C = x.shape
    lanes, pixels, quads = moments.shape[0], pixels_of(x), width_of(C)
    tiles = tiles_of(lanes, N, pixels, ROWS)
    part = Scratch(lanes * tiles * 3 * C) if tiles > 1 else moments
    grid = lanes * tiles, blocks_of(C, 4 << quads)
    yield Launch(_moments, grid, (part, x, quads, tiles, lanes, N, pixels, C))
    if tiles > 1:
        yield join_launch(moments, part, lanes, tiles, N, pixels, ROWS, C)


# By channel -------------------------------------------------------------------------------------------------


@device
def _place():
    """(column, slot) of a thread; the last block has columns beyond the end."""
    t = uint32(cuda.threadIdx.x)
    return uint32(uint32(cuda.blockIdx.x) * uint32(COLUMNS) + (t & uint32(COLUMNS - 1))), uint32(t >> THREE)


@device
def _pixels_of_lane(lane, lanes, samples, pixels):
    after = lane_start(uint32(lane + ONE), lanes, samples, pixels)
    return float32(uint32(after - lane_start(lane, lanes, samples, pixels)))


@kernel(THREADS)
def _finalize(
    scale, shift, mean, rstd, running_mean, running_var, moments, gamma, beta, bias, step,
    has_bias, lanes, samples, pixels, eps, C,
):  # fmt: skip
    """All about the pivot of the first lane, which is near every mean: so little cancels."""
    shared = cuda.shared.array(BOTH, float32)
    c, slot = _place()
    count = float32(uint32(samples * pixels))
    three = uint32(THREE * C)
    pivot = moments[c] if c < C else ZERO
    high = low = ZERO
    if c < C:
        lane, at = slot, uint32(slot * three + c)
        while lane < lanes:
            n = _pixels_of_lane(lane, lanes, samples, pixels)
            high, low = exact.add_product(high, low, n, moments[at] - pivot)
            high, low = exact.add(high, low, moments[uint32(at + C)])
            lane, at = uint32(lane + uint32(SLOTS)), uint32(at + uint32(SLOTS) * three)
    high, low = exact.block_sum(shared, high, low, uint32(COLUMNS))
    offset = exact.rounded(high, low) / count  # of the mean from the pivot
    high = low = ZERO
    if c < C:  # Chan, Golub & LeVeque 1979: within the lanes, and between their means
        lane, at = slot, uint32(slot * three + c)
        while lane < lanes:
            n = _pixels_of_lane(lane, lanes, samples, pixels)
            own = moments[uint32(at + C)] / n
            between = (moments[at] - pivot - offset) + own
            high, low = exact.add(high, low, moments[uint32(at + TWO * C)])
            high, low = exact.add_product(high, low, -(n * own), own)
            high, low = exact.add_product(high, low, n * between, between)
            lane, at = uint32(lane + uint32(SLOTS)), uint32(at + uint32(SLOTS) * three)
    high, low = exact.block_sum(shared, high, low, uint32(COLUMNS))
    if slot == uint32(0) and c < C:
        square = exact.rounded(high, low)
        if square < ZERO:  # rounding, where a channel is constant but for its pivot; a NaN stays
            square = ZERO
        m, r = pivot + offset, FLOAT1 / math.sqrt(square / count + eps)
        s = gamma[c] * r
        mean[c], rstd[c], scale[c] = m, r, s
        shift[c] = (beta[c] - pivot * s) - offset * s
        momentum = step[1]
        if momentum != ZERO:
            seen = m + bias[c] if has_bias else m
            unbiased = square / max(count - FLOAT1, FLOAT1)
            running_mean[c] = (FLOAT1 - momentum) * running_mean[c] + momentum * seen
            running_var[c] = (FLOAT1 - momentum) * running_var[c] + momentum * unbiased


@op
def bn_finalize(
    scale, shift, mean, rstd, running_mean, running_var, moments, gamma, beta, bias, step, samples, pixels, eps
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
    lanes, _, C = moments.shape
    yield Launch(
        _finalize, blocks_of(C, COLUMNS),
        (scale, shift, mean, rstd, running_mean, running_var, moments, gamma, beta, bias, step,
         bias.size > 0, lanes, samples, pixels, float(eps), C),
    )  # fmt: skip


@kernel(THREADS)
def _inference(scale, shift, running_mean, running_var, gamma, beta, bias, has_bias, eps, C):
    c = uint32(cuda.grid(1))
    if c < C:
        s = gamma[c] / math.sqrt(running_var[c] + eps)
        centre = running_mean[c] - bias[c] if has_bias else running_mean[c]
        scale[c], shift[c] = s, beta[c] - centre * s


@op
def bn_inference(scale, shift, running_mean, running_var, gamma, beta, bias, eps):
    """The affine of batch norm from running statistics.

    scale, shift (C,)              out: gamma / sqrt(running_var + eps), beta + (bias - running_mean) * scale
    running_mean, running_var (C,)   in
    gamma, beta (C,)                 in; bias (C,) optional: of the layer before, not yet in the raw tensor
    """
    C = scale.size
    arguments = scale, shift, running_mean, running_var, gamma, beta, bias, bias.size > 0, float(eps), C
    yield Launch(_inference, blocks_of(C, THREADS), arguments)


@kernel(THREADS)
def _backward_finalize(dgamma, dbeta, ga, gb, sums, mean, rstd, scale, count, lanes, C):
    shared = cuda.shared.array(BOTH, float32)
    c, slot = _place()
    high = low = first = second = ZERO
    if c < C:
        lane, at = slot, uint32(slot * TWO * C + c)
        while lane < lanes:
            high, low = exact.add(high, low, sums[at])
            first, second = exact.add(first, second, sums[uint32(at + C)])
            lane, at = uint32(lane + uint32(SLOTS)), uint32(at + uint32(2 * SLOTS) * C)
    high, low = exact.block_sum(shared, high, low, uint32(COLUMNS))
    first, second = exact.block_sum(shared, first, second, uint32(COLUMNS))
    if slot == uint32(0) and c < C:
        total, slope = exact.rounded(high, low), rstd[c] * exact.rounded(first, second)
        dbeta[c], dgamma[c] = total, slope
        b = -scale[c] * rstd[c] * slope / count
        # Of the rounded gb, so that ga + gb * raw cancels at raw = mean as it should.
        ga[c], gb[c] = -scale[c] * total / count - b * mean[c], b


@op
def bn_backward_finalize(dgamma, dbeta, ga, gb, sums, mean, rstd, scale, count):
    """Gradients of gamma and beta, and the pending gradient of the raw tensor: scale * dz + ga + gb * raw.

    dgamma, dbeta (C,)       out: sum of dz * xhat; sum of dz
    ga, gb (C,)              out: gb = -scale * rstd * dgamma / count, ga = -scale * dbeta / count - gb * mean
    sums (L, 2, C)           in: lane sums of dz and of dz * (raw - mean)
    mean, rstd, scale (C,)   in, of ``bn_finalize``
    count                    N * H * W
    """
    lanes, _, C = sums.shape
    arguments = dgamma, dbeta, ga, gb, sums, mean, rstd, scale, float(count), lanes, C
    yield Launch(_backward_finalize, blocks_of(C, COLUMNS), arguments)


@kernel(THREADS)
def _sum_lanes(y, part, lanes, stride, size, columns):
    """``columns`` numbers a block, and for each as many threads as there are: a multiple of 8."""
    shared = cuda.shared.array(BOTH, float32)
    t = uint32(cuda.threadIdx.x)
    i, slot = uint32(cuda.blockIdx.x * columns + t % columns), uint32(t // columns)
    slots = uint32(uint32(uint32(THREADS) // columns) & ~SEVEN)
    high = low = ZERO
    if i < stride and slot < slots:  # past ``size`` too, so that rows laid end to end are read whole
        lane, at = slot, uint32(slot * stride + i)
        while lane < lanes:
            high, low = exact.add(high, low, part[at])
            lane, at = uint32(lane + slots), uint32(at + slots * stride)
    high, low = exact.block_sum(shared, high, low, columns)
    if slot == uint32(0) and i < size:
        y[i] = exact.rounded(high, low)


@op
def sum_lanes(y, part):
    """y = sum over the lanes of the first ``y.size`` numbers of each, in a fixed order.

    y (any shape)   out
    part (L, ...)   in; a pair of sums (L, 2, C) gives its first row to y (C,)
    A block has a memory sector of y, or whole lanes of a few numbers, which then are one flat span.
    """
    lanes, size = part.shape[0], y.size
    stride = part.size // lanes
    columns = stride if stride <= MOST_COLUMNS else COLUMNS
    yield Launch(_sum_lanes, blocks_of(size, columns), (y, part, lanes, stride, size, columns))

"""Softmax cross-entropy with label smoothing, forward and backward in one launch."""

import math

import numpy as np
from numba import cuda, float32, uint32

from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.lanes import lane_start, lanes_of_their_own
from fastadam.kernels.cuda.launch import Launch, op
from fastadam.kernels.cuda.pending import activated, finished
from fastadam.kernels.cuda.ptx import WARP, ZERO, warp_max, warp_sum

THREADS = 64
WARPS = uint32(THREADS // WARP)

FLOAT1, LOWEST, BEYOND, NOWHERE = map(np.float32, (1, -np.inf, 1 << 24, -1))
ONE, FIVE, WIDE = uint32(1), uint32(5), uint32(WARP)


@device
def _row_loss(rows, n, x, scale, shift, label, loss_scale, even, certain, K, act, scratch, live):
    """The loss of sample n into its row; returns (highest logit, log of the sum). All 32 threads of a warp call it."""
    lane, at = uint32(uint32(cuda.threadIdx.x) & uint32(WARP - 1)), uint32(n * K)
    top, place = LOWEST, ZERO
    if live:
        k = lane
        while k < K:
            z = activated(x[uint32(at + k)], scale, shift, k, act)
            if z > top or z != z:  # once NaN, nothing is higher
                top, place = z, float32(k)
            k = uint32(k + WIDE)
    lost = warp_max(place if top != top else NOWHERE, scratch)  # the last NaN, as on the CPU
    highest = warp_max(LOWEST if top != top else top, scratch)
    first = -warp_max(-place if top == highest else -BEYOND, scratch)
    best, top = lost if lost > NOWHERE else first, highest
    total = all_logits = own = ZERO
    if live:
        k = lane
        while k < K:
            z = activated(x[uint32(at + k)], scale, shift, k, act) - top
            total += math.exp(z)
            all_logits += z
            if k == label:
                own = z
            k = uint32(k + WIDE)
    total, all_logits, own = warp_sum(total, scratch), warp_sum(all_logits, scratch), warp_sum(own, scratch)
    log_total = math.log(total) if live else ZERO
    if live and lane == uint32(0):
        rows[uint32(n + n)] = (log_total - certain * own - even * all_logits) * loss_scale
        rows[uint32(n + n + ONE)] = FLOAT1 if best == float32(label) else ZERO
    return top, log_total


@kernel(THREADS)
def _softmax_loss(
    dz, sums, rows, x, scale, shift, labels, index, step, base, of, centre, act, even, certain,
    has_dz, has_sums, has_base, has_of, lanes, samples, K,
):  # fmt: skip
    """A block has a lane of samples, a warp one of them at a time; then a thread has a class of them all."""
    scratch = cuda.shared.array(THREADS, float32)
    t, block = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
    first, end = lane_start(block, lanes, samples, ONE), lane_start(uint32(block + ONE), lanes, samples, ONE)
    loss_scale, n = step[0], first
    while n < end:
        mine = uint32(n + uint32(t >> FIVE))
        live = mine < end
        own = mine if live else first
        label = uint32(labels[index[own]])
        top, log_total = _row_loss(
            rows, own, x, scale, shift, label, loss_scale, even, certain, K, act, scratch, live
        )  # fmt: skip
        if has_dz and live:
            k = uint32(t & uint32(WARP - 1))
            while k < K:
                i = uint32(own * K + k)
                z = activated(x[i], scale, shift, k, act) - top
                d = math.exp(z - log_total) - (even + certain if k == label else even)
                dz[i] = finished(d * loss_scale, x, scale, shift, base, i, k, act, has_base)
                k = uint32(k + WIDE)
        n = uint32(n + WARPS)
    if has_sums:
        cuda.syncthreads()
        k = t
        while k < K:
            s = q = ZERO
            middle = centre[k] if has_of else ZERO
            i = uint32(first * K + k)
            while i < end * K:
                s += dz[i]
                if has_of:
                    q += dz[i] * (of[i] - middle)
                i = uint32(i + K)
            to = uint32(uint32(block + block) * K + k)
            sums[to] = s
            sums[uint32(to + K)] = q
            k = uint32(k + uint32(THREADS))


@op
def softmax_loss(dz, sums, rows, x, scale, shift, labels, index, step, base, of, centre, act, smoothing):
    """Cross-entropy of softmax(P(x)) against labels smoothed as in Szegedy et al. 2016, section 7.

    dz (N, K)                  out, optional: [base +] mask * (softmax - target) * loss_scale
    sums (L, 2, K)             out, optional: lane sums of dz and of dz * (of - centre)
    rows (N, 2)                out: loss * loss_scale, and 1 where the first highest logit is the label's
    x (N, K), scale, shift (K,)   in: logits, raw, and their pending affine
    labels (T,) int32, index (N,) int64   in: sample n has the label ``labels[index[n]]``
    step (2,)                  in: loss_scale (1 / N for the mean over the batch), batch-norm momentum
    base, of like dz, centre (K,)         in, optional
    smoothing                  target = (1 - smoothing) * onehot + smoothing / K
    """
    N, K = x.shape
    lanes = sums.shape[0] if sums.size else lanes_of_their_own(N)
    yield Launch(
        _softmax_loss, lanes,
        (dz, sums, rows, x, scale, shift, labels, index, step, base, of, centre, act, smoothing / K, 1.0 - smoothing,
         dz.size > 0, sums.size > 0, base.size > 0, of.size > 0, lanes, N, K),
    )  # fmt: skip

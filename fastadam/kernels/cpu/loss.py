"""Softmax cross-entropy with label smoothing, forward and backward in one call."""

import math

import numpy as np
from numba import float64

from fastadam.kernels.cpu.jit import serial
from fastadam.kernels.cpu.lanes import lane_range
from fastadam.kernels.cpu.pending import finish_gradient, pending_value


@serial
def _softmax_loss(dz, sums, rows, x, scale, shift, labels, index, step, base, of, centre, act, smoothing):
    # Serial, in float64: the classes of a batch are too few to be worth a fork or a shortcut.
    samples, classes = x.shape
    flat_x, flat_dz, flat_base, flat_of = x.reshape(-1), dz.reshape(-1), base.reshape(-1), of.reshape(-1)
    loss_scale, even, certain = float64(step[0]), smoothing / classes, 1.0 - smoothing
    for n in range(samples):
        at, label = n * classes, labels[index[n]]
        highest, best = -np.inf, 0
        for c in range(classes):
            z = float64(pending_value(flat_x, at + c, scale, shift, c, act))
            if z > highest or z != z:  # once NaN, nothing is higher
                highest, best = z, c
        total, all_logits, own = 0.0, 0.0, 0.0
        for c in range(classes):
            z = float64(pending_value(flat_x, at + c, scale, shift, c, act)) - highest
            total += math.exp(z)
            all_logits += z
            if c == label:
                own = z
        log_total = math.log(total)
        loss = log_total - certain * own - even * all_logits
        rows[n, 0] = np.float32(loss * loss_scale)
        rows[n, 1] = np.float32(1) if best == label else np.float32(0)
        if dz.size > 0:
            for c in range(classes):
                z = float64(pending_value(flat_x, at + c, scale, shift, c, act)) - highest
                target = even + certain if c == label else even
                flat_dz[at + c] = np.float32((math.exp(z - log_total) - target) * loss_scale)
    lanes = max(1, sums.shape[0])
    for lane in range(lanes if dz.size > 0 else 0):
        if sums.size > 0:
            sums[lane] = np.float32(0)
        first, last = lane_range(lane, lanes, samples)
        at = first * classes
        finish_gradient(
            flat_dz, at, flat_dz, at, last - first, classes, flat_x, scale, shift, flat_base, act,
            sums, lane, flat_of, centre, False,
        )  # fmt: skip


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
    _softmax_loss(
        dz, sums, rows, x, scale, shift, labels, index, step, base, of, centre, act, float(smoothing)
    )  # fmt: skip

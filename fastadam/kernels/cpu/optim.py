"""The optimiser's kernels: one pass over flat arrays, elements independent of each other."""

import numpy as np
from numba import float64, prange

from fastadam.kernels import rules
from fastadam.kernels.cpu.jit import driver, inlined, leaf
from fastadam.kernels.cpu.lanes import lane_range
from fastadam.kernels.rules import GRAD_SCALE, Hyper

# Wrapped at module level: a rule closed over in a factory would never hit the compile cache.
_adam = inlined(rules.adam)
_adamw = inlined(rules.adamw)
_sgd = inlined(rules.sgd)


CHUNK = 1 << 14
"""Elements of one task: 64 KiB of each array, enough to hide the fork and to share out evenly."""


@leaf
def _hyper(h):
    return Hyper(h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7], h[8], h[9], h[10], h[11], h[12])


@leaf
def _adam_span(p, m, v, g, h):
    hyper = _hyper(h)
    for i in range(p.size):
        p[i], m[i], v[i] = _adam(p[i], m[i], v[i], g[i], hyper)


@driver
def adam_update(p, m, v, g, h, groups):
    """One step of Adam (``rules.adam``).

    p, m, v (n,)         in and out: parameters, first and second moments
    g (n,)               in: gradients
    h (G, fields)        in: the numbers of ``rules.Hyper``, float32, a row a group
    groups (K, 3) int64  in: rows (start, end, group), in order: elements start to end - 1 use row ``group`` of h
    """
    for chunk in prange((p.size + CHUNK - 1) // CHUNK):
        for run in range(len(groups)):
            first, last = max(chunk * CHUNK, groups[run, 0]), min((chunk + 1) * CHUNK, groups[run, 1])
            if first < last:
                _adam_span(p[first:last], m[first:last], v[first:last], g[first:last], h[groups[run, 2]])


@leaf
def _adamw_span(p, m, v, g, h):
    hyper = _hyper(h)
    for i in range(p.size):
        p[i], m[i], v[i] = _adamw(p[i], m[i], v[i], g[i], hyper)


@driver
def adamw_update(p, m, v, g, h, groups):
    """One step of AdamW (``rules.adamw``); arguments as ``adam_update``."""
    for chunk in prange((p.size + CHUNK - 1) // CHUNK):
        for run in range(len(groups)):
            first, last = max(chunk * CHUNK, groups[run, 0]), min((chunk + 1) * CHUNK, groups[run, 1])
            if first < last:
                _adamw_span(p[first:last], m[first:last], v[first:last], g[first:last], h[groups[run, 2]])


@leaf
def _sgd_span(p, m, g, h):
    hyper = _hyper(h)
    for i in range(p.size):
        p[i], m[i] = _sgd(p[i], m[i], g[i], hyper)


@driver
def sgd_update(p, m, g, h, groups):
    """One step of SGD with momentum (``rules.sgd``).

    p, m (n,)           in and out: parameters, momentum buffer
    g (n,), h, groups   in, as ``adam_update``
    """
    for chunk in prange((p.size + CHUNK - 1) // CHUNK):
        for run in range(len(groups)):
            first, last = max(chunk * CHUNK, groups[run, 0]), min((chunk + 1) * CHUNK, groups[run, 1])
            if first < last:
                _sgd_span(p[first:last], m[first:last], g[first:last], h[groups[run, 2]])


@leaf
def _ema_span(ema, p, share):
    for i in range(p.size):
        ema[i] += share * (p[i] - ema[i])


@driver
def ema_update(ema, p, share):
    """Exponential moving average of the parameters (Polyak & Juditsky 1992; here with a fixed share).

    ema (n,)     in and out: share * p + (1 - share) * ema, in the form that leaves ema alone where it equals p
    p (n,)       in
    share (1,)   in: 1 - decay
    """
    for chunk in prange((p.size + CHUNK - 1) // CHUNK):
        first, last = chunk * CHUNK, (chunk + 1) * CHUNK
        _ema_span(ema[first:last], p[first:last], share[0])


@leaf
def _add_span(y, x):
    for i in range(y.size):
        y[i] += x[i]


@driver
def accumulate(y, x):
    """y (n,), in and out: y + x.    x (n,)   in"""
    for chunk in prange((y.size + CHUNK - 1) // CHUNK):
        first, last = chunk * CHUNK, (chunk + 1) * CHUNK
        _add_span(y[first:last], x[first:last])


@leaf
def _sum_of_squares(part, lane, g):
    first, last = lane_range(lane, part.size, g.size)
    total = float64(0)
    for value in g[first:last]:
        total += float64(value) * float64(value)
    part[lane] = total


@driver
def norm_lanes(part, g):
    """Sums of squares of a flat array by lanes, in float64.

    part (L,) float64   out: lane l has the sum of g*g over its contiguous share
    g (n,)              in
    """
    for lane in prange(part.size):
        _sum_of_squares(part, lane, g)


@leaf
def clip_factor(h, part, max_norm):
    """Clipping by global norm: Pascanu et al. 2013, section 3.2, with PyTorch's 1e-6 in the denominator.

    h (G, fields)       in and out: grad_scale of every row becomes min(1, max_norm / (norm + 1e-6)); a norm that
                        is not finite gives a factor that is not finite or zero, and the loss shows it
    part (L,) float64   in: sums of squares by ``norm_lanes``
    """
    total = float64(0)
    for lane in range(part.size):
        total += part[lane]
    factor = float64(max_norm) / (np.sqrt(total) + 1e-6)
    h[:, GRAD_SCALE] = np.float32(factor) if not factor >= 1.0 else np.float32(1)

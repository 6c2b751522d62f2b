"""The optimiser's kernels: one pass over flat arrays, elements independent of each other."""

import numpy as np
from numba import float64

from fastadam.kernels import rules
from fastadam.kernels.cpu.jit import inlined, leaf, serial
from fastadam.kernels.cpu.lanes import lane_range
from fastadam.kernels.cpu.parallel import parallel
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


def _chunks(array):
    return -(-array.size // CHUNK)


@leaf
def _part(chunk, groups, run):
    """The elements of a run of ``groups`` that fall into a chunk: the first, and one after the last.

    Loops slice them first: a signed offset in an index has numba check for wrap-around, and none vectorises.
    """
    first = max(chunk * CHUNK, groups[run, 0])
    return first, max(first, min((chunk + 1) * CHUNK, groups[run, 1]))


@leaf
def _adam_chunk(worker, chunk, p, m, v, g, h, groups):
    for run in range(len(groups)):
        (i, j), hyper = _part(chunk, groups, run), _hyper(h[groups[run, 2]])
        ps, ms, vs, gs = p[i:j], m[i:j], v[i:j], g[i:j]
        for k in range(ps.size):
            ps[k], ms[k], vs[k] = _adam(ps[k], ms[k], vs[k], gs[k], hyper)


def adam_update(p, m, v, g, h, groups):
    """One step of Adam (``rules.adam``).

    p, m, v (n,)         in and out: parameters, first and second moments
    g (n,)               in: gradients
    h (G, fields)        in: the numbers of ``rules.Hyper``, float32, a row a group
    groups (K, 3) int64  in: rows (start, end, group), in order: elements start to end - 1 use row ``group`` of h
    """
    parallel(_adam_chunk, _chunks(p), p, m, v, g, h, groups)


@leaf
def _adamw_chunk(worker, chunk, p, m, v, g, h, groups):
    for run in range(len(groups)):
        (i, j), hyper = _part(chunk, groups, run), _hyper(h[groups[run, 2]])
        ps, ms, vs, gs = p[i:j], m[i:j], v[i:j], g[i:j]
        for k in range(ps.size):
            ps[k], ms[k], vs[k] = _adamw(ps[k], ms[k], vs[k], gs[k], hyper)


def adamw_update(p, m, v, g, h, groups):
    """One step of AdamW (``rules.adamw``); arguments as ``adam_update``."""
    parallel(_adamw_chunk, _chunks(p), p, m, v, g, h, groups)


@leaf
def _sgd_chunk(worker, chunk, p, m, g, h, groups):
    for run in range(len(groups)):
        (i, j), hyper = _part(chunk, groups, run), _hyper(h[groups[run, 2]])
        ps, ms, gs = p[i:j], m[i:j], g[i:j]
        for k in range(ps.size):
            ps[k], ms[k] = _sgd(ps[k], ms[k], gs[k], hyper)


def sgd_update(p, m, g, h, groups):
    """One step of SGD with momentum (``rules.sgd``).

    p, m (n,)           in and out: parameters, momentum buffer
    g (n,), h, groups   in, as ``adam_update``
    """
    parallel(_sgd_chunk, _chunks(p), p, m, g, h, groups)


@leaf
def _ema_chunk(worker, chunk, ema, p, share):
    i, j, rate = chunk * CHUNK, (chunk + 1) * CHUNK, share[0]
    es, ps = ema[i:j], p[i:j]
    for k in range(ps.size):
        es[k] += rate * (ps[k] - es[k])


def ema_update(ema, p, share):
    """Exponential moving average of the parameters (Polyak & Juditsky 1992; here with a fixed share).

    ema (n,)     in and out: share * p + (1 - share) * ema, in the form that leaves ema alone where it equals p
    p (n,)       in
    share (1,)   in: 1 - decay
    """
    parallel(_ema_chunk, _chunks(p), ema, p, share)


@leaf
def _add_chunk(worker, chunk, y, x):
    i, j = chunk * CHUNK, (chunk + 1) * CHUNK
    ys, xs = y[i:j], x[i:j]
    for k in range(ys.size):
        ys[k] += xs[k]


def accumulate(y, x):
    """y (n,), in and out: y + x.    x (n,)   in"""
    parallel(_add_chunk, _chunks(y), y, x)


@leaf
def _sum_of_squares(worker, lane, part, g):
    first, last = lane_range(lane, len(part), g.size)
    total = float64(0)
    for value in g[first:last]:
        total += float64(value) * float64(value)
    part[lane, 0] = np.float32(total)
    rest = np.float32(total - float64(part[lane, 0]))
    part[lane, 1] = rest if rest - rest == 0 else np.float32(0)  # beyond float32 there is no rest


def norm_lanes(part, g):
    """Sums of squares of a flat array by lanes, each as two numbers that add up to it: twice float32's digits.

    part (L, 2)         out: lane l has the sum of g*g over its contiguous share, rounded, and what rounding took
    g (n,)              in
    """
    parallel(_sum_of_squares, len(part), part, g)


@serial
def clip_factor(h, part, max_norm):
    """Clipping by global norm: Pascanu et al. 2013, section 3.2, with PyTorch's 1e-6 in the denominator.

    h (G, fields)       in and out: grad_scale of every row becomes min(1, max_norm / (norm + 1e-6)); a norm that
                        is not finite gives a factor that is not finite or zero, and the loss shows it
    part (L, 2)         in: sums of squares by ``norm_lanes``
    """
    total = float64(0)
    for lane in range(len(part)):
        total += float64(part[lane, 0]) + float64(part[lane, 1])
    factor = float64(max_norm) / (np.sqrt(total) + 1e-6)
    h[:, GRAD_SCALE] = np.float32(factor) if not factor >= 1.0 else np.float32(1)

"""Passes over all parameters that averages of weights take."""

import numpy as np

from fastadam.kernels.cpu.jit import leaf
from fastadam.kernels.cpu.parallel import parallel
from fastadam.kernels.cpu.updates import CHUNK, chunks


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
    parallel(_ema_chunk, chunks(p), ema, p, share)


@leaf
def _interpolate_chunk(worker, chunk, y, a, b, share):
    i, j = chunk * CHUNK, (chunk + 1) * CHUNK
    ys, from_, to = y[i:j], a[i:j], b[i:j]
    for k in range(ys.size):
        ys[k] = from_[k] + share * (to[k] - from_[k])


def interpolate(y, a, b, share):
    """The point on the line from a to b, or beyond its ends: a where they are equal, whatever the share.

    y (n,)         out: a + share * (b - a); float32, or float64 like a and b
    a, b (n,)      in
    share          0 for a, 1 for b
    """
    parallel(_interpolate_chunk, chunks(y), y, a, b, y.dtype.type(share))


@leaf
def _lookahead_chunk(worker, chunk, p, slow, share):
    i, j = chunk * CHUNK, (chunk + 1) * CHUNK
    ps, ss = p[i:j], slow[i:j]
    for k in range(ps.size):
        ss[k] += share * (ps[k] - ss[k])
        ps[k] = ss[k]


def lookahead_update(p, slow, share):
    """Where Lookahead's slow weights follow the fast ones, and these begin again (Zhang et al. 2019, Algorithm 1).

    p (n,)      in and out: fast weights, then equal to slow
    slow (n,)   in and out: slow + share * (p - slow)
    share       the paper's alpha
    """
    parallel(_lookahead_chunk, chunks(p), p, slow, np.float32(share))

"""Passes over all parameters that averages of weights take."""

from fastadam.kernels.cuda.flat import THREADS, each, flat_launch
from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.launch import op


@device
def _between(a, b, share):
    return (a + share * (b - a),)


@device
def _between_twice(a, b, share):
    (middle,) = _between(a, b, share)
    return middle, middle


@kernel(THREADS)
def _ema(ema, p, share, size):
    each(_between, (ema,), (ema, p), (share[0],), size)


@op
def ema_update(ema, p, share):
    """Exponential moving average of the parameters (Polyak & Juditsky 1992; here with a fixed share).

    ema (n,)     in and out: share * p + (1 - share) * ema, in the form that leaves ema alone where it equals p
    p (n,)       in
    share (1,)   in: 1 - decay
    """
    yield flat_launch(_ema, p.size, ema, p, share)


@kernel(THREADS)
def _interpolate(y, a, b, share, size):
    each(_between, (y,), (a, b), (share,), size)


@op
def interpolate(y, a, b, share):
    """The point on the line from a to b, or beyond its ends: a where they are equal, whatever the share.

    y (n,)         out: a + share * (b - a)
    a, b (n,)      in
    share          0 for a, 1 for b
    """
    yield flat_launch(_interpolate, y.size, y, a, b, float(share))


@kernel(THREADS)
def _lookahead(p, slow, share, size):
    each(_between_twice, (slow, p), (slow, p), (share,), size)


@op
def lookahead_update(p, slow, share):
    """Where Lookahead's slow weights follow the fast ones, and these begin again (Zhang et al. 2019, Algorithm 1).

    p (n,)      in and out: fast weights, then equal to slow
    slow (n,)   in and out: slow + share * (p - slow)
    share       the paper's alpha
    """
    yield flat_launch(_lookahead, p.size, p, slow, float(share))

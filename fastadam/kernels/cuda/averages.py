"""Passes over all parameters that averages of weights take."""

from numba import cuda, uint32

from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.launch import Launch, blocks_of, op
from fastadam.kernels.cuda.ptx import load4, store4

THREADS = 256
ONE, FOUR = uint32(1), uint32(4)


@device
def _between(a, b, share):
    return a + share * (b - a)


@kernel(THREADS)
def _ema(ema, p, share, n):
    i, rate = uint32(uint32(cuda.grid(1)) * FOUR), share[0]
    if uint32(i + FOUR) <= n:
        e, v = load4(ema, i), load4(p, i)
        store4(
            ema, i,
            (_between(e[0], v[0], rate), _between(e[1], v[1], rate),
             _between(e[2], v[2], rate), _between(e[3], v[3], rate)),
        )  # fmt: skip
    else:
        while i < n:
            ema[i] = _between(ema[i], p[i], rate)
            i = uint32(i + ONE)


@op
def ema_update(ema, p, share):
    """Exponential moving average of the parameters (Polyak & Juditsky 1992; here with a fixed share).

    ema (n,)     in and out: share * p + (1 - share) * ema, in the form that leaves ema alone where it equals p
    p (n,)       in
    share (1,)   in: 1 - decay
    """
    yield Launch(_ema, blocks_of(p.size, 4 * THREADS), (ema, p, share, p.size))


@kernel(THREADS)
def _interpolate(y, a, b, share, n):
    i = uint32(uint32(cuda.grid(1)) * FOUR)
    if uint32(i + FOUR) <= n:
        p, q = load4(a, i), load4(b, i)
        store4(
            y, i,
            (_between(p[0], q[0], share), _between(p[1], q[1], share),
             _between(p[2], q[2], share), _between(p[3], q[3], share)),
        )  # fmt: skip
    else:
        while i < n:
            y[i] = _between(a[i], b[i], share)
            i = uint32(i + ONE)


@op
def interpolate(y, a, b, share):
    """The point on the line from a to b, or beyond its ends: a where they are equal, whatever the share.

    y (n,)         out: a + share * (b - a)
    a, b (n,)      in
    share          0 for a, 1 for b
    """
    yield Launch(_interpolate, blocks_of(y.size, 4 * THREADS), (y, a, b, float(share), y.size))


@kernel(THREADS)
def _lookahead(p, slow, share, n):
    i = uint32(uint32(cuda.grid(1)) * FOUR)
    if uint32(i + FOUR) <= n:
        s, f = load4(slow, i), load4(p, i)
        s = (
            _between(s[0], f[0], share), _between(s[1], f[1], share),
            _between(s[2], f[2], share), _between(s[3], f[3], share),
        )  # fmt: skip
        store4(slow, i, s)
        store4(p, i, s)
    else:
        while i < n:
            s = _between(slow[i], p[i], share)
            slow[i] = s
            p[i] = s
            i = uint32(i + ONE)


@op
def lookahead_update(p, slow, share):
    """Where Lookahead's slow weights follow the fast ones, and these begin again (Zhang et al. 2019, Algorithm 1).

    p (n,)      in and out: fast weights, then equal to slow
    slow (n,)   in and out: slow + share * (p - slow)
    share       the paper's alpha
    """
    yield Launch(_lookahead, blocks_of(p.size, 4 * THREADS), (p, slow, float(share), p.size))

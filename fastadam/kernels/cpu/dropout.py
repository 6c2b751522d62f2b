"""Inverted dropout (Srivastava et al. 2014, section 10) by element, or by sample (Huang et al. 2016).

No mask is stored: whether a number is kept is a pure function of (seed, epoch, sample, salt, element), so
backward asks for it again, and neither order nor batch size plays a part.
"""

import math

from numpy import float32, uint64

from fastadam.kernels.cpu.jit import leaf
from fastadam.kernels.cpu.lanes import lane_range
from fastadam.kernels.cpu.parallel import parallel
from fastadam.kernels.cpu.pending import activate, finish_gradient
from fastadam.kernels.cpu.random import draw24, sample_state

ZERO = float32(0)


def _threshold(p: float) -> tuple[int, float32]:
    """(limit, factor): 24 random bits are kept if they reach the limit, which is u >= p to the last bit."""
    return math.ceil(p * 2.0**24), float32(1.0 / (1.0 - p))


@leaf
def _drop(y, state, limit, factor, per_sample):
    """In place, one sample: times ``factor`` where kept, times 0 where not, so that a NaN stays a NaN."""
    least = uint64(limit)
    if per_sample:
        keep = factor if draw24(state, 0) >= least else ZERO
        for i in range(y.size):
            y[i] *= keep
    else:
        for i in range(y.size):
            y[i] *= factor if draw24(state, i) >= least else ZERO


@leaf
def _drop_sample(
    worker, n, y, x, scale, shift, key, index, pixels, channels, act, limit, factor, salt, per_sample
):  # fmt: skip
    size = pixels * channels
    activate(y, n * size, x, n * size, pixels, channels, scale, shift, act)
    _drop(y[n * size : (n + 1) * size], sample_state(key, index[n], salt), limit, factor, per_sample)


def dropout_forward(y, x, scale, shift, key, index, act, p, salt, per_sample):
    """y = P(x) * keep / (1 - p), keep being 0 with probability p, else 1.

    y (N, ..., C)              out
    x (N, ..., C)              in, raw; scale, shift (C,) its pending affine (act 1); act 2 is a pending ReLU
    key (2,) int64             in: seed and epoch
    index (N,) int64           in: which sample of the data set each one is
    p                          0 <= p < 1
    salt                       tells one dropout layer from another
    per_sample                 one draw for all of a sample instead of one an element
    A sample of y has one owner.
    """
    samples, channels = x.shape[0], x.shape[-1]
    pixels = x.size // (samples * channels)
    limit, factor = _threshold(p)
    parallel(
        _drop_sample, samples, y.reshape(-1), x.reshape(-1), scale, shift, key, index, pixels, channels,
        int(act), limit, factor, int(salt), bool(per_sample),
    )  # fmt: skip


@leaf
def _drop_lane(
    worker, lane, dx, sums, dy, x, scale, shift, key, index, base, of, centre,
    lanes, samples, pixels, channels, act, limit, factor, salt, per_sample,
):  # fmt: skip
    size = pixels * channels
    if sums.size > 0:
        sums[lane] = ZERO
    first, last = lane_range(lane, lanes, samples)
    for n in range(first, last):
        at = n * size
        activate(dx, at, dy, at, pixels, channels, scale, shift, 0)  # a copy
        _drop(dx[at : at + size], sample_state(key, index[n], salt), limit, factor, per_sample)
        finish_gradient(dx, at, dx, at, pixels, channels, x, scale, shift, base, act, sums, lane, of, centre, False)


def dropout_backward(dx, sums, dy, x, scale, shift, key, index, base, of, centre, act, p, salt, per_sample):
    """Gradient of ``dropout_forward``: d is dy * keep / (1 - p) with the same keep.

    dx (N, ..., C)                 out: [base +] mask(P(x)) * d, see ``fastadam.kernels``
    sums (L, 2, C)                 out, optional: lane sums of dx and of dx * (of - centre)
    dy (N, ..., C)                 in
    x, scale, shift, key, index    in, as in forward
    base, of like dx, centre (C,)  in, optional
    A lane owns its samples of dx and its share of sums.
    """
    samples, channels = x.shape[0], x.shape[-1]
    lanes = sums.shape[0] if sums.size else samples
    pixels = x.size // (samples * channels)
    limit, factor = _threshold(p)
    parallel(
        _drop_lane, lanes, dx.reshape(-1), sums, dy.reshape(-1), x.reshape(-1), scale, shift, key, index,
        base.reshape(-1), of.reshape(-1), centre, lanes, samples, pixels, channels,
        int(act), limit, factor, int(salt), bool(per_sample),
    )  # fmt: skip

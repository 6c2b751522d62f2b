"""Inverted dropout (Srivastava et al. 2014, section 10) by element, or by sample (Huang et al. 2016).

No mask is stored: whether a number is kept is a pure function of (seed, epoch, sample, salt, element), so
backward asks for it again, and neither order nor batch size plays a part.
"""

import math

from numba import cuda, float32, uint32, uint64

from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.launch import Launch, blocks_of, op
from fastadam.kernels.cuda.ptx import ZERO, ZERO4
from fastadam.kernels.cuda.random import draw24, sample_state
from fastadam.kernels.cuda.rows import (
    SUMS,
    THREADS,
    Tiling,
    add_products,
    affine_of,
    finish_row4,
    give4,
    pending4,
    pixels_of,
    plus4,
    put_sums,
    row_place,
    take4,
)

ONE, TWO, THREE, FOUR = (uint32(i) for i in range(1, 5))


def _threshold(p: float) -> tuple[int, float]:
    """(limit, factor): 24 random bits are kept if they reach the limit, which is u >= p to the last bit."""
    return math.ceil(p * 2.0**24), 1.0 / (1.0 - p)


@device
def _factor(state, element, limit, factor):
    return factor if draw24(state, element) >= uint64(limit) else ZERO


@device
def _dropped4(v, key, index, at, size, limit, factor, salt, per_sample):
    """Four numbers from ``at`` on, times ``factor`` where kept, times 0 where not, so that a NaN stays a NaN."""
    n, element = uint32(at // size), uint32(at % size)
    state = sample_state(key, index[n], salt)
    if per_sample:
        keep = _factor(state, uint32(0), limit, factor)
        return v[0] * keep, v[1] * keep, v[2] * keep, v[3] * keep
    return (
        v[0] * _factor(state, element, limit, factor), v[1] * _factor(state, uint32(element + ONE), limit, factor),
        v[2] * _factor(state, uint32(element + TWO), limit, factor),
        v[3] * _factor(state, uint32(element + THREE), limit, factor),
    )  # fmt: skip


@kernel(THREADS)
def _forward(y, x, scale, shift, key, index, act, limit, factor, salt, per_sample, rows, size, C):
    i = uint32(cuda.grid(1))
    quads = uint32((C + THREE) >> TWO)
    row, c = uint32(i // quads), uint32(uint32(i % quads) * FOUR)
    if row < rows:
        at = uint32(row * C + c)
        v = pending4(x, at, c, C, affine_of(scale, shift, c, C, act), act)
        give4(y, at, c, C, _dropped4(v, key, index, at, size, limit, factor, salt, per_sample))


@op
def dropout_forward(y, x, scale, shift, key, index, act, p, salt, per_sample):
    """y = P(x) * keep / (1 - p), keep being 0 with probability p, else 1.

    y (N, ..., C)              out
    x (N, ..., C)              in, raw; scale, shift (C,) its pending affine (act 1); act 2 is a pending ReLU
    key (2,) int64             in: seed and epoch
    index (N,) int64           in: which sample of the data set each one is
    p                          0 <= p < 1
    salt                       tells one dropout layer from another
    per_sample                 one draw for all of a sample instead of one an element
    """
    *_, C = x.shape
    rows, (limit, factor) = x.size // C, _threshold(p)
    yield Launch(
        _forward, blocks_of(rows * blocks_of(C, 4), THREADS),
        (y, x, scale, shift, key, index, act, limit, factor, int(salt), bool(per_sample), rows, pixels_of(x) * C, C),
    )  # fmt: skip


@kernel(THREADS)
def _backward(
    dx, part, dy, x, scale, shift, key, index, base, of, centre, act, limit, factor, salt, per_sample,
    has_base, has_of, has_sums, quads, tiles, lanes, samples, pixels, C,
):  # fmt: skip
    first = cuda.shared.array(SUMS, float32, alignment=16)
    second = cuda.shared.array(SUMS, float32, alignment=16)
    row, left, c = row_place(quads, tiles, lanes, samples, pixels)
    slots, size = uint32(uint32(THREADS) >> quads), uint32(pixels * C)
    s = q = ZERO4
    if c < C:
        middle = take4(centre, c, c, C) if has_of else ZERO4
        i, affine = uint32(row * C + c), affine_of(scale, shift, c, C, act)
        while left > uint32(0):
            d = _dropped4(take4(dy, i, c, C), key, index, i, size, limit, factor, salt, per_sample)
            d = finish_row4(dx, d, x, affine, base, i, c, C, act, has_base)
            s = plus4(s, d)
            if has_of:
                q = add_products(q, d, of, middle, i, c, C)
            i = uint32(i + slots * C)
            left = uint32(left - slots) if left > slots else uint32(0)
    if has_sums:
        put_sums(part, first, second, s, q, quads, c, C)


@op
def dropout_backward(dx, sums, dy, x, scale, shift, key, index, base, of, centre, act, p, salt, per_sample):
    """Gradient of ``dropout_forward``: d is dy * keep / (1 - p) with the same keep.

    dx (N, ..., C)                 out: [base +] mask(P(x)) * d, see ``fastadam.kernels``
    sums (L, 2, C)                 out, optional: lane sums of dx and of dx * (of - centre)
    dy (N, ..., C)                 in
    x, scale, shift, key, index    in, as in forward
    base, of like dx, centre (C,)  in, optional
    """
    tiling, (limit, factor) = Tiling(dx.shape, sums, pixels_of(dx)), _threshold(p)
    yield Launch(
        _backward, tiling.grid,
        (dx, tiling.part, dy, x, scale, shift, key, index, base, of, centre, act, limit, factor, int(salt),
         bool(per_sample), base.size > 0, of.size > 0, sums.size > 0, *tiling.scalars),
    )  # fmt: skip
    yield from tiling.joined()

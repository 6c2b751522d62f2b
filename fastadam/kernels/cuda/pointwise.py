"""Ops that touch each number once: store a pending value, add two of them, join gradients, fill."""

from numba import cuda, float32, uint32

from fastadam.kernels.cuda.jit import kernel
from fastadam.kernels.cuda.launch import Launch, blocks_of, op
from fastadam.kernels.cuda.ptx import ZERO4, store4
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
    scaled4,
    take4,
)

FOUR = uint32(4)


@kernel(THREADS)
def _affine(y, x, scale, shift, act, rows, C):
    i = uint32(cuda.grid(1))
    quads = uint32((C + uint32(3)) >> uint32(2))
    row, c = uint32(i // quads), uint32(uint32(i % quads) * FOUR)
    if row < rows:
        at = uint32(row * C + c)
        give4(y, at, c, C, pending4(x, at, c, C, affine_of(scale, shift, c, C, act), act))


@op
def affine_forward(y, x, scale, shift, act):
    """y = P(x): a pending value, stored.

    y (N, ..., C)           out
    x (N, ..., C)           in, raw; scale, shift (C,) its pending affine (act 1); act 2 is a pending ReLU
    """
    *_, C = x.shape
    rows = x.size // C
    yield Launch(_affine, blocks_of(rows * blocks_of(C, 4), THREADS), (y, x, scale, shift, act, rows, C))


@kernel(THREADS)
def _add(y, a, a_scale, a_shift, b, b_scale, b_shift, a_act, b_act, rows, C):
    i = uint32(cuda.grid(1))
    quads = uint32((C + uint32(3)) >> uint32(2))
    row, c = uint32(i // quads), uint32(uint32(i % quads) * FOUR)
    if row < rows:
        at = uint32(row * C + c)
        v = pending4(a, at, c, C, affine_of(a_scale, a_shift, c, C, a_act), a_act)
        w = pending4(b, at, c, C, affine_of(b_scale, b_shift, c, C, b_act), b_act)
        give4(y, at, c, C, plus4(v, w))


@op
def add_forward(y, a, a_scale, a_shift, b, b_scale, b_shift, a_act, b_act):
    """y = P(a) + P(b).

    y (N, ..., C)                               out
    a, b (N, ..., C), their scale, shift (C,)   in, pending by ``a_act`` and ``b_act``
    """
    *_, C = a.shape
    rows = a.size // C
    arguments = y, a, a_scale, a_shift, b, b_scale, b_shift, a_act, b_act, rows, C
    yield Launch(_add, blocks_of(rows * blocks_of(C, 4), THREADS), arguments)


@kernel(THREADS)
def _join(
    dx, part, dz, raw, gscale, ga, gb, x, scale, shift, base, of, centre, act, gact, has_base, has_of, has_sums,
    quads, tiles, lanes, samples, pixels, C,
):  # fmt: skip
    first = cuda.shared.array(SUMS, float32, alignment=16)
    second = cuda.shared.array(SUMS, float32, alignment=16)
    row, left, c = row_place(quads, tiles, lanes, samples, pixels)
    slots = uint32(uint32(THREADS) >> quads)
    s = q = ZERO4
    if c < C:
        middle = take4(centre, c, c, C) if has_of else ZERO4
        g = a = b = ZERO4
        if gact:
            g, a, b = take4(gscale, c, c, C), take4(ga, c, c, C), take4(gb, c, c, C)
        i, affine = uint32(row * C + c), affine_of(scale, shift, c, C, act)
        while left > uint32(0):
            d = take4(dz, i, c, C)
            if gact:
                d = plus4(scaled4(d, g, a), scaled4(take4(raw, i, c, C), b, ZERO4))
            d = finish_row4(dx, d, x, affine, base, i, c, C, act, has_base)
            s = plus4(s, d)
            if has_of:
                q = add_products(q, d, of, middle, i, c, C)
            i = uint32(i + slots * C)
            left = uint32(left - slots) if left > slots else uint32(0)
    if has_sums:
        put_sums(part, first, second, s, q, quads, c, C)


@op
def join_backward(dx, sums, dz, raw, gscale, ga, gb, x, scale, shift, base, of, centre, act, gact):
    """dx = [base +] mask(P(x)) * d: a gradient joined, masked or made dense in a call of its own.

    dx (N, ..., C)                 out
    sums (L, 2, C)                 out, optional: lane sums of dx and of dx * (of - centre)
    dz, raw (N, ..., C), gscale, ga, gb (C,)   in: d = dz, or gscale * dz + ga + gb * raw with gact
    x (N, ..., C), scale, shift (C,)           in: what the mask is made of; x may be absent without act 2
    base, of like dx, centre (C,)  in, optional; act 4 puts the mask over the base too
    """
    tiling = Tiling(dx.shape, sums, pixels_of(dx))
    yield Launch(
        _join, tiling.grid,
        (dx, tiling.part, dz, raw, gscale, ga, gb, x, scale, shift, base, of, centre, act, gact,
         base.size > 0, of.size > 0, sums.size > 0, *tiling.scalars),
    )  # fmt: skip
    yield from tiling.joined()


@kernel(THREADS)
def _fill(y, value, n):
    i = uint32(uint32(cuda.grid(1)) * FOUR)
    if uint32(i + FOUR) <= n:
        store4(y, i, (value, value, value, value))
    else:
        while i < n:
            y[i] = value
            i = uint32(i + uint32(1))


@op
def fill(y, value):
    """y (any shape), out: every element is ``value``."""
    yield Launch(_fill, blocks_of(y.size, 4 * THREADS), (y, float(value), y.size))

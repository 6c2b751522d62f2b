"""The reference's backward ops against finite differences of its forward ops, in float64.

With ``value`` = x * scale + shift as the pending affine leaves it, before its ReLU, a backward op's dx is the
gradient by ``value`` of

    <u, forward(x)> + <base, value>           or, with act 4,   <u, forward(x)> + <base, relu(value)>

which is what a tensor with a second reader has to collect.
"""

from collections.abc import Callable

import numpy as np
import pytest

from fastadam import reference

N, H, W, C = 3, 6, 5, 4
NONE, NO_MATRIX, NO_TENSOR, NO_SUMS = (
    np.zeros(0),
    np.zeros((0, 0)),
    np.zeros((0, 0, 0, 0)),
    np.zeros((0, 0, 0)),
)
NOT_PENDING = (NO_TENSOR, NONE, NONE, NONE)  # raw, gscale, ga, gb
KEY, INDEX = np.array([5, 2]), np.array([9, 0, 77])

Array = np.ndarray


def check(f: Callable[[Array], float], x: Array, gradient: Array, rng: np.random.Generator) -> None:
    """One random direction instead of a difference for each element of x."""
    assert gradient.shape == x.shape
    v, step = rng.standard_normal(x.shape), 1e-6
    numeric = (f(x + step * v) - f(x - step * v)) / (2 * step)
    np.testing.assert_allclose(np.vdot(gradient, v), numeric, rtol=1e-6, atol=1e-7)


class Pending:
    """A random tensor with a pending activation, and perhaps a base for its gradient."""

    def __init__(self, rng: np.random.Generator, act: int, base: bool, shape: tuple[int, ...] = (N, H, W, C)):
        self.act, self.x = act, rng.standard_normal(shape)
        affine = act & 1
        self.scale, self.shift = rng.standard_normal((2, shape[-1])) if affine else (NONE, NONE)
        self.base = rng.standard_normal(shape) if base else np.zeros((0,) * len(shape))
        self.of, self.centre, self.sums = (
            rng.standard_normal(shape),
            rng.standard_normal(shape[-1]),
            np.empty((2, 2, shape[-1])),
        )
        self.dx = np.full(shape, np.nan)

    @property
    def view(self) -> tuple[Array, Array, Array]:
        return self.x, self.scale, self.shift

    @property
    def tail(self) -> tuple[Array, Array, Array]:
        return self.base, self.of, self.centre

    def other_reader(self, x: Array) -> float:
        """What the loss depends on x by, besides the op: its gradient is the base."""
        if not self.base.size:
            return 0.0
        value = reference.activated(x, self.scale, self.shift, self.act & 1)
        return np.vdot(self.base, np.maximum(value, 0) if self.act & 4 else value)

    def check(self, f: Callable[[Array], float], rng: np.random.Generator) -> None:
        """f(x): the op's part of the loss. Also checks that the sums are those of dx."""
        by_x = self.dx * self.scale if self.act & 1 else self.dx
        check(lambda x: f(x) + self.other_reader(x), self.x, by_x, rng)
        rows = (slice(0, 2), slice(2, None))  # three samples in two lanes
        for lane, samples in zip(self.sums, rows, strict=True):
            d, of = self.dx[samples], self.of[samples] - self.centre
            axes = tuple(range(d.ndim - 1))
            np.testing.assert_allclose(lane, [d.sum(axes), (d * of).sum(axes)], atol=1e-10)


pending = pytest.mark.parametrize(
    ("act", "base"),
    [(0, False), (1, False), (2, False), (3, False), (0, True), (1, True), (3, True), (6, True), (7, True)],
)


@pytest.mark.parametrize(("kernel", "stride", "pad"), [(3, 1, 1), (1, 1, 0), (2, 2, 0), (5, 2, 2), (3, 3, 1)])
@pending
def test_conv2d(rng, kernel, stride, pad, act, base):
    p, w = Pending(rng, act, base), rng.standard_normal((kernel, kernel, C, 5))
    OH, OW = ((size + 2 * pad - kernel) // stride + 1 for size in (H, W))
    u, dw = rng.standard_normal((N, OH, OW, 5)), np.empty((2, *w.shape))

    def loss(x, w):
        y = np.empty_like(u)
        reference.conv2d_forward(y, NO_SUMS, x, p.scale, p.shift, w, act & 3, stride, pad)
        return np.vdot(u, y)

    reference.conv2d_backward(p.dx, p.sums, dw, u, *NOT_PENDING, w, *p.view, *p.tail, act, 0, stride, pad)
    p.check(lambda x: loss(x, w), rng)
    check(lambda w: loss(p.x, w), w, dw.sum(0), rng)


@pending
def test_linear(rng, act, base):
    p, w, u = Pending(rng, act, base), rng.standard_normal((7, H * W * C)), rng.standard_normal((N, 7))

    def loss(x, w):
        y = np.empty_like(u)
        reference.linear_forward(y, NO_SUMS, x, p.scale, p.shift, w, act & 3)
        return np.vdot(u, y)

    dw = np.empty_like(w)
    reference.linear_backward(p.dx, p.sums, dw, u, NO_MATRIX, NONE, NONE, NONE, w, *p.view, *p.tail, act, 0)
    p.check(lambda x: loss(x, w), rng)
    check(lambda w: loss(p.x, w), w, dw, rng)


@pytest.mark.parametrize("kind", ["maxpool", "avgpool"])
@pending
def test_pools(rng, kind, act, base):
    p, u = (
        Pending(rng, act, base),
        rng.standard_normal((N, H // 2, W // 2, C) if kind == "maxpool" else (N, C)),
    )

    def loss(x):
        y = np.empty_like(u)
        getattr(reference, f"{kind}_forward")(y, x, p.scale, p.shift, act & 3)
        return np.vdot(u, y)

    getattr(reference, f"{kind}_backward")(p.dx, p.sums, u, *p.view, *p.tail, act)
    p.check(loss, rng)


def test_maxpool_gives_the_first_of_equals_all():
    x, dx, dy = (
        np.array([2.0, 7, 7, 7]).reshape(1, 2, 2, 1),
        np.empty((1, 2, 2, 1)),
        np.full((1, 1, 1, 1), 3.0),
    )
    reference.maxpool_backward(dx, NO_SUMS, dy, x, NONE, NONE, NO_TENSOR, NO_TENSOR, NONE, 0)
    np.testing.assert_array_equal(dx.ravel(), [0, 3, 0, 0])


@pytest.mark.parametrize("per_sample", [False, True])
@pending
def test_dropout(rng, per_sample, act, base):
    p, u, drop = Pending(rng, act, base), rng.standard_normal((N, H, W, C)), (0.4, 3, per_sample)

    def loss(x):
        y = np.empty_like(u)
        reference.dropout_forward(y, x, p.scale, p.shift, KEY, INDEX, act & 3, *drop)
        return np.vdot(u, y)

    reference.dropout_backward(p.dx, p.sums, u, *p.view, KEY, INDEX, *p.tail, act, *drop)
    p.check(loss, rng)


@pending
def test_join(rng, act, base):
    p, u = Pending(rng, act, base), rng.standard_normal((N, H, W, C))

    def loss(x):
        y = np.empty_like(u)
        reference.affine_forward(y, x, p.scale, p.shift, act & 3)
        return np.vdot(u, y)

    reference.join_backward(p.dx, p.sums, u, *NOT_PENDING, *p.view, *p.tail, act, 0)
    p.check(loss, rng)


@pending
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_softmax_loss(rng, smoothing, act, base):
    p, step = Pending(rng, act, base, (N, 6)), np.array([0.3, 0.1])
    labels, index = rng.integers(0, 6, 100, np.int32), INDEX

    def run(x, dz, sums, of, centre, base, act):
        rows = np.empty((N, 2))
        reference.softmax_loss(
            dz, sums, rows, x, p.scale, p.shift, labels, index, step, base, of, centre, act, smoothing
        )
        return rows[:, 0].sum()

    none = NO_MATRIX
    run(p.x, p.dx, p.sums, p.of, p.centre, p.base, act)
    p.check(lambda x: run(x, none, NO_SUMS, none, NONE, none, act & 3), rng)


@pytest.mark.parametrize("relu", [0, 2])
def test_batch_norm(rng, relu):
    """Statistics, affine and ReLU forward; masked gradient, sums and pending gradient backward."""
    x, u = 3 + 2 * rng.standard_normal((N, H, W, C)), rng.standard_normal((N, H, W, C))
    gamma, beta, eps = rng.standard_normal(C), rng.standard_normal(C), 0.1

    def forward(x, gamma, beta):
        moments, y = np.empty((2, 3, C)), np.empty_like(x)
        scale, shift, mean, rstd, *running = np.zeros((6, C))
        reference.lane_moments(moments, x)
        reference.bn_finalize(
            scale, shift, mean, rstd, *running, moments, gamma, beta, NONE, np.array([1, 0.1]), N, H * W, eps
        )
        reference.affine_forward(y, x, scale, shift, 1 + relu)
        return np.vdot(u, y), scale, shift, mean, rstd

    _, scale, shift, mean, rstd = forward(x, gamma, beta)
    dz, sums, dgamma, dbeta, ga, gb = np.empty_like(x), np.empty((2, 2, C)), *np.empty((4, C))
    masked = x, scale, shift, NO_TENSOR, x, mean, 1 + relu, 0
    reference.join_backward(dz, sums, u, *NOT_PENDING, *masked)
    reference.bn_backward_finalize(dgamma, dbeta, ga, gb, sums, mean, rstd, scale, N * H * W)
    dx, bare = np.empty_like(x), (NO_TENSOR, NONE, NONE, NO_TENSOR, NO_TENSOR, NONE)
    reference.join_backward(dx, NO_SUMS, dz, x, scale, ga, gb, *bare, 0, 1)
    check(lambda x: forward(x, gamma, beta)[0], x, dx, rng)
    check(lambda gamma: forward(x, gamma, beta)[0], gamma, dgamma, rng)
    check(lambda beta: forward(x, gamma, beta)[0], beta, dbeta, rng)


@pytest.mark.parametrize("op", ["conv2d", "linear"])
def test_pending_gradient_is_that_of_the_dense_one(rng, op):
    """With gact, the ops read d = gscale * dz + ga + gb * raw without its being stored."""
    p, q = Pending(rng, 3, True), Pending(rng, 3, True)
    q.__dict__.update({k: v for k, v in p.__dict__.items() if k not in ("dx", "sums")})
    y, w = ((N, H, W, 5), (3, 3, C, 5)) if op == "conv2d" else ((N, 5), (5, H * W * C))
    w, (dz, raw), by_channel = (
        rng.standard_normal(w),
        rng.standard_normal((2, *y)),
        rng.standard_normal((3, 5)),
    )
    dense = by_channel[0] * dz + by_channel[1] + by_channel[2] * raw
    windows, backward = ((1, 1) if op == "conv2d" else ()), getattr(reference, f"{op}_backward")
    dw = np.empty((2, 2, *w.shape)) if op == "conv2d" else np.empty((2, *w.shape))
    backward(p.dx, p.sums, dw[0], dz, raw, *by_channel, w, *p.view, *p.tail, 3, 1, *windows)
    nothing = np.zeros((0,) * len(y))
    backward(q.dx, q.sums, dw[1], dense, nothing, NONE, NONE, NONE, w, *q.view, *q.tail, 3, 0, *windows)
    for a, b in ((p.dx, q.dx), (p.sums, q.sums), (dw[0], dw[1])):
        np.testing.assert_allclose(a, b, rtol=1e-12)

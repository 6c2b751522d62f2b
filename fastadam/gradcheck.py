"""The reference's backward ops against finite differences of its forward ops, in float64.

With ``value`` = x * scale + shift as the pending affine leaves it, before its ReLU, a backward op's dx is the
gradient by ``value`` of

    <d, forward(x)> + <base, value>           or, with act 4,   <d, forward(x)> + <base, relu(value)>

which is what a tensor with a second reader has to collect; d is the gradient that the op is given.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastadam import reference
from fastadam.case import Case
from fastadam.cases import CASES
from fastadam.trial import error_over, in_float64

Array = np.ndarray
Loss = Callable[[Array], float]

STEP = 1e-6
RTOL, ATOL = 1e-6, 1e-7  # a difference of second order is wrong by step**2, and by rounding over the step

FORWARD = {"join_backward": "affine_forward", "softmax_loss": "softmax_loss"}
"""The op a gradient belongs to, where its name does not say so."""

_WITHOUT_FORWARD = ("bn_backward_finalize",)  # one of three ops that make a gradient together: batch_norm_error


def differentiable(case: Case) -> bool:
    """Whether ``gradient_error`` has something to check of this case: the gradient by x, or by w."""
    if case.op in _WITHOUT_FORWARD or not (case.op.endswith("_backward") or case.op in FORWARD):
        return False
    return any(out in case.outs and 0 not in case.outs[out].shape for out in ("dx", "dz", "dw"))


GRADIENT_CASES = tuple(filter(differentiable, CASES))


def gradient_error(case: Case) -> float:
    """How far the gradients of a case are from slopes of its forward op, as a multiple of the tolerance."""
    rng = np.random.default_rng(case.seed)
    outs, ins = ({name: in_float64(a) for name, a in arrays.items()} for arrays in case.make(rng))
    forward, act = FORWARD.get(case.op, case.op.replace("_backward", "_forward")), case.scalars["act"]
    own = "dz" if case.op == "softmax_loss" else "dx"
    for name in ("x", "scale", "shift"):  # off the grid of the cases, where ReLU and maxima have kinks
        ins[name] = rng.standard_normal(ins[name].shape)
    if not ins["x"].size:  # not needed for a gradient without a mask, but for what it is the gradient of
        ins["x"] = rng.standard_normal(outs[own].shape if outs[own].size else case.ins["x"].shape)
    getattr(reference, case.op)(*outs.values(), *ins.values(), *case.scalars.values())
    d = None if case.op == "softmax_loss" else _incoming(ins, case.scalars)

    def loss(**changed: Array) -> float:
        return _forward(forward, {**ins, **changed, **case.scalars, "act": act & 3}, d)

    def whole(x: Array) -> float:
        value = reference.activated(x, ins["scale"], ins["shift"], act & 1)
        base = ins["base"] if ins["base"].size else np.zeros(x.shape)
        return loss(x=x) + float(np.vdot(base, np.maximum(value, 0) if act & 4 else value))

    errors = []
    if outs[own].size:
        errors.append(slope_error(whole, ins["x"], outs[own] * ins["scale"] if act & 1 else outs[own], rng))
    if "dw" in outs:
        dw = outs["dw"].sum(0) if outs["dw"].ndim > ins["w"].ndim else outs["dw"]
        errors.append(slope_error(lambda w: loss(w=w), ins["w"], dw, rng))
    return max(errors)


def _incoming(ins: Mapping[str, Array], scalars: Mapping[str, Any]) -> Array:
    if "dy" in ins:
        return ins["dy"]
    if not scalars["gact"]:
        return ins["dz"]
    return ins["gscale"] * ins["dz"] + ins["ga"] + ins["gb"] * ins["raw"]


def _forward(op: str, values: Mapping[str, Any], d: Array | None) -> float:
    """<d, y>, y the op's out; for an op that is a loss itself (no d), the sum of its rows."""
    function = getattr(reference, op)
    out = np.empty((len(values["x"]), 2)) if d is None else np.empty_like(d)
    names = inspect.signature(function).parameters
    ranks = {"moments": 3, "sums": 3, "dz": 2, "base": 2, "of": 2, "centre": 1}  # what a forward op does without
    absent = {name: np.zeros((0,) * rank) for name, rank in ranks.items()}
    arguments = {**values, **absent, "y": out, "rows": out}
    function(*(arguments[name] for name in names))
    return float(out[:, 0].sum() if d is None else np.vdot(d, out))


def slope_error(f: Loss, x: Array, gradient: Array, rng: np.random.Generator) -> float:
    """How far ``gradient`` is from the slope of f at x, as a multiple of the tolerance.

    Along one random direction, instead of a difference for each element of x.
    """
    if gradient.shape != x.shape:
        return np.inf
    v = rng.standard_normal(x.shape)
    slope = (f(x + STEP * v) - f(x - STEP * v)) / (2 * STEP)
    return error_over(np.vdot(gradient, v), np.array(slope), RTOL, ATOL * max(1.0, float(np.linalg.norm(gradient))))


def batch_norm_error(relu: bool, rng: np.random.Generator) -> float:
    """The same for batch norm: statistics, affine, ReLU; masked gradient, sums and pending gradient backward."""
    N, H, W, C = 3, 6, 5, 4
    none, no_tensor, no_sums = np.zeros(0), np.zeros((0, 0, 0, 0)), np.zeros((0, 0, 0))
    x, d = 3 + 2 * rng.standard_normal((N, H, W, C)), rng.standard_normal((N, H, W, C))
    gamma, beta, act = rng.standard_normal(C), rng.standard_normal(C), 3 if relu else 1

    def forward(x: Array, gamma: Array, beta: Array) -> tuple[float, list[Array]]:
        moments, y = np.empty((2, 3, C)), np.empty_like(x)
        scale, shift, mean, rstd, running_mean, running_var = np.zeros((6, C))
        reference.lane_moments(moments, x)
        reference.bn_finalize(
            scale, shift, mean, rstd, running_mean, running_var, moments, gamma, beta, none, np.array([1, 0.1]),
            N, H * W, 0.1,
        )  # fmt: skip
        reference.affine_forward(y, x, scale, shift, act)
        return float(np.vdot(d, y)), [scale, shift, mean, rstd]

    scale, shift, mean, rstd = forward(x, gamma, beta)[1]
    dz, sums, (dgamma, dbeta, ga, gb) = np.empty_like(x), np.empty((2, 2, C)), np.empty((4, C))
    not_pending = no_tensor, none, none, none
    reference.join_backward(dz, sums, d, *not_pending, x, scale, shift, no_tensor, x, mean, act, 0)
    reference.bn_backward_finalize(dgamma, dbeta, ga, gb, sums, mean, rstd, scale, N * H * W)
    dx = np.empty_like(x)
    bare = no_tensor, none, none, no_tensor, no_tensor, none
    reference.join_backward(dx, no_sums, dz, x, scale, ga, gb, *bare, 0, 1)
    return max(
        slope_error(lambda x: forward(x, gamma, beta)[0], x, dx, rng),
        slope_error(lambda gamma: forward(x, gamma, beta)[0], gamma, dgamma, rng),
        slope_error(lambda beta: forward(x, gamma, beta)[0], beta, dbeta, rng),
    )

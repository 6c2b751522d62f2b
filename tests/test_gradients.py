"""The reference's backward ops against finite differences of its forward ops, in float64: all of their cases."""

import functools

import numpy as np
import pytest

from fastadam import gradcheck, reference
from fastadam.gradcheck import GRADIENT_CASES
from fastadam.kernels import OPS
from fastadam.trial import expect

NONE, NO_TENSOR, NO_SUMS = np.zeros(0), np.zeros((0, 0, 0, 0)), np.zeros((0, 0, 0))


@pytest.mark.parametrize("case", GRADIENT_CASES, ids=str)
def test_gradient_is_the_slope(case):
    assert gradcheck.gradient_error(case) < 0.1


@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm(rng, relu):
    """Statistics, affine and ReLU forward; masked gradient, sums and pending gradient backward."""
    assert gradcheck.batch_norm_error(relu, rng) < 0.1


def test_every_backward_op_is_checked():
    ops = {case.op for case in GRADIENT_CASES}
    assert ops == {op for op in OPS if op.endswith("_backward")} | {"softmax_loss"}
    for op in ops:  # with and without a pending affine, ReLU, base, its mask
        assert {case.scalars["act"] for case in GRADIENT_CASES if case.op == op} >= {0, 1, 2, 3, 6, 7}


GRADIENTS = sorted({(case.op, out) for case in GRADIENT_CASES for out in case.outs if out in ("dx", "dz", "dw")})


@pytest.mark.parametrize(("op", "out"), GRADIENTS)
def test_a_wrong_gradient_is_noticed(op, out, monkeypatch):
    """One element of a gradient that is off by a thousandth of the largest."""
    cases = [case for case in GRADIENT_CASES if case.op == op and 0 not in case.outs[out].shape]
    right, place = getattr(reference, op), list(cases[0].outs).index(out)

    @functools.wraps(right)
    def wrong(*arguments):
        right(*arguments)
        array = arguments[place].reshape(-1)
        array[:1] += 1e-3 * np.abs(array).max(initial=0)

    monkeypatch.setattr(reference, op, wrong)
    assert np.median([gradcheck.gradient_error(case) for case in cases]) > 1  # the direction may lie across it


@pytest.mark.parametrize("case", [case for case in GRADIENT_CASES if 0 not in case.outs["sums"].shape], ids=str)
def test_sums_are_those_of_the_gradient(case):
    """By lane: of dx, and of dx times what is left of ``of`` without its centre."""
    outs, ins = expect(case), case.make()[1]
    dx = outs["dz" if case.op == "softmax_loss" else "dx"]
    of = ins["of"].astype(np.float64) - ins["centre"] if ins["of"].size else np.zeros_like(dx)
    for lane, share in zip(outs["sums"], reference.shares(len(dx), len(outs["sums"])), strict=True):
        d, rest = (array[share].reshape(-1, dx.shape[-1]) for array in (dx, of))
        np.testing.assert_allclose(lane, [d.sum(0), (d * rest).sum(0)], rtol=1e-9, atol=1e-9)


def test_maxpool_gives_the_first_of_equals_all():
    x, dx, dy = (
        np.array([2.0, 7, 7, 7]).reshape(1, 2, 2, 1),
        np.empty((1, 2, 2, 1)),
        np.full((1, 1, 1, 1), 3.0),
    )
    reference.maxpool_backward(dx, NO_SUMS, dy, x, NONE, NONE, NO_TENSOR, NO_TENSOR, NONE, 0)
    np.testing.assert_array_equal(dx.ravel(), [0, 3, 0, 0])

"""``fastadam verify``: all is well here; a kernel, an optimiser or a step that is slightly wrong is caught."""

import functools
import importlib.util
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fastadam_cli.main import main

from fastadam import gradcheck, verify
from fastadam.cases import CASES
from fastadam.device import get_device
from fastadam.kernels import OPS, PRODUCTS, cpu, rules
from fastadam.kernels.rules import MOMENTS, Hyper
from fastadam.optim import OPTIMIZERS, Optimizer
from fastadam.oracles import ORACLES
from fastadam.trial import error_over, expect
from fastadam.verify import Check

PLACES = [get_device("cpu", 1), get_device("cpu", 2)]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["verify", *arguments], prog_name="fastadam")


def test_all_is_well_here():
    result = run("--json", "--quiet")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["ok"]
    assert result.stderr == ""
    assert all(check["ok"] and 0 <= check["error"] <= 1 for check in found["checks"])
    names = {kind: [c["name"] for c in found["checks"] if c["kind"] == kind] for kind in ("op", "optimizer", "step")}
    assert names["op"] == list(OPS)
    assert names["optimizer"][: len(OPTIMIZERS)] == list(OPTIMIZERS) == list(ORACLES)
    assert names["step"] == [f"training by {rule}" for rule in MOMENTS]
    assert sum(check["cases"] for check in found["checks"] if check["kind"] == "op") == len(CASES)


def spoil(monkeypatch: pytest.MonkeyPatch, op: str, by: float, out: int) -> None:
    """Make the largest element of an out of an op wrong by this part."""
    right = getattr(cpu, op)

    def wrong(*arguments: Any) -> None:
        right(*arguments)
        array = arguments[out].reshape(-1)
        if array.size:
            array[np.nanargmax(np.abs(array))] *= 1 + by

    monkeypatch.setattr(cpu, op, wrong)


OUTS = sorted(
    {(case.op, name, i) for case in CASES for i, name in enumerate(case.outs) if 0 not in case.outs[name].shape}
)


@pytest.mark.parametrize(("op", "name", "place"), [out for out in OUTS if out[0] != "fill"])
def test_a_slightly_wrong_kernel_is_caught(op, name, place, monkeypatch):
    """One number in each out is off by a hundredth; the other outs are right."""
    spoil(monkeypatch, op, 0.01, place)
    check = verify.check_op(op, PLACES)
    assert not check.ok
    assert check.error > 1


def test_a_kernel_that_writes_elsewhere_or_fails_is_caught(monkeypatch):
    for op, effect, told in (
        ("linear_forward", lambda y, moments, x, *rest: x.fill(0), "the input x was written"),
        ("fill", lambda y, value: 1 / 0, "ZeroDivisionError"),
        ("sum_lanes", lambda y, part: y, "something was returned"),
    ):
        monkeypatch.setattr(cpu, op, effect)
        check = verify.check_op(op, PLACES)
        assert not check.ok
        assert told in check.problem


def test_a_kernel_whose_bits_depend_on_the_threads_is_caught(monkeypatch):
    import numba

    right = cpu.lane_sums

    def wrong(sums: np.ndarray, *rest: Any) -> None:
        right(sums, *rest)
        if numba.get_num_threads() > 1:
            sums[...] = np.nextafter(sums, np.float32(1e9))

    monkeypatch.setattr(cpu, "lane_sums", wrong)
    check = verify.check_op("lane_sums", PLACES)
    assert not check.ok
    assert "other bits" in check.problem


@pytest.mark.parametrize("rule", MOMENTS)
def test_a_slightly_wrong_update_is_caught_in_training(rule, monkeypatch):
    spoil(monkeypatch, f"{rule}_update", 1e-3, 0)
    assert not verify.check_training(rule, PLACES).ok


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_slightly_wrong_optimiser_is_caught(name, monkeypatch):
    """By the paper's formulas, and by PyTorch's optimiser if there is one: each parameter is off by a thousandth."""
    right = Optimizer.step

    def wrong(self: Optimizer, grads: dict[str, np.ndarray]) -> None:
        right(self, grads)
        for p in self.params.values():
            p *= 1.001

    monkeypatch.setattr(Optimizer, "step", wrong)
    checks = [check for check in verify.check_against_torch() if check.name.startswith(f"{name},")]
    assert len(checks) == (name in verify.TORCH_CLASSES and importlib.util.find_spec("torch") is not None)
    assert not any(check.ok for check in [verify.check_optimizer(name), *checks])


MATRIX_RULES = {"muon": ("muon_average", "muon_step")}
SCALES = {"lion": {"grad_scale"}, "muon": {"grad_scale", "one_minus_dampening"}}
"""What only scales the whole average: neither a sign nor a direction has a scale."""


def numbers_used(name: str) -> set[str]:
    """The numbers of a step that the rule reads, and that are ever other than zero in what ``check_optimizer`` does."""
    fields: set[str] = set()
    for settings in verify.SETTINGS[name]:
        optimizer = OPTIMIZERS[name](None, **settings)
        formulas = [getattr(rules, formula) for formula in MATRIX_RULES.get(name, (optimizer.rule,))]
        read = {number for formula in formulas for number in formula.__code__.co_names}
        for t in range(1, verify.OPTIMIZER_STEPS + 1):
            fields.update(set(np.array(Hyper._fields)[optimizer.hyper(t) != 0]) & set(read))
    return fields - SCALES.get(name, set())


FINE = [name for name in OPTIMIZERS if name not in verify.COARSER]
"""Optimisers that are not rounded at random: a hundredth of a number is not seen where they are."""


@pytest.mark.parametrize(("name", "field"), [(n, f) for n in FINE for f in sorted(numbers_used(n))])
def test_a_slightly_wrong_number_of_a_step_is_caught(name, field, monkeypatch):
    """Whatever a rule is told of a step, a hundredth more of it is seen, and one less of what is whole."""
    monkeypatch.setattr(verify, "SHAPES", {"filter": (5, 3, 3, 3)})
    assert verify.check_optimizer(name).ok
    if field == "lr":  # which the rule is told by no one else
        right = ORACLES[name]
        monkeypatch.setitem(ORACLES, name, lambda p, g, kept, t, s: right(p, g, kept, t, {**s, "lr": 1.01 * s["lr"]}))
    else:
        monkeypatch.setattr(OPTIMIZERS[name], "numbers", wrong_numbers(OPTIMIZERS[name].numbers, field))
    check = verify.check_optimizer(name)
    assert check.problem == ""
    assert check.error > 1


def wrong_numbers(right: Callable[..., dict[str, float]], field: str) -> Callable[..., dict[str, float]]:
    """What tells the numbers of a step, with one of them wrong."""

    def numbers(self: Optimizer, t: int, lr: float) -> dict[str, float]:
        shared = {"grad_scale": 1.0, "decay" if self.decoupled else "weight_decay": self.weight_decay}
        shared["decay"] = shared.get("decay", 0.0) * lr
        told = shared | right(self, t, lr)
        return told | {field: told[field] - 1 if field == "eighths" else 1.01 * told.get(field, 0.0)}

    return numbers


def test_every_optimiser_is_checked_with_all_of_its_settings():
    """Each setting has a value besides its default, in a check of its own or with others."""
    assert verify.SETTINGS.keys() == OPTIMIZERS.keys()
    for name, chosen in verify.SETTINGS.items():
        default = OPTIMIZERS[name]().settings()
        for setting, value in default.items():
            assert any(settings.get(setting, value) != value for settings in chosen), (name, setting)


@pytest.mark.parametrize("op", ["conv2d_backward", "bn_finalize", "softmax_loss", "dropout_forward", "accumulate"])
def test_training_steps_tell_a_wrong_kernel_too(op, monkeypatch):
    assert verify.check_training("sgd", PLACES).ok
    used = op != "accumulate"
    spoil(monkeypatch, op, 0.05, 0)
    assert verify.check_training("sgd", PLACES).ok is not used


def test_a_wrong_reference_is_caught_by_its_gradient(monkeypatch):
    from fastadam import reference

    right = reference.avgpool_backward

    @functools.wraps(right)
    def wrong(dx: np.ndarray, *rest: Any) -> None:
        right(dx, *rest)
        dx *= 1.001

    monkeypatch.setattr(reference, "avgpool_backward", wrong)
    checks = {check.name: check for check in verify.check_gradients()}
    assert [name for name, check in checks.items() if not check.ok] == ["avgpool_backward"]
    assert checks.keys() == {case.op for case in gradcheck.GRADIENT_CASES} | {"batch norm"}


@pytest.mark.parametrize("op", PRODUCTS)
@pytest.mark.parametrize("precision", verify.DIGITS)
def test_products_of_rounded_operands_are_held_to_their_digits(op, precision):
    """Those of as many digits pass, those of four fewer are caught."""

    def worst(digits: int) -> float:
        def round_operands(ins: dict[str, np.ndarray]) -> None:
            for name in {"x", "w", "dz"} & ins.keys():
                fraction, exponent = np.frexp(ins[name])
                ins[name][...] = np.ldexp(np.round(fraction * 2.0 ** (digits + 1)), exponent - digits - 1)

        cases = [case for case in CASES if case.op == op]
        return max(
            verify.rounding_error(expect(case, round_operands), expect(case), verify.DIGITS[precision])
            for case in cases
        )

    assert worst(verify.DIGITS[precision]) <= 1
    assert worst(verify.DIGITS[precision] - 4) > 1


def test_what_fails_is_told_with_exit_code_1(monkeypatch):
    monkeypatch.setattr(
        verify,
        "verify",
        lambda device, say, precision: iter([Check("op", "fill", 3, 0.5), Check("op", "crop", 2, 7.0, "it bit")]),
    )
    result = run()
    assert result.exit_code == 1
    assert re.search(r"op +fill +3 +0\.500 +ok\nop +crop +2 +7\.000 +WRONG\ncrop: it bit\n$", result.stdout)
    assert re.fullmatch(r"Error: 1 of 2 checks failed \(op crop\)[^\n]+\n", result.stderr)
    found = json.loads(run("--json").stdout)
    assert not found["ok"]
    assert [check["ok"] for check in found["checks"]] == [True, False]


def test_a_device_that_is_not_there():
    result = run("--device", "cuda")
    assert result.exit_code == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("got", "want", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0),
        ([1.5], [1.0], 0.5 / 0.6),
        ([np.nan, np.inf], [np.nan, np.inf], 0),
        ([np.nan], [1.0], np.inf),
        ([1.0], [np.nan], np.inf),
        ([np.inf], [1.0], np.inf),
        ([-np.inf], [np.inf], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
        ([], [], 0),
    ],
)
def test_errors_as_multiples_of_what_is_tolerated(got, want, error):
    assert error_over(np.array(got), np.array(want), 0.5, 0.1) == pytest.approx(error)


def test_where_nothing_is_tolerated_any_error_is_too_much():
    assert error_over(np.array([1e-30, 0]), np.zeros(2), 0.5, 0) == np.inf
    assert not Check("op", "x", 1, np.nan).ok

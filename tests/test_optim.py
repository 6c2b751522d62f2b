"""The optimisers are right: as PyTorch has them and as the papers have them."""

import inspect
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optimisers import COMBINATIONS, FLAGS, ULP, Combination
from test_optim_problems import BOWLS, CLASSIFIERS, VALLEYS
from test_optim_rules import FIRST_STEPS

from fastadam.optim import OPTIMIZERS
from fastadam.oracles import ORACLES
from fastadam.verify import TORCH_CLASSES, UNDECIDED, torch_twin

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]
else:
    torch.set_num_threads(1)  # two pools of spinning threads would fight for the cores

SHAPES = {
    "scalar": (),
    "one": (1,),
    "none": (0,),
    "vector": (17,),
    "matrix": (5, 7),
    "hollow": (3, 0, 2),
    "cube": (2, 3, 4),
    "filter": (4, 3, 3, 3),
}
SIZE = sum(math.prod(shape) for shape in SHAPES.values())

COARSER = {"adamw_bf16": 2000}
"""How much more than in float32 moments of fewer digits may be off."""


def test_every_optimiser_is_in_every_table():
    for table in (FLAGS, ORACLES, FIRST_STEPS, VALLEYS, BOWLS, CLASSIFIERS):
        assert table.keys() == OPTIMIZERS.keys()


def pieces(flat: np.ndarray) -> dict[str, np.ndarray]:
    """A flat array as the arrays of SHAPES: copies, contiguous."""
    ends = np.cumsum([math.prod(shape) for shape in SHAPES.values()])
    parts = np.split(flat, ends[:-1])
    return {key: part.reshape(SHAPES[key]).copy() for key, part in zip(SHAPES, parts, strict=True)}


def joined(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(a) for a in arrays.values()])


def torch_walk(case: Combination, dtype: Any, start: np.ndarray, gradients: np.ndarray) -> Iterator[np.ndarray]:
    """Where PyTorch's optimiser goes, step by step, in this precision."""
    tensors = {key: torch.tensor(a, dtype=dtype, requires_grad=True) for key, a in pieces(start).items()}
    optimizer = torch_twin(torch, OPTIMIZERS[case.name](None, **case.chosen), tensors.values())
    for g in gradients:
        for tensor, part in zip(tensors.values(), pieces(g).values(), strict=True):
            tensor.grad = torch.tensor(part, dtype=dtype)
        optimizer.step()
        yield joined({key: tensor.detach().numpy() for key, tensor in tensors.items()})


def our_walk(case: Combination, start: np.ndarray, gradients: np.ndarray) -> Iterator[np.ndarray]:
    params = pieces(start)
    optimizer = OPTIMIZERS[case.name](params, **case.chosen)
    for g in gradients:
        optimizer.step(pieces(g))
        yield joined(params)


def oracle_walk(case: Combination, start: np.ndarray, gradients: np.ndarray) -> Iterator[np.ndarray]:
    """The paper's, array by array; NaN from the step on at which rounding decides a sign."""
    params, given = pieces(start.astype(np.float64)), OPTIMIZERS[case.name](None, **case.chosen).settings()
    kept: dict[str, dict[str, np.ndarray]] = {key: {} for key in params}
    for t, flat in enumerate(gradients.astype(np.float64), 1):
        for key, g in pieces(flat).items():
            p = ORACLES[case.name](params[key], g, kept[key], t, given)
            params[key] = np.where(np.abs(kept[key].get("c", 1.0)) > UNDECIDED, p, np.nan)
        yield joined(params)


def differences(one: np.ndarray, other: np.ndarray) -> float:
    """The largest, relative to the number, or to one, the size of parameters at the start, if that is more."""
    return float(np.nanmax(np.abs(one - other) / np.maximum(np.abs(other), 1)))


COLUMNS = "paper", "PyTorch in float64", "PyTorch in float32", "these two"


@pytest.fixture(scope="module")
def header():
    """Of the table of differences; ``pytest -s`` shows it."""
    print(f"\n{'largest relative difference after 1, 10 and 1000 steps':78}", *(f"{text:24}" for text in COLUMNS))


@pytest.mark.parametrize("count", [10, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", COMBINATIONS, ids=str)
def test_steps_equal_pytorchs_and_the_papers(case, count, header):
    """Gradients are noise: whatever a rule keeps must be right for long, and no mistake heals itself.

    Each step rounds p once, by ULP of its size at the most, and what it adds by some ULP of a smaller number. From what
    is exact, these errors stray like a random walk; two float32 runs may part by as much as all of them to one side,
    as PyTorch's does that multiplies p by a rounded 1 - lr * decay. PyTorch's float64 and the paper agree in full.
    """
    rng = np.random.default_rng(1)
    start, gradients = (rng.standard_normal(shape).astype(np.float32) for shape in (SIZE, (count, SIZE)))
    marks = [t for t in (1, 10, 1000) if t <= count]

    def at_marks(positions: Iterator[np.ndarray]) -> list[np.ndarray]:
        return [p.copy() for t, p in enumerate(positions, 1) if t in marks]

    ours, papers = at_marks(our_walk(case, start, gradients)), at_marks(oracle_walk(case, start, gradients))
    assert differences(ours[0], start) > 1e-3, "these steps must go somewhere"
    if case.name == "lion":
        assert np.isnan(papers[-1]).mean() < 1e-4 * count, "rounding decides more signs than it should"
    columns, coarser = [list(map(differences, ours, papers))], COARSER.get(case.name, 1)
    if torch is not None and case.name in TORCH_CLASSES:
        exact, coarse = (
            at_marks(torch_walk(case, dtype, start, gradients)) for dtype in (torch.float64, torch.float32)
        )
        digits = 1e-8 if case.name == "nadam" else 1e-12  # PyTorch keeps NAdam's product of momenta in float32
        assert max(map(differences, papers, exact)) < digits, "the oracle is not what PyTorch computes"
        columns += [list(map(differences, *pair)) for pair in ((ours, exact), (ours, coarse), (coarse, exact))]
        for t, error, theirs in zip(marks, columns[1], columns[3], strict=True):
            assert error < 4 * theirs + 4 * ULP, f"after {t} steps: {error:.1e}, PyTorch's float32 {theirs:.1e}"
    print(f"{case!s:78}", *(f"{' '.join(f'{e:.1e}' for e in errors):24}" for errors in columns))
    for exactly, errors in zip((True, True, False, False), columns, strict=False):
        for t, error in zip(marks, errors, strict=True):
            assert error < (4 + 8 * math.sqrt(t) if exactly else 4 + t) * ULP * coarser, (t, error)


@pytest.mark.skipif(torch is None, reason="PyTorch is not installed: pip install torch")
@pytest.mark.parametrize("name", [*TORCH_CLASSES, "muon"])
def test_arguments_come_in_pytorchs_order(name):
    ours = list(inspect.signature(OPTIMIZERS[name].__init__).parameters)
    theirs = inspect.signature(getattr(torch.optim, TORCH_CLASSES.get(name, "Muon")).__init__).parameters.values()
    names = [one for p in theirs for one in (("beta1", "beta2") if p.name == "betas" else (p.name,)) if one in ours]
    assert len(names) >= 5
    assert ours[: len(names)] == names


hypers = {
    "lr": st.floats(1e-4, 0.1),
    "beta1": st.floats(0, 0.99),
    "beta2": st.floats(0, 0.99),
    "beta3": st.floats(0, 0.99),
    "eps": st.floats(1e-3, 1),
    "weight_decay": st.floats(0, 0.5),
    "momentum": st.floats(0, 0.99),
    "dampening": st.floats(0, 1),
    "momentum_decay": st.floats(0, 1),
    "final_lr": st.floats(1e-3, 0.2),
    "gamma": st.floats(0.05, 1),
    "partial": st.integers(1, 8).map(lambda eighths: eighths / 16),
    "trust_coefficient": st.floats(1e-3, 0.1),
    "amsgrad": st.booleans(),
    "decoupled_weight_decay": st.booleans(),
    "nesterov": st.just(False),
    "warmup_steps": st.integers(0, 9),
    "seed": st.integers(0, 2**63 - 1),
    "ns_coefficients": st.just((3.4445, -4.775, 2.0315)),
    "ns_steps": st.integers(1, 5),
    "adjust_lr_fn": st.sampled_from(["original", "match_rms_adamw"]),
    "adamw_lr": st.floats(1e-4, 0.1),
    "adamw_eps": st.floats(1e-3, 1),
}
shapes = st.lists(st.lists(st.integers(0, 5), max_size=4).map(tuple), min_size=1, max_size=4)


@pytest.mark.parametrize("name", OPTIMIZERS)
@settings(max_examples=15, deadline=None)
@given(drawn=st.data(), sizes=shapes, seed=st.integers(0, 2**32 - 1), count=st.integers(1, 8))
def test_any_settings_on_any_shapes(name, drawn, sizes, seed, count):
    """Against the paper, in whatever settings; ranges keep eps large enough that float32 can tell."""
    ranges = {**hypers, "beta1": st.floats(0.1, 0.99)} if name == "schedulefree" else hypers
    chosen = {key: drawn.draw(ranges[key], key) for key in OPTIMIZERS[name]().settings()}
    rng = np.random.default_rng(seed)

    def draw() -> dict[str, np.ndarray]:
        return {str(i): np.array(rng.standard_normal(shape), np.float32) for i, shape in enumerate(sizes)}

    params, gradients = draw(), [draw() for _ in range(count)]
    wants = {key: p.astype(np.float64) for key, p in params.items()}
    optimizer = OPTIMIZERS[name](params, **chosen)
    for g in gradients:
        optimizer.step(g)
    for key, want in wants.items():
        kept, largest, decided = {}, 1.0, np.ones(want.shape, bool)
        for t, g in enumerate(gradients, 1):
            want = ORACLES[name](want, g[key].astype(np.float64), kept, t, optimizer.settings())
            largest = max(largest, np.abs(want).max(initial=0))
            decided &= np.abs(kept.get("c", 1.0)) > UNDECIDED
        np.testing.assert_allclose(
            params[key][decided], want[decided], rtol=0, atol=2e-6 * count * largest * COARSER.get(name, 1)
        )

"""Binding plans to the reference ops in tests, and holding them against the interpreter."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from graphs import draw_arrays

from fastadam import reference
from fastadam.arena import Arena
from fastadam.graph import Graph
from fastadam.interpret import interpret
from fastadam.plan import Plan
from fastadam.program import Program, run_checked


def make_arenas(graph: Graph, params: Mapping, state: Mapping, dtype: Any = np.float64) -> dict[str, Arena]:
    """Loaded arenas for any plan of the graph; gradients begin as NaN, but for the gaps."""
    arenas = {name: Arena(graph.trained(), dtype=dtype) for name in ("PARAM", "GRAD", "M", "V")}
    arenas["STATE"] = Arena(graph.state(), dtype=dtype)
    arenas["PARAM"].load(params)
    arenas["STATE"].load(state)
    for view in arenas["GRAD"].views.values():
        view[...] = np.nan
    return arenas


def bind(
    plan: Plan, arenas: Mapping[str, Arena], x: np.ndarray, labels: np.ndarray, *, key: tuple = (0, 0),
    loss_scale: float | None = None, momentum: float = 0.1, ops: Any = reference, **options: Any,
) -> Program:  # fmt: skip
    """A program of a ``source="float32"`` plan with its inputs filled from a prepared batch."""
    program = Program(plan, ops, arenas, **options)
    values = {
        "images": x.transpose(0, 3, 1, 2), "labels": labels, "index": np.arange(len(x)), "key": key,
        "step": (1 / len(x) if loss_scale is None else loss_scale, momentum),
    }  # fmt: skip
    for name, array in program.inputs.items():
        if name in values:
            array[...] = values[name]
    return program


def assert_close(got: Any, want: Any, tolerance: float, what: str, slack: float = 0.0) -> None:
    """Within ``tolerance`` of the largest value (or of 1), plus ``slack``."""
    largest = max(1.0, np.abs(want).max(initial=0))
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * largest + slack, err_msg=what)


def rounding_slack(graph: Graph, batch: int, seed: int) -> dict[str, float]:
    """100 times what a rounding of every value and gradient moves the interpreter's own gradients."""
    params, state, x, labels = draw_arrays(graph, batch, seed)
    rng, slack = np.random.default_rng(seed), Counter[str]()

    def gradients(noise: Callable[[np.ndarray], np.ndarray] | None) -> dict[str, np.ndarray]:
        return interpret(graph, params, state, x, labels, key=(seed, 3), smoothing=0.1, noise=noise).gradients

    want = gradients(None)
    for _ in range(3):
        moved = gradients(lambda a: a * (1 + 2.0**-52 * rng.choice((-1, 0, 1), a.shape)))
        for name, gradient in moved.items():
            slack[name] = max(slack[name], 100 * np.abs(gradient - want[name]).max())
    return slack


def assert_agrees(
    graph: Graph, batch: int, seed: int = 0, *, dtype: Any = np.float64, tolerance: float = 1e-10,
    change: Callable[[np.ndarray], np.ndarray] = lambda x: x, slack: Mapping[str, float] | None = None,
    ops: Any = reference,
) -> None:  # fmt: skip
    """Plans in every mode, run with all checks of memory, equal the interpreter."""
    params, state, x, labels = draw_arrays(graph, batch, seed)
    x = change(x)
    for mode in ("train", "infer", "stats"):
        plan = Plan(graph, batch, mode, source="float32", smoothing=0.1)
        arenas = make_arenas(graph, params, state, dtype)
        program = bind(plan, arenas, x, labels, key=(seed, 3), ops=ops, guard=64)
        run_checked(program)
        want = interpret(graph, params, state, x, labels, training=mode != "infer", key=(seed, 3), smoothing=0.1)
        for name, array in want.state.items():
            assert_close(arenas["STATE"].views[name], array, tolerance, f"{mode} {name}")
        if mode == "stats":
            assert not program.outputs
            continue
        right = (want.logits.argmax(1) == labels).sum()
        if not slack:  # ties of logits are decided by a rounding
            assert program.outputs["loss"][1] == right
        assert_close(program.outputs["loss"][0], want.loss, tolerance, f"{mode} loss")
        if mode == "infer":
            assert_close(program.outputs["logits"], want.logits, tolerance, "logits")
        if mode == "train":
            assert want.gradients.keys() == graph.trained().keys()
            for name, array in want.gradients.items():
                room = (slack or {}).get(name, 0.0)
                assert_close(arenas["GRAD"].views[name], array, tolerance, name, room)

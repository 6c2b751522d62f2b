"""Whole training steps, as a loop of one's own takes them: a batch of images in, a loss out."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from fastadam import models
from fastadam.bench import memory
from fastadam.bench.children import Child, side_names
from fastadam.bench.machine import timed
from fastadam.bench.numbers import Limits, both_sides, median, paired_ratio, spread
from fastadam.bench.rounds import Budget, Rounds, take_turns, turn_steps
from fastadam.bench.work import BATCHES, batches, check_memory, training_plan
from fastadam.device import get_device
from fastadam.errors import BenchError
from fastadam.graph import Graph
from fastadam.optim import Adam
from fastadam.trainer import Trainer

SETTINGS: dict[str, Any] = {"lr": 1e-3, "eps": 1e-4}
"""Of Adam on both sides. With the default eps the first steps are lr times the sign of each gradient, and where
that should be 0 rounding decides it: losses could not be compared."""

FIRST = 4
"""Steps, all on one batch, whose losses must agree: a side that did not update would keep its first one."""

TOLERANCE = 0.1  # units that a rounding switches on or off move a loss by thousandths; of fifty layers, by hundredths


class OurSteps:
    """A ``Trainer`` and its batches; made in a process of its own."""

    def __init__(self, name: str, batch: int, device: str, threads: int):
        place = get_device(device, threads)
        check_memory(training_plan(models.graph_of(name), batch, place.filter_lanes), place)
        self._batches, self._next = batches(batch), 0
        with place.running():  # as PyTorch's side: a library that has computed something is loaded
            place.ops.accumulate(*(place.to_device(np.zeros(1, np.float32)) for _ in range(2)))
            place.synchronize()
        self._taken = memory.meter_of(place)
        self._trainer = Trainer(models.build(name), Adam(None, **SETTINGS), device=device, threads=threads)

    def begin(self) -> dict[str, Any]:
        """The first steps: {"first_step_seconds", "compile_seconds", "losses", "step_seconds"} of the last one."""
        with self._trainer.device.compile_clock(lambda: None) as clock:
            begun = {**first_steps(self._step_on), "compile_seconds": clock.seconds}
        self._taken()  # before another process takes memory of the same GPU
        return begun

    def run(self, steps: int) -> list[float]:
        """Seconds of each of some steps."""
        return [timed(self._step) for _ in range(steps)]

    def peak_memory(self) -> int | None:
        """Bytes taken at the most beyond the loaded library and the batches; None if that is not known."""
        return self._taken()

    def _step(self) -> float:
        self._next += 1
        return self._step_on(self._next % BATCHES)

    def _step_on(self, number: int) -> float:
        return self._trainer.step(*self._batches[number])


class TheirSteps:
    """PyTorch's module of the same graph, with the same weights and batches; made in a process of its own."""

    def __init__(self, name: str, batch: int, device: str, threads: int):
        from fastadam.bench import peer

        place = peer.Place(device, threads)
        graph, state = models.graph_of(name), models.build(name).state_dict()
        layout = peer.memory_format(graph)
        self._batches, self._next = [peer.tensors(*arrays, layout, device) for arrays in batches(batch)], 0
        place.compute_something()
        self._taken = place.memory_meter()
        self._training = peer.Training(graph, state, "adam", device, **SETTINGS)

    def begin(self) -> dict[str, Any]:
        """The first steps, as ``OurSteps.begin``."""
        return {**first_steps(self._step_on), "compile_seconds": 0.0}

    def run(self, steps: int) -> list[float]:
        """Seconds of each of some steps."""
        return [timed(self._step) for _ in range(steps)]

    def peak_memory(self) -> int | None:
        """As ``OurSteps.peak_memory``; of a GPU's, what PyTorch has given to tensors."""
        return self._taken()

    def _step(self) -> float:
        self._next += 1
        return self._step_on(self._next % BATCHES)

    def _step_on(self, number: int) -> float:
        return self._training.step(self._batches[number])


def first_steps(step_on: Callable[[int], float]) -> dict[str, Any]:
    """Losses of the first steps, and seconds of the first and of the last of them."""
    losses, seconds = [], []
    for _ in range(FIRST):
        begun = time.perf_counter()
        losses.append(step_on(0))
        seconds.append(time.perf_counter() - begun)
    return {"first_step_seconds": seconds[0], "step_seconds": seconds[-1], "losses": losses}


MAKE: dict[str, Callable[..., Any]] = {"fastadam": OurSteps, "torch": TheirSteps}
"""The sides."""


def bench_steps(
    name: str, batch: int, device: str, threads: int, limits: Limits, budget: Budget, vs: str | None
) -> dict[str, Any]:
    """Steps of one model with one batch size, for JSON."""
    graph = models.graph_of(name)
    flops = training_plan(graph, batch).flops
    with ExitStack() as stack:
        sides: dict[str, Child] = {}
        begun: dict[str, dict[str, Any]] = {}
        for key, who in side_names(vs).items():
            peer, compiled = key != "fastadam", 0.0
            while key not in begun:
                side = sides[key] = stack.enter_context(Child(who, MAKE[key], name, batch, device, threads, peer=peer))
                told = side.ask("begin")
                if told["compile_seconds"] and not compiled:
                    compiled = told["compile_seconds"]
                    side.close()  # what compiling takes is no step's memory: once more, from the cache
                else:
                    begun[key] = {**told, "compile_seconds": compiled}
        losses = {key: told["losses"] for key, told in begun.items()}
        compared = not has_dropout(graph)
        if compared:
            check_losses(f"{name}, batch size {batch}", losses)
        longest = max(told["step_seconds"] for told in begun.values())
        seconds = take_turns(sides, turn_steps(longest), budget)
        peaks = {key: side.ask("peak_memory") for key, side in sides.items()}
    results = {
        key: {
            **_result(rounds, batch, flops, limits),
            "first_step_seconds": begun[key]["first_step_seconds"],
            "compile_seconds": begun[key]["compile_seconds"],
            "peak_memory_bytes": peaks[key],
            "first_losses": losses[key],
        }
        for key, rounds in seconds.items()
    }
    ratio = paired_ratio(seconds["fastadam"], seconds["torch"]) if vs else None
    return {
        "model": name,
        "batch_size": batch,
        "device": device,
        "threads": threads,
        "gflop": flops / 1e9,
        "rounds": len(seconds["fastadam"]),
        "losses_compared": bool(vs) and compared,
        **both_sides(results["fastadam"], results.get("torch"), ratio),
        "memory_ratio": memory_ratio(peaks),
    }


def has_dropout(graph: Graph) -> bool:
    """Whether random masks, which the two sides draw differently, are part of the loss."""
    return any(node.op == "dropout" and node.attrs["p"] > 0 for node in graph.nodes)


def check_losses(what: str, losses: Mapping[str, Sequence[float]]) -> None:
    """BenchError unless the losses of all sides are finite and agree, step by step."""
    for step, values in enumerate(zip(*losses.values(), strict=True), 1):
        if not np.isfinite(values).all() or max(values) - min(values) > TOLERANCE * max(1.0, *values):
            told = ", ".join(f"{key}: {value:.6g}" for key, value in zip(losses, values, strict=True))
            raise BenchError(f"{what}: the losses of step {step} differ ({told}); the sides did not do the same work")


def memory_ratio(peaks: Mapping[str, int | None]) -> float | None:
    """How many times more memory PyTorch takes; None if that is not known."""
    ours, theirs = peaks["fastadam"], peaks.get("torch")
    return theirs / ours if ours and theirs is not None else None


def _result(rounds: Rounds, batch: int, flops: int, limits: Limits) -> dict[str, Any]:
    seconds = median(rounds)
    return {
        "milliseconds": spread([s for part in rounds for s in part], 1e3),
        "images_per_second": batch / seconds,
        "gflops": flops / seconds / 1e9,
        "fma_share": flops / seconds / limits.fma,
    }

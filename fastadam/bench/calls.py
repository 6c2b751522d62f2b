"""The calls of one training step, each on its own clock, beside the roof of the machine."""

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from fastadam import models
from fastadam.arena import Arena
from fastadam.bench.children import Child, side_names
from fastadam.bench.machine import one_by_one
from fastadam.bench.numbers import Limits
from fastadam.bench.rounds import Budget, take_turns, turn_steps
from fastadam.bench.work import batches, check_memory, training_plan
from fastadam.calls import Call
from fastadam.device import get_device
from fastadam.optim import Adam
from fastadam.program import Program, bound

WARM_UP = 2
"""Steps before the clock counts: they compile, and fill caches."""

LAYERS = {"conv": "conv2d", "linear": "linear", "maxpool": "maxpool", "avgpool": "avgpool"}
"""Operations of a graph that PyTorch has a layer for, and the stem of ours."""


@dataclass
class Row:
    """Calls of one op on equal shapes.

    launches  of all of them
    places    where they stand in the step        layers   the graph nodes they are done for
    seconds   of all of them, step by step        theirs   the same of PyTorch's passes, if there are such
    """

    op: str
    shape: tuple[int, ...]
    flops: int
    bytes: int
    launches: int = 0
    places: list[int] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)


def rows_of(calls: Sequence[Call], launches: Sequence[int] | None = None) -> list[Row]:
    """A row for every op and set of shapes, in the order of the step; ``launches`` of each call, 1 if not given."""
    rows: dict[Any, Row] = {}
    for place, (call, count) in enumerate(zip(calls, launches or [1] * len(calls), strict=True)):
        shapes = tuple(slot.shape for slot in call.outs + call.ins)
        key = (call.op, shapes, tuple(call.scalars.items()))
        row = rows.setdefault(key, Row(call.op, main_shape(call), 0, 0))
        row.flops, row.bytes = row.flops + call.flops, row.bytes + call.bytes
        row.launches += count
        row.places.append(place)
        row.layers.append(call.layer)
    return list(rows.values())


def main_shape(call: Call) -> tuple[int, ...]:
    """The shape that says most of a call: that of the first array it writes, or of the first it reads."""
    return next(slot.shape for slot in call.outs + call.ins if slot.present)


class OurCalls:
    """A bound training step, run call by call; made in a process of its own."""

    def __init__(self, name: str, batch: int, device: str, threads: int):
        self._device, self._optimizer, self._t = get_device(device, threads), Adam(lr=1e-4), 1
        plan = self._plan = training_plan(models.graph_of(name), batch, self._device.filter_lanes)
        check_memory(plan, self._device)
        model = models.build(name)
        ((images, labels),) = batches(batch, 1)
        arenas = {key: Arena(model.graph.trained()) for key in ("GRAD", "M", "V")}
        arenas |= {"PARAM": model.parameters, "STATE": model.state}
        self._device.reserve(plan.calls)
        placed = {key: arena.on(self._device) for key, arena in arenas.items()}
        self._h = self._device.to_device(self._optimizer.decay_rows(self._t))
        with self._device.running():
            ops, empty, write = self._device.ops, self._device.empty, self._device.write
            program = Program(plan, ops, placed, empty, write, inputs={"h": self._h})
            inputs = program.inputs
            inputs["images"][...], inputs["labels"][...] = images, labels
            inputs["index"][...], inputs["step"][...] = np.arange(batch), (1 / batch, 0.1)
            with self._device.first_run(plan.calls):
                program.run()  # which sends all inputs but h
            self._bound = [bound(function, arguments) for function, arguments in program.calls]

    def calls(self) -> tuple[Sequence[Call], list[int]]:
        """The calls of the step, and the launches that each of them is."""
        return self._plan.calls, [len(launches) for launches in self._bound]

    def run(self, steps: int) -> list[list[float]]:
        """Seconds of every call of the plan, by step."""
        return [self._run() for _ in range(steps)]

    def _run(self) -> list[float]:
        self._t += 1
        self._device.write(self._h, self._optimizer.decay_rows(self._t))
        return self._device.seconds([one_by_one(launches) for launches in self._bound])


class TheirLayers:
    """PyTorch's layers of a graph one by one; made in a process of its own."""

    def __init__(self, name: str, batch: int, device: str, threads: int):
        from fastadam.bench import peer

        self._place = peer.Place(device, threads)
        graph = models.graph_of(name)
        self._passes: dict[tuple[str, str], Callable[[], Any]] = {}
        made: dict[Any, dict[str, Callable[[], Any]]] = {}
        for node in graph.nodes:
            if node.op in LAYERS:
                shape, needs_dx = graph.shapes[node.inputs[0]], node.inputs[0] != graph.nodes[0].name
                key = (node.op, shape, tuple(node.attrs.items()), needs_dx)
                if key not in made:
                    made[key] = peer.passes(node, shape, batch, needs_dx, device)
                for direction, action in made[key].items():
                    self._passes[f"{LAYERS[node.op]}_{direction}", node.name] = action

    def run(self, steps: int) -> list[dict[tuple[str, str], float]]:
        """Seconds by (our op, layer), by step; equal layers are timed once."""
        actions, results = list(dict.fromkeys(self._passes.values())), []
        for _ in range(steps):
            seconds = dict(zip(actions, self._place.seconds(actions), strict=True))
            results.append({key: seconds[action] for key, action in self._passes.items()})
        return results


MAKE: dict[str, Callable[..., Any]] = {"fastadam": OurCalls, "torch": TheirLayers}
"""The sides."""


def bench_calls(
    name: str, batch: int, device: str, threads: int, limits: Limits, budget: Budget, vs: str | None
) -> dict[str, Any]:
    """The rows of one training step of a model, the longest first, for JSON."""
    with ExitStack() as stack:
        sides = {
            key: stack.enter_context(Child(who, MAKE[key], name, batch, device, threads, peer=key != "fastadam"))
            for key, who in side_names(vs).items()
        }
        rows = rows_of(*sides["fastadam"].ask("calls"))
        warm = {key: side.ask("run", WARM_UP) for key, side in sides.items()}
        turns = take_turns(sides, turn_steps(sum(warm["fastadam"][-1])), budget)
    for seconds in chain(*turns["fastadam"]):
        for row in rows:
            row.seconds.append(sum(seconds[place] for place in row.places))
    for by_layer in chain(*turns.get("torch", [])):
        for row in rows:
            if (row.op, row.layers[0]) in by_layer:
                row.theirs.append(sum(by_layer[row.op, layer] for layer in row.layers))
    step = sum(statistics.median(row.seconds) for row in rows)
    rows.sort(key=lambda row: -statistics.median(row.seconds))
    return {
        "model": name,
        "batch_size": batch,
        "device": device,
        "threads": threads,
        "rounds": len(turns["fastadam"]),
        "calls": sum(len(row.places) for row in rows),
        "launches": sum(row.launches for row in rows),
        "milliseconds": step * 1e3,
        "rows": [_result(row, step, limits) for row in rows],
    }


def _result(row: Row, step: float, limits: Limits) -> dict[str, Any]:
    seconds = statistics.median(row.seconds)
    theirs = statistics.median(row.theirs) if row.theirs else None
    return {
        "op": row.op,
        "layers": [layer for layer in row.layers if layer],
        "shape": list(row.shape),
        "calls": len(row.places),
        "launches": row.launches,
        "milliseconds": seconds * 1e3,
        "gflops": row.flops / seconds / 1e9,
        "gb_per_second": row.bytes / seconds / 1e9,
        "roof_share": limits.share(seconds, row.flops, row.bytes),
        "step_share": seconds / step,
        "torch_milliseconds": None if theirs is None else theirs * 1e3,
        "ratio": None if theirs is None else theirs / seconds,
    }

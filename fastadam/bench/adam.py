"""One update by Adam: many small tensors, a million parameters, ten million; in an arena, and in dicts of arrays."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from fastadam import models
from fastadam.arena import Arena
from fastadam.bench.children import Child, side_names
from fastadam.bench.machine import timed
from fastadam.bench.numbers import Limits, both_sides, median, paired_ratio, spread
from fastadam.bench.rounds import Budget, Rounds, take_turns, turn_steps
from fastadam.device import get_device
from fastadam.errors import BenchError
from fastadam.graph import Shape
from fastadam.optim import Adam
from fastadam.planner import decay_groups
from fastadam.program import bound

BYTES = 28
"""Of a parameter: p, m, v and g are read, p, m and v written, four bytes each."""

LR = 1e-3
FIRST = 3
"""Steps after which the parameters of both sides must have moved alike; they warm up too."""

TOLERANCE = 1e-3  # of how far the parameters move: a few roundings of each

Shapes = dict[str, Shape]


IN_DICTS = ", dicts"
"""What the names of sets end with that are arrays of their own, as ``Adam(...).step({...})`` takes them."""


def sets_of_parameters() -> dict[str, Shapes]:
    """What is updated, by its name."""
    sets: dict[str, Shapes] = {
        "resnet20": models.graph_of("resnet20").trained(),
        "1M": {"p": (1_000_000,)},
        "10M": {"p": (10_000_000,)},
    }
    return sets | {name + IN_DICTS: sets[name] for name in ("resnet20", "10M")}


def is_for(name: str, device: str) -> bool:
    """Whether a device can have this set: dicts are of NumPy arrays, which are the CPU's."""
    return device == "cpu" or not name.endswith(IN_DICTS)


def arrays_of(shapes: Shapes, seed: int) -> list[np.ndarray]:
    """Normal numbers for every shape, the same for both sides."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, np.float32) for shape in shapes.values()]


def moved(before: list[np.ndarray], after: list[np.ndarray]) -> float:
    """How far all parameters have moved, as a distance."""
    return float(np.sqrt(sum(np.sum((b.astype(np.float64) - a) ** 2) for a, b in zip(before, after, strict=True))))


class OurUpdate:
    """The update of a flat arena, as the last call of a training step has it; made in a process of its own."""

    def __init__(self, name: str, device: str, threads: int | None):
        shapes = sets_of_parameters()[name]
        self._device, self._optimizer, self._t = get_device(device, threads), Adam(lr=LR), 0
        self._arenas = [Arena(shapes) for _ in range(4)]
        for arena, seed in ((self._arenas[0], 0), (self._arenas[3], 1)):
            arena.load(dict(zip(shapes, arrays_of(shapes, seed), strict=True)))
        flat = self._arenas[0].flat
        runs = decay_groups(models.graph_of(name), "weights") if name == "resnet20" else ((0, flat.size, 0),)
        self._h, groups = map(self._device.to_device, (self._optimizer.decay_rows(1), np.array(runs, np.int64)))
        with self._device.running():
            flats = [arena.on(self._device).flat for arena in self._arenas]
            self._launches = bound(self._device.ops.adam_update, (*flats, self._h, groups))

    def run(self, steps: int) -> list[float]:
        """Seconds of each of some updates, from the numbers that the host makes for it until it is done."""
        with self._device.running():
            for arena in self._arenas:
                arena.on(self._device)
            return [timed(self._step) for _ in range(steps)]

    def begin(self) -> float:
        """How far the first steps move the parameters."""
        before = [view.copy() for view in self._arenas[0].views.values()]
        self.run(FIRST)
        return moved(before, list(self._arenas[0].views.values()))

    def _step(self) -> None:
        self._t += 1
        self._device.write(self._h, self._optimizer.decay_rows(self._t))
        for launch in self._launches:
            launch()
        self._device.synchronize()


class OurDicts:
    """The update of dicts of arrays, as a loop of somebody's own has it; made in a process of its own."""

    def __init__(self, name: str, device: str, threads: int | None):
        shapes = sets_of_parameters()[name]
        self._params, self._grads = (dict(zip(shapes, arrays_of(shapes, seed), strict=True)) for seed in (0, 1))
        self._optimizer = Adam(self._params, lr=LR)
        self._optimizer.threads = threads

    def run(self, steps: int) -> list[float]:
        """Seconds of each of some updates, the checks of their gradients included."""
        return [timed(self._step) for _ in range(steps)]

    def begin(self) -> float:
        """How far the first steps move the parameters."""
        before = [p.copy() for p in self._params.values()]
        self.run(FIRST)
        return moved(before, list(self._params.values()))

    def _step(self) -> None:
        self._optimizer.step(self._grads)


class TheirUpdate:
    """PyTorch's fused Adam on the same tensors; made in a process of its own."""

    def __init__(self, name: str, device: str, threads: int):
        from fastadam.bench import peer

        self._place = peer.Place(device, threads)
        shapes = sets_of_parameters()[name]
        self._before = arrays_of(shapes, 0)
        self._update = peer.Update(self._before, arrays_of(shapes, 1), device, lr=LR)
        self._place.synchronize()

    def run(self, steps: int) -> list[float]:
        """Seconds of each of some updates, until it is done."""
        return [timed(self._step) for _ in range(steps)]

    def begin(self) -> float:
        """How far the first steps move the parameters."""
        self.run(FIRST)
        return moved(self._before, self._update.arrays())

    def _step(self) -> None:
        self._update.step()
        self._place.synchronize()


def bench_adam(name: str, device: str, threads: int, limits: Limits, budget: Budget, vs: str | None) -> dict[str, Any]:
    """The update of one of ``sets_of_parameters``, for JSON."""
    shapes = sets_of_parameters()[name]
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    ours = OurDicts if name.endswith(IN_DICTS) else OurUpdate
    make: dict[str, Callable[..., Any]] = {"fastadam": ours, "torch": TheirUpdate}
    with ExitStack() as stack:
        sides = {
            key: stack.enter_context(Child(who, make[key], name, device, threads, peer=key != "fastadam"))
            for key, who in side_names(vs).items()
        }
        check_moved({key: side.ask("begin") for key, side in sides.items()})
        longest = max(max(side.ask("run", 2)) for side in sides.values())
        seconds = take_turns(sides, turn_steps(longest), budget)
    results = {key: _result(rounds, count, limits) for key, rounds in seconds.items()}
    ratio = paired_ratio(seconds["fastadam"], seconds["torch"]) if vs else None
    return {
        "parameters": name,
        "device": device,
        "count": count,
        "tensors": len(shapes),
        "bytes_per_parameter": BYTES,
        "rounds": len(seconds["fastadam"]),
        **both_sides(results["fastadam"], results.get("torch"), ratio),
    }


def check_moved(distances: Mapping[str, float]) -> None:
    """BenchError unless both sides have moved the parameters equally far."""
    far = list(distances.values())
    if max(far) - min(far) > TOLERANCE * max(far):
        told = ", ".join(f"{key}: {distance:.6g}" for key, distance in distances.items())
        raise BenchError(f"the updates of both sides differ ({told}): they did not do the same work")


def _result(rounds: Rounds, count: int, limits: Limits) -> dict[str, Any]:
    seconds = median(rounds)
    return {
        "milliseconds": spread([s for part in rounds for s in part], 1e3),
        "gb_per_second": BYTES * count / seconds / 1e9,
        "memory_share": BYTES * count / seconds / limits.memory,
    }

"""The machine: what it is, and what it can do at the most."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fastadam.bench.numbers import Limits
from fastadam.device import get_device
from fastadam.doctor import describe_cpu
from fastadam.kernels.start import cores
from fastadam.program import bound
from fastadam.versions import DECISIVE, installed

REPEATS = 7
"""Of each measurement; the best one counts, as what the machine can do is asked for."""

EMPTY = 200
"""Parallel loops, or launches, with nothing in them."""


class Machine:
    """Measures a device, with ``threads`` CPU threads, all cores if None; made in a process of its own."""

    def __init__(self, device: str, threads: int | None):
        self.device = get_device(device, threads)

    def place(self) -> tuple[str, int]:
        """(name of the device, CPU threads): what the sides are to have."""
        return self.device.name, self.device.threads

    def measure(self) -> tuple[dict[str, Any], Limits]:
        """(the environment for JSON, the limits)."""
        with self.device.running():
            limits = self._limits()
        environment = {
            "device": self.device.name,
            "cpu": describe_cpu(),
            "cores": cores(),
            **self.device.describe(),
            "versions": installed(*DECISIVE, "torch"),
        }
        return environment, limits

    def _limits(self) -> Limits:
        device, loops = self.device, self.device.limits
        y, x = (device.to_device(np.full(loops.floats, value, np.float32)) for value in (0, 1))
        half = loops.floats // 2
        found = {
            "fma": self._multiply_adds(loops.lanes),
            "copy": 8 * loops.floats / self._best(loops.module.copy, y, x),
            "mix": 28 * half / self._best(loops.module.mix, y[:half], y[half:], x[:half], x[half:]),
        }
        if device.is_host:
            return Limits(**found, fma_one=self._multiply_adds(1), fork_join=self._nothing())
        return Limits(**found, launch=self._nothing())

    def _multiply_adds(self, lanes: int) -> float:
        """Operations a second, on so many lanes."""
        loops, times = self.device.limits.module, self.device.limits.times
        a = np.linspace(0, 1, lanes * loops.LANE, dtype=np.float32).reshape(lanes, -1)
        return 2 * a.size * times / self._best(loops.multiply_add, self.device.to_device(a), times)

    def _nothing(self) -> float:
        """Seconds of a parallel loop, or a launch, with nothing in it, of many in a row: the host's part included."""
        y = self.device.to_device(np.zeros(self.device.threads, np.float32))
        action = self._action(self.device.limits.empty, y, EMPTY)

        def run() -> None:
            action()
            self.device.synchronize()

        return best(run) / EMPTY

    def _best(self, function: Any, *arguments: Any) -> float:
        """Seconds on the device's clock of the fastest of some calls, after one that may compile."""
        action = self._action(function, *arguments)
        action()
        return min(self.device.seconds([action] * REPEATS))

    def _action(self, function: Any, *arguments: Any) -> Callable[[], None]:
        return one_by_one(bound(function, arguments))


def check_peer(device: str, threads: int) -> None:
    """BenchError, with the cure, unless PyTorch can compute there; asked in a process of its own, which imports it."""
    from fastadam.bench import peer

    peer.Place(device, threads)


def one_by_one(actions: list[Callable[[], None]]) -> Callable[[], None]:
    """What runs them all."""

    def run() -> None:
        for action in actions:
            action()

    return run


def best(action: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Seconds of the fastest of some calls; one before them, which may compile, is left out."""
    action()
    return min(timed(action) for _ in range(repeats))


def timed(action: Callable[[], Any]) -> float:
    """Seconds of one call."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun

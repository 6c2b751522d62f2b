"""The machine: what it is, and what it can do at the most."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fastadam.bench.numbers import Limits
from fastadam.device import cores, cpu_device, threading_layer
from fastadam.doctor import describe_cpu
from fastadam.versions import DECISIVE, installed

REPEATS = 7
"""Of each measurement; the best one counts, as what the machine can do is asked for."""

TIMES = 2_000_000
"""Of every accumulator: a few hundredths of a second."""

FLOATS = 1 << 24
"""In each of the two arrays of a copy, and half as many in the four of the mix: 128 MiB, more than caches hold."""

FORKS = 200


class Machine:
    """Measures with ``threads`` threads, all cores if None; made in a process of its own."""

    def __init__(self, threads: int | None):
        self.device = cpu_device(threads)

    def measure(self) -> tuple[dict[str, Any], Limits]:
        """(the environment for JSON, the limits)."""
        with self.device.running():
            limits = self._limits()
        environment = {
            "cpu": describe_cpu(),
            "cores": cores(),
            "threads": self.device.threads,
            "threading_layer": threading_layer(),
            "versions": installed(*DECISIVE, "torch"),
        }
        return environment, limits

    def _limits(self) -> Limits:
        threads, loops = self.device.threads, self.device.limits

        def fma(lanes: int) -> float:
            a = np.linspace(0, 1, lanes * loops.LANE, dtype=np.float32).reshape(lanes, -1)
            return 2 * a.size * TIMES / best(lambda: loops.multiply_add(a, TIMES))

        y, x = (self.device.empty((FLOATS,)) for _ in range(2))
        y[:], x[:] = 0, 1
        copied = best(lambda: loops.copy(y, x))
        arrays = [part for a in (y, x) for part in np.split(a, 2)]
        mixed = best(lambda: loops.mix(*arrays))
        small = np.zeros(threads, np.float32)
        forked = best(lambda: loops.fork_joins(small, FORKS))
        return Limits(
            fma_one=fma(1),
            fma=fma(threads),
            copy=2 * y.nbytes / copied,
            mix=7 * arrays[0].nbytes / mixed,
            fork_join=forked / FORKS,
        )


def best(action: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Seconds of the fastest of some calls; one before them, which may compile, is left out."""
    action()
    return min(timed(action) for _ in range(repeats))


def timed(action: Callable[[], Any]) -> float:
    """Seconds of one call."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun

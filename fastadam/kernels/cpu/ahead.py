"""Compiling on more than one core: helpers compile what a program comes to last, and leave it with the kept kernels.

Numba compiles one function at a time, and a first run does so as it meets them. A helper is a process that takes the
same calls from their end, on arrays of zeros, and leaves the tasks of their parallel loops undone. What it has
compiled the run finds in the cache, wherever the two meet. Nothing depends on a helper: what it has not done, the run
compiles itself.
"""

import contextlib
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numba.core import event

from fastadam.kernels import cpu
from fastadam.kernels.cache import cache_folder, listening
from fastadam.kernels.cpu.parallel import compile_only

MOST_HELPERS = 3
"""The largest function is a sixth of the work of a net, and every helper has to start and to read the small ones."""

HELPER_BYTES = 1 << 29
"""Memory that a helper may take."""

PATIENCE = 0.5
"""Seconds of compiling before helpers are started, which takes them as long: less is sooner done alone."""

_HELPER = (
    "import sys; sys.path[:] = sys.argv[1:]; from fastadam.kernels.start import start_numba; start_numba(1); "
    "from fastadam.kernels.cpu import ahead; ahead.main()"
)


@contextlib.contextmanager
def helped(calls: Sequence[Any], helpers: int) -> Iterator[None]:
    """Inside, a plan's calls are made for the first time; so many helpers come if compiling takes long."""
    most, begun, started = min(helpers, MOST_HELPERS), 0.0, []

    def compiling() -> None:
        nonlocal most, begun
        begun = begun or time.perf_counter()
        if most > 0 and time.perf_counter() - begun > PATIENCE:
            count, most = most, 0
            for first in range(0, len(calls), -(-len(calls) // count)):
                with contextlib.suppress(Exception):
                    started.append(start([*calls[first:], *calls[:first]][::-1]))

    try:
        with listening(event, "numba:compile", compiling):
            yield
    finally:
        for helper in started:
            helper.kill()
            helper.communicate()


def start(calls: Iterable[Any]) -> subprocess.Popen[bytes]:
    """A helper that compiles for a plan's calls, one after the other. It ends with this process at the latest.

    Raises an OSError if there can be none: in a program that is not Python, to begin with.
    """
    if getattr(sys, "frozen", False) or not Path(sys.executable or "").name.startswith("python"):
        raise OSError("no interpreter to start")
    helper = subprocess.Popen(
        [sys.executable, "-c", _HELPER, *sys.path],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert helper.stdin is not None
    compiled = (call for call in calls if call.op != "fill")  # which is NumPy's, and would touch all that it fills
    sketches = dict.fromkeys(map(_sketch, compiled))
    pickle.dump((cache_folder(), list(sketches)), helper.stdin)
    helper.stdin.flush()  # and stays open: its end is that of this process
    return helper


def _sketch(call: Any) -> tuple[Any, ...]:
    """A call without memory: its op, the (shape, dtype) of its arrays, its numbers."""
    arrays = tuple((slot.shape, slot.dtype) for slot in (*call.outs, *call.ins))
    return call.op, arrays, tuple(call.scalars.values())


def main() -> None:
    """What a helper does: compile for the calls that it reads from its standard input."""
    folder, calls = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_starter, daemon=True).start()
    if cache_folder() == folder:  # else numba was told something that this process does not know
        compile_only()
        for op, arrays, numbers in calls:
            with contextlib.suppress(Exception):
                getattr(cpu, op)(*(np.zeros(shape, dtype) for shape, dtype in arrays), *numbers)
    os._exit(0)


def _end_with_starter() -> None:
    while os.read(0, 1):
        pass
    os._exit(0)

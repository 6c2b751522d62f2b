"""Compiling on more than one core: helpers compile what a program comes to last, and leave it with the kept kernels.

Numba compiles one function at a time, and a first step does so as it meets them. A helper is a process that takes
the same calls from their end and does no task of any. What it has compiled the step finds in the cache, wherever
the two meet. Nothing depends on a helper: what it could not do the step compiles itself.
"""

import atexit
import contextlib
import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba.core import event

from fastadam.kernels import cpu
from fastadam.kernels.cache import cache_folder
from fastadam.kernels.cpu.parallel import compile_only

MOST_HELPERS = 3
"""The largest function is a sixth of the work of a net, and every helper has to start and to read the small ones."""

FEW = 4
"""So many new ops are compiled before a helper would be ready."""

Sketch = tuple[str, tuple[tuple[tuple[int, ...], str], ...], tuple[Any, ...]]
"""A call without memory: its op, the (shape, dtype) of its arrays, its numbers."""

_HELPER = (
    "import sys; sys.path[:] = sys.argv[1:]; from fastadam.kernels.start import start_numba; start_numba(1); "
    "from fastadam.kernels.cpu import ahead; ahead.main()"
)

_known: set[str] = set()


class _Watch(event.Listener):
    """Waits for the first of fastadam's functions that numba has to compile; a net whose kernels are kept has none."""

    def __init__(self) -> None:
        self.calls: Sequence[Sketch] = ()
        self.helpers = 0

    def on_start(self, event: Any) -> None:
        if self.calls and event.data["dispatcher"].py_func.__module__.startswith("fastadam."):
            calls, self.calls = self.calls, ()
            _start(calls, self.helpers)

    def on_end(self, event: Any) -> None:
        pass


_watch = _Watch()
event.register("numba:compile", _watch)


def foresee(calls: Sequence[Sketch], helpers: int) -> None:
    """Be ready to compile for these calls, in the order in which they will be made, with so many helpers."""
    new = {op for op, _, _ in calls} - _known
    _known.update(new)
    _watch.calls, _watch.helpers = calls if len(new) > FEW else (), min(helpers, MOST_HELPERS)


def _start(calls: Sequence[Sketch], helpers: int) -> None:
    for turn in range(helpers):
        first = len(calls) * turn // helpers
        order = [*calls[first:], *calls[:first]][::-1]
        with contextlib.suppress(OSError):
            helper = subprocess.Popen(
                [sys.executable, "-c", _HELPER, *sys.path],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            atexit.register(helper.kill)
            task = pickle.dumps((cache_folder(), order))
            threading.Thread(target=helper.communicate, args=(task,), daemon=True).start()


def main() -> None:
    """What a helper does: compile for the calls that it reads from its standard input."""
    folder, calls = pickle.load(sys.stdin.buffer)
    if cache_folder() != folder:  # numba was told something that this process does not know
        return
    compile_only()
    for op, arrays, numbers in calls:
        with contextlib.suppress(Exception):
            getattr(cpu, op)(*(np.zeros(shape, dtype) for shape, dtype in arrays), *numbers)

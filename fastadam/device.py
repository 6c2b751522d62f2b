"""The seam between what is computed and where: a device has ops, memory and a number of threads.

Nothing above this module knows which device it is. Numba is imported here at the latest, after the number
of threads and the order of threading layers are settled: it reads them once, at import.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fastadam.errors import DeviceError

ALIGN = 64
"""Bytes: every array of a device starts on a cache line."""

LAYERS = "omp tbb workqueue"
"""Threading layers, fastest fork and join first."""


def cores() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def get_device(name: str = "auto", threads: int | None = None) -> "CpuDevice":
    """The device called ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, with ``threads`` CPU threads (default: all cores).

    Raises DeviceError for a device that is not there: nothing falls back in silence.
    """
    kind, _, number = name.partition(":")
    if kind == "cuda" and (name == "cuda" or number.isdigit()):
        raise DeviceError(f"device {name!r} was asked for, but this version has no CUDA kernels; use --device cpu")
    if name not in ("auto", "cpu"):
        raise DeviceError(f"no device is called {name!r}; use auto, cpu, cuda or cuda:N")
    return CpuDevice(cores() if threads is None else threads)


class CpuDevice:
    """The CPU: NumPy arrays, numba kernels, a fixed number of threads."""

    name = "cpu"

    def __init__(self, threads: int):
        if threads < 1:
            raise DeviceError(f"{threads} threads were asked for; use 1 or more")
        self.threads = threads
        numba = _start_numba(threads)
        if threads > numba.config.NUMBA_NUM_THREADS:
            raise DeviceError(
                f"{threads} threads were asked for, but numba was started with {numba.config.NUMBA_NUM_THREADS}; "
                f"set NUMBA_NUM_THREADS={threads} before numba is imported"
            )
        self._set_threads = numba.set_num_threads
        self.ops: ModuleType = importlib.import_module("fastadam.kernels.cpu")

    def activate(self) -> None:
        """Make this device's thread count the current one of this Python thread: before every run, it is cheap."""
        self._set_threads(self.threads)

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """A new array that starts on a cache line, its content undefined."""
        dtype = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        raw = np.empty(size + ALIGN, np.uint8)
        start = -raw.ctypes.data % ALIGN
        return raw[start : start + size].view(dtype).reshape(shape)

    def to_device(self, array: np.ndarray) -> np.ndarray:
        """A copy of a host array in device memory."""
        copy = self.empty(array.shape, array.dtype)
        copy[...] = array
        return copy

    def to_host(self, array: np.ndarray) -> np.ndarray:
        """A copy of a device array as a plain NumPy array."""
        return np.array(array, order="C")

    def workspace(self, calls: Iterable[Any]) -> int:
        """Bytes of scratch memory that the most demanding of a plan's calls needs."""
        needed = importlib.import_module("fastadam.kernels.cpu.workspace").needed
        sizes = (needed(getattr(self.ops, c.op), (*c.outs, *c.ins, *c.scalars.values())) for c in calls)
        return 4 * max(sizes, default=0)

    def reserve(self, calls: Iterable[Any]) -> None:
        """Take the scratch memory of a plan's calls now, so that no step has to."""
        importlib.import_module("fastadam.kernels.cpu.workspace").reserve(self.workspace(calls) // 4)

    def synchronize(self) -> None:
        """Wait until all launched work is done: here every call already has."""

    def compile_clock(self, started: Callable[[], None]) -> Any:
        """A context that measures compiling: its ``.seconds``; ``started`` is called when it begins."""
        return importlib.import_module("fastadam.kernels.cache").compile_clock(started)

    def available_memory(self) -> int:
        """Bytes to be had now without swapping, within a container's limit."""
        free = _available_host_memory()
        for limit, used in (
            ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        ):
            with contextlib.suppress(OSError, ValueError):  # "max" means no limit
                free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        return max(free, 0)


def _available_host_memory() -> int:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _start_numba(threads: int) -> ModuleType:
    if "numba" not in sys.modules:
        asked = os.environ.get("NUMBA_NUM_THREADS", "")
        most = max(threads, cores(), int(asked) if asked.isdigit() else 1)
        os.environ["NUMBA_NUM_THREADS"] = str(most)
        os.environ.setdefault("NUMBA_THREADING_LAYER_PRIORITY", LAYERS)
    return importlib.import_module("numba")


def threading_layer() -> str:
    """The threading layer numba chose; it does so at the first parallel loop."""
    return importlib.import_module("numba").threading_layer()


def cache_folder() -> Path:
    """The folder of this version's compiled kernels."""
    _start_numba(1)
    return importlib.import_module("fastadam.kernels.cache").cache_folder()


def cache_roots() -> list[Path]:
    """The folders in which compiled kernels of any version may lie."""
    _start_numba(1)
    return importlib.import_module("fastadam.kernels.cache").cache_roots()

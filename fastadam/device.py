"""The seam between what is computed and where: a device has ops, memory and a number of threads.

Nothing above this module knows which device it is. Numba is imported here at the latest, after the number
of threads and the order of threading layers are settled: it reads them once, at import.
"""

import contextlib
import importlib
import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fastadam.errors import DeviceError

ALIGN = 64
"""Bytes: every array of a device starts on a cache line."""

COMPILING = "compiling kernels for this machine; they are kept for the next start ..."
"""What to say when a compile clock starts."""

_RUNNING = threading.RLock()

LAYERS = "omp tbb workqueue"
"""Threading layers, fastest fork and join first."""

SPIN_COUNT = "10000"
"""Turns an idle OpenMP thread spins before it sleeps: longer than from one op to the next, but a thirtieth of
the default, which on a machine with other work to do costs a third of the speed."""


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
    return CpuDevice(threads)


class CpuDevice:
    """The CPU: NumPy arrays, numba kernels, a fixed number of threads."""

    name = "cpu"

    def __init__(self, threads: int | None = None):
        if threads is not None and threads < 1:
            raise DeviceError(f"{threads} threads were asked for; use 1 or more")
        numba = _start_numba(threads or 1)
        most = numba.config.NUMBA_NUM_THREADS
        if threads is not None and threads > most:
            raise DeviceError(
                f"{threads} threads were asked for, but numba was started with {most}; "
                f"set NUMBA_NUM_THREADS={threads} before numba is imported"
            )
        self.threads = min(cores(), most) if threads is None else threads
        self._set_threads = numba.set_num_threads
        from fastadam.kernels import cpu

        self.ops: ModuleType = cpu

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run kernels inside, on this device's number of threads and alone: programs share memory and cores."""
        with _RUNNING:
            self._set_threads(self.threads)
            yield

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

    def workspace(self, calls: Iterable[Any]) -> int:
        """Bytes of scratch memory that the most demanding of a plan's calls needs."""
        from fastadam.kernels.cpu.workspace import needed

        sizes = (needed(getattr(self.ops, c.op), (*c.outs, *c.ins, *c.scalars.values())) for c in calls)
        return 4 * max(sizes, default=0)

    def reserve(self, calls: Iterable[Any]) -> None:
        """Take the scratch memory of a plan's calls now, so that no step has to."""
        from fastadam.kernels.cpu.workspace import reserve

        reserve(self.workspace(calls) // 4)

    @property
    def limits(self) -> ModuleType:
        """Loops that show what the device can do at the most; for measurements."""
        from fastadam.kernels.cpu import limits

        return limits

    def compile_clock(self, started: Callable[[], None]) -> Any:
        """A context that measures compiling: its ``.seconds``; ``started`` is called when it begins."""
        from fastadam.kernels.cache import compile_clock

        return compile_clock(started)

    def available_memory(self) -> float:
        """Bytes to be had now without swapping, within a container's limit."""
        return max(0, min(_available_host_memory(), *map(_available_in_cgroup, _own_cgroups())))


def _available_host_memory() -> int:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _own_cgroups() -> list[Path]:
    """The control groups whose memory limits hold for this process: its own and those above it."""
    root, own = Path("/sys/fs/cgroup"), "/"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                own = line.removeprefix("0::")
    path = root / own.lstrip("/")
    return [path, *(parent for parent in path.parents if parent.is_relative_to(root))]


def _available_in_cgroup(folder: Path) -> int | float:
    """Bytes left under a group's limit, pages that only cache files counted as free; infinity without a limit."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return math.inf if limit == "max" else int(limit) - used + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):
        return math.inf


def _start_numba(threads: int) -> ModuleType:
    """Import numba, if that is still to do, able to run so many threads, and on all cores unless told otherwise."""
    if "numba" in sys.modules:
        return sys.modules["numba"]
    asked = os.environ.get("NUMBA_NUM_THREADS")
    os.environ["NUMBA_NUM_THREADS"] = str(max(threads, int(asked) if asked and asked.isdigit() else cores()))
    os.environ.setdefault("NUMBA_THREADING_LAYER_PRIORITY", LAYERS)
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    try:
        return importlib.import_module("numba")
    finally:  # child processes decide for themselves
        if asked is None:
            del os.environ["NUMBA_NUM_THREADS"]
        else:
            os.environ["NUMBA_NUM_THREADS"] = asked


def threading_layer() -> str:
    """The threading layer numba chose; it does so at the first parallel loop."""
    return _start_numba(1).threading_layer()


def cache_folder() -> Path:
    """The folder of this version's compiled kernels."""
    _start_numba(1)
    from fastadam.kernels import cache

    return cache.cache_folder()


def cache_roots() -> list[Path]:
    """The folders in which compiled kernels of any version may lie, the preferred one first."""
    _start_numba(1)
    from fastadam.kernels import cache

    return cache.cache_roots()


def cpu_features() -> tuple[str, set[str]]:
    """LLVM's name of the CPU kernels are compiled for, and of the instruction sets it has."""
    _start_numba(1)
    from fastadam.kernels import cache

    return cache.cpu_features()

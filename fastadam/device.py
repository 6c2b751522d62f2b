"""The seam between what is computed and where: a device has ops, memory and a number of threads.

Nothing above this module knows which device it is. Numba is imported here at the latest, after the number
of threads and the order of threading layers are settled: it reads them once, at import.
"""

import contextlib
import importlib
import importlib.util
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastadam.checks import finite
from fastadam.errors import DeviceError
from fastadam.kernels import PRECISIONS
from fastadam.kernels.lanes import FilterLanes
from fastadam.kernels.start import cores, start_numba

ALIGN = 64
"""Bytes: every array of a device starts on a cache line."""

COMPILING = "compiling kernels for this machine; they are kept for the next start ..."
"""What to say when a compile clock starts."""

_RUNNING = threading.RLock()


class Loops(NamedTuple):
    """What shows how much a device can do at the most, in sizes that keep all of it busy and longer than its clock.

    module   has ``multiply_add(a, times)``, ``copy(y, x)``, ``mix(p, m, v, g)``, and LANE, the floats of a row of a
    empty    ``empty(y, times)``: so many parallel loops, or launches, with nothing in them
    lanes    rows of a                times    of ``multiply_add``
    floats   in each of the two arrays of a copy, and half as many in the four of the mix: more than caches hold
    """

    module: ModuleType
    empty: Callable[..., Any]
    lanes: int
    times: int
    floats: int


class Device(Protocol):
    """Where programs run, as everything above sees it.

    name           "cpu", "cuda:0", ...; ``get_device`` takes it
    description    the same for people
    is_host        whether its memory is the host's
    threads        of the CPU
    ops            a module with a function for each name of ``fastadam.kernels.OPS``
    packages       that decide its bits, beside ``versions.DECISIVE``
    """

    name: str
    description: str
    is_host: bool
    threads: int
    ops: Any
    packages: tuple[str, ...]

    def filter_lanes(self, samples: int, out: tuple[int, ...], filters: tuple[int, ...], stride: int) -> int:
        """``lanes.FilterLanes`` of its ops: how many partial sums a filter's gradient is kept in."""

    def running(self) -> AbstractContextManager[None]:
        """Run kernels inside: alone, for programs share memory and cores."""

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
        """A new array, its content undefined. MemoryError if there is no room for it."""

    def to_device(self, array: np.ndarray) -> Any:
        """A copy of a host array in device memory."""

    def write(self, array: Any, value: Any) -> None:
        """Fill an array of the device from the host, as ``numpy.copyto`` does."""

    def read(self, array: Any, out: np.ndarray) -> None:
        """Copy an array of the device into one of the host, all that was asked of it being done first."""

    def workspace(self, calls: Iterable[Any]) -> int:
        """Bytes of scratch memory that the most demanding of a plan's calls needs."""

    def reserve(self, calls: Iterable[Any]) -> None:
        """Take the scratch memory of a plan's calls now, so that no step has to."""

    def first_run(self, calls: Sequence[Any]) -> AbstractContextManager[None]:
        """A context for the first run of a plan's calls, in which they may have to be compiled."""

    def compile_clock(self, started: Callable[[], None]) -> AbstractContextManager[Any]:
        """A context that measures compiling: its ``.seconds``; ``started`` is called when it begins."""

    def available_memory(self) -> float:
        """Bytes of the device's memory to be had now."""

    def synchronize(self) -> None:
        """Wait until everything asked for is done."""

    def seconds(self, actions: Sequence[Callable[[], Any]]) -> list[float]:
        """Seconds of each of some actions, run one after the other, on the device's own clock."""

    @property
    def limits(self) -> Loops:
        """What shows how much the device can do at the most; for measurements."""

    def describe(self) -> dict[str, Any]:
        """What decides its speed, ready for JSON, once it has computed something."""


def get_device(name: str = "auto", threads: int | None = None, precision: str = PRECISIONS[0]) -> Device:
    """The device called ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, with ``threads`` CPU threads (default: all cores).

    precision   of its matrix products, one of ``kernels.PRECISIONS``; the CPU has float32 alone

    ``auto`` is the first NVIDIA GPU if one can be used, else the CPU. Raises DeviceError for a device that is not
    there: nothing that was asked for falls back in silence.
    """
    if threads is not None:
        finite("threads", threads)
    kind, _, number = str(name).partition(":")
    if kind == "cuda" and (name == "cuda" or number.isdigit()):
        from fastadam.cuda_device import CudaDevice

        return CudaDevice(int(number or 0), threads, precision)
    if name not in ("auto", "cpu"):
        raise DeviceError(f"no device is called {name!r}; use auto, cpu, cuda or cuda:N")
    if name == "auto" and _may_have_cuda():
        from fastadam.cuda_device import first_usable

        gpu = first_usable(threads, precision)
        if gpu is not None:
            return gpu
    if precision != PRECISIONS[0]:
        raise DeviceError(
            f"precision {precision} was asked for, and the CPU computes in float32; leave --precision away, or use "
            "--device cuda on a machine with a GPU of compute capability 8.0 or more"
        )
    return CpuDevice(threads)


def _may_have_cuda() -> bool:
    """Whether it is worth the time to ask: the package is there, and so is a driver."""
    there = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()  # the latter under Windows
    return there and importlib.util.find_spec("numba_cuda") is not None


class CpuDevice:
    """The CPU: NumPy arrays, numba kernels, a fixed number of threads."""

    name = "cpu"
    is_host = True
    packages: tuple[str, ...] = ()

    def __init__(self, threads: int | None = None):
        if threads is not None and threads < 1:
            raise DeviceError(f"{threads} threads were asked for; use 1 or more")
        numba = start_numba(threads or 1)
        if numba.config.DISABLE_JIT:
            raise DeviceError("NUMBA_DISABLE_JIT is set, and there are no kernels but compiled ones; unset it")
        self.threads = usable_threads(threads)
        _check_layer(numba)
        self._get_threads, self._set_threads = numba.get_num_threads, numba.set_num_threads
        from fastadam.kernels import cpu
        from fastadam.kernels.cpu.choose import filter_lanes

        self.ops: ModuleType = cpu
        self._filter_lanes: FilterLanes = filter_lanes
        self.description = f"cpu, {self.threads} threads" if self.threads > 1 else "cpu, 1 thread"

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, in whatever process, is opened anew."""
        return type(self), (self.threads,)

    def filter_lanes(self, samples: int, out: tuple[int, ...], filters: tuple[int, ...], stride: int) -> int:
        """None where the op shares its work out by points, not by samples."""
        return self._filter_lanes(samples, out, filters, stride)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run kernels inside, on this device's number of threads and alone: programs share memory and cores."""
        with _RUNNING:
            before = self._get_threads()
            self._set_threads(self.threads)
            try:
                yield
            finally:
                self._set_threads(before)

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

    def write(self, array: np.ndarray, value: Any) -> None:
        """Fill an array."""
        np.copyto(array, value)

    def read(self, array: np.ndarray, out: np.ndarray) -> None:
        """Copy an array."""
        np.copyto(out, array)

    def workspace(self, calls: Iterable[Any]) -> int:
        """Bytes of scratch memory that the most demanding of a plan's calls needs."""
        from fastadam.kernels.cpu.workspace import needed

        sizes = (needed(getattr(self.ops, c.op), (*c.outs, *c.ins, *c.scalars.values())) for c in calls)
        return 4 * max(sizes, default=0)

    def reserve(self, calls: Iterable[Any]) -> None:
        """Take the scratch memory of a plan's calls now, so that no step has to."""
        from fastadam.kernels.cpu.workspace import reserve

        reserve(self.workspace(calls) // 4)

    def first_run(self, calls: Sequence[Any]) -> AbstractContextManager[None]:
        """Inside, kernels of these calls that have to be compiled are, by helpers on other cores too."""
        from fastadam.kernels.cpu.ahead import HELPER_BYTES, helped

        return helped(calls, min(self.threads - 1, int(self.available_memory() // HELPER_BYTES)))

    def compile_clock(self, started: Callable[[], None]) -> Any:
        """A context that measures compiling: its ``.seconds``; ``started`` is called when it begins."""
        from fastadam.kernels.cache import compile_clock

        return compile_clock(started)

    def available_memory(self) -> float:
        """Bytes to be had now without swapping, within a container's limit."""
        return max(0, min(_available_host_memory(), *map(_available_in_cgroup, _own_cgroups())))

    def synchronize(self) -> None:
        """Nothing: what was called is done."""

    def seconds(self, actions: Sequence[Callable[[], Any]]) -> list[float]:
        """Seconds of each of some actions, by the clock on the wall."""
        with self.running():
            clock = [time.perf_counter()]
            for action in actions:
                action()
                clock.append(time.perf_counter())
        return [ended - begun for begun, ended in pairwise(clock)]

    @property
    def limits(self) -> Loops:
        """Loops that show what the CPU can do at the most."""
        from fastadam.kernels.cpu import limits

        return Loops(limits, limits.fork_joins, lanes=self.threads, times=2_000_000, floats=1 << 24)

    def describe(self) -> dict[str, Any]:
        """{"threads", "threading_layer"}; numba chooses the layer at the first parallel loop."""
        return {"threads": self.threads, "threading_layer": threading_layer()}


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


def _check_layer(numba: ModuleType) -> None:
    """DeviceError if a threading layer was asked for that numba cannot have; else it chooses by itself, later."""
    layer = numba.config.THREADING_LAYER
    if layer == "default":
        return
    try:
        numba.get_num_threads()
    except ValueError as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise DeviceError(
            f"the threading layer {layer!r} was asked for: {reason}; unset NUMBA_THREADING_LAYER"
        ) from None


def usable_threads(threads: int | None) -> int:
    """So many threads, all cores if None; DeviceError if numba cannot have them."""
    if threads is not None and (threads < 1 or threads != int(threads)):
        raise DeviceError(f"{threads} threads were asked for; use a whole number of 1 or more")
    most = start_numba(threads or 1).config.NUMBA_NUM_THREADS
    if threads is not None and threads > most:
        raise DeviceError(
            f"{threads} threads were asked for, but numba was started with {most}; "
            f"set NUMBA_NUM_THREADS={threads} before numba is imported"
        )
    return min(cores(), most) if threads is None else threads


def threading_layer() -> str:
    """The threading layer numba chose; it does so at the first parallel loop."""
    return start_numba(1).threading_layer()


def cache_folder() -> Path:
    """The folder of this version's compiled kernels."""
    start_numba(1)
    from fastadam.kernels import cache

    return cache.cache_folder()


def cache_roots() -> list[Path]:
    """The folders in which compiled kernels of any version may lie, the preferred one first."""
    start_numba(1)
    from fastadam.kernels import cache

    return cache.cache_roots()


def cpu_features() -> tuple[str, set[str]]:
    """LLVM's name of the CPU kernels are compiled for, and of the instruction sets it has."""
    start_numba(1)
    from fastadam.kernels import cache

    return cache.cpu_features()

"""An NVIDIA GPU as a device: see ``device.Device``. Imported when a GPU is asked for, not before."""

import contextlib
import importlib.util
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np

from fastadam.device import Loops, usable_threads
from fastadam.errors import DeviceError
from fastadam.kernels.start import start_numba

_RUNNING = threading.RLock()


class CudaDevice:
    """Device memory, CUDA kernels, one stream. DeviceError, with the cure, if there is no such GPU to be used."""

    is_host = False
    packages: tuple[str, ...] = ("numba-cuda",)

    def __init__(self, number: int, threads: int | None = None, precision: str = "float32"):
        driver = _find_driver(threads)
        from fastadam.kernels import cuda

        self._driver, self._number, self._precision = driver, number, precision
        self.card = driver.open_card(number, precision)
        self.memory = driver.start(number)
        self.ops: Any = cuda.with_precision(precision, self.card.balance)
        self.name, self.threads = f"cuda:{number}", usable_threads(threads)
        self.description = f"{self.name}, {self.card.name}, compute capability {_dotted(self.card.capability)}"
        if precision != "float32":
            self.description += f", products in {precision}"

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, in whatever process, is opened anew."""
        return type(self), (self._number, self.threads, self._precision)

    def filter_lanes(self, samples: int, out: tuple[int, ...], filters: tuple[int, ...], stride: int) -> int:
        """No lanes: ops add up the batch themselves."""
        return 0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run kernels inside, on this GPU and alone."""
        with _RUNNING, self._driver.select(self._number):
            yield

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
        """A new array, its content undefined, on a boundary of 256 bytes. MemoryError if the GPU has no room for it."""
        with self.running():
            return self._driver.empty(shape, dtype)

    def to_device(self, array: np.ndarray) -> Any:
        """A copy of a host array in the GPU's memory. MemoryError if it has no room for it."""
        with self.running():
            return self._driver.to_device(array)

    def write(self, array: Any, value: Any) -> None:
        """Fill an array of the GPU from the host."""
        with self.running():
            self._driver.write(array, value)

    def read(self, array: Any, out: np.ndarray) -> None:
        """Copy an array of the GPU into one of the host, once the launches before it are done."""
        with self.running():
            self._driver.read(array, out)

    def workspace(self, calls: Iterable[Any]) -> int:
        """Bytes of scratch memory that the most demanding of a plan's calls needs."""
        from fastadam.kernels.cuda.launch import needed

        sizes = (needed(getattr(self.ops, c.op).launches(*c.outs, *c.ins, *c.scalars.values())) for c in calls)
        return 4 * max(sizes, default=0)

    def reserve(self, calls: Iterable[Any]) -> None:
        """Take the scratch memory of a plan's calls now, so that no step has to."""
        from fastadam.kernels.cuda.launch import reserve

        with self.running():
            reserve(self.workspace(calls) // 4)

    def first_run(self, calls: Sequence[Any]) -> AbstractContextManager[None]:
        """Nothing: kernels are compiled one after the other."""
        return contextlib.nullcontext()

    def compile_clock(self, started: Callable[[], None]) -> Any:
        """A context that measures compiling: its ``.seconds``; ``started`` is called when it begins."""
        from fastadam.kernels.cuda.jit import compile_clock

        return compile_clock(started)

    def available_memory(self) -> float:
        """Bytes of the GPU's memory that are free."""
        with self.running():
            return self._driver.free_memory()

    def synchronize(self) -> None:
        """Wait for everything launched."""
        with self.running():
            self._driver.synchronize()

    def seconds(self, actions: Sequence[Callable[[], Any]]) -> list[float]:
        """Seconds the GPU takes for each of some actions, which it finds launched already: not those of the host."""
        from fastadam.kernels.cuda import limits

        with self.running():
            return self._driver.seconds([partial(limits.hold, len(actions)), *actions])[1:]

    @property
    def limits(self) -> Loops:
        """Kernels that show what the GPU can do at the most."""
        from fastadam.kernels.cuda import limits

        lanes = limits.BLOCKS * self.card.multiprocessors
        return Loops(limits, limits.launches, lanes=lanes, times=1 << 17, floats=1 << 26)

    def describe(self) -> dict[str, Any]:
        """The card, and what computes on it: {"gpu", "package", "driver", "toolkit"}."""
        card = {
            "name": self.card.name,
            "capability": _dotted(self.card.capability),
            "multiprocessors": self.card.multiprocessors,
            "memory_bytes": self.memory,
        }
        return {"gpu": card, **self._driver.versions()}


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _find_driver(threads: int | None = None) -> Any:
    """``fastadam.kernels.cuda.driver``, if the CUDA package is installed."""
    numba = start_numba(threads or 1)
    if importlib.util.find_spec("numba_cuda") is None and not numba.config.ENABLE_CUDASIM:
        raise DeviceError(
            "the package numba-cuda is not installed; pip install 'fastadam[cuda13]' (or fastadam[cuda12], for "
            "drivers before 580), or use --device cpu"
        )
    try:
        from fastadam.kernels.cuda import driver
    except Exception as error:  # of another package's import: it may be anything
        told = " ".join(str(error).split())
        raise DeviceError(f"numba-cuda cannot be imported ({told}); install it anew, or use --device cpu") from error
    return driver


def first_usable(threads: int | None = None, precision: str = "float32") -> "CudaDevice | None":
    """The first GPU that can be used; None if there is none."""
    with contextlib.suppress(DeviceError):
        for card in _find_driver(threads).cards():
            with contextlib.suppress(DeviceError):
                return CudaDevice(card.number, threads, precision)
    return None


def describe_gpus() -> dict[str, Any]:
    """What there is for ``--device cuda``, ready for JSON; ``problem`` says why there is nothing, and the cure.

    {"package", "driver", "toolkit": versions or None, "problem": str or None,
     "cards": [{"device", "name", "capability", "memory_bytes", "problem"}, ...]}
    """
    found: dict[str, Any] = {"package": None, "driver": None, "toolkit": None, "problem": None, "cards": []}
    try:
        driver = _find_driver()
        found |= driver.versions()
        for card in driver.cards():
            memory, problem = None, None
            try:
                driver.open_card(card.number)
                memory = driver.start(card.number)
            except DeviceError as error:
                problem = str(error)
            found["cards"].append(
                {
                    "device": f"cuda:{card.number}",
                    "name": card.name,
                    "capability": _dotted(card.capability),
                    "memory_bytes": memory,
                    "problem": problem,
                }
            )
    except DeviceError as error:
        found["problem"] = str(error)
    return found

"""The GPUs of this machine and their memory: all that the host does with them beside launching kernels.

Only this folder names the CUDA package. What is missing is found out step by step, so that each case has a line and
a cure of its own.
"""

import contextlib
import gc
import importlib.metadata
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numba import config, cuda
from numba.cuda.cudadrv import driver as _driver

from fastadam.errors import DeviceError

LEAST_CAPABILITY = 7, 5
"""Compute capability: Turing, the oldest that current toolkits compile for."""

TENSOR_CAPABILITY = 8, 0
"""Of TF32 and bfloat16 products: Ampere."""

BALANCES = {(7, 5): 25, (8, 0): 13, (8, 6): 38, (8, 9): 82, (9, 0): 20, (10, 0): 9, (12, 0): 58}
"""Float32 operations in the time of a byte of memory, of a card that many have, by its capability: T4, A100, RTX 3090,
RTX 4090, H100, B200, RTX 5090, from their makers' figures."""

BALANCE = BALANCES[9, 0]
"""Of a card whose capability is older than all of these, and of none at all."""

OUT_OF_MEMORY = 2
"""CUDA_ERROR_OUT_OF_MEMORY."""

CPU = "or use --device cpu"


if config.ENABLE_CUDASIM:  # the simulator's arrays forget what they are when another type is seen in them
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    FakeCUDAArray.view = lambda self, dtype: FakeCUDAArray(self._ary.view(dtype))


class Card(NamedTuple):
    """A GPU: its number, name, compute capability and multiprocessors."""

    number: int
    name: str
    capability: tuple[int, int]
    multiprocessors: int

    @property
    def balance(self):
        """Float32 operations that such a card does in the time of a byte of its memory."""
        return balance_of(self.capability)


def versions():
    """{"package", "driver", "toolkit"}: what the CUDA package is, what the driver can do, what compiles the kernels.

    The driver's is None without one.
    """
    found = {"package": f"numba-cuda {importlib.metadata.version('numba-cuda')}", "driver": None, "toolkit": None}
    with contextlib.suppress(Exception):
        found["driver"] = "{}.{}".format(*cuda.driver.driver.get_version())
    with contextlib.suppress(Exception):
        found["toolkit"] = "{}.{}".format(*cuda.runtime.get_version())
    return found


def cards():
    """Every GPU the driver shows. DeviceError, with the cure, if there is no driver, no GPU or no fitting toolkit."""
    if config.ENABLE_CUDASIM:
        return [Card(0, "Numba's CUDA simulator", (9, 0), 1)]
    if not cuda.is_available():
        raise DeviceError(_why_not())
    _check_versions()
    return [_card(number) for number in range(len(cuda.gpus))]


def _card(number):
    """What the driver tells of a card without anything being started on it."""
    device = cuda.gpus[number]
    name = device.name.decode() if isinstance(device.name, bytes) else str(device.name)
    return Card(number, name, tuple(device.compute_capability), int(device.MULTIPROCESSOR_COUNT))


def balance_of(capability):
    """The balance of cards of a capability: that of the newest in the table which is not newer."""
    return BALANCES[max((known for known in BALANCES if known <= capability), default=(9, 0))]


def _check_versions():
    """DeviceError for a driver that is too old for the toolkit: a kernel would be compiled and then refused."""
    found = versions()
    driver, toolkit = found["driver"], found["toolkit"]
    if driver and toolkit and int(driver.partition(".")[0]) < int(toolkit.partition(".")[0]):
        raise DeviceError(
            f"the NVIDIA driver goes up to CUDA {driver}, and this environment has the toolkit {toolkit}; update the "
            f"driver, or pip install 'fastadam[cuda{driver.partition('.')[0]}]', {CPU}"
        )


def _why_not():
    """One line about what keeps CUDA from working here, and what to do."""
    error = " ".join(str(_driver.driver.initialization_error or "").split())
    if "driver library cannot be found" in error:
        return (
            "no NVIDIA driver was found: libcuda is missing; install the driver, so that `nvidia-smi` lists the card, "
            + CPU
        )
    if "NO_DEVICE" in error or "no CUDA-capable device" in error:
        return (
            f"the NVIDIA driver works but finds no GPU ({error}); see that `nvidia-smi` lists the card and that "
            f"CUDA_VISIBLE_DEVICES does not hide it, {CPU}"
        )
    what = error or "the driver or the CUDA toolkit cannot be used"
    return f"CUDA cannot be used: {what}; `fastadam doctor` shows what was found, pip install 'fastadam[cuda13]', {CPU}"


def open_card(number, precision="float32"):
    """The card of a number, if kernels can be compiled for it and run on it; DeviceError if not."""
    there = cards()
    if number >= len(there):
        names = ", ".join(f"cuda:{card.number} {card.name}" for card in there)
        raise DeviceError(f"there is no GPU cuda:{number}; there are {names}; use one of them {CPU}")
    card = there[number]
    if card.capability < LEAST_CAPABILITY:
        raise DeviceError(
            f"cuda:{number}, {card.name}, has compute capability {_dotted(card.capability)}; the kernels need "
            f"{_dotted(LEAST_CAPABILITY)} or more; use another GPU {CPU}"
        )
    if precision != "float32" and card.capability < TENSOR_CAPABILITY:
        raise DeviceError(
            f"precision {precision} was asked for, and cuda:{number}, {card.name}, has compute capability "
            f"{_dotted(card.capability)}; it needs {_dotted(TENSOR_CAPABILITY)} or more; leave --precision away {CPU}"
        )
    return card


def start(number):
    """Take a card for this thread: bytes of its memory. DeviceError if it cannot be had."""
    if config.ENABLE_CUDASIM:
        return 1 << 34
    try:
        cuda.select_device(number)
        with select(number):
            return int(cuda.current_context().get_memory_info().total)
    except Exception as error:  # whatever the driver says: in use by somebody else, full, broken
        told = " ".join(str(error).split())
        raise DeviceError(f"cuda:{number} is there but cannot be used ({told}); use another GPU {CPU}") from error


def _dotted(version):
    return ".".join(map(str, version))


def select(number):
    """A context in which arrays are made on this card and kernels run on it."""
    return cuda.gpus[number]


def empty(shape, dtype):
    """An uninitialised array; MemoryError if the card has no room for it."""
    with _no_room():
        return cuda.device_array(shape, dtype)


def to_device(array):
    """A copy of a host array; MemoryError if the card has no room for it."""
    with _no_room():
        return cuda.to_device(np.ascontiguousarray(array))


@contextlib.contextmanager
def _no_room():
    try:
        yield
    except Exception as error:
        if getattr(error, "code", None) == OUT_OF_MEMORY or "OUT_OF_MEMORY" in str(error):
            raise MemoryError(str(error)) from error
        raise


def write(array, value):
    """Fill a device array from the host: with an array of its shape, or what becomes one by broadcasting."""
    host = np.empty(array.shape, array.dtype)
    host[...] = value
    if array.size:
        array.reshape(-1).copy_to_device(host.reshape(-1))


def read(array, out):
    """Copy a device array into a contiguous host array, once the launches before it are done."""
    if array.size:
        array.reshape(-1).copy_to_host(out.reshape(-1))


def free_memory():
    """Bytes free on the selected card."""
    if config.ENABLE_CUDASIM:
        return 1 << 34
    gc.collect()
    context = cuda.current_context()
    if hasattr(context, "memory_manager"):  # numba gives memory back late, and in heaps
        context.memory_manager.deallocations.clear()
    return int(context.get_memory_info().free)


def synchronize():
    """Wait for everything launched."""
    cuda.synchronize()


def seconds(actions):
    """Seconds that the card takes for each of some actions, by events round them; the first may wait for the host."""
    marks = [cuda.event() for _ in range(len(actions) + 1)]
    marks[0].record()
    for action, mark in zip(actions, marks[1:], strict=True):
        action()
        mark.record()
    marks[-1].synchronize()
    return [begun.elapsed_time(ended) / 1e3 for begun, ended in pairwise(marks)]

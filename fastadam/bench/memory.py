"""Memory that is taken: what this process has resident, as Linux tells it, or what a GPU has less to offer."""

import contextlib
import functools
import gc
from collections.abc import Callable
from pathlib import Path

from fastadam.device import Device

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


Meter = Callable[[], int | None]
"""Tells the most bytes taken since it was made; None where that is not known."""


def host_meter() -> Meter:
    """For this process on the host."""
    before = restart_peak()

    def taken() -> int | None:
        after = peak()
        return None if before is None or after is None else after - before

    return taken


def meter_of(device: Device) -> Meter:
    """For a device's memory. Of its own it tells once, and the same ever after: other processes may take some too."""
    if device.is_host:
        return host_meter()
    free = device.available_memory()
    return functools.cache(lambda: int(free - device.available_memory()))


def restart_peak() -> int | None:
    """Forget the peak so far; bytes resident now, or None where the system cannot forget it."""
    gc.collect()
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")  # Linux, proc(5): resets the high-water mark
        return _read("VmRSS")
    return None


def peak() -> int | None:
    """The most bytes resident since the process began or ``restart_peak``; None where that is not known."""
    with contextlib.suppress(OSError):
        return _read("VmHWM")
    return None


def _read(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])

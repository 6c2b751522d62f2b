"""Memory that this process has resident, as Linux tells it; elsewhere nothing is known."""

import contextlib
import gc
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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

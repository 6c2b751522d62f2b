"""A case run on a device's ops, and in float64 by the reference: what tests and ``fastadam verify`` share."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fastadam import reference
from fastadam.case import Case
from fastadam.device import Device

Arrays = dict[str, np.ndarray]
Change = Callable[[Arrays], None]

GUARD = 67
"""Elements before and after an array: an odd number, so that no array starts at a line of the cache."""

DEVICE_GUARD = 64
"""The same in a device's memory, where arrays do start on a boundary of 16 bytes."""


class Guarded:
    """A copy of an array inside a larger one, with guards on both sides: NaN, or the largest integer.

    With a device that has memory of its own, ``placed`` is the copy there, and ``fetch`` brings back what it became.
    """

    def __init__(self, array: np.ndarray, device: Device | None = None):
        self._device = None if device is None or device.is_host else device
        self._guard = GUARD if self._device is None else DEVICE_GUARD
        wall = np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).max
        self._buffer = np.full(array.size + 2 * self._guard, wall, array.dtype)
        self.array = self._inside(self._buffer, array)
        self.array[...] = array
        self._before = self._buffer.tobytes()
        self.placed: Any = self.array
        if self._device is not None:
            self._copy = self._device.to_device(self._buffer)
            self.placed = self._inside(self._copy, array)

    def _inside(self, buffer: Any, array: np.ndarray) -> Any:
        return buffer[self._guard : self._guard + array.size].reshape(array.shape)

    def fetch(self) -> None:
        """Bring the device's copy back, guards and all."""
        if self._device is not None:
            self._device.read(self._copy, self._buffer)

    @property
    def unchanged(self) -> bool:
        """Whether neither the array nor its guards were written."""
        return self._buffer.tobytes() == self._before

    @property
    def guards_hold(self) -> bool:
        """Whether the guards were not written."""
        before = np.frombuffer(self._before, self._buffer.dtype)
        return all(
            self._buffer[side].tobytes() == before[side].tobytes()
            for side in (slice(self._guard), slice(-self._guard, None))
        )


def _nothing(ins: Arrays) -> None:
    pass


def call(case: Case, ops: Any, change: Change = _nothing, device: Device | None = None) -> Arrays:
    """The outs of a case by name, computed by ``ops``, a module with a function for each op, on a device.

    ``change`` may change the inputs first. AssertionError if anything but the outs was written.
    """
    outs, ins = case.make()
    change(ins)
    guarded_outs, guarded_ins = ({name: Guarded(a, device) for name, a in arrays.items()} for arrays in (outs, ins))
    every = *guarded_outs.values(), *guarded_ins.values()
    if getattr(ops, case.op)(*(guarded.placed for guarded in every), *case.scalars.values()) is not None:
        raise AssertionError(f"{case}: something was returned")
    for guarded in every:
        guarded.fetch()
    for name, guarded in guarded_outs.items():
        if not guarded.guards_hold:
            raise AssertionError(f"{case}: written outside {name}")
    for name, guarded in guarded_ins.items():
        if not guarded.unchanged:
            raise AssertionError(f"{case}: the input {name} was written")
    return {name: guarded.array for name, guarded in guarded_outs.items()}


def expect(case: Case, change: Change = _nothing) -> Arrays:
    """The same outs in float64, by the reference."""
    outs, ins = case.make()
    change(ins)
    outs, ins = ({name: in_float64(a) for name, a in arrays.items()} for arrays in (outs, ins))
    with np.errstate(invalid="ignore"):
        getattr(reference, case.op)(*outs.values(), *ins.values(), *case.scalars.values())
    return outs


def in_float64(array: np.ndarray) -> np.ndarray:
    """float32 numbers as float64; any other array as it is."""
    return array.astype(np.float64) if array.dtype == np.float32 else array


def worst_error(case: Case, got: Arrays, want: Arrays) -> float:
    """The largest error of all outs, as a multiple of what the case tolerates; infinite where only one is NaN."""
    return max(error_over(got[name], want[name], case.rtol, case.atol(name)) for name in want)


def error_over(got: np.ndarray, want: np.ndarray, rtol: float, atol: float) -> float:
    """The largest ``|got - want| / (atol + rtol * |want|)``: up to 1 is well."""
    got, want = np.atleast_1d(np.asarray(got, np.float64), np.asarray(want, np.float64))
    if got.shape != want.shape or not np.array_equal(np.isnan(got), np.isnan(want)):
        return np.inf
    with np.errstate(invalid="ignore"):
        error = np.where((got == want) | np.isnan(want), 0, np.abs(got - want))  # equal infinities have none
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = error / (atol + rtol * np.abs(want))
    relative[error == 0], relative[np.isinf(error)] = 0, np.inf
    return float(relative.max(initial=0))

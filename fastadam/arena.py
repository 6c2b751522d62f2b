"""One flat buffer of named views.

Parameters, gradients and each optimiser moment are arenas of one layout, so an update of the whole
model is one launch over flat arrays. Every view of four-byte elements starts on a 64-byte boundary: a
cache line, and the widest vector register.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastadam.graph import Shape
from fastadam.kernels import TILE, UNITS

ALIGN_BYTES = 64
ALIGN = ALIGN_BYTES // 4
"""Elements of an arena between two places where a view may start."""

Empty = Callable[[Shape, Any], Any]
"""``empty(shape, dtype)``: uninitialised memory on some device, as ``numpy.empty``."""


class Segment(NamedTuple):
    """Where a named array lies in a flat arena: elements ``start`` to ``end``, the end excluded."""

    start: int
    end: int
    name: str


def segment_table(shapes: Mapping[str, Shape]) -> tuple[tuple[Segment, ...], int]:
    """Segments of an arena holding ``shapes``, in their order, and its number of elements, gaps included."""
    segments, end = [], 0
    for name, shape in shapes.items():
        segments.append(Segment(end, end + math.prod(shape), name))
        end += -(-math.prod(shape) // ALIGN) * ALIGN
    return tuple(segments), end


def group_runs(shapes: Mapping[str, Shape], group: Callable[[str], int]) -> tuple[tuple[int, int, int], ...]:
    """Runs (start, end, group) that tile an arena of ``shapes``; ``group`` of a name is the group of its segment.

    Neighbours of one group are one run; the gap behind a segment belongs to its run.
    """
    segments, count = segment_table(shapes)
    starts, runs = [*(segment.start for segment in segments), count], list[tuple[int, int, int]]()
    for segment, end in zip(segments, starts[1:], strict=True):
        start, of = segment.start, group(segment.name)
        if runs and runs[-1][2] == of:
            start = runs.pop()[0]
        runs.append((start, end, of))
    return tuple(runs)


def tile_rows(
    shapes: Mapping[str, Shape], group: Callable[[str], int], size: int = TILE
) -> tuple[tuple[int, int, int, int], ...]:
    """Rows (start, end, group, tensor) that cut every segment of an arena of ``shapes`` into tiles, in order.

    A tile has ``size`` elements, the last of a tensor what is left.
    """
    return tuple(
        (start, min(start + size, segment.end), group(segment.name), tensor)
        for tensor, segment in enumerate(segment_table(shapes)[0])
        for start in range(segment.start, segment.end, size)
    )


def unit_rows(
    shapes: Mapping[str, Shape], chosen: Callable[[str], bool], most: int = UNITS
) -> tuple[tuple[int, int, int, int, int], ...]:
    """Rows (start, across, along, count, length) of the units of the ``chosen`` arrays, up to ``most`` a row.

    A unit is a column of filters (KH, KW, C, OC), a row of a linear weight (O, I), the whole of anything else.
    """
    rows = list[tuple[int, int, int, int, int]]()
    for start, end, name in segment_table(shapes)[0]:
        size, shape = end - start, shapes[name]
        if not size or not chosen(name):
            continue
        if len(shape) == 4:
            units, across, along = shape[-1], 1, shape[-1]
        elif len(shape) == 2:
            units, across, along = shape[0], shape[1], 1
        else:
            units, across, along = 1, size, 1
        rows += [
            (start + first * across, across, along, min(most, units - first), size // units)
            for first in range(0, units, most)
        ]
    return tuple(rows)


def allocate(count: int, dtype: Any, empty: Empty = np.empty) -> Any:
    """Uninitialised (count,) array of ``dtype`` starting on a 64-byte boundary.

    NumPy aligns to 16 bytes only, so a little more is taken and cut; device allocators align to 256.
    """
    size = count * np.dtype(dtype).itemsize
    block = empty((size + ALIGN_BYTES,), np.uint8)
    start = -block.ctypes.data % ALIGN_BYTES if isinstance(block, np.ndarray) else 0
    return block[start : start + size].view(dtype)


class Place(Protocol):
    """What an arena asks of a device."""

    @property
    def name(self) -> str: ...
    @property
    def is_host(self) -> bool: ...
    def empty(self, shape: Shape, dtype: Any = ...) -> Any: ...
    def write(self, array: Any, value: Any) -> None: ...
    def read(self, array: Any, out: np.ndarray) -> None: ...


class Placed(NamedTuple):
    """An arena as a device has it: the flat array, and its views by name."""

    flat: Any
    views: dict[str, Any]


class Arena:
    """``shapes`` {name: shape} in one zeroed flat array.

    Attributes: ``flat`` (elements,), float32 unless ``dtype`` says otherwise; ``views`` {name: array};
    ``segments``, the table of (start, end, name); ``dtype``. The gaps between segments are zero, and those of
    parameters and gradients stay zero and add nothing to a norm; a moment's may come to hold its rule's eps.

    Both are arrays of the host. ``on`` is the same on a device: the numbers move there, and come back when
    ``flat`` or ``views`` is asked for. So whatever was kept of these before may be out of date.
    """

    def __init__(self, shapes: Mapping[str, Shape], empty: Empty = np.empty, dtype: Any = np.float32) -> None:
        self.segments, count = segment_table(shapes)
        self._shapes = dict(shapes)
        flat = allocate(count, dtype, empty)
        flat[:] = 0
        self._host = self._placed(flat)
        self.dtype = flat.dtype
        self._copies: dict[str, Placed] = {}
        self._newest: Place | None = None  # where the numbers are, if not here

    def __getstate__(self) -> dict[str, Any]:
        """For copies: views must be views of the copy, on boundaries of its own."""
        return {"shapes": self._shapes, "flat": np.array(self.flat)}

    def __setstate__(self, values: dict[str, Any]) -> None:
        Arena.__init__(self, values["shapes"], dtype=values["flat"].dtype)
        self.flat[:] = values["flat"]

    @property
    def flat(self) -> Any:
        """All of it, on the host."""
        self._come_home()
        return self._host.flat

    @property
    def views(self) -> dict[str, Any]:
        """Every named array, on the host."""
        self._come_home()
        return self._host.views

    def on(self, device: Place) -> Placed:
        """The arena on a device, its numbers brought there; they are the device's until the host asks for them."""
        if device.is_host:
            self._come_home()
            return self._host
        if device.name not in self._copies:
            host = self._host.flat
            self._copies[device.name] = self._placed(allocate(host.size, host.dtype, device.empty))
        copy = self._copies[device.name]
        if self._newest is None or self._newest.name != device.name:
            self._come_home()
            device.write(copy.flat, self._host.flat)
            self._newest = device
        return copy

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        """Copy arrays in, by name; every view must be given, in its own shape (``ValueError``)."""
        views = self.views
        missing, unknown = views.keys() - values.keys(), values.keys() - views.keys()
        if missing or unknown:
            raise ValueError(f"arena: missing {sorted(missing)}, unknown {sorted(unknown)}")
        for name, view in views.items():
            if values[name].shape != view.shape:
                raise ValueError(f"{name}: expected shape {view.shape}, found {values[name].shape}")
            view[...] = values[name]

    def _come_home(self) -> None:
        if self._newest is not None:
            self._newest.read(self._copies[self._newest.name].flat, self._host.flat)
            self._newest = None

    def _placed(self, flat: Any) -> Placed:
        return Placed(flat, {s.name: flat[s.start : s.end].reshape(self._shapes[s.name]) for s in self.segments})

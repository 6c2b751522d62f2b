"""An op is a list of launches, made from its arguments once and run as often as there are steps.

    @op
    def affine_forward(y, x, scale, shift, act):
        yield Launch(_affine_kernel, blocks_of(y.size, THREADS), (y, x, scale, shift, y.shape[-1], act))

``affine_forward(...)`` runs its launches. ``affine_forward.launches(...)`` lists them: for a program to bind, a
bench to time, a test to compile, and, given slots in place of arrays, for a plan to know the scratch memory an op
needs. Launches of one op, and ops, run one after the other on one stream.
"""

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from fastadam.errors import OutOfMemoryError
from fastadam.kernels.cuda.driver import empty
from fastadam.kernels.cuda.jit import SIMULATED

ALIGN = 64
"""Floats: parts of the scratch memory start on lines of 256 bytes."""


MOST = (1 << 32) - (1 << 16)
"""Indices have 32 bits, and the last threads of a grid pass the end of an array before they look."""


MOST_BLOCKS, MOST_ACROSS = (1 << 31) - 1, 65_535
"""Blocks of a grid: in its first direction, and in each other one."""


class Scratch:
    """Place of a flat float32 array that lives from one launch of an op to its last; an op's are side by side."""

    def __init__(self, size: int):
        self.size = size


class Launch(NamedTuple):
    """One kernel on a grid of blocks: ``arguments`` as the op has them, a ``Scratch`` for what lies between launches.

    Arrays of any rank are passed flat, integers and booleans as uint32, floats as float32: a kernel has one
    signature, and neither 64-bit indices nor float64 get in by accident.
    """

    kernel: Any
    grid: int | tuple[int, ...]
    arguments: tuple[Any, ...]


Launches = Callable[..., Iterator[Launch]]


def op(launches: Launches) -> Any:
    """An op, from the generator of its launches; ``op(...)`` runs them, ``op.bind(...)`` returns what will."""

    def bind(*arguments: Any) -> list[Callable[[], None]]:
        return bound(launches(*arguments))

    @functools.wraps(launches)
    def run(*arguments: Any) -> None:
        for launch in bind(*arguments):
            launch()

    run.launches, run.bind = launches, bind  # type: ignore[attr-defined]
    return run


def bound(launches: Iterable[Launch]) -> list[Callable[[], None]]:
    """What runs each launch of one op, arguments converted and scratch memory placed now."""
    launches = list(launches)
    places = _places(launches)
    block: Any = reserve(_total(places)) if places else None

    def converted(argument: Any) -> Any:
        if isinstance(argument, Scratch):
            return block[places[argument] : places[argument] + argument.size]
        if isinstance(argument, (bool, int, np.integer)):
            return np.uint32(int(argument))  # NumPy's own integers would wrap
        if isinstance(argument, (float, np.floating)):
            return np.float32(argument)
        return argument if argument.ndim == 1 else argument.reshape(-1)

    return [_launcher(kernel, grid, tuple(map(converted, arguments))) for kernel, grid, arguments in launches]


def _launcher(kernel: Any, grid: int | tuple[int, ...], arguments: tuple[Any, ...]) -> Callable[[], None]:
    if SIMULATED:  # where the grid is part of the kernel, not of a copy of it
        return lambda: kernel[grid, kernel.threads](*arguments)
    with warnings.catch_warnings():  # a small grid is no mistake: some ops are small
        warnings.filterwarnings("ignore", "Grid size")
        return functools.partial(kernel[grid, kernel.threads], *arguments)


def needed(launches: Iterable[Launch]) -> int:
    """Floats of scratch memory that an op's launches share."""
    return _total(_places(launches))


def _places(launches: Iterable[Launch]) -> dict[Scratch, int]:
    places: dict[Scratch, int] = {}
    for launch in launches:
        first, *others = launch.grid if isinstance(launch.grid, tuple) else (launch.grid,)
        if first > MOST_BLOCKS or max(others, default=0) > MOST_ACROSS:
            raise OutOfMemoryError(
                f"a grid of {launch.grid} blocks was asked for, and GPUs have {MOST_BLOCKS:,} by {MOST_ACROSS:,}; use "
                "a smaller batch size or net"
            )
        for argument in launch.arguments:
            if getattr(argument, "size", 0) >= MOST:
                raise OutOfMemoryError(
                    f"an array of {argument.size:,} numbers was asked for, and kernels count to {MOST:,}; use a "
                    "smaller batch size, net or data set"
                )
            if isinstance(argument, Scratch) and argument not in places:
                places[argument] = _total(places)
    return places


def _total(places: dict[Scratch, int]) -> int:
    return sum(-(-scratch.size // ALIGN) * ALIGN for scratch in places)


_blocks: dict[int, Any] = {}
"""Scratch memory by device number: ops run in turn, so one block serves them all."""


def reserve(floats: int) -> Any:
    """The block, at least so many floats: asked for before anything is bound, it is taken once."""
    number = 0 if SIMULATED else cuda.get_current_device().id
    if number not in _blocks or _blocks[number].size < floats:
        _blocks.pop(number, None)
        _blocks[number] = empty((max(floats, ALIGN),), np.float32)
    return _blocks[number]


def blocks_of(items: int, each: int) -> int:
    """Blocks for so many items, ``each`` a block; one at least, for a grid must not be empty."""
    return max(1, -(-items // each))

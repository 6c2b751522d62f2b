"""What arrays an optimiser takes, and one clear line for all others."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def check_array(what: str, array: Any) -> None:
    """ValueError unless it is a NumPy array of float32 or float64, aligned and contiguous in C's order.

    Arrays of other layouts are refused: going through one in place is several times slower than a flat pass, and a
    copy that nobody asked for may not fit into memory.
    """
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        kind = type(array)
        raise ValueError(f"{what} must be a NumPy array, it is of type {kind.__module__}.{kind.__qualname__}")
    if array.dtype not in FLOATS:
        raise ValueError(f"{what} must be float32 or float64, it is {array.dtype}; convert it with .astype")
    if not array.flags.aligned:
        raise ValueError(f"{what} lies at an address that is no multiple of its item size; pass a copy")
    if not array.flags.c_contiguous:
        cure = "numpy.ascontiguousarray of it"
        if array.flags.f_contiguous:
            cure += ", or, with its twin likewise, its transpose .T, which needs no copy"
        raise ValueError(f"{what} must be C-contiguous; pass {cure}")


def check_writeable(what: str, array: np.ndarray) -> None:
    """ValueError for an array that is read-only."""
    if not array.flags.writeable:
        raise ValueError(f"{what} is read-only; it is updated in place, so pass a copy")


def check_like(what: str, array: Any, p: np.ndarray) -> None:
    """ValueError unless it is an array of the shape and the type of numbers of its parameter."""
    check_array(what, array)
    if array.shape != p.shape:
        raise ValueError(f"{what} has shape {array.shape}, its parameter has {p.shape}")
    if array.dtype != p.dtype:
        raise ValueError(f"{what} is {array.dtype}, its parameter is {p.dtype}; convert it with .astype")


def check_unchanged(name: str, array: np.ndarray, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """ValueError unless a parameter, or what is kept of it, is where and what it was, and may be written."""
    usual = array.flags.c_contiguous and array.flags.aligned and array.flags.writeable
    if (array.ctypes.data, array.shape, array.dtype) != (address, shape, dtype) or not usual:
        raise ValueError(
            f"parameter {name!r}, or what is kept of it, has been resized, given another shape or made read-only since "
            "the optimiser was made; make a new one"
        )


def check_names(message: str, found: Iterable[str], wanted: Iterable[str]) -> None:
    """ValueError with the message unless both have the same names."""
    found, wanted = set(found), set(wanted)
    if found != wanted:
        missing, unknown = (sorted(map(str, names)) for names in (wanted - found, found - wanted))
        raise ValueError(f"{message}: missing {missing}, unknown {unknown}")


def memory_of(
    arrays: Sequence[np.ndarray], name: Callable[[int], str], addresses: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What memory contiguous arrays have: (begins, ends) of its ranges, int64, rising.

    name        what to call the array of a number
    addresses   where they begin, if that is known
    ValueError if two of them have some of it in common.
    """
    begins = np.array([array.ctypes.data for array in arrays], np.int64) if addresses is None else addresses
    sizes = np.array([array.nbytes for array in arrays], np.int64)
    order = np.argsort(begins, kind="stable")
    order = order[sizes[order] > 0]
    begins, ends = begins[order], (begins + sizes)[order]
    meet = np.flatnonzero(ends[:-1] > begins[1:])
    if len(meet):
        one, other = map(name, sorted(order[[meet[0], meet[0] + 1]].tolist()))
        raise ValueError(f"{one} and {other} share memory; what they share would change twice, so pass copies")
    return begins, ends


def check_apart(what: str, g: np.ndarray, address: int, own: int, memory: tuple[np.ndarray, np.ndarray]) -> None:
    """ValueError if a gradient shares some of the memory that is written, unless it is its own parameter.

    address, own   where the gradient and its parameter begin
    memory         by ``memory_of``
    """
    begins, ends = memory
    at = int(np.searchsorted(ends, address, "right"))
    if g.nbytes and at < len(ends) and begins[at] < address + g.nbytes and address != own:
        raise ValueError(f"{what} shares memory with what the optimiser writes; pass a copy")

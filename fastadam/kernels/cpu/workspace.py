"""Scratch memory of the CPU kernels: packed weights, padded images. Kept between calls, so a step allocates nothing.

One block a Python thread, as large as the most demanding op has asked for; ``reserve`` asks ahead of time.
"""

import threading

import numpy as np
from numba import config

ALIGN = 16
"""Floats: parts of a workspace start on 64-byte lines."""

_local = threading.local()


def aligned(floats: int) -> int:
    """``floats`` rounded up to whole lines."""
    return -(-floats // ALIGN) * ALIGN


def odd_lines(floats: int) -> int:
    """``floats`` rounded up to an odd number of lines: rows so far apart do not meet in the same sets of a cache."""
    return (-(-floats // ALIGN) | 1) * ALIGN


def threaded(shared: int, each: int) -> int:
    """Floats of a workspace with a shared part and one part for every thread there may be."""
    return aligned(shared) + config.NUMBA_NUM_THREADS * aligned(each)


def sized(sizes):
    """Marks a launcher that needs a workspace: ``sizes``, given the op's arguments, tells (shared, each) floats.

    It reads shapes only, so a plan's slots do in place of arrays.
    """

    def mark(op):
        op.sizes = sizes
        return op

    return mark


def needed(op, arguments) -> int:
    """Floats of workspace that a call of ``op`` needs."""
    sizes = getattr(op, "sizes", None)
    return threaded(*sizes(*arguments)) if sizes else 0


def reserve(floats: int) -> np.ndarray:
    """The workspace, at least ``floats`` long: flat float32, its content undefined."""
    block = getattr(_local, "block", None)
    if block is None or block.size < floats:
        raw = np.empty(floats + ALIGN, np.float32)
        start = (-raw.ctypes.data // 4) % ALIGN
        block = _local.block = raw[start : start + floats]
    return block

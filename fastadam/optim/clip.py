"""Clipping of gradients in somebody else's loop, in place, as PyTorch's ``torch.nn.utils`` does it."""

import math
from collections.abc import MutableMapping
from typing import Any

import numpy as np

from fastadam.device import get_device
from fastadam.optim.arrays import check_array, check_writeable, memory_of


def clip_grad_norm(grads: MutableMapping[str, np.ndarray], max_norm: float) -> float:
    """Scale all gradients alike where the norm of all numbers together is above ``max_norm``; returns that norm.

    grads   arrays by name, float32 or float64, C-contiguous, changed in place; a number of NumPy's is replaced

    Pascanu et al. 2013, section 3.2; the factor is min(1, max_norm / (norm + 1e-6)), as PyTorch has it, and the norm
    is summed in float64. Where a gradient is not finite neither is the norm, and what comes of the gradients says so:
    look at the norm, or use the loss. ValueError for what is no such array, before anything is changed.
    """
    limit = _not_negative("max_norm", max_norm)
    gradients = _Gradients(grads)
    norm = math.sqrt(gradients.sum_of_squares())
    factor = limit / (norm + 1e-6)
    if not factor >= 1:
        gradients.apply("scale", factor)
    return norm


def clip_grad_value(grads: MutableMapping[str, np.ndarray], limit: float) -> None:
    """Bring every number of the gradients between ``-limit`` and ``limit``; a NaN stays. As ``clip_grad_norm`` else."""
    _Gradients(grads).apply("clamp", _not_negative("limit", limit))


def _not_negative(name: str, value: float) -> float:
    if not value >= 0:
        raise ValueError(f"{name} must be 0 or more, it is {value}")
    return float(value)


class _Gradients:
    """Arrays to be gone through by one call for each type of number."""

    def __init__(self, grads: MutableMapping[str, Any]):
        self._device, self._grads = get_device("cpu"), grads
        from fastadam.kernels.cpu import addresses, tables

        self._tables = tables
        self._numbers = {name: np.array(g) for name, g in grads.items() if isinstance(g, np.generic)}
        names = list(grads)
        arrays = [self._numbers.get(name, g) for name, g in grads.items()]
        for name, array in zip(names, arrays, strict=True):
            check_array(f"gradient {name!r}", array)
            check_writeable(f"gradient {name!r}", array)
        found = addresses.addresses_of(arrays)
        memory_of(arrays, lambda i: f"gradient {names[i]!r}", found)
        self._parts = []
        for dtype in {array.dtype.type for array in arrays}:
            mine = [i for i, array in enumerate(arrays) if array.dtype == dtype]
            sizes = np.array([arrays[i].size for i in mine], np.int64)
            self._parts.append((dtype, found[mine, None], *tables.cut(sizes, np.zeros_like(sizes))))
        self._arrays = arrays  # kept while their addresses are

    def sum_of_squares(self) -> float:
        total = 0.0
        with self._device.running():
            for dtype, table, pieces, bounds in self._parts:
                part = np.empty(len(pieces))
                self._tables.sums_of_squares(part, table, pieces, bounds, np.empty(0, dtype))
                total += float(part.sum())
        return total

    def apply(self, action: str, number: float) -> None:
        with self._device.running():
            for dtype, table, pieces, bounds in self._parts:
                getattr(self._tables, action)(table, pieces, bounds, np.array([number], dtype))
        for name, array in self._numbers.items():
            self._grads[name] = array[()]

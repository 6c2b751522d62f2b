"""Parameters in somebody else's loop whose rule looks at whole tensors: one after the other, by the arena's ops."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastadam.arena import tile_rows
from fastadam.device import get_device
from fastadam.kernels import rules
from fastadam.kernels.updates import UPDATES, between
from fastadam.optim.arrays import check_apart, check_like


class ByTensor:
    """As ``own_loop.Table``, for the rules of ``rules.LAYERWISE``: every tensor has norms, and a rate, of its own."""

    dtype = np.dtype(np.float32)

    def __init__(
        self,
        rule: str,
        members: Sequence[tuple[str, int]],
        params: Mapping[str, np.ndarray],
        kept: Mapping[str, Mapping[str, np.ndarray]],
        memory: tuple[np.ndarray, np.ndarray],
    ):
        self.names, self._rule, self._memory = [name for name, _ in members], rule, memory
        self._groups = [number for _, number in members]
        self._own = [params[name] for name in self.names]
        self._arrays: list[dict[str, np.ndarray]] = []
        for name, p in zip(self.names, self._own, strict=True):
            tiles = np.array(tile_rows({name: p.shape}, lambda name: 0), np.int64).reshape(-1, 4)
            arrays = {"p": p.reshape(-1), "tiles": tiles}
            arrays |= {key: kept[key][name].reshape(-1) for key in rules.MOMENTS[rule]}
            arrays |= {key: np.empty(shape, np.float32) for key, shape in between(len(tiles), 1).items()}
            self._arrays.append(arrays)

    def find(self, grads: list[Any]) -> None:
        """Note the gradients; ValueError, naming it, for one that cannot be used."""
        for i, (name, p) in enumerate(zip(self.names, self._own, strict=True)):
            what = f"gradient {name!r}"
            g = grads[i] = np.asarray(grads[i]) if isinstance(grads[i], np.generic) else grads[i]
            check_like(what, g, p)
            check_apart(what, g, g.ctypes.data, p.ctypes.data, self._memory)
        for g, arrays in zip(grads, self._arrays, strict=True):
            arrays["g"] = g.reshape(-1)

    def update(self, h: np.ndarray) -> None:
        """The step whose numbers, a row a group, these are."""
        ops = get_device("cpu").ops
        for number, arrays in zip(self._groups, self._arrays, strict=True):
            arrays["h"] = h[number : number + 1]
            for op, outs, ins in UPDATES[self._rule]:
                getattr(ops, op)(*(arrays[key] for key in outs + ins))

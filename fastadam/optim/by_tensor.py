"""Parameters in somebody else's loop whose rule looks at whole tensors: one after the other, by the arena's ops."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastadam.arena import tile_rows
from fastadam.device import get_device
from fastadam.kernels import rules
from fastadam.kernels.updates import UPDATES, between
from fastadam.optim.arrays import check_apart, check_like, check_unchanged
from fastadam.optim.groups import ParamGroup


class OneByOne(ABC):
    """As ``own_loop.Table``, for rules that have a call or more for each parameter; ``update`` is theirs."""

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
        self._numbers = [number for _, number in members]
        self._own = [params[name] for name in self.names]
        written = [
            {"p": p} | {key: kept[key][name] for key in rules.MOMENTS[rule]}
            for name, p in zip(self.names, self._own, strict=True)
        ]
        self._begun = [[(a, a.ctypes.data, a.shape, a.dtype) for a in arrays.values()] for arrays in written]
        self._arrays: list[dict[str, np.ndarray]] = [
            {key: array.reshape(-1) for key, array in arrays.items()} for arrays in written
        ]

    def find(self, grads: list[Any]) -> None:
        """Note the gradients. ValueError for one that cannot be used, and for an array that has changed."""
        for i, (name, p) in enumerate(zip(self.names, self._own, strict=True)):
            for begun in self._begun[i]:
                check_unchanged(name, *begun)
            what = f"gradient {name!r}"
            g = grads[i] = np.asarray(grads[i]) if isinstance(grads[i], np.generic) else grads[i]
            check_like(what, g, p)
            check_apart(what, g, g.ctypes.data, p.ctypes.data, self._memory)
        for g, arrays in zip(grads, self._arrays, strict=True):
            arrays["g"] = g.reshape(-1)

    @abstractmethod
    def update(self, h: np.ndarray) -> None:
        """The step whose numbers, a row a group, these are."""


class ByTensor(OneByOne):
    """The rules of ``rules.LAYERWISE``: every tensor has norms, and a rate, of its own."""

    def __init__(self, rule: str, *others: Any):
        super().__init__(rule, *others)
        for p, arrays in zip(self._own, self._arrays, strict=True):
            tiles = np.array(tile_rows({"p": p.shape}, lambda name: 0), np.int64).reshape(-1, 4)
            arrays["tiles"] = tiles
            arrays |= {key: np.empty(shape, np.float32) for key, shape in between(len(tiles), 1).items()}

    def update(self, h: np.ndarray) -> None:
        """The step whose numbers, a row a group, these are."""
        ops = get_device("cpu").ops
        for number, arrays in zip(self._numbers, self._arrays, strict=True):
            arrays["h"] = h[number : number + 1]
            for op, outs, ins in UPDATES[self._rule]:
                getattr(ops, op)(*(arrays[key] for key in outs + ins))


class ByMatrix(OneByOne):
    """Muon's matrices; ``groups`` are those that members have the numbers of."""

    def __init__(self, groups: Sequence[ParamGroup], *others: Any):
        super().__init__("muon", *others)
        self._groups = groups

    def update(self, h: np.ndarray) -> None:
        """The step whose numbers, a row a group, these are."""
        muon_update = get_device("cpu").ops.muon_update
        for number, p, arrays in zip(self._numbers, self._own, self._arrays, strict=True):
            constants = dict(self._groups[number].constants)
            matrices = [arrays[key].reshape(len(p), -1) for key in ("p", "m", "g")]
            rate = rules.muon_rate(*matrices[0].shape, constants.pop("adjust_lr_fn"))
            muon_update(*matrices, h, number, rate, **constants)

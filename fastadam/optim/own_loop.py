"""Parameters in somebody else's loop: dicts of NumPy arrays, updated in place by one call for each type of number.

What such a call needs is made once: a table of the addresses of parameters and of what is kept of them, and its
pieces. A step fills in where the gradients are. That they are what they should be is seen from a few words of each
array, in compiled code; where anything is not as usual, arrays are looked at one by one, and the first that is wrong
is named.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastadam.device import Device, get_device
from fastadam.kernels import rules
from fastadam.optim.arrays import (
    check_apart,
    check_array,
    check_like,
    check_names,
    check_unchanged,
    check_writeable,
    memory_of,
)
from fastadam.optim.by_tensor import ByMatrix, ByTensor, OneByOne
from fastadam.optim.groups import ParamGroup


class OwnLoop:
    """The arrays of an optimiser.

    params    {name: array}, of all groups
    kept      {"m": {name: array}, ...}: what the rules keep of them
    """

    def __init__(self, groups: Sequence[ParamGroup]):
        self.groups = groups
        self.params: dict[str, np.ndarray] = {}
        self.kept: dict[str, dict[str, np.ndarray]] = {}
        for group in groups:
            self.params |= group["params"]
        for name, p in self.params.items():
            check_array(f"parameter {name!r}", p)
            check_writeable(f"parameter {name!r}", p)
        names = list(self.params)
        if len(set(map(str, names))) < len(names):
            raise ValueError("two parameters have names that are the same as text, as in a state dict; rename one")
        memory_of(list(self.params.values()), lambda i: f"parameter {names[i]!r}")
        for group in groups:
            _check_precision(group)
            for key in rules.MOMENTS[group.rule]:
                self.kept.setdefault(key, {})
            for name, p in group["params"].items():
                for key in rules.MOMENTS[group.rule_of(p)]:
                    self.kept.setdefault(key, {})[name] = _beginning(group.rule_of(p), key, p)
        self._tables: list[Table | OneByOne] | None = None
        self._device: Device | None = None
        self._threads: int | None = None
        self._as_made = self._seen()

    def step(self, t: int, grads: Mapping[str, np.ndarray], threads: int | None) -> None:
        """Step ``t`` = 1, 2, ... ValueError, before anything is changed, for what is not as it should be."""
        numbers = [group.numbers(t) for group in self.groups]
        device, tables = self._ready(threads)
        if not isinstance(grads, Mapping):
            raise TypeError(f"gradients must be a dict by the names of the parameters, found {type(grads).__name__}")
        if len(grads) != len(self.params) or not all(name in grads for name in self.params):
            check_names("gradients do not match the parameters", grads, self.params)
        given = [[grads[name] for name in table.names] for table in tables]
        with device.running():  # alone from here on: tables hold where this step's gradients are
            for table, arrays in zip(tables, given, strict=True):
                table.find(arrays)
            for table in tables:
                table.update(np.array(numbers, table.dtype))

    def _ready(self, threads: int | None) -> tuple[Device, "list[Table | OneByOne]"]:
        if self._device is None or threads != self._threads:
            self._device, self._threads = get_device("cpu", threads), threads
        if self._tables is None:
            self._tables = self._make_tables()
        return self._device, self._tables

    def _seen(self) -> list[tuple[str, np.ndarray, int, tuple[int, ...], np.dtype[Any]]]:
        """(name, array, address, shape, dtype) of all that is written."""
        named = [item for arrays in (self.params, *self.kept.values()) for item in arrays.items()]
        return [(name, array, array.ctypes.data, array.shape, array.dtype) for name, array in named]

    def _check_as_made(self) -> None:
        for seen in self._as_made:
            check_unchanged(*seen)

    def _make_tables(self) -> "list[Table | OneByOne]":
        self._check_as_made()
        members: dict[tuple[str, type], list[tuple[str, int]]] = {}
        for number, group in enumerate(self.groups):
            for name, p in group["params"].items():
                members.setdefault((group.rule_of(p), p.dtype.type), []).append((name, number))
        arrays = [*self.params.values(), *(array for kept in self.kept.values() for array in kept.values())]
        memory = memory_of(arrays, str)
        return [self._make_table(rule, names, memory) for (rule, _), names in members.items()]

    def _make_table(
        self, rule: str, members: Sequence[tuple[str, int]], memory: tuple[np.ndarray, np.ndarray]
    ) -> "Table | OneByOne":
        if rule == "muon":
            return ByMatrix(self.groups, members, self.params, self.kept, memory)
        return (ByTensor if rule in rules.LAYERWISE else Table)(rule, members, self.params, self.kept, memory)

    def __getstate__(self) -> dict[str, Any]:
        """Addresses are those of this object's arrays: a copy finds its own."""
        self._check_as_made()
        return {**self.__dict__, "_tables": None, "_device": None, "_as_made": None}

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)
        self._as_made = self._seen()


def _check_precision(group: ParamGroup) -> None:
    for name, p in group["params"].items():
        if group.rule_of(p) in rules.FLOAT32_ONLY and p.dtype != np.float32:
            raise ValueError(f"parameter {name!r} is {p.dtype}; {group.rule} takes float32 alone")


def _beginning(rule: str, key: str, p: np.ndarray) -> np.ndarray:
    """What a rule keeps of a parameter before the first step."""
    if key in rules.BEGIN_AS_PARAMETERS.get(rule, ()):
        return np.array(p)
    return np.zeros_like(p, rules.MOMENT_DTYPES.get(rule, p.dtype))


class Table:
    """The parameters that one call updates: those of one rule and of one type of number.

    members   (name, number of the group) of each
    memory    (begins, ends): all that the optimiser writes
    """

    def __init__(
        self,
        rule: str,
        members: Sequence[tuple[str, int]],
        params: Mapping[str, np.ndarray],
        kept: Mapping[str, Mapping[str, np.ndarray]],
        memory: tuple[np.ndarray, np.ndarray],
    ):
        from fastadam.kernels.cpu import addresses, tables

        self._addresses, self._tables = addresses, tables
        self.names = [name for name, _ in members]
        self.rule, self.dtype = rule, np.dtype(params[self.names[0]].dtype.type)
        columns = [params, *(kept[key] for key in rules.MOMENTS[rule])]
        self._dtypes = [np.dtype(column[self.names[0]].dtype.type) for column in columns]
        self._own = [[column[name] for column in columns] for name in self.names]
        self._shapes = [params[name].shape for name in self.names]
        self._memory = memory

        flat = [array for row in self._own for array in row]
        self._table = np.zeros((len(members), len(columns) + 1), np.int64)
        self._table[:, :-1] = np.array([array.ctypes.data for array in flat]).reshape(len(members), -1)
        usual = addresses.CONTIGUOUS | addresses.ALIGNED
        self._ids = np.array([id(array) for array in flat], np.int64)
        self._own_expected, dimensions = addresses.expectations(flat, usual | addresses.WRITEABLE)
        self._expected, _ = addresses.expectations([np.empty(0, self.dtype)] * len(members), usual)
        self._expected[:, addresses.RANK] = self._own_expected[:: len(columns), addresses.RANK]
        self._expected[:, addresses.FIRST] = self._own_expected[:: len(columns), addresses.FIRST]
        self._dimensions = dimensions
        self._bytes = np.array([row[0].nbytes for row in self._own], np.int64)
        sizes = np.array([row[0].size for row in self._own], np.int64)
        self._pieces, self._bounds = tables.cut(sizes, np.array([number for _, number in members], np.int64))

    def find(self, grads: list[Any]) -> None:
        """Note where the gradients are. ValueError for one that cannot be used, and for an array that has changed.

        ``grads``, in the order of ``names``, has arrays in the place of NumPy's numbers afterwards; it must be kept
        until the update is done.
        """
        if self._is_usual(grads):
            return
        for i, g in enumerate(grads):
            if isinstance(g, np.generic):  # what NumPy makes of arrays of no dimension
                grads[i] = np.asarray(g)
        if not self._is_usual(grads):
            self._find_one_by_one(grads)

    def _is_usual(self, grads: Sequence[Any]) -> bool:
        if not self._addresses.READABLE:
            return False
        ids = np.fromiter(map(id, grads), np.int64, len(grads))
        return not self._addresses.check_arrays(
            self._table, self._ids, self._own_expected, ids, self._expected, self._dimensions, self._bytes,
            *self._memory,
        )  # fmt: skip

    def _find_one_by_one(self, grads: Sequence[Any]) -> None:
        for i, (name, row, shape) in enumerate(zip(self.names, self._own, self._shapes, strict=True)):
            for column, (array, address) in enumerate(zip(row, self._table[i], strict=False)):
                check_unchanged(name, array, address, shape, self._dtypes[column])
            g, what = grads[i], f"gradient {name!r}"
            check_like(what, g, row[0])
            check_apart(what, g, g.ctypes.data, self._table[i, 0], self._memory)
            self._table[i, -1] = g.ctypes.data

    def update(self, h: np.ndarray) -> None:
        """The step whose numbers, a row a group, these are."""
        self._tables.update_table(self.rule, self._table, self._pieces, self._bounds, h)

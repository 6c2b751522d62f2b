"""Slots and calls: what a plan is made of. No arrays, no device."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastadam.graph import Shape

PLANNED = ("ACT", "STAT", "WORK", "OUT")
"""Kinds of slots that share one planned block of memory."""

_ITEM_BYTES = {"float32": 4, "float64": 8, "int32": 4, "int64": 8, "uint8": 1, "uint16": 2}


@dataclass(frozen=True)
class Slot:
    """One array of a step.

    ``kind`` says where it lives: ACT (stored activations), STAT (statistics and sums), WORK (gradients
    and partial sums), OUT (results) in planned memory; PARAM, GRAD, STATE as a view of that arena, by
    name; FLAT as the whole flat array of the arena of that name; INPUT and CONST given by the caller;
    ABSENT nowhere: an optional argument left out, a zero-size array of the right rank.
    ``dtype`` "float32" is the precision the arenas have, which in tests may be float64.
    """

    name: str
    shape: Shape
    kind: str
    dtype: str = "float32"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in memory on a device."""
        return self.size * _ITEM_BYTES[self.dtype]

    @property
    def present(self) -> bool:
        """Whether this is an array at all."""
        return self.kind != "ABSENT"

    @property
    def planned(self) -> bool:
        """Whether it lives in planned memory."""
        return self.kind in PLANNED


def absent(rank: int) -> Slot:
    """The place of an optional array that is not there."""
    return Slot("-", (0,) * rank, "ABSENT")


@dataclass(frozen=True)
class Call:
    """One op on slots: ``op(*outs, *ins, *scalars.values())``, in the order of the op's signature.

    ``layer`` is the graph node it is done for; "" if for all.
    """

    op: str
    outs: tuple[Slot, ...]
    ins: tuple[Slot, ...]
    scalars: Mapping[str, Any] = field(default_factory=dict)
    layer: str = ""

    @property
    def bytes(self) -> int:
        """Memory traffic: every array read or written once; of a resident data set only the batch."""
        total = sum(slot.bytes for slot in self.outs + self.ins)
        for slot in self.ins:
            if slot.name in ("images", "labels") and slot.kind == "INPUT":
                samples = self.outs[-1].shape[0]
                total -= slot.bytes - slot.bytes // slot.shape[0] * samples
        return total

    @property
    def flops(self) -> int:
        """Operations of the matrix products, a multiply-add counted as two; 0 for ops bound by memory."""
        if self.op == "conv2d_forward":
            return 2 * self.outs[0].size * math.prod(self.ins[3].shape[:3])
        if self.op == "linear_forward":
            return 2 * self.outs[0].size * self.ins[3].shape[1]
        if self.op in ("conv2d_backward", "linear_backward"):
            products = 1 + self.outs[0].present
            taps = self.ins[5].shape[:3] if self.op == "conv2d_backward" else self.ins[5].shape[1:]
            return 2 * products * self.ins[0].size * math.prod(taps)
        if self.op == "muon_update":  # as three products an iteration: X.T X, its square, X times what is made of them
            short, long = sorted((self.outs[0].size // self.outs[0].shape[-1], self.outs[0].shape[-1]))
            return int(self.scalars["steps"]) * (4 * short**2 * long + 2 * short**3)
        return 0

    def __str__(self) -> str:
        def names(slots: tuple[Slot, ...]) -> str:
            return " ".join(slot.name for slot in slots)

        scalars = " ".join(f"{key}={value}" for key, value in self.scalars.items())
        return f"{self.op:20} {names(self.outs)} <- {names(self.ins)}  {scalars}".rstrip()

"""What flows through a plan: tensors as they are stored, and as their readers see them.

Raw    what a head (input, conv, linear, a pool, add, dropout, a materialised value) stores: the only
       activations in memory.
Stage  a raw under one affine: as it is, plus a bias, or under a batch norm. It owns one gradient dz, that
       of the affine's output, before any ReLU.
View   a stage with or without ReLU: the value of a graph node. bn and relu store nothing; every reader
       takes raw, scale, shift and ``act`` (1 affine, 2 ReLU) and applies them while it reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastadam.calls import Slot, absent
from fastadam.graph import Node

NO_VECTOR = absent(1)
"""A scale, shift, bias or centre that is not there."""


@dataclass(eq=False)
class Raw:
    """A stored tensor, its producer, and the stages that read it. ``needs``: a gradient has to reach it."""

    slot: Slot
    op: str
    node: Node
    inputs: tuple["View", ...] = ()
    needs: bool = False
    scalars: Mapping[str, Any] = field(default_factory=dict)
    stages: list["Stage"] = field(default_factory=list)
    moments: Slot | None = None


@dataclass(eq=False)
class Stage:
    """A raw under one affine. ``masked`` False: dz is an addition's and still waits for this stage's ReLU."""

    raw: Raw
    scale: Slot = NO_VECTOR
    shift: Slot = NO_VECTOR
    bn: str = ""
    saved: tuple[Slot, ...] = ()  # mean and rstd of the batch
    dz: Slot | None = None
    masked: bool = True
    relus: set[bool] = field(default_factory=set)  # with and without ReLU: how its readers see it

    @property
    def needs(self) -> bool:
        """Whether a gradient has to reach this stage: a batch norm has parameters of its own."""
        return self.raw.needs or bool(self.bn)


@dataclass(frozen=True)
class View:
    """A stage as a reader sees it."""

    stage: Stage
    relu: bool = False

    @property
    def slots(self) -> tuple[Slot, Slot, Slot]:
        """Raw, scale and shift."""
        return self.stage.raw.slot, self.stage.scale, self.stage.shift

    @property
    def act(self) -> int:
        """1 for an affine, plus 2 for a ReLU."""
        return int(self.stage.scale.present) + 2 * self.relu

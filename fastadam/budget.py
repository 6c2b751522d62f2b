"""What a run takes, before any of it is taken: by purpose, by layer, and the first layer that is too much."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from fastadam.arena import segment_table
from fastadam.calls import Call, Slot
from fastadam.errors import OutOfMemoryError
from fastadam.graph import Shape
from fastadam.memory import live_peak
from fastadam.plan import Plan
from fastadam.units import human_bytes

COPIES = 3
"""Times the tensors of a checkpoint lie in memory while it is written: public, as safetensors packs them, as bytes."""

NOT_KEPT = ("GRAD", "SUM", "ASCENT")
"""Arenas that no checkpoint holds."""


class LayerBudget(NamedTuple):
    """What one graph node takes in a training step.

    shape              of its value, the batch first
    parameters         trained ones
    arena_bytes        its parameters, gradients and moments, and running statistics
    activation_bytes   what the forward pass stores of it for the backward pass
    total_bytes        what the network up to this node takes in all, work memory and a checkpoint included
    """

    name: str
    op: str
    shape: Shape
    parameters: int
    arena_bytes: int
    activation_bytes: int
    total_bytes: int


class MemoryPlan:
    """What a run will take beside the interpreter; nothing of it is allocated.

    rows          (what, bytes), the data set first, which on the host is there already
    step          the plan of the largest training step, or of the largest part of one
    parts         the plans that make up a whole step
    free_bytes    what there is for all rows, but for a data set that is there
    """

    def __init__(
        self, plans: Sequence[Plan], *, data_bytes: int, free_bytes: float, scratch: Callable[[Iterable[Call]], int],
        on_host: bool = True, parts: Sequence[Plan] = (),
    ) -> None:  # fmt: skip
        """``plans`` are all that the run will use; ``scratch`` tells the bytes of workspace that calls need.

        ``parts`` of a whole step: one plan for each of its gradients; ``step`` alone if not given.

        A device with memory of its own (not ``on_host``) gets the data set, and no checkpoint is written in it.
        """
        self._given, self._copies = (data_bytes, COPIES) if on_host else (0, 0)
        self.step = max((plan for plan in plans if plan.mode == "train"), key=lambda plan: plan.memory)
        self.parts = tuple(parts) or (self.step,)
        self.free_bytes, self._scratch = free_bytes, scratch
        self._arenas: dict[str, int] = {}
        for plan in plans:
            self._arenas |= plan.arena_bytes
        kept = sum(size for name, size in self._arenas.items() if name not in NOT_KEPT)
        self.rows = [
            ("data set", data_bytes),
            ("parameters, gradients, moments", sum(self._arenas.values())),
            ("activations and their gradients", max(plan.memory for plan in plans)),
            ("scratch of the kernels", scratch(call for plan in plans for call in plan.calls)),
            ("a checkpoint while it is written", self._copies * kept),
        ]

    @property
    def total_bytes(self) -> int:
        """All rows together."""
        return sum(size for _, size in self.rows)

    @property
    def needed_bytes(self) -> int:
        """What is still to be taken."""
        return self.total_bytes - self._given

    @property
    def fits(self) -> bool:
        """Whether the run may begin."""
        return self.needed_bytes <= self.free_bytes

    @property
    def parameters(self) -> int:
        """Trained parameters."""
        return sum(param.size for param in self.step.graph.params if param.kind != "running")

    @property
    def calls(self) -> int:
        """Calls of a whole step."""
        return sum(len(plan.calls) for plan in self.parts)

    @property
    def flops(self) -> int:
        """Operations of a whole step."""
        return sum(plan.flops for plan in self.parts)

    @cached_property
    def layers(self) -> list[LayerBudget]:
        """A row for each graph node. The last row's total is ``needed_bytes``."""
        sizes, copied = Counter[str](), Counter[str]()
        for param in self.step.graph.params:
            owner, elements = param.name.rpartition(".")[0], segment_table({param.name: param.shape})[1]
            every, kept = self._element_bytes(param.kind == "running")
            sizes[owner] += elements * every
            copied[owner] += elements * self._copies * kept
        rows, arenas, work = [], self.rows[0][1] - self._given, self._work_by_layer()
        for row in self.step.table():
            arenas += sizes[row.name] + copied[row.name]
            total = arenas + work[row.name]
            rows.append(LayerBudget(*row[:4], sizes[row.name], row.activation_bytes, total))
        rows[-1] = rows[-1]._replace(total_bytes=self.needed_bytes)
        return rows

    def _element_bytes(self, running: bool) -> tuple[int, int]:
        """Bytes that one number of the parameters, or of the running statistics, takes in all arenas; in those kept."""
        arenas = {name: size for name, size in self._arenas.items() if name.endswith("STATE") == running}
        elements = max(1, self._arenas["STATE" if running else "PARAM"] // 4)
        kept = sum(size for name, size in arenas.items() if name not in NOT_KEPT)
        return sum(arenas.values()) // elements, kept // elements

    def _work_by_layer(self) -> dict[str, int]:
        """{node: bytes of planned memory and scratch that the calls of the nodes up to it need}."""
        order = {node.name: i for i, node in enumerate(self.step.graph.nodes)}
        last = len(order) - 1
        owner: dict[Slot, int] = {}  # the node whose call writes a slot first
        scratch = [0] * len(order)
        for call in self.step.calls:
            at = order.get(call.layer, last)
            scratch[at] = max(scratch[at], self._scratch([call]))
            for slot in call.outs:
                owner.setdefault(slot, at)
        life = self.step.lifetimes
        owners, work, peak, most = {owner.get(slot, last) for slot in life}, {}, 0, 0
        for name, at in order.items():
            if at in owners:
                peak = live_peak({slot: span for slot, span in life.items() if owner.get(slot, last) <= at})
            most = max(most, scratch[at])
            work[name] = peak + most
        return work

    @property
    def first_over(self) -> LayerBudget | None:
        """The first layer with which the network is too much for the free memory; None if all fit."""
        return next((row for row in self.layers if row.total_bytes > self.free_bytes), None)

    def check(self) -> None:
        """OutOfMemoryError, naming the first layer that is too much, unless the run fits."""
        over = None if self.fits else self.first_over
        if over is None:
            return
        fixed = self.rows[1][1] + self.rows[4][1]
        cure = "a smaller net" if fixed > self.free_bytes or self.step.batch == 1 else "a smaller net or --batch-size"
        raise OutOfMemoryError(
            f"this run needs {human_bytes(self.needed_bytes)} of memory and {human_bytes(self.free_bytes)} are free; "
            f"{over.name} ({over.op}, {over.parameters:,} parameters) is the first layer that breaks the budget, with "
            f"{human_bytes(over.total_bytes)} up to there; use {cure} (--dry-run shows all layers)"
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        over = self.first_over
        return {
            "rows": [{"name": name, "bytes": size} for name, size in self.rows],
            "total_bytes": self.total_bytes,
            "needed_bytes": self.needed_bytes,
            "free_bytes": int(self.free_bytes),
            "fits": self.fits,
            "first_layer_over": over.name if over else None,
            "parameters": self.parameters,
            "layers": [row._asdict() for row in self.layers],
            "calls": self.calls,
            "flops": self.flops,
        }

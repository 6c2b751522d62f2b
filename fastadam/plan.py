"""A plan: the calls and slots of one step, what they need and what they cost. No arrays, no device."""

from collections import Counter
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from fastadam.arena import segment_table
from fastadam.calls import Slot
from fastadam.graph import Graph, Shape
from fastadam.kernels.lanes import FilterLanes, lanes_of_samples
from fastadam.kernels.rules import MOMENT_DTYPES
from fastadam.matrices import hidden_matrices
from fastadam.memory import Lifetimes, lifetimes, place
from fastadam.planner import ASCENTS, DECAYS, MOMENTS, PARTS, Augmentation, Planner, decay_groups

MODES = ("train", "stats", "infer")
SOURCES = ("uint8", "float32")


class LayerRow(NamedTuple):
    """A line of the plan's table: one graph node."""

    name: str
    op: str
    shape: Shape
    parameters: int
    activation_bytes: int


class Plan:
    """The calls and slots of one step of ``graph`` on ``batch`` samples.

    mode           "train": forward, loss, gradients, update; leaves the OUT slot ``loss``.
                   "stats": forward with batch statistics only, to restate running statistics.
                   "infer": forward with running statistics, no dropout; leaves ``logits`` and ``loss``.
    source         "uint8": ``batch_prepare`` reads INPUT images (T, C, H, W) by INPUT index, augmented.
                   "float32": ``batch_load`` reads INPUT images (N, C, H, W), normalised by the caller.
    image_count    T, the length of the INPUT images and labels; the batch if not given.
    augment        flip, crop and cutout of a uint8 batch, or None; not for inference.
    smoothing      of the labels, 0 to 1.      eps  of every batch norm.
    update         None (gradients only) or a rule of ``rules.MOMENTS``: over the flat arenas and INPUT h,
                   a row of ``rules.Hyper`` for parameters that decay and one for those that do not.
    decay          "weights": of convolutions and linear layers, not biases and norms; "all" of them.
    centralize     whether the gradient of each unit of weights is freed of its mean (Yong et al. 2020); first of all.
    clip_agc       largest norm of a unit's gradient, as a share of its parameters', or None (Brock et al. 2021).
    constants      (name, value) of what an update takes beside h, the same in every step: ``Optimizer.constants``.
    clip_norm      largest norm of the whole gradient, or None.
    part           None: a whole step. "first", "next", "last": one micro-batch of a step; gradients add
                   up in the arena SUM, and only the last has an update. "ascent", "descent": the two
                   gradients of a step by SAM (Foret et al. 2021): the first leaves the arena ASCENT, the
                   parameters and ``sam`` times its direction; the second is taken there and has the update.
    sam            the radius of SAM, for these two.
    filter_lanes   the device's: how many lanes the gradient of a filter is kept in; 0: its op adds up itself.
    ema            whether the arena AVERAGE follows the parameters after the update, by INPUT share.
    average        whether there is an arena AVERAGE at all, for an average of any kind.

    ``loss`` (2,) is the sum over the batch of loss * loss_scale, and the number right.

    Attributes: ``calls``, a tuple of ``Call``; ``slots``, every slot once, in order of use; ``lifetimes``
    and ``layout`` of planned memory, of which ``memory`` bytes are needed; ``flops`` and ``bytes`` of all
    calls; ``arena_bytes`` {arena: bytes} that binding will ask for; ``groups``, runs (start, end, row of h)
    of the update; ``tables`` {name: rows} of integers that ops read; ``matrices``, names of the parameters that Muon
    has; ``table()``, rows by layer.
    """

    def __init__(
        self,
        graph: Graph,
        batch: int,
        mode: str = "train",
        *,
        source: str = "uint8",
        image_count: int | None = None,
        augment: Augmentation | None = None,
        smoothing: float = 0.0,
        eps: float = 1e-5,
        update: str | None = None,
        centralize: bool = False,
        clip_agc: float | None = None,
        constants: tuple[tuple[str, Any], ...] = (),
        clip_norm: float | None = None,
        decay: str = "weights",
        part: str | None = None,
        sam: float | None = None,
        ema: bool = False,
        average: bool = False,
        filter_lanes: FilterLanes = lanes_of_samples,
    ) -> None:
        count = batch if image_count is None else image_count
        _check_settings(batch, mode, source, count, augment, smoothing)
        _check_update(mode, update, clip_norm, decay, part, ema, sam)
        if clip_agc is not None and (update is None or not clip_agc > 0):
            raise ValueError(f"clip_agc {clip_agc} must be above 0 and have an update to clip for")
        if centralize and update is None:
            raise ValueError("centralize changes the gradients of an update; give one")
        self.graph, self.batch, self.mode, self.update = graph, batch, mode, update
        self.part, self.average = part, average or ema
        self.matrices = tuple(param.name for param in hidden_matrices(graph)) if update == "muon" else ()
        self.groups = decay_groups(graph, decay, self.matrices) if update else ()
        planner = Planner(
            graph, batch, training=mode != "infer", source=source, image_count=count,
            augment=augment, smoothing=smoothing, eps=eps, filter_lanes=filter_lanes,
            weights="ASCENT" if part == "descent" else "PARAM",
        )  # fmt: skip
        output = planner.forward()
        if mode == "infer":
            planner.logits(output)
        if mode == "train":
            planner.backward(output)
        if part in PARTS:
            planner.accumulate(part)
        if sam is not None and part == "ascent":
            planner.ascend(sam)
        if update:
            planner.shape_gradient(centralize, clip_agc)
            planner.update(update, clip_norm, decay, ema, dict(constants))
        self.calls, self._raws, self.tables = tuple(planner.calls), planner.raws, planner.tables

    # What a plan tells ----------------------------------------------------------------------------------

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """Every slot the calls touch, once, in order of first use."""
        used = (slot for call in self.calls for slot in call.outs + call.ins if slot.present)
        return tuple(dict.fromkeys(used))

    @cached_property
    def lifetimes(self) -> Lifetimes:
        """{planned slot: (first call, last call)}."""
        return lifetimes(self.calls)

    @cached_property
    def _placed(self) -> tuple[dict[Slot, int], int]:
        return place(self.lifetimes)

    @property
    def layout(self) -> dict[Slot, int]:
        """{planned slot: offset in bytes} in the block."""
        return self._placed[0]

    @property
    def memory(self) -> int:
        """Bytes of the planned block."""
        return self._placed[1]

    @property
    def flops(self) -> int:
        """Operations of all matrix products."""
        return sum(call.flops for call in self.calls)

    @property
    def bytes(self) -> int:
        """Memory traffic of all calls."""
        return sum(call.bytes for call in self.calls)

    @property
    def arena_bytes(self) -> dict[str, int]:
        """{arena: bytes} of the arenas the plan is to be bound to; all but states are laid out alike.

        With an average, AVERAGE.STATE too: the running statistics that inference with the averaged weights needs.
        """
        names = ["PARAM"]
        if self.mode == "train":
            names += ["GRAD", *MOMENTS.get(self.update or "", ())]
            names += ["SUM"] * (self.part in PARTS) + ["ASCENT"] * (self.part in ASCENTS) + ["AVERAGE"] * self.average
        trained, state = (4 * segment_table(shapes)[1] for shapes in (self.graph.trained(), self.graph.state()))
        sizes = {**dict.fromkeys(names, trained), **dict.fromkeys(["STATE"] + ["AVERAGE.STATE"] * self.average, state)}
        if self.update in MOMENT_DTYPES:
            moment = trained // 4 * np.dtype(MOMENT_DTYPES[self.update]).itemsize
            sizes |= dict.fromkeys(MOMENTS[self.update], moment)
        return sizes

    def table(self) -> list[LayerRow]:
        """A row for each graph node; shapes have the batch, parameters are those trained."""
        stored = Counter[str]()
        for raw in self._raws:
            stored[raw.node.name] += raw.slot.bytes
        owned = Counter[str]()
        for param in self.graph.params:
            if param.kind != "running":
                owned[param.name.rpartition(".")[0]] += param.size
        return [
            LayerRow(n.name, n.op, (self.batch, *self.graph.shapes[n.name]), owned[n.name], stored[n.name])
            for n in self.graph.nodes
        ]


def _check_settings(
    batch: int, mode: str, source: str, count: int, augment: Augmentation | None, smoothing: float
) -> None:
    if batch < 1 or count < 1:
        raise ValueError(f"a plan needs at least one sample, batch is {batch} and image_count {count}")
    if mode not in MODES:
        raise ValueError(f"no mode {mode!r}; there are {', '.join(MODES)}")
    if source not in SOURCES:
        raise ValueError(f"no source {source!r}; there are {', '.join(SOURCES)}")
    if source == "float32" and (augment is not None or count != batch):
        raise ValueError("float32 images are a whole batch as it is: no augmentation, image_count = batch")
    if mode == "infer" and augment is not None:
        raise ValueError("inference takes no augmentation")
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing {smoothing} must be from 0 to 1")


def _check_update(
    mode: str, update: str | None, clip_norm: float | None, decay: str, part: str | None, ema: bool, sam: float | None
) -> None:
    if update is not None and (mode != "train" or update not in MOMENTS):
        raise ValueError(f"update {update!r} in mode {mode!r}; train plans take {', '.join(MOMENTS)}")
    if decay not in DECAYS:
        raise ValueError(f"no decay {decay!r}; there are {', '.join(DECAYS)}")
    if part is not None and (mode != "train" or part not in PARTS + ASCENTS):
        raise ValueError(f"part {part!r} in mode {mode!r}; train plans take {', '.join(PARTS + ASCENTS)}")
    if part in ("first", "next", "ascent") and update is not None:
        raise ValueError(f"the {part} of several gradients has no update; the last one has")
    if (sam is not None) != (part in ASCENTS) or (sam is not None and not sam > 0):
        raise ValueError(f"sam {sam} in part {part!r}: {' and '.join(ASCENTS)} have a radius above 0, no others")
    if ema and update is None:
        raise ValueError("ema follows an update; give one")
    if clip_norm is not None and (update is None or not clip_norm > 0):
        raise ValueError(f"clip_norm {clip_norm} must be above 0 and have an update to clip for")

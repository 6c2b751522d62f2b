"""The planner's rules: how each node of a graph becomes calls, forward and backward.

The values they pass along are raws, stages and views: see ``fastadam.values``.

Backward walks the heads in reverse. Each reader writes a new slot dz = [base +] mask * d, ``base`` being
what the stage had so far, so the writer masks and readers need no mask. The gradient of a raw is then
pending too: dz itself, or scale * dz + ga + gb * raw where a batch norm lies between. The sums a batch
norm or a bias needs of dz are gathered by the call that wrote dz, whenever nobody asked it before.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from fastadam.arena import group_runs, segment_table, tile_rows, unit_rows
from fastadam.calls import Call, Slot, absent
from fastadam.graph import Graph, Node, Shape
from fastadam.kernels import MOST_LANES, UNITS, rules
from fastadam.kernels.lanes import FilterLanes, lane_count
from fastadam.kernels.updates import UPDATES, between
from fastadam.matrices import hidden_matrices, matrix_updates, output_layers
from fastadam.values import NO_VECTOR, Raw, Stage, View

MOMENTS = {rule: tuple(moment.upper() for moment in moments) for rule, moments in rules.MOMENTS.items()}
MOMENTS["muon"] = MOMENTS["adamw"]  # which has what Muon has not; both call an average of gradients m
"""Update rules, and the arenas of moments each has beside PARAM."""

DECAYS = ("weights", "all")
PARTS = ("first", "next", "last")
ASCENTS = ("ascent", "descent")
GROUPS = 2
"""Rows of the slot h: 0 for parameters that decay, 1 for those that do not."""

_GATHERS_MOMENTS = ("conv2d_forward", "linear_forward")
_TAKES_PENDING_GRADIENT = ("conv2d", "linear")


class Augmentation(Protocol):
    """What a batch is put through: mirrored by a coin, shifted by up to ``crop`` pixels, a square cut out."""

    @property
    def flip(self) -> bool: ...
    @property
    def crop(self) -> int: ...
    @property
    def cutout(self) -> int: ...


class Planner:
    """Appends to ``calls``: ``forward``, then ``backward`` or ``logits``, then ``update``.

    ``weights`` is the arena that the network computes with; it is PARAM that is updated.
    ``raws`` are the stored tensors, in the order they are written, ``tables`` the numbers of constant slots by name.
    The settings are those of ``Plan``.
    """

    def __init__(
        self, graph: Graph, batch: int, *, training: bool, source: str, image_count: int,
        augment: Augmentation | None, smoothing: float, eps: float, filter_lanes: FilterLanes, weights: str = "PARAM",
    ) -> None:  # fmt: skip
        self.graph, self.batch, self.training = graph, batch, training
        self.source, self.augment, self.smoothing, self.eps = source, augment, smoothing, eps
        self._filter_lanes = filter_lanes
        self.calls: list[Call] = []
        self.raws: list[Raw] = []
        self.tables: dict[str, Sequence[tuple[int, ...]]] = {}
        H, W, C = graph.input_shape
        self._images = Slot("images", (image_count, C, H, W), "INPUT", source)
        self._labels = Slot("labels", (image_count,), "INPUT", "int32")
        self._index = Slot("index", (batch,), "INPUT", "int64")
        self._key = Slot("key", (2,), "INPUT", "int64")
        self._step = Slot("step", (2,), "INPUT")
        self._param = {p.name: Slot(p.name, p.shape, "STATE" if p.kind == "running" else weights) for p in graph.params}
        self._writer: dict[Slot, int] = {}
        self._names: Counter[str] = Counter()
        self._layer = ""  # the graph node that calls are made for
        self._dense: dict[View, View] = {}

    # Building blocks ------------------------------------------------------------------------------------

    def _slot(self, name: str, shape: Sequence[int], kind: str, dtype: str = "float32") -> Slot:
        """A new slot; a name asked for again is numbered."""
        self._names[name] += 1
        number = self._names[name]
        return Slot(name if number == 1 else f"{name}.{number}", tuple(shape), kind, dtype)

    def _call(self, op: str, outs: Sequence[Slot], ins: Sequence[Slot], **scalars: Any) -> None:
        for slot in outs:
            if slot.present:
                self._writer[slot] = len(self.calls)
        self.calls.append(Call(op, tuple(outs), tuple(ins), scalars, self._layer))

    def _store(self, raw: Raw) -> View:
        """The value of a raw just written, as it is."""
        self.raws.append(raw)
        raw.stages.append(Stage(raw))
        return View(raw.stages[0])

    def _head(
        self, node: Node, op: str, x: View, *, outs: Sequence[Slot] = (), ins: Sequence[Slot] = (),
        shape: Shape | None = None, needs: bool = False, **scalars: Any,
    ) -> View:  # fmt: skip
        """``op`` reads one view and stores a new raw; backward will be given the same scalars."""
        dense = op == "affine"
        shape = self.graph.shapes[node.name] if shape is None else shape
        y = self._slot(f"{node.name}.{'dense' if dense else 'raw'}", (self.batch, *shape), "ACT")
        self._call(f"{op}_forward", [y, *outs], [*x.slots, *ins], act=x.act, **scalars)
        return self._store(Raw(y, op, node, (x,), needs or x.stage.needs, scalars))

    def _lane_slot(self, of: Slot, name: str, rows: int) -> Slot:
        """(L, rows, C): per-channel sums over ``of`` by lanes of samples."""
        C = of.shape[-1]
        return self._slot(f"{of.name}.{name}", (lane_count(self.batch, 4 * rows * C), rows, C), "STAT")

    # Forward: one rule for each graph op ------------------------------------------------------------------

    def forward(self) -> View:
        """Every node in turn; the logits as their reader will see them."""
        views: dict[str, View] = {}
        for node in self.graph.nodes:
            self._layer = node.name
            views[node.name] = getattr(self, f"_{node.op}")(node, *[views[name] for name in node.inputs])
        output = views[self.graph.output]
        for view in [view for raw in self.raws for view in raw.inputs] + [output]:
            view.stage.relus.add(view.relu)
        return output

    def _input(self, node: Node) -> View:
        y = self._slot(f"{node.name}.raw", (self.batch, *self.graph.input_shape), "ACT")
        if self.source == "float32":
            self._call("batch_load", [y], [self._images])
        else:
            mean, rstd = (Slot(f"data.{key}", y.shape[-1:], "CONST") for key in ("mean", "rstd"))
            augment = self.augment
            self._call(
                "batch_prepare", [y], [self._images, self._index, self._key, mean, rstd],
                flip=bool(augment and augment.flip), crop=augment.crop if augment else 0,
                cutout=augment.cutout if augment else 0,
            )  # fmt: skip
        return self._store(Raw(y, "input", node))

    def _weighted(self, node: Node, op: str, x: View, **scalars: Any) -> View:
        weight = self._param[f"{node.name}.weight"]
        y = self._head(node, op, x, outs=[absent(3)], ins=[weight], needs=True, **scalars)
        if node.attrs["bias"]:  # raw + bias is an affine like any other, with scale 1
            y.stage.shift = self._param[f"{node.name}.bias"]
            y.stage.scale = Slot("ones", y.stage.shift.shape, "CONST")
        return y

    def _conv(self, node: Node, x: View) -> View:
        return self._weighted(node, "conv2d", x, stride=node.attrs["stride"], pad=node.attrs["pad"])

    def _linear(self, node: Node, x: View) -> View:
        return self._weighted(node, "linear", x)

    def _bn(self, node: Node, x: View) -> View:
        if x.relu or x.stage.bn:  # two affines with a ReLU or statistics between them do not compose
            x = self._materialise(node, x)
        raw = x.stage.raw
        N, C = raw.slot.shape[0], raw.slot.shape[-1]
        gamma, beta, running_mean, running_var = (
            self._param[f"{node.name}.{key}"] for key in ("weight", "bias", "running_mean", "running_var")
        )
        bias = x.stage.shift  # batch norm undoes it: only the mean has to know
        scale, shift, mean, rstd = (
            self._slot(f"{node.name}.{key}", (C,), "STAT") for key in ("scale", "shift", "mean", "rstd")
        )
        stage = Stage(raw, scale, shift, node.name, (mean, rstd))
        if not self.training:
            self._call("bn_inference", [scale, shift], [running_mean, running_var, gamma, beta, bias], eps=self.eps)
        else:
            self._call(
                "bn_finalize", [scale, shift, mean, rstd, running_mean, running_var],
                [self._moments(raw), gamma, beta, bias, self._step],
                samples=N, pixels=raw.slot.size // (N * C), eps=self.eps,
            )  # fmt: skip
        raw.stages.append(stage)
        return View(stage)

    def _relu(self, node: Node, x: View) -> View:
        return View(x.stage, True)

    def _maxpool(self, node: Node, x: View) -> View:
        return self._head(node, "maxpool", x)

    def _avgpool(self, node: Node, x: View) -> View:
        return self._head(node, "avgpool", x)

    def _add(self, node: Node, a: View, b: View) -> View:
        y = self._slot(f"{node.name}.raw", (self.batch, *self.graph.shapes[node.name]), "ACT")
        self._call("add_forward", [y], [*a.slots, *b.slots], a_act=a.act, b_act=b.act)
        return self._store(Raw(y, "add", node, (a, b), a.stage.needs or b.stage.needs))

    def _dropout(self, node: Node, x: View) -> View:
        p = float(node.attrs["p"])
        if not self.training or p == 0:
            return x
        salt, per_sample = self.graph.nodes.index(node), node.attrs.get("per") == "sample"
        return self._head(node, "dropout", x, ins=[self._key, self._index], p=p, salt=salt, per_sample=per_sample)

    def _materialise(self, node: Node, x: View) -> View:
        """A view stored as it is seen, once for all batch norms that read it."""
        if x not in self._dense:
            self._dense[x] = self._head(node, "affine", x, shape=x.stage.raw.slot.shape[1:])
        return self._dense[x]

    def _moments(self, raw: Raw) -> Slot:
        """Lane moments of a raw: from the call that wrote it if that gathers them, else by lane_moments."""
        if raw.moments is None:
            raw.moments, at = self._lane_slot(raw.slot, "moments", 3), self._writer[raw.slot]
            if self.calls[at].op in _GATHERS_MOMENTS:
                self.calls[at] = replace(self.calls[at], outs=(raw.slot, raw.moments))
            else:
                self._call("lane_moments", [raw.moments], [raw.slot])
        return raw.moments

    # The loss, and the way back ---------------------------------------------------------------------------

    def logits(self, output: View) -> None:
        """Inference ends with dense logits, and their loss."""
        logits, rows = Slot("logits", output.stage.raw.slot.shape, "OUT"), self._loss_rows()
        tail = [absent(2), absent(2), NO_VECTOR]
        self._call("affine_forward", [logits], output.slots, act=output.act)
        self._call(
            "softmax_loss", [absent(2), absent(3), rows],
            [logits, NO_VECTOR, NO_VECTOR, self._labels, self._index, self._step, *tail],
            act=0, smoothing=self.smoothing,
        )  # fmt: skip
        self._call("sum_lanes", [Slot("loss", (2,), "OUT")], [rows])

    def _loss_rows(self) -> Slot:
        return self._slot("loss.rows", (self.batch, 2), "STAT")

    def backward(self, output: View) -> None:
        """The loss, then the gradient of every parameter, head by head in reverse."""
        rows, labels = self._loss_rows(), [self._labels, self._index, self._step]
        self._contribute(output, "softmax_loss", after=labels, outs=[rows], smoothing=self.smoothing)
        self._call("sum_lanes", [Slot("loss", (2,), "OUT")], [rows])
        for raw in reversed(self.raws):
            self._layer = raw.node.name
            gradient, gact = self._gradient(raw)
            if gradient:
                self._backward_of(raw, gradient, gact)
        self._layer = ""

    def _backward_of(self, raw: Raw, gradient: Sequence[Slot], gact: int) -> None:
        """The calls that carry the gradient of a raw to what its head read."""
        dz, x = gradient[0], raw.inputs[0]
        if raw.op in ("add", "affine"):
            for view in raw.inputs:
                self._pass_on(view, dz)
        elif raw.op == "dropout":
            self._contribute(x, "dropout_backward", [dz], [self._key, self._index], **raw.scalars)
        elif raw.op in ("maxpool", "avgpool"):
            self._contribute(x, f"{raw.op}_backward", [dz])
        else:
            w = self._param[f"{raw.node.name}.weight"]
            dw = part = self._grad(w.name)
            if raw.op == "conv2d":
                lanes = max(1, self._lanes_of_filter(raw.slot, w.shape, raw.scalars["stride"]))
                name, kind = (w.name, "GRAD") if lanes == 1 else (f"{w.name}.lanes", "WORK")
                part = Slot(name, (lanes, *w.shape), kind)
            self._contribute(x, f"{raw.op}_backward", [*gradient, w], outs=[part], gact=gact, **raw.scalars)
            if part.kind != "GRAD":
                self._call("sum_lanes", [dw], [part])

    def _contribute(
        self, view: View, op: str, before: Sequence[Slot] = (), after: Sequence[Slot] = (),
        outs: Sequence[Slot] = (), **scalars: Any,
    ) -> None:  # fmt: skip
        """``op`` writes dz = [base +] mask * d for the stage of ``view``; what the stage had is the base.

        ``before`` and ``after`` are the op's inputs on either side of the view. A gradient nobody needs is
        left out, and the call too if it has no other out. Where an addition's gradient still waits for the
        ReLU (act 4), the mask covers the base: dz = mask * (base + d).
        """
        stage, rank = view.stage, len(view.stage.raw.slot.shape)
        act, dx, base = view.act + 4 * (not stage.masked), absent(rank), absent(rank)
        if stage.needs:
            dx, base = self._slot(f"d.{stage.raw.slot.name}", stage.raw.slot.shape, "WORK"), stage.dz or base
            stage.dz, stage.masked = dx, True
        if dx.present or outs:
            ins = [*before, *view.slots, *after, base, absent(rank), NO_VECTOR]
            self._call(op, [dx, absent(3), *outs], ins, act=act, **scalars)

    def _pass_on(self, view: View, dy: Slot) -> None:
        """An addition gives its branches its own gradient: the same slot, no copy.

        A ReLU on the branch waits for the next writer, if every reader of the stage goes through it.
        """
        stage = view.stage
        if stage.needs and stage.dz is None and len(stage.relus) == 1:
            stage.dz, stage.masked = dy, not view.relu
        elif stage.needs:
            self._join(view, _dense_gradient(dy))

    def _join(self, view: View, gradient: Sequence[Slot]) -> None:
        self._contribute(view, "join_backward", gradient, gact=0)

    def _settle(self, stage: Stage) -> None:
        """All readers are done: a ReLU that still waits gets a call of its own."""
        if stage.dz and not stage.masked:
            dy, stage.dz, stage.masked = stage.dz, None, True
            self._join(View(stage, True), _dense_gradient(dy))

    def _gather(self, dz: Slot, of: Slot | None = None, centre: Slot | None = None) -> Slot:
        """Lane sums of dz and of dz * (of - centre), or of dz alone.

        From the call that wrote dz, unless it already gathers for another ``of``: then from a call of
        their own.
        """
        at = self._writer[dz]
        call = self.calls[at]
        sums, gathered = call.outs[1], call.ins[-2]
        if sums.present and (of is None or gathered == of):
            return sums
        if of is None or centre is None:
            of, centre = absent(len(dz.shape)), NO_VECTOR
        if sums.present and gathered.present:
            sums = self._lane_slot(dz, "sums", 2)
            self._call("lane_sums", [sums], [dz, of, centre])
            return sums
        if not sums.present:
            sums = self._lane_slot(dz, "sums", 2)
            if call.op == "conv2d_backward":
                lanes = self._lanes_of_filter(call.ins[0], call.outs[2].shape[1:], call.scalars["stride"])
                if lanes:  # one loop over lanes writes dw and sums
                    sums = replace(sums, shape=(lanes, *sums.shape[1:]))
        outs, ins = (dz, sums, *call.outs[2:]), (*call.ins[:-2], of, centre)
        self.calls[at] = replace(call, outs=outs, ins=ins)
        return sums

    def _lanes_of_filter(self, y: Slot, filters: Shape, stride: int) -> int:
        """``FilterLanes`` of a convolution with outputs like y."""
        return self._filter_lanes(self.batch, y.shape[1:3], filters, stride)

    def _grad(self, name: str) -> Slot:
        return Slot(name, self._param[name].shape, "GRAD")

    def _gradient(self, raw: Raw) -> tuple[Sequence[Slot], int]:
        """The gradient of a raw as dz, raw, scale, ga, gb, and gact: 0 for dz alone; () if nobody needs it.

        Only convolutions and linear layers take one that is pending, and only from a single stage; for
        others it is made dense, stage by stage. The parameters of the stages get their gradients here.
        """
        plain: Slot | None = None
        pending = []
        for stage in raw.stages:
            self._settle(stage)
            if stage.dz and stage.bn:
                pending.append(self._bn_gradient(stage, stage.dz))
            elif stage.dz:
                plain = stage.dz
        if raw.op in _TAKES_PENDING_GRADIENT and raw.node.attrs["bias"]:
            bias = self._grad(f"{raw.node.name}.bias")
            if plain:
                self._call("sum_lanes", [bias], [self._gather(plain)])
            else:  # only batch norms read it
                self._call("fill", [bias], [], value=0.0)
        if not raw.needs:
            return (), 0
        if plain is None and len(pending) == 1 and raw.op in _TAKES_PENDING_GRADIENT:
            return pending[0], 1
        rank = len(raw.slot.shape)
        for gradient in pending:
            dense = self._slot(f"d.{raw.slot.name}.dense", raw.slot.shape, "WORK")
            view = [absent(rank), NO_VECTOR, NO_VECTOR]
            tail = [plain or absent(rank), absent(rank), NO_VECTOR]
            self._call("join_backward", [dense, absent(3)], [*gradient, *view, *tail], act=0, gact=1)
            plain = dense
        return (_dense_gradient(plain), 0) if plain else ((), 0)

    def _bn_gradient(self, stage: Stage, dz: Slot) -> list[Slot]:
        """dz through a batch norm, pending as scale * dz + ga + gb * raw; its parameters' gradients."""
        raw, (mean, rstd) = stage.raw.slot, stage.saved
        ga, gb = (self._slot(f"{stage.bn}.{key}", mean.shape, "STAT") for key in ("ga", "gb"))
        self._call(
            "bn_backward_finalize",
            [self._grad(f"{stage.bn}.weight"), self._grad(f"{stage.bn}.bias"), ga, gb],
            [self._gather(dz, raw, mean), mean, rstd, stage.scale], count=raw.size // mean.size,
        )  # fmt: skip
        return [dz, raw, stage.scale, ga, gb]

    def accumulate(self, part: str) -> None:
        """Micro-batches add up in the arena SUM, in their order; the last adds that to its own gradients."""
        total, gradient = self._flat("SUM"), self._flat("GRAD")
        if part == "first":
            self._call("fill", [total], [], value=0.0)
        y, x = (gradient, total) if part == "last" else (total, gradient)
        self._call("accumulate", [y], [x])

    def ascend(self, rho: float) -> None:
        """The point uphill where the second gradient of a step is taken (Foret et al. 2021), in the arena ASCENT."""
        squares, gradient = self._slot("gradient.squares", (MOST_LANES, 2), "STAT"), self._flat("GRAD")
        self._call("norm_lanes", [squares], [gradient])
        self._call("sam_ascent", [self._flat("ASCENT")], [self._flat("PARAM"), gradient, squares], rho=float(rho))

    def shape_gradient(self, centralize: bool, clip_agc: float | None) -> None:
        """What is done to the gradient unit by unit, before anything else: its means taken off, then clipped.

        Means are those of weights; what is clipped is all but the layers that make the output (Brock et al. 2021,
        section 4.1).
        """
        gradient, shapes = self._flat("GRAD"), self.graph.trained()
        weights = {name for name, shape in shapes.items() if len(shape) > 1}
        if centralize:
            units = self._table("units.centre", unit_rows(shapes, weights.__contains__))
            means = Slot("gradient.means", (units.shape[0], UNITS), "STAT")
            self._call("centre_units", [gradient, means], [units])
        if clip_agc is None:  # a row for every few units: made where it is asked for alone
            return
        last = output_layers(self.graph)
        rows = unit_rows(shapes, lambda name: name.rpartition(".")[0] not in last)
        if rows:
            units = self._table("units.clip", rows)
            factors = Slot("gradient.factors", (units.shape[0], UNITS), "STAT")
            self._call("clip_units", [gradient, factors], [self._flat("PARAM"), units], clip=float(clip_agc))

    def update(
        self, rule: str, clip_norm: float | None, decay: str, ema: bool, constants: Mapping[str, Any]
    ) -> None:  # fmt: skip
        """The ops of a rule over the flat arenas, their gradients clipped first if asked for; Muon's matrices apart."""
        h, gradient = Slot("h", (GROUPS, len(rules.Hyper._fields)), "INPUT"), self._flat("GRAD")
        if clip_norm is not None:
            squares = self._slot("gradient.squares", (MOST_LANES, 2), "STAT")
            self._call("norm_lanes", [squares], [gradient])
            self._call("clip_factor", [h], [squares], max_norm=float(clip_norm))
        matrices = hidden_matrices(self.graph) if rule == "muon" else ()
        for written, read, scalars in matrix_updates(matrices, h, **constants):
            self._call("muon_update", written, read, **scalars)
        slots = {"p": self._flat("PARAM"), "g": gradient, "h": h}
        dtype = rules.MOMENT_DTYPES.get(rule, "float32")
        slots |= {arena.lower(): self._flat(arena, dtype) for arena in MOMENTS[rule]}
        if rule in rules.LAYERWISE:
            slots["tiles"] = self._table("tiles", tensor_tiles(self.graph, decay))
            for name, shape in between(slots["tiles"].shape[0], len(self.graph.trained())).items():
                slots[name] = Slot(f"update.{name}", shape, "STAT")
        else:
            groups = decay_groups(self.graph, decay, [matrix.name for matrix in matrices])
            slots["groups"] = self._table("groups", groups)
        for op, outs, ins in UPDATES["adamw" if matrices else rule]:
            self._call(op, [slots[name] for name in outs], [slots[name] for name in ins])
        if ema:
            self._call("ema_update", [self._flat("AVERAGE")], [self._flat("PARAM"), Slot("share", (1,), "INPUT")])

    def _table(self, name: str, rows: Sequence[tuple[int, ...]]) -> Slot:
        """The place of a table that ops read, which depends on shapes only."""
        self.tables[name] = rows
        return Slot(name, (len(rows), len(rows[0])), "CONST", "int64")

    def _flat(self, name: str, dtype: str = "float32") -> Slot:
        return Slot(name, (segment_table(self.graph.trained())[1],), "FLAT", dtype)


def decay_groups(graph: Graph, decay: str, without: Collection[str] = ()) -> tuple[tuple[int, int, int], ...]:
    """Runs (start, end, row of h) over the arena of parameters, ``without`` some of them.

    Decay "weights" spares what is added or multiplied by channel: biases, and scales and shifts of norms
    (as Goyal et al. 2017, section 5.3, do for batch norm, and He et al. 2019, section 3.1, for all of these).
    Decay "all" spares nothing, as PyTorch does with one group of parameters.
    """
    group = _decay_group(graph, decay)
    runs = group_runs(graph.trained(), lambda name: -1 if name in without else group(name))
    return tuple(run for run in runs if run[2] >= 0)


def tensor_tiles(graph: Graph, decay: str) -> tuple[tuple[int, int, int, int], ...]:
    """The same elements by tensor: rows (start, end, row of h, tensor) of up to ``kernels.TILE`` elements."""
    return tile_rows(graph.trained(), _decay_group(graph, decay))


def _decay_group(graph: Graph, decay: str) -> Callable[[str], int]:
    """The row of h for a parameter by name."""
    spared = {param.name for param in graph.params if param.kind == "vector"} if decay == "weights" else set()
    return lambda name: int(name in spared)


def _dense_gradient(dz: Slot) -> list[Slot]:
    """A gradient that is dz itself, in the form of a pending one."""
    return [dz, absent(len(dz.shape)), NO_VECTOR, NO_VECTOR, NO_VECTOR]

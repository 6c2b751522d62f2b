"""From settings to everything a run needs in memory: data, model, trainer; and what that takes, before it is taken."""

import dataclasses
import hashlib
import json
import math
import zlib
from collections.abc import Sequence
from typing import Any, Protocol

from fastadam import models
from fastadam.budget import MemoryPlan
from fastadam.config import DEFAULT_VAL_SIZE, OPTIMIZER_SETTINGS, TrainConfig
from fastadam.data import Dataset, channel_statistics, find_default, for_test, limit, load, split
from fastadam.device import get_device
from fastadam.engine import Feed, make_plan
from fastadam.errors import ConfigError
from fastadam.fit import STATISTICS_IMAGES, Fit
from fastadam.kernels import PRECISIONS
from fastadam.optim import Optimizer, make
from fastadam.plan import Plan
from fastadam.schedule import MILESTONES, check_average
from fastadam.trainer import Trainer, parts_of, plan_settings, training_settings
from fastadam.transfer import load_weights
from fastadam.units import human_bytes

FREE_SETTINGS = ("data", "init", "device", "threads", "epochs", "steps", "patience", "target_accuracy")
"""Settings that may differ between the parts of a run: the others decide its bits."""

DECAY = "weights"
"""What a run's weight decay is for: not biases and the parameters of norms."""

_OF_PLANS = ("augment", "label_smoothing", "clip_norm", "ema", "swa", "lookahead", "sam")
_OF_TRAINER = (
    *_OF_PLANS, "batch_size", "accumulate", "schedule", "warmup", "gamma", "seed", "device", "precision", "threads",
)  # fmt: skip


class Reporter(Protocol):
    """Who hears of a run's progress."""

    def message(self, text: str) -> None: ...
    def begin_epoch(self, epoch: int, steps: int, done: int) -> None: ...
    def step(self, loss: float) -> None: ...
    def end_epoch(self, record: dict[str, Any]) -> None: ...


class Silent:
    """A reporter that says nothing."""

    def message(self, text: str) -> None: ...
    def begin_epoch(self, epoch: int, steps: int, done: int) -> None: ...
    def step(self, loss: float) -> None: ...
    def end_epoch(self, record: dict[str, Any]) -> None: ...


class Job:
    """The data of a run, read and divided, and its settings with every default worked out.

    data                dataset            config   resolved settings
    train, val, test    (n,) int64: images of the training set, of the training set, of the test set
    notes               lines the user should read, once nothing can be refused any more
    """

    def __init__(self, config: TrainConfig):
        self.notes: list[str] = []
        self.device = get_device(config.device, config.threads, config.precision)
        name, data = self._find_data(config)
        self.data, asked, images = data, config.val_size, len(data.train_images)
        self.notes += data.notes
        config = dataclasses.replace(config, data=name, device=self.device.name)
        self.config = config = config.resolved(train_images=images)
        if asked is None and config.val_size != DEFAULT_VAL_SIZE:
            self.notes.append(f"{config.val_size:,} of {images:,} training images are for validation")
        self.train, self.val = split(data.train_labels, config.val_size or 0, config.seed)
        if config.limit_train is not None:
            self.train = limit(self.train, data.train_labels, config.limit_train, config.seed)
        self.test = for_test(data.test_labels, config.limit_test)
        if config.batch_size * config.accumulate > len(self.train):
            times, fewer = (f"{config.accumulate} times ", " or --accumulate") if config.accumulate > 1 else ("", "")
            raise ConfigError(
                f"{times}batch size {config.batch_size:,} is larger than the {len(self.train):,} training images; "
                f"use a smaller --batch-size{fewer}"
            )
        epoch = math.ceil(len(self.train) / (config.batch_size * config.accumulate))
        steps = config.steps or (config.epochs or 0) * epoch
        check_average(config.swa, config.lookahead, steps, math.ceil(steps / epoch))
        self.notes += _without_effect(config, steps / epoch)
        self.feed = Feed(data.train_images, data.train_labels)
        high, wide = data.train_images.shape[2:]
        self._shape = (high, wide, data.train_images.shape[1])

    def plans(self) -> list[Plan]:
        """The plans of every batch size of training, validation and test; a whole training step's comes first."""
        config, batch = self.config, self.config.batch_size
        graph = models.graph_of(config.model, len(self.data.classes), self._shape, config.dropout or 0.0)
        optimizer, lanes = _optimizer(config), self.device.filter_lanes
        given = {name: getattr(config, name) for name in _OF_PLANS}
        settings = training_settings(
            optimizer.rule,
            **given,
            decay=DECAY,
            constants=optimizer.constants,
            side=min(self._shape[:2]),
        )
        plans = [
            make_plan(graph, "train", size, self.feed, filter_lanes=lanes, **plan_settings(settings, part))
            for part, size in _parts(len(self.train), batch, config.accumulate, config.sam)
        ]
        if settings["average"] and graph.state():
            sizes = _sizes(min(len(self.train), STATISTICS_IMAGES), batch)
            plans += [make_plan(graph, "stats", size, self.feed) for size in sizes]
        tested = {size for index in (self.val, self.test) for size in _sizes(len(index), batch)}
        return plans + [make_plan(graph, "infer", size, self.feed) for size in sorted(tested)]

    def memory(self, plans: Sequence[Plan]) -> MemoryPlan:
        """What a run with these plans takes beside the interpreter."""
        data = self.data
        arrays = (data.train_images, data.train_labels, data.test_images, data.test_labels)
        whole = {plan.part: plan for plan in plans if plan.mode == "train" and plan.batch == self.config.batch_size}
        return MemoryPlan(
            plans,
            data_bytes=sum(array.nbytes for array in arrays),
            free_bytes=self.device.available_memory(),
            scratch=self.device.workspace,
            on_host=self.device.is_host,
            parts=[whole[part] for part in parts_of(self.config.accumulate, self.config.sam)],
        )

    def fit(self, *, begin: bool = True) -> Fit:
        """A trainer with a fresh model at the start of its course, with the weights of ``init`` if it is to begin.

        OutOfMemoryError, before anything but the data set is taken, if the machine has too little memory.
        """
        config, plans = self.config, self.plans()
        memory = self.memory(plans)
        memory.check()
        self.notes.append(
            f"{models.title(config.model)}: {memory.parameters:,} parameters, "
            f"{human_bytes(memory.total_bytes)} of memory, {memory.flops / 1e9:,.1f} GFLOP a step, "
            f"on {self.device.description}"
        )
        self.notes += _division(plans[0])
        model = models.build(config.model, len(self.data.classes), config.seed, self._shape, config.dropout or 0.0)
        model.classes = self.data.classes
        model.set_normalization(*channel_statistics(self.data.train_images, self.train))
        if begin and config.init is not None:
            self.notes += load_weights(model, config.init)
        given = {name: getattr(config, name) for name in _OF_TRAINER}
        milestones = config.milestones or MILESTONES
        trainer = Trainer(model, _optimizer(config), milestones=milestones, decay=DECAY, **given)
        trainer.engine().reserve(max(plan.memory for plan in plans))
        return Fit(trainer, self.feed, self.train, self.val, config.epochs, config.steps)

    def _find_data(self, config: TrainConfig) -> tuple[str, Dataset]:
        """The data, and what to ``load`` to have them again: files in the cache may be of any data set."""
        if config.data is not None:
            return config.data, load(config.data)
        found = find_default()
        if found is not None:
            return "cifar10", found
        self.notes.append("no CIFAR-10 in the cache and no --data: training on the generated set `synthetic`")
        return "synthetic", load("synthetic")

    def fingerprint(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be gone on from: the data, and the settings that decide the bits."""
        data, crc = self.data, 0
        for array in (data.train_images, data.train_labels, data.test_images, data.test_labels):
            crc = zlib.crc32(array.reshape(-1).data, crc)
        settings = {name: value for name, value in self.config.to_dict().items() if name not in FREE_SETTINGS}
        if settings["precision"] == PRECISIONS[0]:  # as in runs of before there was a choice
            del settings["precision"]
        if models.is_file(self.config.model):  # what is in the file, wherever it lies
            spec = models.spec_of(self.config.model, len(self.data.classes), self._shape, self.config.dropout or 0.0)
            settings["model"] = {"name": spec["name"], "net": spec["net"]}
        if settings["optimizer"] == "muon":  # runs of before there was a choice told False, and had it
            settings["nesterov"] = str(settings["nesterov"])
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return {"crc32": crc, "settings": digest}


def _optimizer(config: TrainConfig) -> Optimizer:
    kind = str(config.optimizer)
    names = ("lr", "weight_decay", *OPTIMIZER_SETTINGS[kind])
    return make(kind, config.seed, **{name: getattr(config, name) for name in names})


def _division(plan: Plan) -> list[str]:
    """Whose the parameters are where two rules share them."""
    if not plan.matrices:
        return []
    trained = plan.graph.trained()
    numbers = sum(math.prod(trained[name]) for name in plan.matrices)
    return [
        f"muon updates {len(plan.matrices)} matrices of hidden layers ({numbers:,} parameters); adamw the first layer, "
        f"the last, biases and norms ({sum(map(math.prod, trained.values())) - numbers:,})"
    ]


def _without_effect(config: TrainConfig, epochs: float) -> list[str]:
    """Of the schedule, what a run of so many epochs ends before."""
    notes = []
    if config.warmup and config.warmup >= epochs:
        notes.append(f"the warmup takes {config.warmup:g} epochs and the run {epochs:g}: it ends below the full rate")
    late = [m for m in config.milestones or () if m >= 1 and m >= epochs]
    if late and config.schedule == "step":
        notes.append(f"the run ends before these milestones: {', '.join(f'{m:g}' for m in late)}")
    return notes


def _parts(count: int, batch: int, accumulate: int, sam: float | None) -> list[tuple[str | None, int]]:
    """(part of a step, images) of every gradient that ``count`` images are for, each once.

    The largest come first, and of those one with an update.
    """
    parts: set[tuple[str | None, int]] = set()
    for images in {batch * accumulate, count % (batch * accumulate)}:
        sizes = [min(batch, images - start) for start in range(0, images, batch)]
        if sizes:
            names = parts_of(len(sizes), sam)
            parts.update(zip(names, sizes * (len(names) // len(sizes)), strict=True))
    return sorted(parts, key=lambda part: (-part[1], part[0] in ("first", "next", "ascent"), part[0] or ""))


def _sizes(count: int, batch: int) -> list[int]:
    """The batch sizes that ``count`` images fall into, the largest first."""
    sizes = {min(batch, count), count % batch or min(batch, count)} if count else set()
    return sorted(sizes, reverse=True)

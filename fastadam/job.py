"""From settings to everything a run needs in memory: data, model, trainer; and what that takes, before it is taken."""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fastadam import models
from fastadam.augment import Augment
from fastadam.config import DEFAULT_VAL_SIZE, OPTIMIZER_SETTINGS, TrainConfig
from fastadam.data import Dataset, channel_statistics, find_default, limit, load, split
from fastadam.device import get_device
from fastadam.engine import Feed, make_plan
from fastadam.errors import ConfigError, OutOfMemoryError
from fastadam.optim import OPTIMIZERS, Optimizer
from fastadam.plan import Plan
from fastadam.trainer import Fit, Trainer

FREE_SETTINGS = ("data", "device", "threads", "epochs", "steps", "patience", "target_accuracy")
"""Settings that may differ between the parts of a run: the others decide its bits."""


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


@dataclass(frozen=True)
class MemoryPlan:
    """What a run will take: rows of (what, bytes), and the plan of the largest training step by layer."""

    rows: list[tuple[str, int]]
    step: Plan

    @property
    def total_bytes(self) -> int:
        """All rows together."""
        return sum(size for _, size in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "rows": [{"name": name, "bytes": size} for name, size in self.rows],
            "total_bytes": self.total_bytes,
            "layers": [row._asdict() for row in self.step.table()],
            "calls": len(self.step.calls),
            "flops": self.step.flops,
        }


class Job:
    """The data of a run, read and divided, and its settings with every default worked out.

    data                dataset            config   resolved settings
    train, val, test    (n,) int64: images of the training set, of the training set, of the test set
    notes               lines the user should read, once nothing can be refused any more
    """

    def __init__(self, config: TrainConfig):
        self.notes: list[str] = []
        self.device = get_device(config.device, config.threads)
        self.data = data = self._find_data(config)
        asked, images = config.val_size, len(data.train_images)
        config = dataclasses.replace(config, data=config.data or data.name, device=self.device.name)
        self.config = config = config.resolved(train_images=images)
        if asked is None and config.val_size != DEFAULT_VAL_SIZE:
            self.notes.append(f"{config.val_size:,} of {images:,} training images are for validation")
        self.train, self.val = split(data.train_labels, config.val_size or 0, config.seed)
        if config.limit_train is not None:
            self.train = limit(self.train, data.train_labels, config.limit_train, config.seed)
        self.test = np.arange(len(data.test_labels))
        if config.limit_test is not None:
            self.test = limit(self.test, data.test_labels, config.limit_test, config.seed)
        if config.batch_size > len(self.train):
            raise ConfigError(
                f"batch size {config.batch_size:,} is larger than the {len(self.train):,} training images; "
                "use a smaller --batch-size"
            )
        self.feed = Feed(data.train_images, data.train_labels)
        high, wide = data.train_images.shape[2:]
        self._shape = (high, wide, data.train_images.shape[1])

    def plans(self) -> list[Plan]:
        """The plans of every batch size of training, validation and test."""
        graph, batch = models.MODELS[self.config.model](len(self.data.classes), self._shape), self.config.batch_size
        train = {
            "augment": Augment.named(self.config.augment),
            "smoothing": self.config.label_smoothing,
            "update": self.config.optimizer,
            "clip_norm": self.config.clip_norm,
        }
        plans = [make_plan(graph, "train", size, self.feed, **train) for size in _sizes(len(self.train), batch)]
        sizes = {size for index in (self.val, self.test) for size in _sizes(len(index), batch)}
        return plans + [make_plan(graph, "infer", size, self.feed) for size in sorted(sizes)]

    def memory(self, plans: Sequence[Plan]) -> MemoryPlan:
        """What a run with these plans takes beside the interpreter."""
        step, data = plans[0], self.data
        arenas = step.arena_bytes
        kept = sum(size for name, size in arenas.items() if name != "GRAD")
        arrays = (data.train_images, data.train_labels, data.test_images, data.test_labels)
        return MemoryPlan(
            [
                ("data set", sum(array.nbytes for array in arrays)),
                ("parameters, gradients, moments", sum(arenas.values())),
                ("activations and their gradients", max(plan.memory for plan in plans)),
                ("scratch of the kernels", self.device.workspace(call for plan in plans for call in plan.calls)),
                ("a checkpoint while it is written", 2 * kept),
            ],
            step,
        )

    def fit(self) -> Fit:
        """A trainer with a fresh model at the start of its course.

        OutOfMemoryError, before anything but the data set is taken, if the machine has too little memory.
        """
        config, plans = self.config, self.plans()
        memory = self.memory(plans)
        needed, free = memory.total_bytes - memory.rows[0][1], self.device.available_memory()
        if needed > free:
            raise OutOfMemoryError(
                f"this run needs {needed / 1e9:.2f} GB of memory and {free / 1e9:.2f} GB are free; "
                f"use a --batch-size below {config.batch_size} (--dry-run shows what takes how much)"
            )
        self.notes.append(
            f"{config.model}: {sum(row.parameters for row in memory.step.table()):,} parameters, "
            f"{memory.total_bytes / 1e6:,.0f} MB of memory, {memory.step.flops / 1e9:,.1f} GFLOP a step"
        )
        model = models.build(config.model, len(self.data.classes), config.seed, self._shape)
        model.classes = self.data.classes
        model.set_normalization(*channel_statistics(self.data.train_images, self.train))
        trainer = Trainer(
            model,
            _optimizer(config),
            batch_size=config.batch_size,
            schedule=config.schedule,
            warmup=config.warmup,
            augment=config.augment,
            label_smoothing=config.label_smoothing,
            clip_norm=config.clip_norm,
            seed=config.seed,
            device=config.device,
            threads=config.threads,
        )
        trainer.engine().reserve(max(plan.memory for plan in plans))
        return Fit(trainer, self.feed, self.train, self.val, config.epochs, config.steps)

    def _find_data(self, config: TrainConfig) -> Dataset:
        if config.data is not None:
            return load(config.data)
        found = find_default()
        if found is None:
            self.notes.append("no CIFAR-10 in the cache and no --data: training on the generated set `synthetic`")
            found = load("synthetic")
        return found

    def fingerprint(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be gone on from: the data, and the settings that decide the bits."""
        data, crc = self.data, 0
        for array in (data.train_images, data.train_labels, data.test_images, data.test_labels):
            crc = zlib.crc32(array.reshape(-1).data, crc)
        settings = {name: value for name, value in self.config.to_dict().items() if name not in FREE_SETTINGS}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return {"data": data.name, "crc32": crc, "settings": digest}


def _optimizer(config: TrainConfig) -> Optimizer:
    own = {name: getattr(config, name) for name in ("lr", "weight_decay", *OPTIMIZER_SETTINGS[config.optimizer])}
    return OPTIMIZERS[config.optimizer](None, **own)


def _sizes(count: int, batch: int) -> list[int]:
    """The batch sizes that ``count`` images fall into, the largest first."""
    sizes = {min(batch, count), count % batch or min(batch, count)} if count else set()
    return sorted(sizes, reverse=True)

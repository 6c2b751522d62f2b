"""A training run from settings to summary: data, model, run folder, checkpoints, stops, resuming.

The loop itself is ``trainer.Fit``; here is what surrounds it on a user's machine.
"""

import contextlib
import dataclasses
import math
import platform
import resource
import signal
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np

from fastadam import checkpoint, models
from fastadam.config import DEFAULT_VAL_SIZE, OPTIMIZER_SETTINGS, TrainConfig
from fastadam.data import Dataset, channel_statistics, find_default, limit, split
from fastadam.data import load as load_data
from fastadam.engine import Feed
from fastadam.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    InterruptedRunError,
    OutOfMemoryError,
    RunError,
)
from fastadam.optim import OPTIMIZERS
from fastadam.plan import Plan
from fastadam.run import RunFolder, default_folder
from fastadam.trainer import Evaluation, Fit, Trainer

CHECKPOINT_SECONDS = 180.0
"""An epoch that lasts longer leaves a checkpoint this often."""


class Reporter(Protocol):
    """Who hears of a run's progress."""

    def message(self, text: str) -> None: ...
    def warning(self, text: str) -> None: ...
    def begin_epoch(self, epoch: int, steps: int, done: int) -> None: ...
    def step(self, loss: float) -> None: ...
    def end_epoch(self, record: dict[str, Any]) -> None: ...


class Silent:
    """A reporter that says nothing."""

    def message(self, text: str) -> None: ...
    def warning(self, text: str) -> None: ...
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


@dataclass
class _Best:
    """The best epoch so far by validation accuracy, and how many epochs there were since."""

    epoch: int = 0
    val_accuracy: float = -1.0
    stale: int = 0


class _Job:
    """Everything a run needs in memory; touches no file but the data."""

    def __init__(self, config: TrainConfig, reporter: Reporter):
        data = _find_data(config, reporter)
        config = dataclasses.replace(config, data=config.data or data.name)
        asked, config = config.val_size, config.resolved(train_images=len(data.train_images))
        if asked is None and config.val_size != DEFAULT_VAL_SIZE:
            reporter.message(f"{config.val_size:,} of {len(data.train_images):,} training images are for validation")
        self.data = data
        train, val = split(data.train_labels, config.val_size or 0, config.seed)
        if config.limit_train is not None:
            train = limit(train, data.train_labels, config.limit_train, config.seed)
        test = np.arange(len(data.test_labels))
        if config.limit_test is not None:
            test = limit(test, data.test_labels, config.limit_test, config.seed)
        self.test_index = test
        model = models.build(config.model, len(data.classes), config.seed)
        model.classes = data.classes
        model.set_normalization(*channel_statistics(data.train_images, train))
        self.trainer = Trainer(
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
        self.config = dataclasses.replace(config, device=self.trainer.device.name)
        feed = Feed(data.train_images, data.train_labels)
        self.fit = Fit(self.trainer, feed, train, val, config.epochs, config.steps)

    def plans(self) -> list[Plan]:
        """The plans of every batch size of training, validation and test."""
        fit = self.fit
        return self.trainer.plans(fit.feed, len(fit.train), (len(fit.val), len(self.test_index)))

    def memory(self) -> MemoryPlan:
        """What the run takes beside the interpreter."""
        plans = self.plans()
        step = max((plan for plan in plans if plan.mode == "train"), key=lambda plan: plan.batch)
        data = self.data
        return MemoryPlan(
            [
                ("data set", sum(a.nbytes for a in (data.train_images, data.test_images))),
                ("parameters, gradients, moments", sum(step.arena_bytes.values())),
                ("activations and their gradients", max(plan.memory for plan in plans)),
                (
                    "scratch of the kernels",
                    self.trainer.device.workspace(c for plan in plans for c in plan.calls),
                ),
            ],
            step,
        )

    def reserve(self) -> None:
        """Take the memory, or say that there is not enough before anything is taken."""
        plan, free = self.memory(), self.trainer.device.available_memory()
        needed = plan.total_bytes - plan.rows[0][1]  # the data set is here already
        if needed > free:
            raise OutOfMemoryError(
                f"this run needs {needed / 1e9:.2f} GB of memory and {free / 1e9:.2f} GB are free; "
                f"use a --batch-size below {self.config.batch_size} (--dry-run shows what takes how much)"
            )
        self.trainer.reserve(self.plans())


def run_training(
    config: TrainConfig,
    *,
    out: Path | None = None,
    resume: Path | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train as ``config`` says, in a new run folder ``out``, or go on with the run in ``resume``.

    A resumed run has its own settings; only ``config.epochs``, if given, may extend it. Returns the object
    of summary.json. Raises FastAdamError with the exit code the command line should give.
    """
    reporter = reporter or Silent()
    if resume is not None:
        with RunFolder.open(resume) as folder:
            return _resume(folder, config.epochs, reporter)
    job = _Job(config, reporter)
    job.reserve()
    path = default_folder(job.config.model) if out is None else out
    with RunFolder.create(path, job.config.to_dict()) as folder:
        reporter.message(f"run folder {folder.path}")
        return _Run(job, folder, reporter).train()


def _resume(folder: RunFolder, epochs: int | None, reporter: Reporter) -> dict[str, Any]:
    settings = dict(folder.settings)
    summary = folder.read_summary()
    if epochs is not None and epochs != settings.get("epochs"):
        if epochs < settings.get("epochs", math.inf):
            raise ConfigError(
                f"{epochs} epochs were asked for, but the run in {folder.path} has "
                f"{settings.get('epochs', 'a number of steps instead')}; give more to extend it"
            )
        settings["epochs"], summary = epochs, None
    if summary is not None:
        reporter.message(f"the run in {folder.path} is finished")
        return summary
    try:
        config = TrainConfig.from_dict(settings)
    except ConfigError as error:
        raise RunError(f"{folder.path / 'config.toml'} is not a run's: {error}") from error
    job = _Job(config, reporter)
    job.reserve()
    run = _Run(job, folder, reporter)
    run.restore()
    if settings != folder.settings:
        folder.remove_summary()
        folder.write_settings(job.config.to_dict())
    return run.train()


class _Run:
    """A job at work in its folder."""

    def __init__(self, job: _Job, folder: RunFolder, reporter: Reporter):
        self.job, self.folder, self.reporter = job, folder, reporter
        self.fit, self.trainer, self.config = job.fit, job.trainer, job.config
        self.best = _Best()
        self._saved = time.monotonic()
        self._fingerprint = {"name": job.data.name, "crc32": _checksum(job.data)}

    # Files ----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """The last checkpoint: all that going on needs."""
        self.fit.check_finite()
        metadata = {
            **self.trainer.model.metadata(),
            **self.fit.metadata(),
            "best": dataclasses.asdict(self.best),
            "data": self._fingerprint,
        }
        tensors = {**self.trainer.model.state_dict(), **self.fit.tensors()}
        checkpoint.save(self.folder.last, tensors, metadata)
        self._saved = time.monotonic()

    def save_best(self) -> None:
        """The best checkpoint: the model as it is now."""
        metadata = {
            **self.trainer.model.metadata(),
            "step": self.fit.cursor.step,
            "epoch": self.best.epoch,
            "val_accuracy": self.best.val_accuracy,
            "weights": "raw",
        }
        checkpoint.save(self.folder.best, self.trainer.model.state_dict(), metadata)

    def restore(self) -> None:
        """Take up the last checkpoint; without one, the run begins again."""
        if not self.folder.last.exists():
            self.folder.cut_metrics(0)
            self.reporter.message(f"{self.folder.path} has no checkpoint yet: starting from the beginning")
            return
        content = checkpoint.load(self.folder.last)
        try:
            metadata = content.metadata
            if metadata["data"] != self._fingerprint:
                raise RunError(
                    f"the data in {self.job.data.source} are not those the run in {self.folder.path} was trained on; "
                    "put the original data back"
                )
            if metadata["optimizer"] != self.config.optimizer or metadata["model"] != self.trainer.model.spec:
                raise ValueError("model or optimizer differ from config.toml")
            model = self.trainer.model
            model.load_state_dict({name: content.tensors[name] for name in model.state_dict()})
            self.fit.restore(content.tensors, metadata)
            self.best = _Best(**metadata["best"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.folder.last} does not belong to the run in {self.folder.path} ({error}); "
                "start a new run with --out"
            ) from error
        self.folder.cut_metrics(self.fit.cursor.step)
        self.reporter.message(f"going on with {self.folder.path} after step {self.fit.cursor.step:,}")

    # The course of a run --------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """All epochs are done, or a reason to stop early holds."""
        patience, target = self.config.patience, self.config.target_accuracy
        between = self.fit.cursor.batch == 0
        return self.fit.done or (
            between
            and self.best.epoch > 0
            and (
                (patience is not None and self.best.stale >= patience)
                or (target is not None and self.best.val_accuracy >= target)
            )
        )

    def train(self) -> dict[str, Any]:
        """Train to the end, test the best weights once, and write the summary."""
        begun = time.perf_counter()
        with _signals() as caught, self.trainer.device.compile_clock(self._compiling) as compiled:
            try:
                while not self.finished:
                    self._epoch(caught)
            except DivergedError as error:
                raise DivergedError(f"{error}; {self._last_good()}; try a lower --lr or --clip-norm") from error
            test = self._test()
        last = self.folder.last_metrics() or {"train_loss": None, "samples_per_second": 0.0}
        summary = {
            "model": self.config.model,
            "parameters": sum(p.size for p in self.trainer.model.graph.params if p.kind != "running"),
            "device": self.trainer.device.name,
            "threads": self.trainer.device.threads,
            "dataset": self.job.data.name,
            "epochs": self.fit.cursor.epoch,
            "steps": self.fit.cursor.step,
            "train_loss": last["train_loss"],
            "val_accuracy": self.best.val_accuracy,
            "test_accuracy": test.accuracy if test else None,
            "seconds": round(time.perf_counter() - begun, 3),
            "compile_seconds": round(compiled.seconds, 3),
            "samples_per_second": round(last["samples_per_second"], 1),
            "peak_memory_bytes": _peak_memory(),
            "checkpoint": str(self.folder.best),
            "versions": versions(),
        }
        self.folder.write_summary(summary)
        return summary

    def _epoch(self, caught: list[int]) -> None:
        fit = self.fit
        self.reporter.begin_epoch(fit.cursor.epoch + 1, fit.batches_of_epoch, fit.cursor.batch)
        while not fit.epoch_done:
            self._stop_if(caught)
            self.reporter.step(fit.step())
            if time.monotonic() - self._saved > CHECKPOINT_SECONDS:
                self.save()
        self._stop_if(caught)
        record = fit.end_epoch()
        if record.val_accuracy > self.best.val_accuracy:
            self.best = _Best(record.epoch, record.val_accuracy)
            self.save_best()
        else:
            self.best.stale += 1
        line = {"event": "epoch", **dataclasses.asdict(record)}
        self.folder.append_metrics(line)
        self.save()
        self.reporter.end_epoch(line)

    def _stop_if(self, caught: list[int]) -> None:
        if caught:
            self.save()
            raise InterruptedRunError(
                f"interrupted at step {self.fit.cursor.step:,}; go on with: fastadam train --resume {self.folder.path}",
                caught[0],
            )

    def _test(self) -> Evaluation | None:
        content = checkpoint.load(self.folder.best)
        model = self.trainer.model
        model.load_state_dict({name: content.tensors[name] for name in model.state_dict()})
        if not len(self.job.test_index):
            return None
        data = self.job.data
        return self.trainer.evaluate_feed(Feed(data.test_images, data.test_labels), self.job.test_index)

    def _last_good(self) -> str:
        if not self.folder.last.exists():
            return "there is no earlier checkpoint"
        step = checkpoint.load(self.folder.last).metadata["step"]
        return f"the last good checkpoint is {self.folder.last} of step {step:,}"

    def _compiling(self) -> None:
        self.reporter.message("compiling the kernels for this machine (kept for the next start) ...")


def describe_plan(config: TrainConfig, reporter: Reporter | None = None) -> MemoryPlan:
    """The memory plan of a run, nothing of it taken but the data set."""
    return _Job(config, reporter or Silent()).memory()


def evaluate_checkpoint(
    path: Path,
    data: str,
    *,
    batch_size: int = 128,
    threads: int | None = None,
    device: str = "auto",
    limit_test: int | None = None,
) -> dict[str, Any]:
    """Accuracy and mean loss of a checkpoint on the test set of ``data``."""
    model = models.from_checkpoint(checkpoint.load(path), path)
    dataset = load_data(data)
    if len(dataset.classes) != model.graph.classes:
        raise CheckpointError(
            f"{path} knows {model.graph.classes} classes, but {dataset.source} has {len(dataset.classes)}; "
            "give the data it was trained on"
        )
    index = np.arange(len(dataset.test_labels))
    if limit_test is not None:
        index = limit(index, dataset.test_labels, limit_test, 0)
    trainer = Trainer(model, batch_size=batch_size, threads=threads, device=device)
    result = trainer.evaluate_feed(Feed(dataset.test_images, dataset.test_labels), index)
    return {
        "checkpoint": str(path),
        "dataset": dataset.name,
        "images": len(index),
        "accuracy": result.accuracy,
        "loss": result.loss,
    }


def versions() -> dict[str, str]:
    """Versions of what decides the bits and the speed of a run."""
    found = {"python": platform.python_version()}
    for name in ("fastadam", "numba", "llvmlite", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _find_data(config: TrainConfig, reporter: Reporter) -> Dataset:
    if config.data is not None:
        return load_data(config.data)
    found = find_default()
    if found is None:
        reporter.message("no CIFAR-10 in the cache and no --data: training on the generated set `synthetic`")
        found = load_data("synthetic")
    return found


def _optimizer(config: TrainConfig) -> Any:
    own = {name: getattr(config, name) for name in ("lr", "weight_decay", *OPTIMIZER_SETTINGS[config.optimizer])}
    return OPTIMIZERS[config.optimizer](None, **own)


def _checksum(data: Dataset) -> int:
    return zlib.crc32(data.train_labels.tobytes(), zlib.crc32(data.train_images.reshape(-1).data))


def _peak_memory() -> int:
    """Most memory the process has had resident, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects the first SIGINT or SIGTERM instead of dying of it; a second one acts at once."""
    caught: list[int] = []
    before: dict[int, Any] = {}

    def remember(number: int, _: FrameType | None) -> None:
        caught.append(number)
        for other, handler in before.items():
            signal.signal(other, handler)

    with contextlib.suppress(ValueError):  # only the main thread may; elsewhere nothing is caught
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            before[number] = signal.signal(number, remember)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            with contextlib.suppress(ValueError):
                signal.signal(number, handler)

"""A training run in its folder: checkpoints, stops, resuming, the final test.

The loop itself is ``fit.Fit``, what it works on comes from ``job.Job``.
"""

import dataclasses
import os
import resource
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastadam import checkpoint, models, netfile
from fastadam.budget import MemoryPlan
from fastadam.config import TrainConfig
from fastadam.device import COMPILING
from fastadam.engine import Feed
from fastadam.errors import CheckpointError, ConfigError, DivergedError, InterruptedRunError, RunError
from fastadam.fit import Fit
from fastadam.interrupts import collect_signals
from fastadam.job import Job, Reporter, Silent
from fastadam.run import RunFolder, default_folder
from fastadam.versions import DECISIVE, installed

CHECKPOINT_SECONDS = 180.0
"""An epoch that lasts longer leaves a checkpoint this often."""

STOPPING = "stopping after this step; once more to stop at once"


def run_training(
    config: TrainConfig, *, out: Path | None = None, resume: Path | None = None, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Train as ``config`` says, in a new run folder ``out``, or go on with the run in ``resume``.

    A resumed run has its own settings; only ``config.epochs``, if given, may extend it. Returns the object
    of summary.json. Raises FastAdamError with the exit code the command line should give.
    """
    reporter = reporter or Silent()
    if resume is not None:
        with RunFolder.open(resume) as folder:
            return _resume(folder, config.epochs, reporter)
    if out is not None:
        RunFolder.check_new(out)
    job = Job(config)
    fit = job.fit()
    model = job.config.model
    path = default_folder(models.title(model)) if out is None else out
    net = netfile.copy_text(model) if models.is_file(model) else None
    with RunFolder.create(path, job.config.to_dict(), net) as folder:
        for note in (*job.notes, f"run folder {folder.path}"):
            reporter.message(note)
        return _Run(job, fit, folder, reporter).train()


def describe_plan(config: TrainConfig, reporter: Reporter | None = None) -> MemoryPlan:
    """The memory plan of a run, nothing of it taken but the data set."""
    job = Job(config)
    for note in job.notes:
        (reporter or Silent()).message(note)
    return job.memory(job.plans())


def _resume(folder: RunFolder, epochs: int | None, reporter: Reporter) -> dict[str, Any]:
    settings, summary = dict(folder.settings), folder.read_summary()
    before = settings.get("epochs")
    if epochs is not None and before is None:
        raise ConfigError(f"the run in {folder.path} counts steps, not epochs; leave --epochs away")
    if epochs is not None and before is not None and epochs != before:
        if epochs < before:
            raise ConfigError(
                f"{epochs} epochs were asked for, but the run in {folder.path} has {before}; give more to extend it"
            )
        settings["epochs"], summary = epochs, None
    if summary is not None:
        reporter.message(f"the run in {folder.path} is finished")
        return summary
    if models.is_file(str(settings.get("model", ""))):
        settings["model"] = os.path.abspath(folder.net)  # wherever the folder lies now
    try:
        config = TrainConfig.from_dict(settings)
    except ConfigError as error:
        raise RunError(f"{folder.path / 'config.toml'} is not a run's: {error}") from error
    job = Job(config)
    run = _Run(job, job.fit(begin=not folder.last.exists()), folder, reporter)
    run.restore()
    if epochs is not None and epochs != before:
        if run.finished:
            raise ConfigError(
                f"the run in {folder.path} was ended by its patience or target accuracy: more epochs do not change "
                "that; start a new run with --out"
            )
        folder.remove_summary()
        folder.write_settings(job.config.to_dict())
    return run.train()


@dataclass
class _Best:
    """The best epoch so far by validation accuracy, and how many epochs there were since.

    averaged   whether it was an average of the weights; others do not compete with one
    """

    epoch: int = 0
    step: int = 0
    val_accuracy: float = -1.0
    stale: int = 0
    averaged: bool = False


class _Run:
    """A course of training at work in its folder.

    The last checkpoint is what counts. It is written after the epoch's line of the log and before the best
    checkpoint, so whatever a kill leaves undone, ``restore`` finds out from it.
    """

    def __init__(self, job: Job, fit: Fit, folder: RunFolder, reporter: Reporter):
        self.job, self.fit, self.folder, self.reporter = job, fit, folder, reporter
        self.config, self.trainer, self.model = job.config, fit.trainer, fit.trainer.model
        self.best = _Best()
        self._fingerprint = job.fingerprint()
        self._saved = time.monotonic()
        self._caught: list[int] = []

    # Files ----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """The last checkpoint: all that going on needs."""
        self.fit.check_finite()
        metadata = {
            **self.model.metadata(),
            **self.fit.metadata(),
            "best": dataclasses.asdict(self.best),
            "fingerprint": self._fingerprint,
        }
        checkpoint.save(self.folder.last, {**self.model.state_dict(), **self.fit.tensors()}, metadata)
        self._saved = time.monotonic()

    def save_best(self) -> None:
        """The best checkpoint: the weights that were validated last, averaged ones if there are such."""
        average = self.trainer.average if self._averaged else None
        metadata = {
            **self.model.metadata(),
            "step": self.best.step,
            "epoch": self.best.epoch,
            "val_accuracy": self.best.val_accuracy,
            "weights": average.name if average else "raw",
        }
        tensors = self.trainer.averaged_state_dict() if average else self.model.state_dict()
        checkpoint.save(self.folder.best, tensors, metadata)

    def restore(self) -> None:
        """Take up the last checkpoint; without one, the run begins again."""
        last = self.folder.last
        if not last.exists():
            if self.folder.best.exists():
                raise RunError(
                    f"{last} is missing, and with it where the run stood; put it back, or begin a new run from the "
                    f"weights of its best epoch with --init {self.folder.path} --out"
                )
            self.folder.cut_metrics(0)
            self.reporter.message(f"{self.folder.path} has no checkpoint yet: starting from the beginning")
            return
        content = checkpoint.load(last)
        metadata = content.metadata
        try:
            found = metadata["fingerprint"]
            if found["crc32"] != self._fingerprint["crc32"]:
                raise RunError(
                    f"the data in {self.job.data.source} are not those the run in {self.folder.path} was trained on; "
                    "put the original data back"
                )
            if found["settings"] != self._fingerprint["settings"]:
                raise RunError(
                    f"{self.folder.path / 'config.toml'}{' or model.toml' * self.folder.net.exists()} was changed "
                    f"since {last} was written, or another version of fastadam wrote it; put the settings back, or "
                    "start a new run with --config and --out"
                )
            self.model.load_state_dict({name: content.tensors[name] for name in self.model.state_dict()})
            self.fit.restore(content.tensors, metadata)
            self.best = _Best(**{"averaged": self._averaged, **metadata["best"]})
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{last} does not belong to the run in {self.folder.path} ({checkpoint.reason(error)}); "
                "start a new run with --out"
            ) from error
        step = self.fit.cursor.step
        if self.best.step == step and self.fit.cursor.batch == 0:
            self.save_best()  # a kill may have come between the two checkpoints
        self.folder.cut_metrics(step)
        self.reporter.message(f"going on with {self.folder.path} after step {step:,}")

    # The course of a run --------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """All epochs are done, or a reason to stop early holds."""
        if self.fit.done or self.fit.cursor.batch > 0 or self.best.epoch == 0:
            return self.fit.done
        if self.trainer.average and not self._averaged:
            return False  # a run that averages does not end before it has
        patience, target = self.config.patience, self.config.target_accuracy
        weary = patience is not None and self.best.stale >= patience
        return weary or (target is not None and self.best.val_accuracy >= target)

    @property
    def _averaged(self) -> bool:
        """Whether an average is what is validated now."""
        return self.trainer.average is not None and self.trainer.average.ready

    def train(self) -> dict[str, Any]:
        """Train to the end, test the best weights once, and write the summary."""
        begun, device = time.perf_counter(), self.trainer.device
        before = sum(record.get("seconds", 0.0) for record in self.folder.metrics())  # in earlier processes
        compiling, stopping = (lambda text=text: self.reporter.message(text) for text in (COMPILING, STOPPING))
        with collect_signals(stopping) as self._caught, device.compile_clock(compiling) as clock:
            self.fit.compiled = clock
            try:
                while not self.finished:
                    self._epoch()
            except DivergedError as error:
                raise DivergedError(f"{error}; {self._last_good()}; try a lower --lr or --clip-norm") from error
            test_accuracy = self._test()
        *_, last = ({}, *self.folder.metrics())
        summary = {
            "model": self.model.spec["name"],
            "parameters": sum(p.size for p in self.model.graph.params if p.kind != "running"),
            "device": device.name,
            "threads": device.threads,
            "dataset": self.job.data.name,
            "epochs": self.fit.cursor.epoch,
            "steps": self.fit.cursor.step,
            "train_loss": last.get("train_loss"),
            "val_accuracy": self.best.val_accuracy,
            "test_accuracy": test_accuracy,
            "seconds": round(before + time.perf_counter() - begun, 3),
            "compile_seconds": round(clock.seconds, 3),
            "samples_per_second": round(last.get("samples_per_second", 0.0), 1),
            "peak_memory_bytes": _peak_memory(),
            "checkpoint": str(self.folder.best),
            "versions": installed(*DECISIVE, *device.packages),
        }
        self.folder.write_summary(summary)
        return summary

    def _epoch(self) -> None:
        fit = self.fit
        self.reporter.begin_epoch(fit.cursor.epoch + 1, fit.batches_of_epoch, fit.cursor.batch)
        while not fit.epoch_done:
            self._stop_if_asked()
            self.reporter.step(fit.step())
            if time.monotonic() - self._saved > CHECKPOINT_SECONDS:
                self.save()
        record = fit.end_epoch(between=self._stop_if_asked)
        better = (self._averaged, record.val_accuracy) > (self.best.averaged, self.best.val_accuracy)
        if better:
            self.best = _Best(record.epoch, record.step, record.val_accuracy, averaged=self._averaged)
        else:
            self.best.stale += 1
        line = {"event": "epoch", **dataclasses.asdict(record)}
        self.folder.append_metrics(line)
        self.save()
        if better:
            self.save_best()
        self.reporter.end_epoch(line)

    def _stop_if_asked(self) -> None:
        if self._caught:
            self.save()
            raise InterruptedRunError(
                f"interrupted at step {self.fit.cursor.step:,}; "
                f"go on with: fastadam train --resume {shlex.quote(str(self.folder.path))}",
                self._caught[0],
            )

    def _test(self) -> float | None:
        """Accuracy of the best weights on the test set; the last ones are kept for a checkpoint."""
        data, index = self.job.data, self.job.test
        if not len(index):
            return None
        last = self.model.state_dict()
        try:
            best = checkpoint.load(self.folder.best).tensors
            self.model.load_state_dict({name: best[name] for name in last})
        except (CheckpointError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"the best checkpoint of the run cannot be tested ({checkpoint.reason(error)}); the last one is "
                f"{self.folder.last}: `fastadam eval` takes it"
            ) from error

        def stop_if_asked() -> None:
            if self._caught:
                self.model.load_state_dict(last)
            self._stop_if_asked()

        feed = Feed(data.test_images, data.test_labels)
        return self.trainer.engine().evaluate(feed, index, self.config.batch_size, stop_if_asked).accuracy

    def _last_good(self) -> str:
        if not self.folder.last.exists():
            return "there is no earlier checkpoint"
        step = checkpoint.load(self.folder.last).metadata["step"]
        return f"the last good checkpoint is {self.folder.last} of step {step:,}"


def _peak_memory() -> int:
    """Most memory the process has had resident, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

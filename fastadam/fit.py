"""A course of training over a data set: epochs in steps, validation, and what a checkpoint needs to go on."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastadam.arena import Arena
from fastadam.bfloat16 import widened
from fastadam.checks import whole
from fastadam.draws import keys
from fastadam.engine import Evaluation, Feed
from fastadam.errors import ConfigError, DivergedError
from fastadam.optim import ScheduleFree
from fastadam.schedule import Schedule, check_average, milestone_steps

if TYPE_CHECKING:
    from fastadam.trainer import Trainer

STATISTICS_IMAGES = 10_000
"""Over how many training images, at most, the running statistics of averaged weights are made anew."""


@dataclass
class Cursor:
    """Where training stands: whole epochs done, steps done in this one, steps in all, and the epoch's sums."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    right: int = 0


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch (or the part of it that was trained) gave. Accuracies are fractions.

    lr                   of its last step
    train_loss           mean over the images it trained on, as they were trained, augmentation included
    val_loss, ...        of the averaged weights, if there are such
    samples_per_second   while training, without validation
    seconds              training and validation
    """

    epoch: int
    step: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    samples_per_second: float
    seconds: float


class Fit:
    """One course of training over a data set, step by step; ``cursor`` and the arenas are its whole state.

    feed          the resident data set
    train, val    (n,) int64, which of its images to train on and to validate with; ``val`` may be empty
    epochs, steps how long: ``steps`` counts if it is given
    compiled      whose ``.seconds`` of compiling are left out of the time, if it is set
    """

    def __init__(
        self,
        trainer: "Trainer",
        feed: Feed,
        train: np.ndarray,
        val: np.ndarray,
        epochs: int | None,
        steps: int | None,
    ):
        self.step_size = trainer.batch_size * trainer.accumulate
        if self.step_size > len(train):
            times = f"{trainer.accumulate} times " if trainer.accumulate > 1 else ""
            raise ConfigError(
                f"{times}batch size {trainer.batch_size} is larger than the {len(train)} training images; "
                "use a smaller one"
            )
        self.trainer, self.feed, self.train, self.val = trainer, feed, train, val
        self.cursor = Cursor()
        self.steps_per_epoch = math.ceil(len(train) / self.step_size)
        if steps is not None:
            self.total = whole("steps", steps, 1)
        else:
            self.total = whole("epochs", 0 if epochs is None else epochs, 1) * self.steps_per_epoch
        self._first_t, self._first_epoch = trainer.t, trainer.epochs
        check_average(trainer.swa, trainer.lookahead, self.total, math.ceil(self.total / self.steps_per_epoch))
        if trainer.average:
            trainer.average.epochs = 0
        warmup = round((trainer.warmup or 0.0) * self.steps_per_epoch)
        if isinstance(trainer.optimizer, ScheduleFree) and trainer.t == 0:
            trainer.group["warmup_steps"] = warmup + 1 if warmup else 0  # as the schedule has it
        self.lr = Schedule(
            trainer.schedule, trainer.optimizer.lr, self.total, warmup,
            milestone_steps(trainer.milestones, self.total, self.steps_per_epoch), trainer.gamma,
        )  # fmt: skip
        self._order: tuple[int, np.ndarray] = (-1, train)
        self._seconds, self._samples = 0.0, 0
        self.compiled: Any = None

    @property
    def done(self) -> bool:
        """All steps are taken and the last epoch is closed."""
        return self.cursor.step >= self.total and self.cursor.batch == 0

    @property
    def epoch_done(self) -> bool:
        """The epoch, or what the steps allow of it, is trained: ``end_epoch`` is due."""
        return self.cursor.batch > 0 and (self.cursor.batch == self.steps_per_epoch or self.cursor.step == self.total)

    @property
    def batches_of_epoch(self) -> int:
        """Steps that the current epoch has in all."""
        return min(self.steps_per_epoch, self.total - self.cursor.step + self.cursor.batch)

    def step(self) -> float:
        """Take the next step; returns its mean loss. DivergedError if that is not finite."""
        begun, at, size = self._time(), self.cursor, self.step_size
        epoch = self._first_epoch + at.epoch
        index = self._shuffled(epoch)[at.batch * size : (at.batch + 1) * size]
        loss, right = self.trainer.train_batch(self.feed, index, epoch, self.lr(at.step))
        if not math.isfinite(loss):
            raise DivergedError(f"the loss is {loss} at step {at.step + 1} (epoch {at.epoch + 1})")
        at.batch, at.step = at.batch + 1, at.step + 1
        at.loss_sum, at.right = at.loss_sum + loss * len(index), at.right + right
        self._seconds, self._samples = self._seconds + self._time() - begun, self._samples + len(index)
        return loss

    def end_epoch(self, between: Callable[[], None] = lambda: None) -> EpochRecord:
        """Validate and begin the next epoch; ``between`` is called before each batch that this takes.

        Averaged weights, if there are such, get their running statistics and are what is validated.
        DivergedError if a parameter, a moment or the validation loss is not finite.
        """
        begun, at, average = time.perf_counter(), self.cursor, self.trainer.average
        if average:
            average.end_epoch(at.epoch + 1)
        self.check_finite()
        engine, size, averaged = self.trainer.engine(), self.trainer.batch_size, average is not None and average.ready
        if averaged:
            engine.restate(self.feed, statistics_images(self.train, self.trainer.seed), size, between)
        val = Evaluation(math.nan, math.nan)
        if len(self.val):
            val = engine.evaluate(self.feed, self.val, size, between, averaged)
        if len(self.val) and not math.isfinite(val.loss):
            raise DivergedError(f"the validation loss is {val.loss} after step {at.step} (epoch {at.epoch + 1})")
        trained = min(at.batch * self.step_size, len(self.train))
        record = EpochRecord(
            epoch=at.epoch + 1,
            step=at.step,
            lr=self.lr(at.step - 1),
            train_loss=at.loss_sum / trained,
            train_accuracy=at.right / trained,
            val_loss=val.loss,
            val_accuracy=val.accuracy,
            samples_per_second=self._samples / self._seconds if self._seconds else 0.0,
            seconds=self._seconds + time.perf_counter() - begun,
        )
        self.cursor = Cursor(epoch=at.epoch + 1, step=at.step)
        self._seconds, self._samples = 0.0, 0
        self.trainer.epochs = self._first_epoch + self.cursor.epoch
        return record

    def check_finite(self) -> None:
        """DivergedError if something a checkpoint would hold is not finite: that must not be written."""
        model = self.trainer.model
        arenas = {"parameters": model.parameters, "running statistics": model.state, **self.trainer.moments}
        arenas |= self.trainer.average.arenas if self.trainer.average else {}
        for what, arena in arenas.items():
            flat = arena.flat if arena.flat.dtype == np.float32 else widened(arena.flat)
            if not np.isfinite(flat).all():
                raise DivergedError(f"{what} are not finite after step {self.cursor.step}")

    # What a checkpoint needs ----------------------------------------------------------------------------

    def tensors(self) -> dict[str, np.ndarray]:
        """Moments and averages, ``optimizer/m/NAME``, ``ema/NAME`` ..., in public layouts and their own dtypes.

        With the model's own, these are all there is.
        """
        if self.trainer.average:
            self.trainer.average.settle()
        return {
            prefix + name: tensor
            for prefix, arena in self._extras()
            for name, tensor in self.trainer.model.to_public(arena.views).items()
        }

    def _extras(self) -> Iterator[tuple[str, Arena]]:
        """What a checkpoint holds beside the model: (prefix of its names, arena)."""
        for moment, arena in self.trainer.moments.items():
            yield f"optimizer/{moment.lower()}/", arena
        if self.trainer.average:
            for arena in self.trainer.average.arenas.values():
                yield f"{self.trainer.average.name}/", arena

    def metadata(self) -> dict[str, Any]:
        """Where training stands, as JSON."""
        return {
            "cursor": asdict(self.cursor),
            "step": self.cursor.step,
            "optimizer": self.trainer.optimizer.name,
            "averaged_epochs": self.trainer.average.epochs if self.trainer.average else 0,
        }

    def restore(self, tensors: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
        """Go on from what another course told; KeyError, ValueError or TypeError if that is something else."""
        for prefix, arena in self._extras():
            values = {name: tensors[prefix + name] for name in arena.views}
            for name, value in values.items():
                if value.dtype != arena.dtype:
                    raise ValueError(f"{prefix}{name}: expected {arena.dtype}, found {value.dtype}")
            arena.load(self.trainer.model.to_kernel(values, arena.dtype))
        cursor = Cursor(**metadata["cursor"])
        if not 0 <= cursor.batch <= self.steps_per_epoch or not 0 <= cursor.epoch <= cursor.step:
            raise ValueError(f"{cursor} lies outside an epoch of {self.steps_per_epoch} steps")
        self.cursor = cursor
        self.trainer.t, self.trainer.epochs = self._first_t + cursor.step, self._first_epoch + cursor.epoch
        if self.trainer.average:
            self.trainer.average.epochs = int(metadata.get("averaged_epochs", 0))

    def _time(self) -> float:
        """A clock that stands still while kernels are compiled."""
        return time.perf_counter() - (self.compiled.seconds if self.compiled else 0.0)

    def _shuffled(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            self._order = epoch, shuffled(self.train, self.trainer.seed, epoch)
        return self._order[1]


def statistics_images(train: np.ndarray, seed: int) -> np.ndarray:
    """The training images over which averaged weights get their running statistics: a fixed draw."""
    return shuffled(train, seed, -1)[:STATISTICS_IMAGES]


def shuffled(index: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """``index`` in the order of an epoch."""
    return index[np.argsort(keys(seed, epoch, index), kind="stable")]

"""Training: one step at a time, or epochs over a data set. No files, no terminal: that is ``training.py``."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastadam.arena import Arena
from fastadam.augment import Augment
from fastadam.data import Dataset, channel_statistics, split
from fastadam.device import get_device
from fastadam.engine import Engine, Feed
from fastadam.errors import ConfigError, DivergedError
from fastadam.model import Model, check_images, check_labels
from fastadam.optim import OPTIMIZERS, Optimizer
from fastadam.plan import Plan
from fastadam.program import Program
from fastadam.schedule import Schedule


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy and accuracy (a fraction) over some images."""

    loss: float
    accuracy: float


@dataclass
class Cursor:
    """Where training stands: whole epochs done, batches done in this one, steps in all, and the epoch's sums."""

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


class Trainer:
    """Trains ``model`` in place.

    optimizer         a name of ``fastadam.optim.OPTIMIZERS``, or an optimiser with its settings
    lr                learning rate for an optimiser given by name; its default if None
    batch_size        images a step of ``fit``; the last, smaller batch of an epoch is trained too
    schedule, warmup  course of the rate over ``fit`` (see ``fastadam.schedule``), warmup in epochs
    augment           of uint8 images: some of "flip", "crop", "cutout"
    clip_norm         gradients are scaled to this global norm where theirs is greater
    seed              of shuffling and augmentation: equal seeds give equal bits, for any ``threads``
    device, threads   where to compute: "auto", "cpu"; threads default to all cores
    """

    def __init__(
        self,
        model: Model,
        optimizer: str | Optimizer = "adamw",
        lr: float | None = None,
        *,
        batch_size: int = 128,
        schedule: str = "constant",
        warmup: float | None = None,
        augment: Sequence[str] = (),
        label_smoothing: float = 0.0,
        clip_norm: float | None = None,
        seed: int = 0,
        device: str = "auto",
        threads: int | None = None,
    ):
        self.model, self.batch_size, self.seed = model, batch_size, seed
        self.optimizer = _optimizer(optimizer, lr)
        self.schedule, self.warmup = schedule, warmup
        self.device = get_device(device, threads)
        self._settings = {
            "augment": Augment.named(augment),
            "smoothing": label_smoothing,
            "update": self.optimizer.name,
            "clip_norm": clip_norm,
        }
        self.moments = {name.upper(): Arena(model.graph.trained()) for name in self.optimizer.moment_names}
        self._gradients = Arena(model.graph.trained())
        self._engine: Engine | None = None
        self._rooms: dict[Any, Feed] = {}

    # One step -------------------------------------------------------------------------------------------

    def step(self, images: np.ndarray, labels: np.ndarray) -> float:
        """One whole step on a batch: forward, mean loss, backward, update. Returns the loss before the update.

        images   (N, C, H, W) uint8, augmented as the trainer is set, or float32, already normalised
        labels   (N,) integers
        """
        images = check_images(images, self.model.graph)
        key = images.shape, images.dtype
        if key not in self._rooms:
            self._rooms[key] = Feed(np.empty_like(images), np.empty(len(images), np.int32))
        feed = self._rooms[key]
        feed.images[...] = images
        feed.labels[...] = check_labels(labels, len(images), self.model.graph)
        loss, _ = self.train_batch(feed, np.arange(len(images)), self.optimizer.t, self.optimizer.lr)
        return loss

    def train_batch(self, feed: Feed, index: np.ndarray, epoch: int, lr: float) -> tuple[float, int]:
        """One step on the images ``index`` of a feed at the rate ``lr``: (mean loss, number classified right)."""
        program = self._program("train", len(index), feed)
        self.optimizer.t += 1
        program.inputs["h"][...] = self.optimizer.hyper(self.optimizer.t, lr)
        loss, right = self._run(program, index, epoch)
        return loss, int(right)

    def _run(self, program: Program, index: np.ndarray, epoch: int) -> tuple[float, float]:
        inputs = program.inputs
        if "index" in inputs:
            inputs["index"][...] = index
        if "key" in inputs:
            inputs["key"][...] = self.seed, epoch
        inputs["step"][...] = 1 / len(index), 0.1
        self.device.activate()
        program.run()
        loss, right = program.outputs["loss"]
        return float(loss), float(right)

    # Evaluation -----------------------------------------------------------------------------------------

    def evaluate(self, images: np.ndarray, labels: np.ndarray) -> Evaluation:
        """Loss and accuracy with running statistics and no augmentation; arguments as ``step``."""
        images = check_images(images, self.model.graph)
        labels = check_labels(labels, len(images), self.model.graph)
        if images.dtype == np.uint8:
            return self.evaluate_feed(Feed(images, labels), np.arange(len(images)))
        loss = right = 0.0
        for start in range(0, len(images), self.batch_size):
            part = slice(start, start + self.batch_size)
            feed = Feed(np.ascontiguousarray(images[part]), labels[part])
            count = len(feed.images)
            one_loss, one_right = self._run(self._program("infer", count, feed), np.arange(count), 0)
            loss, right = loss + one_loss * count, right + one_right
        return Evaluation(loss / len(images), right / len(images))

    def evaluate_feed(self, feed: Feed, index: np.ndarray) -> Evaluation:
        """Loss and accuracy over the images ``index`` of a resident data set."""
        loss = right = 0.0
        for start in range(0, len(index), self.batch_size):
            part = index[start : start + self.batch_size]
            one_loss, one_right = self._run(self._program("infer", len(part), feed), part, 0)
            loss, right = loss + one_loss * len(part), right + one_right
        return Evaluation(loss / len(index), right / len(index))

    # Programs -------------------------------------------------------------------------------------------

    def plans(self, feed: Feed, train: int, evaluated: Sequence[int]) -> list[Plan]:
        """All plans of a run: ``train`` images by batches, and evaluations of so many images each."""
        sizes = {("train", size) for size in _sizes(train, self.batch_size)}
        sizes |= {("infer", size) for count in evaluated for size in _sizes(count, self.batch_size)}
        engine = self.engine()
        return [engine.plan(mode, size, feed, **self._mode(mode, feed)) for mode, size in sorted(sizes)]

    def reserve(self, plans: Sequence[Plan]) -> None:
        """Take the memory of these plans now, once."""
        engine = self.engine()
        engine.reserve(max(plan.memory for plan in plans))
        self.device.reserve(call for plan in plans for call in plan.calls)

    def engine(self) -> Engine:
        """The programs of this trainer; made anew when the model's normalisation has changed."""
        if self._engine is None or self._engine.mean is not self.model.mean:
            arenas = {
                "PARAM": self.model.parameters,
                "STATE": self.model.state,
                "GRAD": self._gradients,
                **self.moments,
            }
            self._engine = Engine(self.model.graph, self.device, arenas, self.model.mean, self.model.std)
        return self._engine

    def _mode(self, mode: str, feed: Feed) -> dict[str, Any]:
        if mode != "train":
            return {}
        return self._settings if feed.source == "uint8" else {**self._settings, "augment": None}

    def _program(self, mode: str, size: int, feed: Feed) -> Program:
        return self.engine().program(mode, size, feed, **self._mode(mode, feed))

    # Epochs ---------------------------------------------------------------------------------------------

    def fit(
        self,
        data: Dataset | tuple[np.ndarray, np.ndarray],
        epochs: int = 10,
        *,
        steps: int | None = None,
        val_size: int | None = None,
    ) -> Iterator[EpochRecord]:
        """Train, one record an epoch.

        data       a data set, or (images uint8 (N, C, H, W), labels); the model's normalisation is taken from it
        steps      train so many steps instead of ``epochs``; the last epoch may be partial
        val_size   images set apart for validation, stratified by class; a tenth, at most 5,000, if None
        Raises DivergedError when a loss is not finite.
        """
        if isinstance(data, Dataset):
            images, labels = data.train_images, data.train_labels
        else:
            images = check_images(data[0], self.model.graph)
            labels = check_labels(data[1], len(images), self.model.graph)
        if images.dtype != np.uint8:
            raise ValueError("fit trains on uint8 images; pass normalised float32 batches to step")
        if val_size is None:
            val_size = min(5000, len(images) // 10)
        train, val = split(labels, val_size, self.seed)
        self.model.set_normalization(*channel_statistics(images, train))
        fit = Fit(self, Feed(images, labels), train, val, epochs, steps)
        while not fit.done:
            while not fit.epoch_done:
                fit.step()
            yield fit.end_epoch()


class Fit:
    """One course of training over a data set, step by step; ``cursor`` and the arenas are its whole state.

    feed          the resident data set
    train, val    (n,) int64, which of its images to train on and to validate with; ``val`` may be empty
    epochs, steps how long: ``steps`` counts if it is given
    """

    def __init__(
        self,
        trainer: Trainer,
        feed: Feed,
        train: np.ndarray,
        val: np.ndarray,
        epochs: int | None,
        steps: int | None,
    ):
        if trainer.batch_size > len(train):
            raise ConfigError(
                f"batch size {trainer.batch_size} is larger than the {len(train)} training images; use a smaller one"
            )
        self.trainer, self.feed, self.train, self.val = trainer, feed, train, val
        self.cursor = Cursor()
        self.steps_per_epoch = math.ceil(len(train) / trainer.batch_size)
        self.total = steps if steps is not None else (epochs or 1) * self.steps_per_epoch
        warmup = trainer.warmup or 0.0
        self.lr = Schedule(trainer.schedule, trainer.optimizer.lr, self.total, round(warmup * self.steps_per_epoch))
        self._order: tuple[int, np.ndarray] = (-1, train)
        self._seconds = 0.0

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
        """Train the next batch; returns its mean loss. DivergedError if that is not finite."""
        begun, at, size = time.perf_counter(), self.cursor, self.trainer.batch_size
        index = self._shuffled(at.epoch)[at.batch * size : (at.batch + 1) * size]
        self.trainer.optimizer.t = at.step
        loss, right = self.trainer.train_batch(self.feed, index, at.epoch, self.lr(at.step))
        if not math.isfinite(loss):
            raise DivergedError(f"the loss is {loss} at step {at.step + 1} (epoch {at.epoch + 1})")
        at.batch, at.step = at.batch + 1, at.step + 1
        at.loss_sum, at.right = at.loss_sum + loss * len(index), at.right + right
        self._seconds += time.perf_counter() - begun
        return loss

    def end_epoch(self) -> EpochRecord:
        """Validate and begin the next epoch. DivergedError if parameters or validation loss are not finite."""
        begun, at = time.perf_counter(), self.cursor
        self.check_finite()
        val = self.trainer.evaluate_feed(self.feed, self.val) if len(self.val) else Evaluation(math.nan, math.nan)
        if len(self.val) and not math.isfinite(val.loss):
            raise DivergedError(f"the validation loss is {val.loss} after step {at.step} (epoch {at.epoch + 1})")
        trained = min(at.batch * self.trainer.batch_size, len(self.train))
        record = EpochRecord(
            epoch=at.epoch + 1,
            step=at.step,
            lr=self.lr(at.step - 1),
            train_loss=at.loss_sum / trained,
            train_accuracy=at.right / trained,
            val_loss=val.loss,
            val_accuracy=val.accuracy,
            samples_per_second=trained / self._seconds if self._seconds else 0.0,
            seconds=self._seconds + time.perf_counter() - begun,
        )
        self.cursor = Cursor(epoch=at.epoch + 1, step=at.step)
        self._seconds = 0.0
        return record

    def check_finite(self) -> None:
        """DivergedError if a parameter is not finite: such parameters must not reach a checkpoint."""
        if not np.isfinite(self.trainer.model.parameters.flat).all():
            raise DivergedError(f"parameters are not finite after step {self.cursor.step}")

    # What a checkpoint needs ----------------------------------------------------------------------------

    def tensors(self) -> dict[str, np.ndarray]:
        """The optimiser's moments, ``optimizer/m/NAME`` ..., in public layouts; with the model's own, all there is."""
        model = self.trainer.model
        return {
            f"optimizer/{moment.lower()}/{name}": tensor
            for moment, arena in self.trainer.moments.items()
            for name, tensor in model.to_public(arena.views).items()
        }

    def metadata(self) -> dict[str, Any]:
        """Where training stands, as JSON."""
        return {
            "cursor": asdict(self.cursor),
            "step": self.cursor.step,
            "optimizer": self.trainer.optimizer.name,
        }

    def restore(self, tensors: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
        """Go on from what another course told; KeyError, ValueError or TypeError if that is something else."""
        model = self.trainer.model
        for moment, arena in self.trainer.moments.items():
            prefix = f"optimizer/{moment.lower()}/"
            arena.load(model.to_kernel({name: tensors[prefix + name] for name in arena.views}))
        self.cursor = Cursor(**metadata["cursor"])
        self.trainer.optimizer.t = self.cursor.step

    def _shuffled(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            order = np.random.default_rng([self.trainer.seed, epoch]).permutation(self.train)
            self._order = epoch, order
        return self._order[1]


def _sizes(count: int, batch: int) -> set[int]:
    """The batch sizes that ``count`` images fall into."""
    return {min(batch, count), count % batch or min(batch, count)} if count else set()


def _optimizer(optimizer: str | Optimizer, lr: float | None) -> Optimizer:
    if isinstance(optimizer, Optimizer):
        if lr is not None:
            raise ValueError("an optimiser has its own lr; give lr only with an optimiser's name")
        return optimizer
    if optimizer not in OPTIMIZERS:
        raise ConfigError(f"no optimizer is called {optimizer!r}; use one of {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[optimizer](lr=lr)  # type: ignore[call-arg]

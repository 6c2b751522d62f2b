"""Training: one step at a time, or epochs over a data set. No files, no terminal: that is ``training.py``."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastadam.arena import Arena
from fastadam.augment import USUAL_SIDE, Augment
from fastadam.averages import Average, Ema, Extrapolated, Lookahead, Swa
from fastadam.checks import finite, positive, whole
from fastadam.config import choose_val_size
from fastadam.data import Dataset, channel_statistics, split
from fastadam.device import get_device
from fastadam.engine import Engine, Evaluation, Feed
from fastadam.fit import EpochRecord, Fit
from fastadam.kernels import rules
from fastadam.model import Model, check_images, check_labels
from fastadam.optim import Optimizer, ScheduleFree, make
from fastadam.optim.groups import ParamGroup
from fastadam.planner import ASCENTS, DECAYS
from fastadam.schedule import GAMMA, MILESTONES, Schedule, average_kind, check_sam, check_schedule, milestone_steps

BN_MOMENTUM = 0.1
"""Share of a batch in the running statistics, as in PyTorch."""


class Trainer:
    """Trains ``model`` in place.

    optimizer         a name of ``fastadam.optim.OPTIMIZERS``, or an optimiser with its settings, which may change
                      between steps; its lr is what a course of ``fit`` finds as it begins
    lr                learning rate for an optimiser given by name; its default if None
    batch_size        images a step of ``fit``; the last, smaller batch of an epoch is trained too
    accumulate        so many batches make a step: their gradients are added up, then the parameters updated;
                      ``step`` divides the batch it is given into as many
    schedule, warmup  course of the rate over ``fit`` (see ``fastadam.schedule``), warmup in epochs
    milestones, gamma of the schedule "step": fractions of the run below 1, else epochs; factor of the rate
    augment           of uint8 images: some of "flip", "crop", "cutout", or one text such as "flip,crop"; of an
                      image's short side, shifts are up to an eighth, holes a half wide and high
    centralize        the gradient of each output's weights is freed of its mean (Yong et al. 2020); before clipping
    clip_agc          adaptive gradient clipping (Brock et al. 2021): the gradient of what makes one output, and of
                      each vector, is scaled to this share of the norm of its parameters where it is longer; not in
                      the last layer; 0.01, say
    clip_norm         gradients are scaled to this global norm where theirs is greater, after the two above
    decay             what weight decay is for: "weights" of convolutions and linear layers, or "all" parameters,
                      biases and norms too, as PyTorch has it
    ema               decay of an average of the weights, such as 0.999; ``fit`` and ``evaluate`` validate the average,
                      ``averaged_state_dict`` gives it, and the model has the weights that are trained
    swa               the epoch of ``fit`` from which on the weights at the ends of epochs are averaged (Izmailov et al.
                      2018) and the average is validated
    lookahead         so many steps after each other start from slow weights, which then go half the way to where the
                      steps have led (Zhang et al. 2019); ``fit`` validates these
    sam               sharpness-aware minimization (Foret et al. 2021): each step is by the gradient taken at this
                      distance uphill, 0.05 say, on the same batch as the first; twice the work
    seed              of shuffling, augmentation, dropout, validation images and random rounding: equal seeds give equal
                      bits, for any ``threads``
    device, threads   where to compute: "auto", "cpu", "cuda", "cuda:1"; CPU threads default to all cores
    precision         of a GPU's matrix products: "float32", "tf32" or "bf16"

    ``t`` counts the steps taken, ``epochs`` the epochs.
    """

    def __init__(
        self,
        model: Model,
        optimizer: str | Optimizer = "adamw",
        lr: float | None = None,
        *,
        batch_size: int = 128,
        accumulate: int = 1,
        schedule: str = "constant",
        warmup: float | None = None,
        milestones: Sequence[float] = MILESTONES,
        gamma: float = GAMMA,
        augment: Sequence[str] = (),
        label_smoothing: float = 0.0,
        centralize: bool = False,
        clip_agc: float | None = None,
        clip_norm: float | None = None,
        decay: str = "weights",
        ema: float | None = None,
        swa: int | None = None,
        lookahead: int | None = None,
        sam: float | None = None,
        seed: int = 0,
        device: str = "auto",
        threads: int | None = None,
        precision: str = "float32",
    ):
        if not isinstance(model, Model):
            raise TypeError(f"model must be one of fastadam.models.build or fastadam.load, it is {_kind(model)}")
        self.model, self.batch_size = model, whole("batch_size", batch_size, 1)
        self.seed = whole("seed", seed, -(2**63), 2**63 - 1)
        self.accumulate = whole("accumulate", accumulate, 1)
        self.optimizer = _optimizer(optimizer, lr, seed)
        self.group = ParamGroup(self.optimizer, {}, {})  # its settings as they are, and the course's own
        self.schedule, self.warmup = Schedule(schedule, self.optimizer.lr, 1).kind, warmup
        self.milestones, self.gamma = _numbers("milestones", milestones), gamma
        milestone_steps(self.milestones, 1, 1)
        if warmup is not None and finite("warmup", warmup) < 0:
            raise ValueError(f"warmup must not be negative, it is {warmup}")
        if not 0 < finite("gamma", gamma) <= 1:
            raise ValueError(f"gamma must be above 0 and at most 1, it is {gamma}")
        if decay not in DECAYS:
            raise ValueError(f"decay must be one of {', '.join(DECAYS)}, it is {decay!r}")
        if not 0 <= finite("label_smoothing", label_smoothing) < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, it is {label_smoothing}")
        check_schedule(self.optimizer.name, schedule)
        if schedule != "step" and (self.milestones, gamma) != (tuple(MILESTONES), GAMMA):
            raise ValueError(f"milestones and gamma have no meaning for schedule {schedule}; they are those of step")
        for name, limit in (("clip_agc", clip_agc), ("clip_norm", clip_norm), ("sam", sam)):
            if limit is not None:
                positive(name, limit)
        if ema is not None:
            finite("ema", ema)
        if not isinstance(centralize, (bool, np.bool_)):
            raise TypeError(f"centralize must be true or false, it is {centralize!r}")
        self.settings = training_settings(
            self.optimizer.rule, augment, label_smoothing, clip_norm, decay, ema, centralize, clip_agc,
            self.optimizer.constants, swa=swa, lookahead=lookahead, sam=sam, side=min(model.graph.input_shape[:2]),
        )  # fmt: skip
        self.device = get_device(device, threads, precision)
        dtype = rules.MOMENT_DTYPES.get(self.optimizer.rule, "float32")
        self.moments = {name.upper(): Arena(model.graph.trained(), dtype=dtype) for name in self.optimizer.moment_names}
        self._gradients = {"GRAD": Arena(model.graph.trained())}
        if accumulate > 1:
            self._gradients["SUM"] = Arena(model.graph.trained())
        check_sam(sam, accumulate)
        if sam is not None:
            self._gradients["ASCENT"] = Arena(model.graph.trained())
        self.average: Average | None = None
        self.swa, self.lookahead = swa, lookahead
        if isinstance(self.optimizer, ScheduleFree):
            self.average = Extrapolated(model, self.device, self.moments["Z"], self.optimizer)
        elif ema is not None:
            self.average = Ema(model, self.device, ema)
        elif swa is not None:
            self.average = Swa(model, self.device, swa)
        elif lookahead is not None:
            self.average = Lookahead(model, self.device, lookahead)
        self._engine: Engine | None = None
        self.t = self.epochs = 0
        self._begin()

    def __getstate__(self) -> dict[str, Any]:
        """For copies, which make programs of their own."""
        return {**self.__dict__, "_engine": None}

    # One step -------------------------------------------------------------------------------------------

    def step(self, images: np.ndarray, labels: np.ndarray) -> float:
        """One whole step on a batch: forward, mean loss, backward, update. Returns the loss before the update.

        images   (N, C, H, W) uint8, augmented as the trainer is set, or float32, already normalised
        labels   (N,) integers
        """
        images = check_images(images, self.model.graph)
        labels = check_labels(labels, len(images), self.model.graph)
        with self.device.running():
            index = np.array_split(np.arange(len(images)), min(self.accumulate, len(images)))
            return self._train(self._in_rooms(images, labels, index), len(index), len(images), self.optimizer.lr)[0]

    def _in_rooms(
        self, images: np.ndarray, labels: np.ndarray, index: Sequence[np.ndarray]
    ) -> Iterator[tuple[Feed, np.ndarray, int]]:
        """Parts of a batch as ``_train`` takes them, each put into a room when its turn has come."""
        if images.dtype == np.uint8:
            feed = self.engine().room(images, labels)
            yield from ((feed, part, self.t) for part in index)
        else:  # plans read them whole; the key goes on, so that dropout differs from part to part
            for number, part in enumerate(index):
                span = slice(part[0], part[-1] + 1)
                feed = self.engine().room(images[span], labels[span])
                yield feed, np.arange(len(part)), self.t * self.accumulate + number

    def train_batch(self, feed: Feed, index: np.ndarray, epoch: int, lr: float) -> tuple[float, int]:
        """One step on the images ``index`` of a feed at the rate ``lr``: (mean loss, number classified right)."""
        size = self.batch_size
        parts = [(feed, index[start : start + size], epoch) for start in range(0, len(index), size)]
        return self._train(parts, len(parts), len(index), lr)

    def _train(
        self, batches: Iterable[tuple[Feed, np.ndarray, int]], count: int, total: int, lr: float
    ) -> tuple[float, int]:
        """One step on ``count`` micro-batches (feed, index, epoch of the key) of ``total`` images in all.

        By SAM on one, twice; its second pass leaves loss and running statistics to the first.
        """
        loss, right, t, hyper = 0.0, 0, self.t + 1, self._made().decay_rows(self.t + 1, lr)
        self._begin()
        share = self.average.share(t) if self.average else 0.0
        parts = parts_of(count, self.settings["sam"])
        if self.settings["sam"]:
            batches = list(batches) * 2
        for part, (feed, index, epoch) in zip(parts, batches, strict=True):
            again = part == "descent"
            loss_of_part, right_of_part = self.engine().run(
                "train", feed, index, key=(self.seed, epoch), momentum=0.0 if again else BN_MOMENTUM, total=total,
                hyper=hyper, share=share,
                **self.settings_for(feed, part),
            )["loss"]  # fmt: skip
            if not again:
                loss, right = loss + float(loss_of_part), right + int(right_of_part)
        self.t = t
        if self.average:
            self.average.after_step(t)
        return loss, right

    def _made(self) -> Optimizer:
        """The optimiser as its settings are now. ValueError for such as make no sense, or ask for another rule."""
        _refuse_warmup(self.optimizer)
        return self.group.made()

    def _begin(self) -> None:
        """What starts as the parameters does so until the first step: the model may be given other weights."""
        if self.t:
            return
        for moment in rules.BEGIN_AS_PARAMETERS.get(self.optimizer.rule, ()):
            self.moments[moment.upper()].flat[:] = self.model.parameters.flat
        if self.average:
            self.average.begin()

    def averaged_state_dict(self) -> dict[str, np.ndarray]:
        """The averaged weights, with the running statistics they are validated with: for ``load_state_dict``.

        Copies, in names and layouts as the model's ``state_dict``. ValueError where there is no average, or none yet.
        """
        if not self.average:
            raise ValueError("this trainer keeps no average of the weights; make it with ema=0.999, say")
        if not self.average.ready:
            raise ValueError("no epoch has been averaged yet; train on, or make the trainer with a smaller swa")
        self._settle_average()
        return self.model.to_public(self.average.weights.views | self.average.state.views)

    def evaluate(self, images: np.ndarray, labels: np.ndarray) -> Evaluation:
        """Loss and accuracy with running statistics and no augmentation; arguments as ``step``.

        Of the averaged weights, if there are such, with the statistics that ``fit`` made for them; before it has, with
        the model's own.
        """
        images = check_images(images, self.model.graph)
        labels = check_labels(labels, len(images), self.model.graph)
        parts, averaged = [], self.average is not None and self.average.ready
        if averaged:
            self._settle_average()
        for start in range(0, len(images), self.batch_size):
            part = slice(start, start + self.batch_size)
            count = len(labels[part])
            with self.device.running():
                room = self.engine().room(images[part], labels[part])
                one = self.engine().evaluate(room, np.arange(count), count, averaged=averaged)
            parts.append((one.loss * count, one.accuracy * count))
        loss, right = np.sum(parts, 0) / len(images)
        return Evaluation(float(loss), float(right))

    def _settle_average(self) -> None:
        """The average as it is validated: until ``fit`` has made statistics for it, with the model's own."""
        assert self.average
        self._begin()
        self.average.settle()
        if not self.epochs:
            self.average.state.flat[:] = self.model.state.flat

    def engine(self) -> Engine:
        """The programs of this trainer; made anew when the model's normalisation has changed."""
        model = self.model
        if self._engine is None or not self._engine.normalizes_by(model.mean, model.std):
            arenas = {"PARAM": model.parameters, "STATE": model.state}
            arenas |= self._gradients | self.moments | (self.average.arenas if self.average else {})
            self._engine = Engine(model.graph, self.device, arenas, model.mean, model.std)
        return self._engine

    def settings_for(self, feed: Feed, part: str | None) -> dict[str, Any]:
        """What a training plan on this feed is made with: float32 images are taken as they are."""
        settings = {**self.settings, "constants": self._made().constants}
        return plan_settings(settings if feed.source == "uint8" else {**settings, "augment": None}, part)

    # Epochs ---------------------------------------------------------------------------------------------

    def fit(
        self,
        data: Dataset | tuple[np.ndarray, np.ndarray],
        epochs: int = 10,
        *,
        steps: int | None = None,
        val_size: int | None = None,
    ) -> Iterator[EpochRecord]:
        """Train, one record an epoch: as they are asked for, so that nothing is trained until the first one is.

        data       a data set, or (images uint8 (N, C, H, W), labels); the model's normalisation is taken from it, and
                   from a data set the names of its classes
        steps      train so many steps instead of ``epochs``; the last epoch may be partial
        val_size   images set apart for validation, stratified by class; as ``fastadam train`` does if None
        A second call goes on: the moments and their step count are kept, the schedule begins again.
        Raises DivergedError when a loss, a parameter, a running statistic or a moment is not finite.
        """
        names = data.classes if isinstance(data, Dataset) else None
        if isinstance(data, Dataset):
            data = data.train_images, data.train_labels
        if not isinstance(data, (tuple, list)) or len(data) != 2:
            raise TypeError(f"data must be a data set or a pair (images, labels), it is {_kind(data)}")
        images = check_images(data[0], self.model.graph)
        labels = check_labels(data[1], len(images), self.model.graph)
        if images.dtype != np.uint8:
            raise ValueError("fit trains on uint8 images; pass normalised float32 batches to step")
        if steps is None:
            epochs = whole("epochs", epochs, 1)
        else:
            steps = whole("steps", steps, 1)
        if val_size is not None:
            val_size = whole("val_size", val_size)
        train, val = split(labels, choose_val_size(val_size, len(images)), self.seed)
        return self._epochs(Feed(images, labels), train, val, None if steps is not None else epochs, steps, names)

    def _epochs(
        self, feed: Feed, train: np.ndarray, val: np.ndarray, epochs: int | None, steps: int | None,
        names: tuple[str, ...] | None,
    ) -> Iterator[EpochRecord]:  # fmt: skip
        fit = Fit(self, feed, train, val, epochs, steps)
        self.model.set_normalization(*channel_statistics(feed.images, train))
        if names is not None and len(names) == self.model.graph.classes:
            self.model.classes = names
        while not fit.done:
            while not fit.epoch_done:
                fit.step()
            yield fit.end_epoch()


def _kind(value: Any) -> str:
    """What to call something that is of the wrong type."""
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, (tuple, list)) else type(value).__name__


def _numbers(name: str, values: Iterable[float]) -> tuple[float, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be numbers, it is {values!r}")
    return tuple(finite(f"each of {name}", value) for value in values)


def parts_of(count: int, sam: float | None = None) -> list[str | None]:
    """What plans call the gradients of a step: of its ``count`` micro-batches, or the two of SAM."""
    if sam is not None:
        return list(ASCENTS)
    return ["first", *["next"] * (count - 2), "last"] if count > 1 else [None]


def training_settings(
    optimizer: str, augment: Sequence[str], label_smoothing: float, clip_norm: float | None, decay: str,
    ema: float | None, centralize: bool = False, clip_agc: float | None = None,
    constants: tuple[tuple[str, Any], ...] = (), swa: int | None = None, lookahead: int | None = None,
    sam: float | None = None, side: int = USUAL_SIDE,
) -> dict[str, Any]:  # fmt: skip
    """Settings of the training plans of a ``Trainer`` that is made with these; ``side``: the short one of images."""
    return {
        "augment": Augment.named(augment, side),
        "smoothing": label_smoothing,
        "update": optimizer,
        "centralize": bool(centralize),
        "clip_agc": clip_agc,
        "constants": constants,
        "clip_norm": clip_norm,
        "decay": decay,
        "sam": sam,
        "ema": ema is not None,
        "average": average_kind(optimizer, ema=ema, swa=swa, lookahead=lookahead) is not None,
    }


def plan_settings(settings: Mapping[str, Any], part: str | None) -> dict[str, Any]:
    """Settings of a training plan for one part of a step: only a whole step and the last part have an update."""
    if part in ("first", "next", "ascent"):
        none = dict.fromkeys(("update", "clip_agc", "clip_norm"))
        settings = {**settings, **none, "centralize": False, "ema": False, "average": False}
    return {**settings, "part": part}


def _optimizer(optimizer: str | Optimizer, lr: float | None, seed: int) -> Optimizer:
    if isinstance(optimizer, Optimizer):
        _refuse_warmup(optimizer)
        if lr is not None:
            raise ValueError("an optimiser has its own lr; give lr only with an optimiser's name")
        if optimizer.params or optimizer.t:
            raise ValueError("a trainer keeps parameters and moments itself; pass an optimiser made without parameters")
        return optimizer
    return make(optimizer, seed, lr=lr)


def _refuse_warmup(optimizer: Optimizer) -> None:
    if isinstance(optimizer, ScheduleFree) and optimizer.warmup_steps:
        raise ValueError("a trainer warms up by epochs: pass warmup to it, and no warmup_steps to the optimiser")

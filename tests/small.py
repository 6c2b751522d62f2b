"""Networks and data small enough to train in a blink."""

from pathlib import Path

import numpy as np
import pytest

from fastadam import architectures, training
from fastadam.config import TrainConfig
from fastadam.data import channel_statistics
from fastadam.engine import Feed
from fastadam.fit import Fit
from fastadam.graph import Graph, Node
from fastadam.model import Model
from fastadam.trainer import Trainer


def small_model(seed: int = 0) -> Model:
    """A network of 1,700 parameters on images of 8 x 8."""
    model = Model(architectures.cnn(4, (8, 8, 3), width=4, hidden=12), {"name": "small"})
    model.initialize(seed)
    return model


def small_data(count: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images whose class is their brightest quarter."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 120, (count, 3, 8, 8), dtype=np.uint8)
    labels = np.arange(count) % 4
    for image, label in zip(images, labels, strict=True):
        top, left = divmod(int(label), 2)
        image[:, 4 * top : 4 * top + 4, 4 * left : 4 * left + 4] += 100
    return images, labels


def norm_model(dropout: float = 0.0) -> Model:
    """A small network with batch norms, one of them after a biased convolution, and dropout."""
    nodes = [Node("input", "x", (), {"shape": (8, 8, 3)})]

    def add(op: str, name: str, **attrs: object) -> None:
        nodes.append(Node(op, name, (nodes[-1].name,), attrs))

    add("conv", "c1", out=6, kernel=3, stride=1, pad=1, bias=True)
    add("bn", "b1")
    add("relu", "r1")
    add("maxpool", "p1")
    add("conv", "c2", out=8, kernel=3, stride=1, pad=1, bias=False)
    add("bn", "b2")
    add("relu", "r2")
    add("avgpool", "g")
    if dropout:
        add("dropout", "d", p=dropout)
    add("linear", "fc", out=4, bias=True)
    model = Model(Graph(nodes), {"name": "norms"})
    model.initialize(0)
    return model


def course(model: Model, epochs: int = 2, **settings: object) -> Fit:
    """Two epochs, unless told otherwise, of 80 images, 24 a step unless told otherwise; 20 images validate."""
    images, labels = small_data(100)
    model.set_normalization(*channel_statistics(images, np.arange(80)))
    trainer = Trainer(model, **{"optimizer": "adam", "lr": 0.01, "batch_size": 24, **settings})
    return Fit(trainer, Feed(images, labels.astype(np.int32)), np.arange(80), np.arange(80, 100), epochs, None)


class Stop(BaseException):
    """What a test throws into a run, in place of a kill."""


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    real, count = Fit.step, [0]

    def step(self: Fit) -> float:
        if count[0] == steps:
            raise Stop
        count[0] += 1
        return real(self)

    monkeypatch.setattr(Fit, "step", step)


def resumes(config: TrainConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, after: int = 4) -> None:
    """A run that stops after so many steps and goes on writes the checkpoints of the one in ``folder / "run"``."""
    with monkeypatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
        stop_after(patch, after)
        with pytest.raises(Stop):
            training.run_training(config, out=folder / "cut")
    training.run_training(TrainConfig(), resume=folder / "cut")
    for name in ("best.safetensors", "last.safetensors"):
        assert (folder / "cut" / name).read_bytes() == (folder / "run" / name).read_bytes()

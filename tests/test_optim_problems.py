"""The optimisers come to the known ends of problems, and train a network."""

from typing import Any

import numpy as np
import pytest
from scipy.optimize import check_grad

from fastadam import data, models
from fastadam.optim import OPTIMIZERS
from fastadam.trainer import Trainer

# Problems with a known end -----------------------------------------------------------------------------------


def rosenbrock(x: np.ndarray) -> float:
    """A bent valley, flat along its bottom: 0 at (1, 1)."""
    return float((1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2)


def rosenbrock_gradient(x: np.ndarray) -> np.ndarray:
    across = x[1] - x[0] ** 2
    return np.array([-2 * (1 - x[0]) - 400 * x[0] * across, 200 * across])


CURVATURES = np.array([1.0, 10.0, 100.0])


def bowl(x: np.ndarray) -> float:
    """A quadratic with three curvatures: 0 where all are one."""
    return float((CURVATURES * (x - 1) ** 2).sum() / 2)


def bowl_gradient(x: np.ndarray) -> np.ndarray:
    return CURVATURES * (x - 1)


@pytest.mark.parametrize(
    ("f", "df", "size"), [(rosenbrock, rosenbrock_gradient, 2), (bowl, bowl_gradient, 3)], ids=["rosenbrock", "bowl"]
)
def test_gradients_of_these_problems(f, df, size, rng):
    for x in rng.uniform(-2, 2, (20, size)):
        assert check_grad(f, df, x) < 1e-5 * max(1, np.linalg.norm(df(x)))


VALLEYS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 0.1},
    "adamw": {"lr": 0.1, "weight_decay": 0.0},  # with a decay the end is elsewhere
    "sgd": {"lr": 1e-3, "momentum": 0.9, "nesterov": True},
    "adamax": {"lr": 0.3},
    "nadam": {"lr": 0.03},
    "radam": {"lr": 3e-3, "beta2": 0.99},  # its first steps are plain gradients, of more than 200
    "adabelief": {"lr": 0.1},
    "adabound": {"lr": 0.02, "final_lr": 5e-3},
    "padam": {"lr": 0.05, "partial": 1 / 4},
    "adan": {"lr": 0.01},
    "lion": {"lr": 1e-3},
    "lamb": {"lr": 0.01, "weight_decay": 0.0},
    "lars": {"lr": 0.01, "momentum": 0.5, "trust_coefficient": 1.0, "weight_decay": 0.0},
    "schedulefree": {"lr": 0.3, "beta1": 0.99, "beta2": 0.99},
    "adamw_bf16": {"lr": 0.1, "weight_decay": 0.0},
    "muon": {"adamw_lr": 0.1, "weight_decay": 0.0},  # AdamW has what is no matrix
}
"""Settings to find the end of the valley with."""

BOWLS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 0.3},
    "adamw": {"lr": 0.3, "weight_decay": 0.0},
    "sgd": {"lr": 5e-3, "momentum": 0.9},
    "adamax": {"lr": 0.3},
    "nadam": {"lr": 0.1},
    "radam": {"lr": 5e-3, "beta2": 0.99},
    "adabelief": {"lr": 0.1},
    "adabound": {"lr": 0.1, "final_lr": 1e-2},
    "padam": {"lr": 0.1},
    "adan": {"lr": 0.1},
    "lion": {"lr": 0.03},
    "lamb": {"lr": 0.01, "weight_decay": 0.0},
    "lars": {"lr": 0.01, "momentum": 0.5, "trust_coefficient": 1.0, "weight_decay": 0.0},
    "schedulefree": {"lr": 0.3, "beta2": 0.99},
    "adamw_bf16": {"lr": 0.3, "weight_decay": 0.0},
    "muon": {"adamw_lr": 0.3, "weight_decay": 0.0},
}


def descend(name: str, chosen: dict[str, Any], df: Any, start: Any, count: int) -> np.ndarray:
    """Where ``count`` steps lead, at a rate that falls to zero in a straight line."""
    x = np.array(start, np.float32)
    optimizer = OPTIMIZERS[name]({"x": x}, **chosen)
    highest = optimizer.lr
    for step in range(count):
        optimizer.lr = highest * (1 - step / count)
        optimizer.step({"x": df(x.astype(np.float64)).astype(np.float32)})
    return x


@pytest.mark.parametrize("start", [(-1.2, 1.0), (0.0, 0.0)], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_finds_the_end_of_rosenbrocks_valley(name, start):
    """At the bottom, of curvature 0.4, rounding x by ULP turns the gradient by up to 600 ULP: 1e-4 is what is left."""
    assert np.abs(descend(name, VALLEYS[name], rosenbrock_gradient, start, 10_000) - 1).max() < 1e-4


@pytest.mark.parametrize("start", [(-1.0, 2.0, 5.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_finds_the_bottom_of_a_bowl(name, start):
    assert np.abs(descend(name, BOWLS[name], bowl_gradient, start, 2000) - 1).max() < 2e-4


# A real network ----------------------------------------------------------------------------------------------

CLASSIFIERS: dict[str, dict[str, Any]] = {
    "adam": {},
    "adamw": {},
    "sgd": {"lr": 0.02, "momentum": 0.9},
    "adamax": {},
    "nadam": {"lr": 1e-3},
    "radam": {},
    "adabelief": {},
    "adabound": {},
    "padam": {"lr": 0.02},
    "adan": {"lr": 2e-3},
    "lion": {},
    "lamb": {"lr": 0.01},
    "lars": {"lr": 0.02, "trust_coefficient": 0.3},
    "schedulefree": {},
    "adamw_bf16": {},
    "muon": {"lr": 0.02},
}
"""Settings to train a network with, where the defaults are not the best."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "chosen"), [*CLASSIFIERS.items(), ("adam", {"amsgrad": True})], ids=str)
def test_trains_a_network(name, chosen):
    """``cnn`` on shapes and textures, 3,900 images: of 1,000 others, soon more than 85 % are classified right."""
    dataset = data.synthetic.generate(train=4000, test=1000)
    trainer = Trainer(models.build("cnn", seed=0), OPTIMIZERS[name](None, **chosen), batch_size=32, device="cpu")
    accuracies = []
    for record in trainer.fit(dataset, epochs=10, val_size=100):
        accuracies.append(trainer.evaluate(dataset.test_images, dataset.test_labels).accuracy)
        print(f"{trainer.optimizer}: epoch {record.epoch}, test accuracy {accuracies[-1]:.1%}")
        if accuracies[-1] > 0.85:
            break
    assert accuracies[-1] > 0.85, accuracies

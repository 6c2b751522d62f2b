"""The optimisers with all their flags, and how the tests walk with one of them."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastadam.bfloat16 import widened
from fastadam.optim import OPTIMIZERS, Optimizer

ULP = 2.0**-24
"""Half a unit in the last place of a float32 of size one: what rounding a number is off at the most."""

RULES = [("adam", {"amsgrad": True}), *((name, {}) for name in OPTIMIZERS), ("sgd", {"momentum": 0.9})]
"""Every optimiser, and those with what else it may keep."""


def walk(
    name: str, start: Any, gradients: Any, chosen: dict[str, Any] | None = None, t: int = 0
) -> tuple[np.ndarray, Optimizer]:
    """Where these gradients take an array from ``start``, and the optimiser that did it; ``t`` steps are behind it."""
    p = np.array(start, np.float32)
    optimizer = OPTIMIZERS[name]({"p": p}, **(chosen or {}))
    optimizer.t = t
    for g in gradients:
        optimizer.step({"p": np.array(g, np.float32)})
    return p, optimizer


def kept_of(optimizer: Optimizer) -> dict[str, np.ndarray]:
    """What the rule keeps of the only array, in float32."""
    kept = {moment: arrays["p"] for moment, arrays in optimizer.moments.items()}
    return {moment: widened(array) if array.dtype == np.uint16 else array for moment, array in kept.items()}


@dataclass(frozen=True)
class Combination:
    """An optimiser with a choice of its flags and numbers."""

    name: str
    chosen: dict[str, Any]

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={value:g}" for key, value in self.chosen.items())])


BOTH = (False, True)
FLAGS: dict[str, dict[str, tuple[Any, ...]]] = {
    "adam": {"amsgrad": BOTH},
    "adamw": {"amsgrad": BOTH},
    "sgd": {"momentum": (0.0, 0.9), "dampening": (0.0, 0.3), "nesterov": BOTH},
    "adamax": {},
    "nadam": {"momentum_decay": (0.0, 4e-3, 0.1), "decoupled_weight_decay": BOTH},
    "radam": {"decoupled_weight_decay": BOTH},
    "adabelief": {"decoupled_weight_decay": BOTH},
    "adabound": {"gamma": (1e-3, 0.1), "decoupled_weight_decay": BOTH},
    "padam": {"partial": (1 / 16, 1 / 8, 7 / 16, 1 / 2), "decoupled_weight_decay": BOTH},
    "adan": {},
    "lion": {},
    "lamb": {},
    "lars": {"lr": (5.0,), "momentum": (0.0, 0.9)},
    "schedulefree": {"warmup_steps": (0, 5)},
    "adamw_bf16": {},
    "muon": {"momentum": (0.0, 0.95), "nesterov": BOTH, "ns_steps": (1, 5)},
}


def combinations() -> Iterator[Combination]:
    """Every one that makes sense, with weight decay and without."""
    for name, flags in FLAGS.items():
        values = {"lr": (1e-2,), "weight_decay": (0.0, 0.1), **flags}
        for choice in itertools.product(*values.values()):
            chosen = dict(zip(values, choice, strict=True))
            if not chosen.get("nesterov") or (chosen["momentum"] and not chosen.get("dampening")):
                yield Combination(name, chosen)


COMBINATIONS = tuple(combinations())

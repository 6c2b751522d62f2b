"""The optimisers by name."""

from typing import Any

from fastadam.errors import ConfigError
from fastadam.optim.adam import Adam, Adamax, AdamW, NAdam, RAdam
from fastadam.optim.adamw_bf16 import AdamWBF16
from fastadam.optim.base import Optimizer
from fastadam.optim.layerwise import LAMB, LARS
from fastadam.optim.muon import Muon
from fastadam.optim.schedulefree import ScheduleFree
from fastadam.optim.sgd import SGD
from fastadam.optim.variants import AdaBelief, AdaBound, Adan, Lion, Padam
from fastadam.setting import nearest

OPTIMIZERS: dict[str, type[Optimizer]] = {
    c.name: c
    for c in (
        Adam, AdamW, SGD, Adamax, NAdam, RAdam, AdaBelief, AdaBound, Padam, Adan, Lion, LAMB, LARS, ScheduleFree,
        AdamWBF16, Muon,
    )
}  # fmt: skip
"""Optimisers by the name the command line gives them."""


def kind_of(name: str) -> type[Optimizer]:
    """The optimiser of this name; ConfigError, with the nearest one, if there is none."""
    if name not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
        raise ConfigError(f"no optimizer is called {name!r}; use one of {known}{nearest(str(name), OPTIMIZERS)}")
    return OPTIMIZERS[name]


def make(name: str, seed: int = 0, **settings: Any) -> Optimizer:
    """The optimiser of a run, without parameters: one that draws at random does so from the run's seed."""
    own = {"seed": seed} if name == AdamWBF16.name else {}
    return kind_of(name)(None, **own, **settings)

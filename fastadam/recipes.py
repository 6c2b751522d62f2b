"""Settings that a model is trained with unless told otherwise, and where they come from."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """Defaults of a model's training.

    settings   values by the name of the setting in ``fastadam.config.TrainConfig``
    source     where they come from
    """

    settings: Mapping[str, Any]
    source: str


WITH_OPTIMIZER = ("lr", "weight_decay", "momentum")
"""Settings of a recipe that mean something with its own optimizer only."""

WITH_SCHEDULE = ("warmup",)
"""Settings of a recipe that mean something with its own schedule only."""

GENERAL = Recipe(
    {
        "epochs": 10, "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01, "schedule": "cosine", "augment": (),
        "label_smoothing": 0.0, "dropout": 0.0,
    },
    "AdamW as PyTorch has it (rate 0.001, decay 0.01), a cosine to zero: a start for any net",
)  # fmt: skip

VGG = Recipe(
    {**GENERAL.settings, "lr": 3e-3, "weight_decay": 0.05, "schedule": "onecycle", "augment": ("flip", "crop")},
    "AdamW with one cycle of the rate up and down (Smith and Topin 2018), for few epochs; flips and shifts as in "
    "He et al. 2016, section 4.2",
)

RESNET = Recipe(
    {
        **GENERAL.settings, "epochs": 30, "optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4,
        "warmup": 1.0, "augment": ("flip", "crop"),
    },
    "SGD with the rate, momentum, batch and augmentation of He et al. 2016, section 4.2; decay of Zagoruyko and "
    "Komodakis 2016, section 3; one cosine (Loshchilov and Hutter 2017) in place of 164 epochs, after an epoch of "
    "warm-up (Goyal et al. 2017)",
)  # fmt: skip

RECIPES: dict[str, Recipe] = {
    "mlp": GENERAL,
    "cnn": GENERAL,
    "vgg": VGG,
    **{f"resnet{depth}": RESNET for depth in (20, 32, 44, 56, 50)},
}
"""Recipes by model."""


def recipe_of(model: str) -> Recipe:
    """The recipe of a model; the general one for a net from a file."""
    return RECIPES.get(model, GENERAL)


def in_words() -> str:
    """The recipes as options, for a terminal: whose it is, then a few lines of what is not off."""
    lines = []
    for recipe in dict.fromkeys(map(id, RECIPES.values())):
        models = [model for model, of in RECIPES.items() if id(of) == recipe]
        settings = RECIPES[models[0]].settings
        others = ["nets from files"] if RECIPES[models[0]] is GENERAL else []
        lines.append(", ".join(models + others) + ":")
        options = [_option(name, value) for name, value in settings.items() if value]
        lines += textwrap.wrap(" ".join(options), 72, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def _option(name: str, value: Any) -> str:
    """As on a command line; the space within is one that no line is broken at."""
    text = ",".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)
    return f"--{name.replace('_', '-')}\N{NO-BREAK SPACE}{text}"

"""Settings of a training run: the one place that knows each name, default, range and help text.

The command line, the TOML files and the environment variables are all generated from ``TrainConfig``, so a
new setting is a new field here. This module imports nothing heavy: ``fastadam --help`` is made from it.
"""

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastadam.augment import AUGMENTATIONS, CROP_PIXELS, CUTOUT_PIXELS
from fastadam.errors import ConfigError
from fastadam.schedule import SCHEDULES
from fastadam.setting import Kind, Setting, nearest, shown

MODELS = ("mlp", "cnn")
DATA_SETS = ("cifar10", "cifar100", "synthetic")
"""Data sets that have a name; anything else is a path."""


OPTIMIZER_SETTINGS = {
    "adam": ("beta1", "beta2", "eps"),
    "adamw": ("beta1", "beta2", "eps"),
    "sgd": ("momentum", "nesterov"),
}
"""What each optimizer takes besides ``lr`` and ``weight_decay``."""

DEFAULT_EPOCHS = 10
DEFAULT_VAL_SIZE = 5000

_MOST = 2**31 - 1  # of anything that is counted


def _setting(default: Any, kind: Kind, metavar: str, help: str, **rules: Any) -> Any:
    setting = Setting(kind=kind, help=help, metavar=metavar, **rules)
    return dataclasses.field(default=default, metadata={"setting": setting})


def _count(default: int | None, help: str, *, low: int = 1, high: int = _MOST, default_text: str | None = None) -> Any:
    return _setting(default, "count", "N", help, low=low, high=high, default_text=default_text)


def _number(default: float | None, help: str, *, metavar: str = "X", **rules: Any) -> Any:
    return _setting(default, "number", metavar, help, **rules)


def _choice(default: str, choices: tuple[str, ...], help: str) -> Any:
    return _setting(default, "choice", "|".join(choices), help, choices=choices)


@dataclass(frozen=True)
class TrainConfig:
    """Every setting of ``fastadam train``. None means: decided when the run starts (``resolved``).

    Values are checked, so an object that exists is valid; ConfigError names the setting, what was found
    and what it may be.
    """

    data: str | None = _setting(
        None,
        "text",
        "|".join(("PATH", *DATA_SETS)),
        "Folder or tar.gz with CIFAR-10 or CIFAR-100 in the binary version, or the name of a data set.",
        default_text="cifar10 if it is in the cache, else synthetic",
    )
    model: str = _choice("cnn", MODELS, "Network to train.")
    device: str = _setting("auto", "device", "auto|cpu|cuda|cuda:N", "Where to compute.")
    epochs: int | None = _count(
        None, "Passes over the training images.", default_text=f"{DEFAULT_EPOCHS}, if --steps is not given"
    )
    steps: int | None = _count(
        None,
        "Optimizer steps to take, instead of --epochs; the last epoch may be partial.",
        default_text="as --epochs says",
    )
    batch_size: int = _count(128, "Images a step.")
    optimizer: str = _choice("adamw", tuple(OPTIMIZER_SETTINGS), "Rule that updates the parameters.")
    lr: float | None = _number(
        None,
        "Learning rate, the highest of the schedule.",
        low=0,
        low_open=True,
        default_text="0.001; 0.1 for sgd",
    )
    beta1: float = _number(0.9, "Decay of the mean of gradients (adam, adamw).", low=0, high=1, high_open=True)
    beta2: float = _number(
        0.999, "Decay of the mean of squared gradients (adam, adamw).", low=0, high=1, high_open=True
    )
    eps: float = _number(1e-8, "Added to the divisor (adam, adamw).", low=0, low_open=True)
    weight_decay: float | None = _number(
        None,
        "Pull of the parameters towards zero: beside the gradient for adamw, within it for adam and sgd.",
        low=0,
        default_text="0.01 for adamw; 0",
    )
    momentum: float = _number(0.0, "Momentum of sgd.", low=0, high=1, high_open=True)
    nesterov: bool = _setting(False, "flag", "", "Use Nesterov's momentum (sgd).")
    schedule: str = _choice("cosine", SCHEDULES, "Course of the learning rate.")
    warmup: float | None = _number(
        None,
        "Epochs, fractions allowed, during which the learning rate rises to --lr at the start.",
        metavar="EPOCHS",
        low=0,
        default_text="0; 30 % of the run for onecycle",
    )
    augment: tuple[str, ...] = _setting(
        (),
        "list",
        "LIST",
        "Random changes of the training images, separated by commas: flip (left to right), crop (shift by up "
        f"to {CROP_PIXELS} pixels), cutout (blank {CUTOUT_PIXELS} x {CUTOUT_PIXELS}); or none.",
        choices=AUGMENTATIONS,
        default_text="none",
    )
    label_smoothing: float = _number(
        0.0, "Share of each target spread evenly over all classes.", low=0, high=1, high_open=True
    )
    clip_norm: float | None = _number(
        None,
        "Scale gradients down to this norm where theirs is greater.",
        low=0,
        low_open=True,
        default_text="off",
    )
    patience: int | None = _count(None, "Stop after N epochs without a better validation accuracy.", default_text="off")
    target_accuracy: float | None = _number(
        None,
        "Stop once the validation accuracy, a fraction from 0 to 1, reaches X.",
        low=0,
        low_open=True,
        high=1,
        default_text="off",
    )
    seed: int = _count(0, "Start of every random choice: equal seeds give equal bits.", low=0, high=2**63 - 1)
    threads: int | None = _count(
        None,
        "CPU threads; the result is the same for any number.",
        high=1024,
        default_text="all cores available",
    )
    val_size: int | None = _count(
        None,
        "Training images set apart for validation.",
        default_text=f"{DEFAULT_VAL_SIZE}; 10 % of less than {10 * DEFAULT_VAL_SIZE} images",
    )
    limit_train: int | None = _count(
        None, "Train on N of the images left after validation is set apart.", default_text="all"
    )
    limit_test: int | None = _count(None, "Test on N images.", default_text="all")

    def __post_init__(self) -> None:
        for name, setting in settings().items():
            value = getattr(self, name)
            if value is None and _FIELDS[name].default is None:
                continue
            try:
                object.__setattr__(self, name, setting.check(value))
            except ValueError as error:
                raise ConfigError(f"{name} {error}") from None
        if self.epochs is not None and self.steps is not None:
            raise ConfigError(f"epochs ({self.epochs}) and steps ({self.steps}) exclude each other; give one of them")
        if self.nesterov and not self.momentum:
            raise ConfigError("nesterov needs a momentum above 0; give momentum too")
        own = OPTIMIZER_SETTINGS[self.optimizer]
        for name in (name for names in OPTIMIZER_SETTINGS.values() for name in names):
            if name not in own and getattr(self, name) != _FIELDS[name].default:
                raise ConfigError(f"{name} has no meaning for optimizer {self.optimizer}, which takes {', '.join(own)}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Settings by name, the rest at their defaults; ConfigError for a name or value not allowed."""
        for name in values:
            if name not in _FIELDS:
                raise ConfigError(f"there is no setting {shown(name)}{nearest(name, _FIELDS)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All settings by name, in order, without those that are None; ``from_dict`` is the way back."""
        values = {name: getattr(self, name) for name in _FIELDS}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value is not None
        }

    def resolved(self, *, train_images: int) -> "TrainConfig":
        """These settings with the defaults that depend on others, or on the training set, worked out.

        ``warmup`` stays None under a one-cycle schedule (a share of the run, however long), and ``data``
        becomes absolute if it is a path. ConfigError if validation would leave nothing to train on.
        """
        from fastadam.device import cores
        from fastadam.optim import OPTIMIZERS

        optimizer = OPTIMIZERS[self.optimizer]
        data = self.data
        if data is not None and data not in DATA_SETS:
            data = os.path.abspath(os.path.expanduser(data))
        return dataclasses.replace(
            self,
            data=data,
            epochs=DEFAULT_EPOCHS if self.epochs is None and self.steps is None else self.epochs,
            lr=optimizer.default_lr if self.lr is None else self.lr,
            weight_decay=optimizer.default_weight_decay if self.weight_decay is None else self.weight_decay,
            warmup=0.0 if self.warmup is None and self.schedule != "onecycle" else self.warmup,
            threads=cores() if self.threads is None else self.threads,
            val_size=choose_val_size(self.val_size, train_images),
        )


_FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}


def settings() -> dict[str, Setting]:
    """Every setting of a run by name, in order."""
    return {name: field.metadata["setting"] for name, field in _FIELDS.items()}


def defaults() -> dict[str, Any]:
    """The default of every setting by name; None where it is decided later."""
    return {name: field.default for name, field in _FIELDS.items()}


def choose_val_size(asked: int | None, train_images: int) -> int:
    """How many of ``train_images`` to set apart: as asked, else 5000, or a tenth of a set too small for that.

    ConfigError if nothing would be left to train on.
    """
    if train_images < 2:
        raise ConfigError(f"the data hold {train_images} training images, training and validation need 2 at the least")
    if asked is None:
        asked = DEFAULT_VAL_SIZE if train_images >= 10 * DEFAULT_VAL_SIZE else max(1, train_images // 10)
    if asked >= train_images:
        raise ConfigError(
            f"val_size {asked} leaves nothing to train on: the data hold {train_images} training images; "
            "give a smaller val_size or more data"
        )
    return asked


def load_toml(path: Path | str) -> dict[str, Any]:
    """The table in a TOML file; ConfigError names the file, and the line of a syntax error."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a TOML file: byte {error.start} is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"cannot read settings from {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"cannot read settings from {shown(str(path))}: {error}") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {_with_line(str(error), text)}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{path} is not usable: a number or a nesting in it is far too large") from None


def _with_line(message: str, text: str) -> str:
    lines = len(text.splitlines())
    return " ".join(message.split()).replace("(at end of document)", f"(at line {lines}, the end of the file)")


def dump_toml(values: Mapping[str, Any]) -> str:
    """``values`` as TOML, in their order, None left out; reading it back gives equal values."""
    import tomli_w

    return tomli_w.dumps({name: value for name, value in values.items() if value is not None})

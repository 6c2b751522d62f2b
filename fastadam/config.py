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
from fastadam.kernels import MUON_RATES, PRECISIONS
from fastadam.recipes import WITH_OPTIMIZER, WITH_SCHEDULE, recipe_of
from fastadam.schedule import GAMMA, MILESTONES, SCHEDULES, average_kind, check_sam, check_schedule
from fastadam.setting import Kind, Setting, nearest, shown

MODELS = ("mlp", "cnn", "vgg", "resnet20", "resnet32", "resnet44", "resnet56", "resnet50")
NET_ENDING = ".toml"
"""What the path of a net ends with; anything else is a name."""

DATA_SETS = ("cifar10", "cifar100", "synthetic")
"""Data sets that have a name; anything else is a path."""


_MOMENTS = ("beta1", "beta2", "eps")
OPTIMIZER_SETTINGS = {
    "adam": (*_MOMENTS, "amsgrad"),
    "adamw": (*_MOMENTS, "amsgrad"),
    "sgd": ("momentum", "nesterov"),
    "adamax": _MOMENTS,
    "nadam": _MOMENTS,
    "radam": _MOMENTS,
    "adabelief": _MOMENTS,
    "adabound": _MOMENTS,
    "padam": _MOMENTS,
    "adan": ("beta1", "beta2", "beta3", "eps"),
    "lion": ("beta1", "beta2"),
    "schedulefree": _MOMENTS,
    "adamw_bf16": _MOMENTS,
    "lamb": _MOMENTS,
    "lars": ("momentum", "trust_coefficient"),
    "muon": ("momentum", "nesterov", "adjust_lr_fn", "adamw_lr", "beta1", "beta2"),
}
"""What each optimizer takes besides ``lr`` and ``weight_decay``."""

RECIPE = "as the model's recipe says"
DEFAULT_VAL_SIZE = 5000

_MOST = 2**31 - 1  # of anything that is counted


def _setting(default: Any, kind: Kind, metavar: str, help: str, **rules: Any) -> Any:
    setting = Setting(kind=kind, help=help, metavar=metavar, **rules)
    return dataclasses.field(default=default, metadata={"setting": setting})


def _count(default: int | None, help: str, *, low: int = 1, high: int = _MOST, default_text: str | None = None) -> Any:
    return _setting(default, "count", "N", help, low=low, high=high, default_text=default_text)


def _number(default: float | None, help: str, *, metavar: str = "X", **rules: Any) -> Any:
    return _setting(default, "number", metavar, help, **rules)


def _choice(default: str | None, choices: tuple[str, ...], help: str, default_text: str | None = None) -> Any:
    return _setting(default, "choice", "|".join(choices), help, choices=choices, default_text=default_text)


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
    model: str = _setting(
        "cnn",
        "choice",
        "NAME|FILE.toml",
        f"Network to train: {', '.join(MODELS)}, or a file that describes one.",
        choices=MODELS,
        ending=NET_ENDING,
    )
    device: str = _setting("auto", "device", "auto|cpu|cuda|cuda:N", "Where to compute.")
    precision: str = _choice(
        PRECISIONS[0],
        PRECISIONS,
        "What a GPU rounds the operands of matrix products to; sums and weights are float32 (tf32 and bf16: compute "
        "capability 8.0 or more).",
    )
    epochs: int | None = _count(
        None, "Passes over the training images.", default_text=f"{RECIPE}, if --steps is not given"
    )
    steps: int | None = _count(
        None,
        "Optimizer steps to take, instead of --epochs; the last epoch may be partial.",
        default_text="as --epochs says",
    )
    batch_size: int = _count(128, "Images in a batch.")
    accumulate: int = _count(
        1, "Batches a step: gradients of N batches are added up before the parameters are updated."
    )
    optimizer: str | None = _setting(
        None,
        "choice",
        "NAME",
        f"Rule that updates the parameters: {', '.join(OPTIMIZER_SETTINGS)}.",
        choices=tuple(OPTIMIZER_SETTINGS),
        default_text=RECIPE,
    )
    lr: float | None = _number(
        None,
        "Learning rate, the highest of the schedule.",
        low=0,
        low_open=True,
        default_text=f"{RECIPE}; with another optimizer 0.001, 0.002 for adamax, nadam and lamb, 0.0025 for "
        "schedulefree, 0.0001 for lion, 0.1 for sgd, padam and lars",
    )
    beta1: float | None = _number(
        None, "Decay of the mean of gradients.", low=0, high=1, high_open=True, default_text="0.9, and 0.98 for adan"
    )
    beta2: float | None = _number(
        None,
        "Decay of the mean of squared gradients; adan's of differences of gradients, lion's of its mean of gradients.",
        low=0,
        high=1,
        high_open=True,
        default_text="0.999, 0.92 for adan, and 0.99 for lion",
    )
    beta3: float | None = _number(
        None, "Decay of adan's mean of squares.", low=0, high=1, high_open=True, default_text="0.99"
    )
    eps: float | None = _number(
        None, "Added to the divisor.", low=0, low_open=True, default_text="1e-08, and 1e-06 for lamb"
    )
    amsgrad: bool = _setting(False, "flag", "", "Divide by the largest mean of squares so far (adam, adamw).")
    weight_decay: float | None = _number(
        None,
        "Pull of the weights towards zero: beside the gradient for adamw, adamw_bf16, adan, lamb, lion, muon and "
        "schedulefree, within it for the others. Biases and the parameters of batch norms are spared.",
        low=0,
        default_text=f"{RECIPE}; with another optimizer 0, 0.01 for adamw, adamw_bf16 and lamb, 0.0001 for lars, and "
        "0.1 for muon",
    )
    momentum: float | None = _number(
        None,
        "Momentum of sgd, lars and muon.",
        low=0,
        high=1,
        high_open=True,
        default_text=f"{RECIPE}; 0 if it has none, 0.9 for lars, and 0.95 for muon",
    )
    nesterov: bool | None = _setting(
        None, "flag", "", "Use Nesterov's momentum (sgd, muon).", default_text="off, and on for muon"
    )
    adjust_lr_fn: str | None = _choice(
        None,
        MUON_RATES,
        "How muon's rate depends on a matrix's shape: for outputs of like size, or for steps of AdamW's size, so that "
        "its --lr will do.",
        default_text=MUON_RATES[0],
    )
    adamw_lr: float | None = _number(
        None,
        "Learning rate of what muon leaves to AdamW: the first layer, the last, biases and norms; scheduled like --lr.",
        low=0,
        low_open=True,
        default_text="0.001",
    )
    trust_coefficient: float | None = _number(
        None,
        "How far lars moves a tensor at rate 1, as a share of its norm; what does not decay moves by the rate itself.",
        low=0,
        low_open=True,
        default_text="0.001",
    )
    schedule: str | None = _choice(
        None, SCHEDULES, "Course of the learning rate.", default_text=f"{RECIPE}; constant for schedulefree"
    )
    milestones: tuple[float, ...] | None = _setting(
        None,
        "numbers",
        "X,X",
        "When the schedule step lowers the rate: below 1 a fraction of the run, from 1 on epochs.",
        low=0,
        low_open=True,
        default_text=",".join(f"{x:g}" for x in MILESTONES),
    )
    gamma: float = _number(
        GAMMA, "What the schedule step multiplies the rate with at each milestone.", low=0, low_open=True, high=1
    )
    warmup: float | None = _number(
        None,
        "Epochs, fractions allowed, during which the learning rate rises to --lr at the start.",
        metavar="EPOCHS",
        low=0,
        default_text=f"{RECIPE}; with another schedule 0, and 30 % of the run for onecycle",
    )
    augment: tuple[str, ...] | None = _setting(
        None,
        "list",
        "LIST",
        "Random changes of the training images, separated by commas: flip (left to right), crop (shift by up "
        f"to {CROP_PIXELS} pixels), cutout (blank {CUTOUT_PIXELS} x {CUTOUT_PIXELS}); or none.",
        choices=AUGMENTATIONS,
        default_text=RECIPE,
    )
    label_smoothing: float | None = _number(
        None,
        "Share of each target spread evenly over all classes.",
        low=0,
        high=1,
        high_open=True,
        default_text=RECIPE,
    )
    dropout: float | None = _number(
        None,
        "Share of the values before the last linear layer (mlp: of every hidden one) set to zero in training.",
        low=0,
        high=1,
        high_open=True,
        default_text=RECIPE,
    )
    clip_norm: float | None = _number(
        None,
        "Scale gradients down to this norm where theirs is greater.",
        low=0,
        low_open=True,
        default_text="off",
    )
    ema: float | None = _number(
        None,
        "Keep an average of the weights with this decay, such as 0.999 (less in the first steps), and validate, "
        "test and save as best that average, its batch statistics made anew over up to 10,000 training images.",
        metavar="DECAY",
        low=0,
        low_open=True,
        high=1,
        high_open=True,
        default_text="off",
    )
    swa: int | None = _count(
        None,
        "Average the weights at the ends of epochs, from epoch N on, and validate, test and save as best that average, "
        "as with --ema; best with a rate that stays high.",
        default_text="off",
    )
    lookahead: int | None = _count(
        None,
        "Start every N steps anew from slow weights, which go half the way to where these steps led; and validate, "
        "test and save as best the slow weights, as with --ema.",
        low=2,
        default_text="off",
    )
    sam: float | None = _number(
        None,
        "Take each step by the gradient at this distance uphill, such as 0.05 (sharpness-aware minimization): two "
        "gradients of each batch.",
        metavar="RHO",
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
    init: str | None = _setting(
        None,
        "text",
        "CHECKPOINT",
        "Begin with the weights of a checkpoint or run folder; a last layer for another number of classes is drawn "
        "anew.",
        default_text="weights drawn from --seed",
    )

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
        chosen = self._with_recipe()
        optimizer, schedule = chosen["optimizer"], chosen["schedule"]
        own = OPTIMIZER_SETTINGS[optimizer]
        for name in (name for names in OPTIMIZER_SETTINGS.values() for name in names):
            if name not in own and self._asks_for(name):
                raise ConfigError(f"{name} has no meaning for optimizer {optimizer}, which takes {', '.join(own)}")
        if optimizer == "sgd" and self.nesterov and not chosen["momentum"]:
            raise ConfigError("nesterov needs a momentum above 0; give momentum too")
        check_schedule(optimizer, schedule)
        if optimizer == "schedulefree" and self.beta1 == 0:
            raise ConfigError("beta1 must be above 0 for optimizer schedulefree, found 0.0")
        check_sam(self.sam, self.accumulate)
        average_kind(optimizer, ema=self.ema, swa=self.swa, lookahead=self.lookahead)
        for name in ("milestones", "gamma"):
            if schedule != "step" and self._asks_for(name):
                raise ConfigError(f"{name} has no meaning for schedule {schedule}; it is the schedule step's")

    def _asks_for(self, name: str) -> bool:
        """Whether a setting was given, but for a switch that is off."""
        value = getattr(self, name)
        return value != _FIELDS[name].default and value is not False

    def _with_recipe(self) -> dict[str, Any]:
        """All settings by name, those left open filled from the model's recipe as far as it goes."""
        recipe = recipe_of(self.model).settings
        values = {name: getattr(self, name) for name in _FIELDS}
        foreign = {"epochs"} if self.steps is not None else set()
        if values["optimizer"] == "schedulefree" and values["schedule"] is None:
            values["schedule"] = "constant"
        for choice, names in (("optimizer", WITH_OPTIMIZER), ("schedule", WITH_SCHEDULE)):
            if values[choice] not in (None, recipe[choice]):
                foreign.update(names)
        return values | {name: value for name, value in recipe.items() if values[name] is None and name not in foreign}

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
        """These settings with the defaults worked out that depend on the model, on others, or on the training set.

        What has no meaning with the others stays None: so does ``warmup`` under a one-cycle schedule (a share of
        the run, however long). Paths become absolute. ConfigError if validation would leave nothing to train on.
        """
        from fastadam.kernels.start import default_threads
        from fastadam.optim import OPTIMIZERS

        values = self._with_recipe()
        made, schedule = OPTIMIZERS[values["optimizer"]](None).settings(), values["schedule"]
        defaults = {
            **{name: made[name] for name in ("lr", "weight_decay", *OPTIMIZER_SETTINGS[values["optimizer"]])},
            "warmup": None if schedule == "onecycle" else 0.0,
            "milestones": MILESTONES if schedule == "step" else None,
            "threads": default_threads(),
        }
        values |= {name: value for name, value in defaults.items() if values[name] is None}
        if values["data"] not in (None, *DATA_SETS):
            values["data"] = os.path.abspath(os.path.expanduser(values["data"]))
        if values["init"] is not None:
            values["init"] = os.path.abspath(os.path.expanduser(values["init"]))
        if values["model"] not in MODELS:
            values["model"] = os.path.abspath(os.path.expanduser(values["model"]))
        return TrainConfig(**values | {"val_size": choose_val_size(self.val_size, train_images)})


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
    if train_images < 2 and asked != 0:
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
    return parse_toml(read_toml(path), path)


def read_toml(path: Path | str) -> str:
    """The text of a TOML file, not yet looked at; ConfigError names the file if it cannot be read."""
    try:
        if Path(path).is_char_device():  # which may have no end
            raise ConfigError(f"{path} is not a file; name a TOML file")
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a TOML file: byte {error.start} is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; check the path") from None
    except ValueError as error:
        raise ConfigError(f"cannot read {shown(str(path))}: {error}") from None


def parse_toml(text: str, path: Path | str) -> dict[str, Any]:
    """The table in the text of a TOML file; ConfigError names ``path``, and the line of a syntax error."""
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

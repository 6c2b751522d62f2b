"""What is measured, and how long. Imports nothing heavy: the command's help is made from it."""

from dataclasses import dataclass

from fastadam.config import MODELS, NET_ENDING, settings
from fastadam.errors import ConfigError
from fastadam.setting import Setting

PARTS = ("adam", "kernels", "train", "startup")
"""In the order in which they are measured."""

MODELS_OF = {
    "kernels": ("vgg",),
    "train": ("mlp", "cnn", "vgg", "resnet20"),
    "startup": ("mlp", "vgg"),
}
"""Networks of each part, unless told otherwise."""

_TRAIN = settings()

SETTINGS: dict[str, Setting] = {
    "vs": Setting(
        "choice",
        "Measure this beside, in turns, and show the ratio of the times: above 1 fastadam is the faster one.",
        "torch",
        choices=("torch",),
        default_text="nothing",
    ),
    "model": Setting(
        "choice",
        f"Networks, separated by commas: {', '.join(MODELS)}, or files that describe one.",
        "NAME|FILE.toml,...",
        choices=MODELS,
        ending=NET_ENDING,
        default_text="; ".join(f"{part}: {','.join(names)}" for part, names in MODELS_OF.items()),
    ),
    "batch_size": Setting(
        "count", "Images a step, several numbers separated by commas.", "N,...", low=1, high=_TRAIN["batch_size"].high
    ),
    "device": Setting("device", "Where both sides compute.", _TRAIN["device"].metavar),
    "threads": Setting(
        "count", "CPU threads of both sides.", "N", low=1, high=1024, default_text="all cores available"
    ),
    "data": Setting(
        "text",
        "For train: measure whole runs on this data set, by the model's recipe without augmentation, from the start "
        "of a process to its end, instead of single steps.",
        _TRAIN["data"].metavar,
        default_text="single steps",
    ),
    "epochs": Setting(
        "count",
        "Epochs of a whole run, with --data.",
        "N",
        low=1,
        high=_TRAIN["epochs"].high,
        default_text="as the model's recipe says",
    ),
    "seconds": Setting(
        "number", "How long to measure each thing, once it is warm.", "X", low=0, low_open=True, high=86_400
    ),
    "repeats": Setting(
        "count",
        "Rounds of each thing, instead of --seconds; whole runs of --data.",
        "N",
        low=1,
        high=10_000,
        default_text="as many as --seconds allows, 3 at least; 1 whole run",
    ),
}
"""What the options may be; ``model`` and ``batch_size`` are lists of such."""


@dataclass(frozen=True)
class BenchConfig:
    """Settings of ``fastadam bench``. ConfigError for what makes no sense together."""

    parts: tuple[str, ...] = PARTS
    vs: str | None = None
    model: tuple[str, ...] | None = None
    batch_size: tuple[int, ...] = (128,)
    device: str = "cpu"
    threads: int | None = None
    data: str | None = None
    epochs: int | None = None
    seconds: float = 20.0
    repeats: int | None = None

    def __post_init__(self) -> None:
        if self.data is not None and "train" not in self.parts:
            raise ConfigError(f"data is for train, and {', '.join(self.parts)} was asked for; leave it away")
        if self.parts == ("adam",) and self.model is not None:
            raise ConfigError("model is for kernels, train and startup, and adam was asked for; leave it away")
        if self.epochs is not None and self.data is None:
            raise ConfigError("epochs is the length of whole runs, which need data; give --data too")

    def models(self, part: str) -> tuple[str, ...]:
        """Networks of a part."""
        return self.model or MODELS_OF[part]

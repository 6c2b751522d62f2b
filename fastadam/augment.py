"""Which augmentations a training batch gets; the kernel ``batch_prepare`` does them."""

from collections.abc import Iterable
from dataclasses import dataclass

from fastadam.errors import ConfigError

AUGMENTATIONS = ("flip", "crop", "cutout")
CROP_PIXELS = 4
CUTOUT_PIXELS = 16
"""The usual sizes for images of 32 x 32: shifts of up to 4 pixels, holes of 16 x 16."""


@dataclass(frozen=True)
class Augment:
    """flip: mirror half of the images. crop: shift by up to so many pixels. cutout: side of a square hole."""

    flip: bool = False
    crop: int = 0
    cutout: int = 0

    @classmethod
    def named(cls, names: str | Iterable[str] | None) -> "Augment":
        """From names such as ``("flip", "crop")``, or "flip,crop"; raises ConfigError for another name."""
        names = tuple(filter(None, names.split(",")) if isinstance(names, str) else names or ())
        for name in names:
            if name not in AUGMENTATIONS:
                raise ConfigError(f"no augmentation is called {name!r}; use some of {', '.join(AUGMENTATIONS)}")
        return cls(
            "flip" in names,
            CROP_PIXELS if "crop" in names else 0,
            CUTOUT_PIXELS if "cutout" in names else 0,
        )

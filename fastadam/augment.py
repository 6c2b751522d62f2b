"""Which augmentations a training batch gets; the kernel ``batch_prepare`` does them."""

from collections.abc import Iterable
from dataclasses import dataclass

from fastadam.errors import ConfigError

AUGMENTATIONS = ("flip", "crop", "cutout")
USUAL_SIDE, CROP_PIXELS, CUTOUT_PIXELS = 32, 4, 16
"""The usual sizes for images of 32 x 32: shifts of up to 4 pixels, holes of 16 x 16; in proportion for others."""


@dataclass(frozen=True)
class Augment:
    """flip: mirror half of the images. crop: shift by up to so many pixels. cutout: side of a square hole."""

    flip: bool = False
    crop: int = 0
    cutout: int = 0

    @classmethod
    def named(cls, names: str | Iterable[str] | None, side: int = USUAL_SIDE) -> "Augment":
        """From names such as ``("flip", "crop")``, or "flip,crop", or "none"; ConfigError for another name.

        side   the short one of the images, in pixels
        """
        if isinstance(names, str):
            names = [] if names.strip() in ("", "none") else [name.strip() for name in names.split(",")]
        elif not isinstance(names, Iterable | None):
            raise ConfigError(f"augment must be names, it is {names!r}; use some of {', '.join(AUGMENTATIONS)}")
        names = tuple(names or ())
        for name in names:
            if name not in AUGMENTATIONS:
                raise ConfigError(f"no augmentation is called {name!r}; use some of {', '.join(AUGMENTATIONS)}")
        return cls(
            "flip" in names,
            max(1, CROP_PIXELS * side // USUAL_SIDE) if "crop" in names else 0,
            max(1, CUTOUT_PIXELS * side // USUAL_SIDE) if "cutout" in names else 0,
        )

"""A picture from an image file, as networks here take it; needs pillow (the extra ``images``)."""

import os
import warnings
from pathlib import Path

import numpy as np

from fastadam.data.dataset import IMAGE_SHAPE
from fastadam.data.source import cannot_read
from fastadam.errors import DataError, MissingExtraError

SIZE = IMAGE_SHAPE[1]

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


def require_pillow() -> None:
    """MissingExtraError if pillow is not there."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("reading image files", "pillow", "images") from error


def read_picture(path: str | Path) -> np.ndarray:
    """The image in a file: uint8 (3, 32, 32), red, green and blue.

    Any format that pillow reads. The picture is turned as its camera says (EXIF), transparent parts become white,
    its short side is resized to 32 pixels (Lanczos) and the middle is cut out of the long one. Of an animation it is
    the first frame. DataError, one line, if the file is no image that it can read; MissingExtraError without pillow.
    """
    require_pillow()
    from PIL import Image, ImageOps

    path = Path(path)
    if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait for a writer
        what = "a folder" if os.path.isdir(path) else "no file"
        raise DataError(f"{path} is {what}, an image is expected; give an image file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities of a file that is readable all the same
            with Image.open(path) as image:
                turned = ImageOps.exif_transpose(image)
                fitted = ImageOps.fit(_in_colour(turned), (SIZE, SIZE), Image.Resampling.LANCZOS)
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}; check the path") from error
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{path} is no image that pillow can read; remove it, or convert it to PNG or JPEG") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} has more pixels than any photograph; make it smaller or remove it") from error
    except MemoryError as error:
        raise DataError(f"{path} is too large for the memory there is; make it smaller or remove it") from error
    except Exception as error:  # a damaged file makes pillow raise nearly anything
        if isinstance(error, OSError) and error.errno is not None:
            raise cannot_read(path, error) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is a damaged image ({reason}); replace or remove it") from error
    return np.ascontiguousarray(np.asarray(fitted, np.uint8).transpose(2, 0, 1))


def _in_colour(image):  # type: ignore[no-untyped-def]  # pillow is not imported to name its types
    """The picture as RGB of 8 bits a channel. ValueError if its range of values is not known."""
    from PIL import Image

    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format == "PNG"):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits, mode {image.mode}; convert it to 8 bits a channel")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        above = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")
    return image.convert("RGB")

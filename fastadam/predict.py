"""What a checkpoint says of pictures in files: image files, or CIFAR records in ``.bin`` files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastadam import checkpoint, models
from fastadam.checks import whole
from fastadam.data.cifar import as_records
from fastadam.data.dataset import IMAGE_SHAPE
from fastadam.data.formats import CIFAR10, CIFAR100, FORMATS, Format
from fastadam.data.pictures import read_picture
from fastadam.data.source import cannot_read
from fastadam.device import COMPILING, get_device
from fastadam.errors import CheckpointError, DataError
from fastadam.model import Model

TOP = 3
"""Classes told of each picture, the most probable first."""


def predict_files(
    path: Path | str,
    files: Sequence[Path | str],
    *,
    top: int = TOP,
    device: str = "auto",
    threads: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The most probable classes of every picture in ``files``; all are read before the first is looked at.

    {"checkpoint", "predictions": [{"file", "class", "probability", "top": [{"class", "probability"}, ...]}, ...]}

    A picture from a ``.bin`` file also has its "record", counted from 0, and the "label" that stands there.
    DataError, one line, for a file that cannot be read.
    """
    top = whole("top", top, 1)
    if not files:
        raise DataError("there are no files to look at; name one at the least")
    path = checkpoint.locate(path)
    place = get_device(device, threads)
    model = models.load(path).to(device, threads)
    high, wide, channels = model.graph.input_shape
    if (channels, high, wide) != IMAGE_SHAPE:
        raise CheckpointError(
            f"{path} takes images of {high} x {wide} x {channels}, but files are read as {IMAGE_SHAPE[1]} x "
            f"{IMAGE_SHAPE[2]} x {IMAGE_SHAPE[0]}; use fastadam.load and predict_proba from Python"
        )
    found = [entry for file in files for entry in _read(Path(file), model)]
    images = np.stack([image for _, image in found])
    with place.compile_clock(lambda: say(COMPILING)):
        probabilities = model.predict_proba(images)
    if not np.isfinite(probabilities).all():
        raise CheckpointError(f"{path} gives numbers that are not finite: its training diverged; give another one")
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return {
        "checkpoint": str(path),
        "predictions": [
            told | _in_words(model, best, row[best])
            for (told, _), best, row in zip(found, order, probabilities, strict=True)
        ],
    }


def _in_words(model: Model, best: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    top = [{"class": model.classes[c], "probability": float(p)} for c, p in zip(best, probabilities, strict=True)]
    return {**top[0], "top": top}


def _read(file: Path, model: Model) -> list[tuple[dict[str, Any], np.ndarray]]:
    """What a file holds: for each picture, what is known of it, and its pixels uint8 (3, 32, 32)."""
    if file.suffix.lower() != ".bin":
        return [({"file": str(file)}, read_picture(file))]
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"there is no file {file}; check the path") from error
    except OSError as error:
        raise cannot_read(file, error) from error
    form = _format_of(file, len(data), model)
    records = as_records(data, form)
    labels, images = records[:, len(form.labels) - 1], records[:, len(form.labels) :].reshape(-1, *IMAGE_SHAPE)
    beyond = np.flatnonzero(labels >= len(model.classes))
    if beyond.size:
        raise DataError(
            f"record {beyond[0]} (counted from 0) of {file} has the label {labels[beyond[0]]}, but the model knows "
            f"{len(model.classes)} classes; give data of the kind it was trained on"
        )
    return [
        ({"file": str(file), "record": number, "label": model.classes[label]}, image)
        for number, (label, image) in enumerate(zip(labels, images, strict=True))
    ]


def _format_of(file: Path, size: int, model: Model) -> Format:
    """The format whose records fill a file of ``size`` bytes; if both do, that of the model's classes."""
    fitting = [form for form in FORMATS if size and size % form.record_bytes == 0]
    if not fitting:
        sizes = " or ".join(f"{form.record_bytes} bytes ({form.title})" for form in FORMATS)
        raise DataError(f"{file} has {size:,} bytes, which is no whole number of records of {sizes}; get it again")
    wanted = CIFAR100 if len(model.classes) == len(CIFAR100.classes) else CIFAR10
    return wanted if wanted in fitting else fitting[0]

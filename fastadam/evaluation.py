"""A checkpoint on a test set: accuracy and loss, class by class, and which classes it mistakes for which."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastadam import checkpoint, models
from fastadam.checks import whole
from fastadam.data import for_test, load
from fastadam.device import COMPILING, get_device
from fastadam.engine import Engine, Feed
from fastadam.errors import CheckpointError


def evaluate_checkpoint(
    path: Path | str,
    data: str,
    *,
    batch_size: int = 128,
    threads: int | None = None,
    device: str = "auto",
    precision: str = "float32",
    limit_test: int | None = None,
    say: Callable[[str], None] = lambda text: None,
    warn: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """What a checkpoint, or the best one of a run folder, makes of the test set of ``data``; ready for JSON.

    {"checkpoint", "dataset", "images", "accuracy", "loss", "classes": [name, ...],
     "per_class": [{"class", "images", "precision", "recall", "f1"}, ...], "confusion": [[count, ...], ...]}

    Accuracy is a fraction, loss the mean cross-entropy. Row i, column j of the confusion matrix counts the
    images of class i that were taken for class j. ``say`` hears of what takes its time, ``warn`` of classes with
    other names.
    CheckpointError if the checkpoint and the data do not go together.
    """
    batch_size = whole("batch_size", batch_size, 1)
    path = checkpoint.locate(path)
    place = get_device(device, threads, precision)
    model = models.load(path)
    dataset = load(data)
    images, labels = dataset.test_images, dataset.test_labels
    if len(dataset.classes) != model.graph.classes:
        raise CheckpointError(
            f"{path} knows {model.graph.classes} classes, but {dataset.source} has {len(dataset.classes)}; "
            "give the data it was trained on"
        )
    if model.graph.input_shape != (*images.shape[2:], images.shape[1]):
        raise CheckpointError(f"{path} takes images of {model.graph.input_shape}, not those of {dataset.source}")
    if model.classes != dataset.classes:
        warn(f"the classes of {dataset.source} are not called as those of {path}: is it the data it was trained on?")
    index = for_test(labels, limit_test)
    engine = Engine(model.graph, place, {"PARAM": model.parameters, "STATE": model.state}, model.mean, model.std)
    feed, loss, taken_for = Feed(images, labels), 0.0, np.empty(len(index), np.int64)
    with place.compile_clock(lambda: say(COMPILING)):
        for start in range(0, len(index), batch_size):
            part = index[start : start + batch_size]
            outputs = engine.run("infer", feed, part)
            loss += float(outputs["loss"][0]) * len(part)
            taken_for[start : start + len(part)] = outputs["logits"].argmax(1)
    if not np.isfinite(loss):
        raise CheckpointError(f"{path} gives a loss that is not finite: its training diverged; give another one")
    confusion = confusion_matrix(labels[index], taken_for, len(dataset.classes))
    return {
        "checkpoint": str(path),
        "dataset": dataset.name,
        "images": len(index),
        "accuracy": int(confusion.trace()) / len(index),
        "loss": loss / len(index),
        "classes": list(dataset.classes),
        "per_class": per_class(confusion, dataset.classes),
        "confusion": confusion.tolist(),
    }


def confusion_matrix(labels: np.ndarray, taken_for: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) int64: how many images of the row's class were taken for the column's."""
    counts = np.bincount(np.asarray(labels, np.int64) * classes + taken_for, minlength=classes**2)
    return counts.reshape(classes, classes)


def per_class(confusion: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each class, fractions; a ratio of nothing to nothing is 0, as in scikit-learn."""
    right, present, given = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    columns = right / np.maximum(given, 1), right / np.maximum(present, 1), 2 * right / np.maximum(present + given, 1)
    return [
        {"class": name, "images": int(count), "precision": float(p), "recall": float(r), "f1": float(f1)}
        for name, count, p, r, f1 in zip(names, present, *columns, strict=True)
    ]

"""Pictures of results, drawn by matplotlib (``pip install 'fastadam[plot]'``) without a display."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastadam.errors import ConfigError, MissingExtraError, RunError
from fastadam.files import write_atomically

FORMATS = (".png", ".svg", ".pdf")
_LABELLED, _COUNTED = 40, 20  # so many classes at most have their names, and their counts, written out


def check_plot(path: Path) -> None:
    """Raise, before work is done in vain, if matplotlib is missing or cannot write a file of this name."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"a picture cannot be called {path}; end its name with {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise RunError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    _figure(1)


def plot_confusion(path: Path, confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> None:
    """Write a confusion matrix, coloured by the share of each class (row), to a file. RunError if that fails."""
    counts, size = np.asarray(confusion), len(classes)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = _figure(4 + 0.45 * min(size, _LABELLED))
    axes = figure.add_subplot()
    figure.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=1), label="share of the class", shrink=0.8)
    axes.set(title=title, xlabel="taken for", ylabel="class")
    if size <= _LABELLED:
        axes.set_xticks(range(size), classes, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(size), classes, parse_math=False)
    if size <= _COUNTED:
        for (i, j), count in np.ndenumerate(counts):
            if count:
                axes.text(j, i, str(count), ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a box is drawn for a letter that the font lacks
        figure.savefig(buffer, format=path.suffix.lower()[1:], dpi=120)
    write_atomically(path, buffer.getvalue())


def _figure(inches: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("a picture", "matplotlib", "plot") from error
    return Figure(figsize=(inches + 1, inches), layout="constrained")

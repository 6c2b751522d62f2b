"""CIFAR-10 and CIFAR-100 in their binary formats: reading, looking for damage, writing."""

import contextlib
import os
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fastadam.data import synthetic
from fastadam.data.dataset import IMAGE_SHAPE, Dataset
from fastadam.data.formats import CIFAR10, FORMATS, PIXELS, Format
from fastadam.data.source import Source
from fastadam.errors import DataError
from fastadam.files import write_atomically

TRAIN_FILES = 5
"""Files that ``write_binary`` spreads the training set over, as the published one is."""

MOST_CLASSES = 256
"""Classes that a label byte can tell apart."""

OWN = "images"
"""The name of a data set of classes that are not the published ones."""

_NAMES_LIMIT = 2**17  # bytes of a file of class names; the published ones have less than 2,000
_SHOWN = 5  # record numbers told in a message


@dataclass(frozen=True)
class Problem:
    """Something wrong with a data set.

    file      the file or folder concerned, as messages call it
    message   one line: the file, what is wrong with it and what to do
    records   the numbers of the records concerned, from 0
    """

    file: str
    message: str
    records: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.message

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"file": self.file, "message": self.message, "records": list(self.records)}


# ----------------------------------------------------------------------------------------- reading


def read(source: Source) -> Dataset:
    """The data set in ``source``. DataError at the first thing that is wrong, naming file and record."""
    form = format_of(source)
    train = form.train_files(source.sizes)
    missing = missing_files(source, form)
    if missing:
        raise DataError(str(missing[0]))
    named = class_names(source, form)
    notes = tuple(f"{problem}: classes have {form.title}'s names" for problem in nameless(source, form, named))
    classes = named or form.classes
    form = with_classes(form, classes)
    test_images, test_labels = _read_part(source, form, [form.test])
    train_images, train_labels = _read_part(source, form, train)
    return Dataset(
        name=_name_of(classes),
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        classes=classes,
        source=str(source.path),
        notes=notes,
    )


def _name_of(classes: tuple[str, ...]) -> str:
    """What a data set with these classes is called."""
    known = {**{form.classes: form.name for form in FORMATS}, synthetic.CLASSES: "synthetic"}
    return known.get(classes, OWN)


def format_of(source: Source) -> Format:
    """The format of the files in ``source``. DataError if there are files of both."""
    found = [form for form in FORMATS if any(map(form.is_data, source.sizes))]
    if len(found) != 1:
        titles = " and ".join(form.title for form in found)
        raise DataError(f"{source.path} holds files of {titles}; put each into a folder of its own")
    return found[0]


def with_classes(form: Format, classes: tuple[str, ...]) -> Format:
    """The format of a data set with these classes: CIFAR-10's records serve for any number up to 256."""
    label, _ = form.labels[-1]
    return replace(form, classes=classes, labels=(*form.labels[:-1], (label, len(classes))))


def missing_files(source: Source, form: Format) -> list[Problem]:
    """What the data set cannot do without and does not have."""
    where, cure = str(source.path), f"copy it there from {form.archive.name} ({form.cure})"
    missing = []
    train = form.train_files(source.sizes)
    if form.has_gaps(train):
        message = f"{where} has {', '.join(train)}: some numbers are missing; copy the others there"
        missing.append(Problem(where, message))
    if not train:
        missing.append(Problem(where, f"{where} has {form.test} but no {form.train_shown}; {cure}"))
    if form.test not in source.sizes:
        missing.append(Problem(where, f"{where} has {form.train_shown} but no {form.test}; {cure}"))
    return missing


def nameless(source: Source, form: Format, names: tuple[str, ...] | None) -> list[Problem]:
    """What is wrong with a file of class names that is there and gave no ``names``."""
    if names is not None or form.names_file not in source.sizes:
        return []
    where, (least, most) = source.where(form.names_file), names_wanted(form)
    count = f"{least}" if least == most else f"{least} to {most}"
    return [Problem(where, f"{where} does not hold {count} different class names, one a line; correct or remove it")]


def class_names(source: Source, form: Format) -> tuple[str, ...] | None:
    """The class names that ``source`` brings along; None if it has none or they make no sense.

    CIFAR-10's records may be of any 2 to 256 classes, CIFAR-100's are of its own number.
    """
    if not 0 < source.sizes.get(form.names_file, 0) <= _NAMES_LIMIT:
        return None
    try:
        text = source.read(form.names_file).decode()
    except (DataError, UnicodeDecodeError):
        return None
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names_wanted(form)[0] <= len(names) <= names_wanted(form)[1] or len(set(names)) != len(names):
        return None
    return names if all(map(str.isprintable, names)) else None


def names_wanted(form: Format) -> tuple[int, int]:
    """The least and the greatest number of class names that the format's list of them may have."""
    return (2, MOST_CLASSES) if form.name == CIFAR10.name else (len(form.classes), len(form.classes))


def _read_part(source: Source, form: Format, files: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 3, 32, 32) and labels int32 (N,) of the files, one after the other."""
    counts = [source.sizes[name] // form.record_bytes for name in files]
    images = np.empty((sum(counts), *IMAGE_SHAPE), np.uint8)
    labels = np.empty(sum(counts), np.int32)
    start = 0
    for name, count in zip(files, counts, strict=True):
        data = source.read(name)
        source.release(name)
        problems = find_problems(data, source.where(name), form)
        if problems:
            raise DataError(str(problems[0]))
        records = as_records(data, form)
        if len(records) != count:
            raise DataError(f"{source.where(name)} changed while it was read; wait until it is written, try again")
        images[start : start + count] = records[:, len(form.labels) :].reshape(-1, *IMAGE_SHAPE)
        labels[start : start + count] = records[:, len(form.labels) - 1]
        start += count
    return images, labels


def as_records(data: bytes, form: Format) -> np.ndarray:
    """The whole records of a file: uint8 (N, record_bytes), a view of ``data``."""
    count = len(data) // form.record_bytes
    return np.frombuffer(data, np.uint8, count * form.record_bytes).reshape(count, form.record_bytes)


# ------------------------------------------------------------------------------------------ damage


def find_problems(data: bytes, where: str, form: Format) -> list[Problem]:
    """Everything that makes a file of records unusable; ``where`` is what messages call it."""
    own = form not in FORMATS  # classes of the user's: nobody publishes them
    again = f"get the file again, from {form.archive.name} ({form.cure})"
    if own:
        again = (
            "make the data set again (`fastadam data import`)"
            if form.classes != synthetic.CLASSES
            else ("draw the data set again (`fastadam data synth`)")
        )
    if not data:
        return [Problem(where, f"{where} is empty; {again}")]
    problems = []
    records = as_records(data, form)
    whole, left = len(records), len(data) - records.size
    if left:
        message = (
            f"{where} is damaged: its {len(data):,} bytes are not a whole number of {form.title} records of "
            f"{form.record_bytes} bytes, record {whole} (counted from 0) ends after {left} bytes; {again}"
        )
        problems.append(Problem(where, message, (whole,)))
    for column, (label, values) in enumerate(form.labels):
        bad = np.flatnonzero(records[:, column] >= values)
        if bad.size:
            others = f", and {len(bad) - 1} more records are like it" if len(bad) > 1 else ""
            known = f"{form.title} has" if not own else f"{form.names_file} names"
            message = (
                f"{where} is damaged or of another kind: record {bad[0]} (counted from 0) has {label} "
                f"{records[bad[0], column]}, {known} 0 to {values - 1}{others}; {again}"
            )
            problems.append(Problem(where, message, tuple(bad.tolist())))
    return problems


def find_blanks(data: bytes, where: str, form: Format) -> list[Problem]:
    """Records of nothing but zeros: readable, yet what an interrupted copy leaves behind."""
    blank = np.flatnonzero(~as_records(data, form).any(axis=1))
    if not blank.size:
        return []
    shown = ", ".join(map(str, blank[:_SHOWN])) + (", ..." if len(blank) > _SHOWN else "")
    message = f"{where} has {len(blank)} records of nothing but zeros ({shown}, counted from 0); get the file again"
    return [Problem(where, message, tuple(blank.tolist()))]


# ----------------------------------------------------------------------------------------- writing


def write_binary(folder: str | Path, dataset: Dataset) -> list[Path]:
    """Write ``dataset`` as CIFAR-10 binary files into ``folder``; returns their paths.

    The training set is spread over at most five files, in its order; reading them gives the same arrays.
    A folder that holds a data set already is refused with a DataError, and nothing of a failed attempt
    stays behind. ValueError if ``dataset`` has not 2 to 256 classes or has no images.
    """
    if not 2 <= len(dataset.classes) <= MOST_CLASSES:
        raise ValueError(f"a label byte tells 2 to {MOST_CLASSES} classes apart, not {len(dataset.classes)}")
    if not len(dataset.train_labels) or not len(dataset.test_labels):
        raise ValueError("a data set without training or test images cannot be written")
    if any(not name.strip() or not name.isprintable() for name in dataset.classes):
        raise ValueError("class names must be printable, to be written one a line")
    if len({name.strip() for name in dataset.classes}) != len(dataset.classes):
        raise ValueError("class names must be different")
    folder = Path(folder)
    try:
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        present = sorted(
            name
            for name in os.listdir(folder)
            if name == CIFAR10.names_file or any(form.is_data(name) for form in FORMATS)
        )
    except OSError as error:
        raise DataError(f"cannot write into {folder}: {error.strerror or error}; choose another folder") from error
    if present:
        raise DataError(f"{folder} holds a data set already, or a part of one ({present[0]}); choose another folder")

    written: list[Path] = []
    try:
        # The test file comes last: without it, readers refuse the folder of a writer that was killed.
        names = "".join(f"{name}\n" for name in dataset.classes)
        written.append(_write(folder / CIFAR10.names_file, names.encode()))
        bounds = np.linspace(0, len(dataset.train_labels), TRAIN_FILES + 1).astype(int).tolist()
        number = 0
        for start, stop in pairwise(bounds):
            if start < stop:
                number += 1
                path = folder / f"data_batch_{number}.bin"
                records = _records(dataset.train_images[start:stop], dataset.train_labels[start:stop])
                written.append(_write(path, records))
        written.append(_write(folder / CIFAR10.test, _records(dataset.test_images, dataset.test_labels)))
    except BaseException:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    return written


def _write(path: Path, data: bytes) -> Path:
    write_atomically(path, data)
    return path


def _records(images: np.ndarray, labels: np.ndarray) -> bytes:
    records = np.empty((len(labels), 1 + PIXELS), np.uint8)
    records[:, 0] = labels
    records[:, 1:] = images.reshape(len(labels), PIXELS)
    return records.tobytes()

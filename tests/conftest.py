"""Settings that must stand before numba is imported, and what every test file may use."""

import os

os.environ.setdefault("NUMBA_NUM_THREADS", "4")  # some tests compare the bits of up to four threads

from pathlib import Path

import numpy as np
import pytest
from cifar_files import make

from fastadam import data


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded, the same for every test."""
    return np.random.default_rng(0)


@pytest.fixture
def cifar10_folder(tmp_path: Path) -> Path:
    """A data set of CIFAR-10 files."""
    place = tmp_path / "set"
    data.write_binary(place, make())
    return place


@pytest.fixture
def cifar100_folder(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A data set of CIFAR-100 files, and the labels and pixels in it."""
    rng = np.random.default_rng(1)
    place = tmp_path / "hundred"
    place.mkdir()
    records = {}
    for name, count in (("train.bin", 30), ("test.bin", 7)):
        record = rng.integers(0, 256, (count, 3074), np.uint8)
        record[:, 0] %= 20
        record[:, 1] %= 100
        (place / name).write_bytes(record.tobytes())
        records[name] = record
    return place, records

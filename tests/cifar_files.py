"""Data sets of CIFAR's files, small ones, and how a test looks at what is said of bad ones."""

import io
import json
import tarfile

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from fastadam import data
from fastadam.data.formats import CIFAR10
from fastadam.errors import DataError

RECORD = 3073
TEN = CIFAR10.classes

quick = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def make(train=20, test=10, seed=0, classes=TEN):
    rng = np.random.default_rng(seed)

    def part(count):
        images = rng.integers(0, 256, (count, 3, 32, 32), np.uint8)
        return images, rng.integers(0, 10, count).astype(np.int32)

    (train_images, train_labels), (test_images, test_labels) = part(train), part(test)
    return data.Dataset("cifar10", train_images, train_labels, test_images, test_labels, classes, "made")


def assert_same(a, b):
    for part in ("train_images", "train_labels", "test_images", "test_labels"):
        x, y = getattr(a, part), getattr(b, part)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
    assert a.classes == b.classes


def pack(path, files, mode="w:gz"):
    """A tar archive of name -> bytes."""
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def files_of(folder, prefix="cifar-10-batches-bin/"):
    return {prefix + path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def failure(spec):
    """The one line with which `load` refuses; `check` must find fault with it too."""
    with pytest.raises(DataError) as caught:
        data.load(spec)
    message = str(caught.value)
    assert "\n" not in message
    assert "; " in message  # the cure
    problems = data.check(spec)
    assert problems
    json.dumps([problem.to_dict() for problem in problems])
    return message

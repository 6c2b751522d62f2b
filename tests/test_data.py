"""Data sets: what is told of them, divisions and statistics."""

import json
import os

import numpy as np
import pytest
from cifar_files import RECORD, TEN, files_of, make, pack, quick
from hypothesis import given
from hypothesis import strategies as st

from fastadam import data
from fastadam.data import source as data_source
from fastadam.errors import DataError

# --------------------------------------------------------------------------------- info and check


def test_check_names_all_files_and_records(cifar10_folder):
    (cifar10_folder / "data_batch_1.bin").write_bytes(b"")
    (cifar10_folder / "data_batch_2.bin").write_bytes(bytes([3]) * 4000)
    content = bytearray((cifar10_folder / "data_batch_3.bin").read_bytes())
    content[0], content[2 * RECORD] = 10, 200
    (cifar10_folder / "data_batch_3.bin").write_bytes(content + b"more")
    (cifar10_folder / "data_batch_4.bin").unlink()
    (cifar10_folder / "test_batch.bin").write_bytes(bytes(2 * RECORD) + bytes([1]) * RECORD)
    problems = data.check(cifar10_folder)
    found = {(os.path.basename(problem.file), problem.records) for problem in problems}
    assert found == {
        ("data_batch_1.bin", ()),
        ("data_batch_2.bin", (1,)),
        ("data_batch_3.bin", (4,)),
        ("data_batch_3.bin", (0, 2)),
        ("test_batch.bin", (0, 1)),
        ("set", ()),
    }
    assert all("\n" not in str(problem) for problem in problems)
    assert json.loads(json.dumps(problems[0].to_dict())).keys() == {"file", "message", "records"}


@pytest.mark.parametrize("where", ["folder", "archive"])
def test_check_finds_nothing_wrong_with_good_data(cifar10_folder, cifar100_folder, tmp_path, where):
    for place in (cifar10_folder, cifar100_folder[0]):
        spec = place if where == "folder" else pack(tmp_path / f"{place.name}.tar.gz", files_of(place))
        assert data.check(spec) == []
    assert data.check("synthetic") == []


@pytest.mark.parametrize("where", ["folder", "archive"])
def test_inspect(cifar10_folder, tmp_path, where):
    made = make()
    spec = cifar10_folder if where == "folder" else pack(tmp_path / "a.tar.gz", files_of(cifar10_folder))
    report = data.inspect(spec)
    assert (report.name, report.kind, report.source) == ("cifar10", where, str(spec))
    assert [(file.name, file.part, file.records, file.bytes) for file in report.files] == [
        *((f"data_batch_{number}.bin", "train", 4, 4 * RECORD) for number in range(1, 6)),
        ("test_batch.bin", "test", 10, 10 * RECORD),
    ]
    assert report.bytes == (30 * RECORD if where == "folder" else spec.stat().st_size)
    assert (report.train_records, report.test_records) == (20, 10)
    assert report.train_counts == tuple(np.bincount(made.train_labels, minlength=10))
    assert report.test_counts == tuple(np.bincount(made.test_labels, minlength=10))
    np.testing.assert_allclose(report.mean, made.train_images.mean((0, 2, 3)) / 255, rtol=1e-6)
    assert report.published is (None if where == "folder" else False)
    as_json = json.loads(json.dumps(report.to_dict()))
    assert as_json["files"][0]["sha256"] == report.files[0].sha256
    assert as_json["classes"] == list(TEN)


def test_inspect_knows_the_published_archive(cifar10_folder, tmp_path, monkeypatch):
    archive = pack(tmp_path / "a.tar.gz", files_of(cifar10_folder))
    published = data_source.sha256(archive)
    monkeypatch.setattr("fastadam.data.report.PUBLISHED", {published})
    assert data.inspect(archive).published is True


def test_inspect_generated_images():
    report = data.inspect("synthetic")
    assert (report.kind, report.files, report.published) == ("generated", (), None)
    assert report.train_counts == (1000,) * 10
    json.dumps(report.to_dict())


# ----------------------------------------------------------------------------- divisions, statistics

labels_of = st.lists(st.integers(0, 9), min_size=1, max_size=200).map(lambda values: np.array(values, np.int32))


@quick
@given(labels=labels_of, share=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 2**63))
def test_split(labels, share, seed):
    size = int(share * len(labels))
    train, val = data.split(labels, size, seed)
    assert train.dtype == val.dtype == np.int64
    assert len(val) == size
    np.testing.assert_array_equal(np.sort(np.concatenate([train, val])), np.arange(len(labels)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(val) > 0).all()
    for label in range(10):
        quota = size * (labels == label).sum() / len(labels)
        assert abs((labels[val] == label).sum() - quota) < 1
    again = data.split(labels, size, seed)
    np.testing.assert_array_equal(again[1], val)


def test_split_depends_on_the_seed_and_never_on_the_order_of_classes():
    labels = np.repeat(np.arange(10, dtype=np.int32), 100)
    first, other = data.split(labels, 200, 0)[1], data.split(labels, 200, 1)[1]
    assert 10 < len(np.intersect1d(first, other)) < 100  # about 40 by chance
    assert (np.bincount(labels[first]) == 20).all()
    # Which images are chosen is spread over the whole of each class.
    assert 40 < (first % 100).mean() < 60


def test_split_too_large():
    labels = np.zeros(50, np.int32)
    with pytest.raises(DataError, match=r"50 images asked for, but the training set has 50.*--val-size below 50"):
        data.split(labels, 50, 0)
    with pytest.raises(ValueError, match="negative"):
        data.split(labels, -1, 0)


@quick
@given(labels=labels_of, n=st.integers(1, 250), seed=st.integers(0, 2**63))
def test_limit(labels, n, seed):
    index = np.arange(0, len(labels), 2)
    kept = data.limit(index, labels, n, seed)
    assert kept.dtype == np.int64
    assert len(kept) == min(n, len(index))
    assert (np.diff(kept) > 0).all()
    assert np.isin(kept, index).all()
    for label in range(10):
        quota = len(kept) * (labels[index] == label).sum() / len(index)
        assert abs((labels[kept] == label).sum() - quota) < 1
    np.testing.assert_array_equal(data.limit(index[::-1], labels, n, seed), kept)


def test_limit_must_keep_something():
    with pytest.raises(ValueError, match="at least 1"):
        data.limit(np.arange(3), np.zeros(3, np.int32), 0, 0)


@quick
@given(count=st.integers(1, 40), seed=st.integers(0, 2**32), high=st.sampled_from([2, 17, 256]))
def test_statistics_match_float64(count, seed, high):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, high, (count, 3, 8, 8), np.uint8)
    images[:, 2] = 255
    mean, deviation = data.channel_statistics(images)
    assert mean.dtype == deviation.dtype == np.float32
    wanted = images / 255
    np.testing.assert_allclose(mean, wanted.mean((0, 2, 3)), rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(deviation, wanted.std((0, 2, 3)), rtol=1e-6, atol=1e-12)
    assert deviation[2] == 0
    index = rng.permutation(count)[: 1 + count // 2]
    for got, want in zip(data.channel_statistics(images, index), data.channel_statistics(images[index]), strict=True):
        np.testing.assert_array_equal(got, want)


def test_statistics_of_more_images_than_are_taken_at_once(rng):
    images = rng.integers(0, 256, (2500, 3, 4, 4), np.uint8)
    mean, deviation = data.channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 2, 3)), rtol=1e-7)
    np.testing.assert_allclose(deviation, (images / 255).std((0, 2, 3)), rtol=1e-7)
    with pytest.raises(ValueError, match="no images"):
        data.channel_statistics(images[:0])


# ---------------------------------------------------------------------------------------- real data


@pytest.mark.skipif("FASTADAM_DATA" not in os.environ, reason="FASTADAM_DATA names no CIFAR-10 data")
def test_real_cifar10():
    place = os.environ.get("FASTADAM_DATA", "")
    assert data.check(place) == []
    read = data.load(place)
    assert read.classes == TEN
    assert np.bincount(read.train_labels).tolist() == [5000] * 10
    assert np.bincount(read.test_labels).tolist() == [1000] * 10
    mean, deviation = data.channel_statistics(read.train_images)
    # The figures everybody normalises CIFAR-10 with; a recompressed copy differs a little.
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=2e-3)
    np.testing.assert_allclose(deviation, [0.2470, 0.2435, 0.2616], atol=4e-3)

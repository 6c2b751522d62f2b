"""Files of data sets: what is read and written, and the cache."""

import dataclasses
import os

import numpy as np
import pytest
from cifar_files import RECORD, TEN, assert_same, failure, files_of, make, pack, quick
from hypothesis import given
from hypothesis import strategies as st

from fastadam import data
from fastadam.errors import DataError, FastAdamError

# ----------------------------------------------------------------------------------- what is read


@quick
@given(train=st.integers(1, 23), test=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_what_is_written_is_read_back(tmp_path_factory, train, test, seed):
    made = make(train, test, seed, classes=tuple("abcdefghij"))
    place = tmp_path_factory.mktemp("set")
    written = data.write_binary(place, made)
    assert sorted(written) == sorted(place.iterdir())
    read = data.load(place)
    assert_same(read, made)
    assert (read.name, read.source) == ("images", str(place))  # not CIFAR-10's classes
    assert read.train_images.flags.c_contiguous


def test_pixels_are_planes_of_rows(tmp_path):
    """The format written out by hand: label, then red, green and blue, row by row."""
    record = bytes([7]) + bytes([1] * 1024) + bytes([2] * 1024) + bytes(range(32)) * 32
    (tmp_path / "data_batch_1.bin").write_bytes(record * 2)
    (tmp_path / "test_batch.bin").write_bytes(record)
    read = data.load(str(tmp_path))
    assert read.train_labels.tolist() == [7, 7]
    image = read.test_images[0]
    assert (image[0] == 1).all()
    assert (image[1] == 2).all()
    assert (image[2] == np.arange(32)).all()
    assert read.classes == TEN


def test_batches_come_in_the_order_of_their_numbers(tmp_path):
    for number in range(1, 12):
        (tmp_path / f"data_batch_{number}.bin").write_bytes(bytes([number % 10]) + bytes([number]) * 3072)
    (tmp_path / "test_batch.bin").write_bytes(bytes(RECORD))
    assert data.load(tmp_path).train_images[:, 0, 0, 0].tolist() == list(range(1, 12))


def test_cifar100_is_learned_by_its_fine_labels(cifar100_folder):
    place, records = cifar100_folder
    read = data.load(place)
    np.testing.assert_array_equal(read.train_labels, records["train.bin"][:, 1])
    np.testing.assert_array_equal(read.test_images.reshape(7, 3072), records["test.bin"][:, 2:])
    assert read.name == "cifar100"
    assert len(read.classes) == 100
    assert (read.classes[0], read.classes[99]) == ("apple", "worm")


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_archives(cifar10_folder, tmp_path, mode):
    files = {"cifar-10-batches-bin/readme.html": b"<html>", **files_of(cifar10_folder)}
    archive = pack(tmp_path / "some.tar.gz", files, mode)
    assert_same(data.load(archive), data.load(cifar10_folder))
    assert sorted(os.listdir(tmp_path)) == ["set", "some.tar.gz"]  # nothing was unpacked


def test_members_go_by_their_base_names_and_nothing_is_written(cifar10_folder, tmp_path):
    archive = pack(tmp_path / "a.tgz", files_of(cifar10_folder, "../../../tmp/"))
    before = sorted(tmp_path.rglob("*"))
    assert_same(data.load(archive), data.load(cifar10_folder))
    assert sorted(tmp_path.rglob("*")) == before


def test_archive_of_cifar100(cifar100_folder, tmp_path):
    place, _ = cifar100_folder
    assert_same(data.load(pack(tmp_path / "c.tar.gz", files_of(place, "x/"))), data.load(place))


@pytest.mark.parametrize("lies", ["unpacked", "archive", "both"])
def test_folder_above_the_data(cifar10_folder, tmp_path, lies):
    above = tmp_path / "above"
    above.mkdir()
    if lies != "archive":
        data.write_binary(above / "cifar-10-batches-bin", make())
    if lies != "unpacked":
        pack(above / "cifar-10-binary.tar.gz", files_of(cifar10_folder))
    assert_same(data.load(above), data.load(cifar10_folder))


def test_class_names_come_along_if_they_make_sense(cifar10_folder):
    names = cifar10_folder / "batches.meta.txt"
    assert data.load(cifar10_folder).classes == TEN
    names.write_text("\n".join("zyxwvutsrq") + "\n\n\n")
    assert data.load(cifar10_folder).classes == tuple("zyxwvutsrq")
    for nonsense in (
        b"",
        b"one\n",
        b"".join(b"%d\n" % number for number in range(257)),
        b"a\n" * 10,
        b"\xff\xfe" * 30,
        b"\n".join([b"\x1b[31m%d" % i for i in range(10)]),
    ):
        names.write_bytes(nonsense)
        assert data.load(cifar10_folder).classes == TEN
        (problem,) = (str(problem) for problem in data.check(cifar10_folder) if "batches.meta.txt" in str(problem))
        assert data.load(cifar10_folder).notes == (f"{problem}: classes have CIFAR-10's names",)
    names.unlink()
    assert (data.load(cifar10_folder).classes, data.load(cifar10_folder).notes) == (TEN, ())
    assert data.check(cifar10_folder) == []


@pytest.mark.parametrize("count", [2, 7, 256])
def test_any_number_of_classes(tmp_path, count):
    """CIFAR-10's records, with a list of other names beside them."""
    made, names = make(300, 10), tuple(f"class {number}" for number in range(count))
    labels = np.arange(300, dtype=np.int32) % count
    made = dataclasses.replace(made, train_labels=labels, test_labels=labels[:10], classes=names)
    data.write_binary(tmp_path / "set", made)
    assert_same(data.load(tmp_path / "set"), made)
    assert data.check(tmp_path / "set") == []
    assert len(data.inspect(tmp_path / "set").train_counts) == count
    (tmp_path / "set" / "batches.meta.txt").write_text("a\nb\n")
    if count > 2:  # the labels say more than the list
        message = failure(tmp_path / "set")
        assert "batches.meta.txt names 0 to 1" in message
        assert "fastadam data import" in message


def test_home_folder(cifar10_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(cifar10_folder.parent))
    assert_same(data.load("~/set"), data.load(cifar10_folder))


# ------------------------------------------------------------------------------------- the cache


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(data.library.platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    return tmp_path / "cache" / "fastadam"


def test_cache(cache, cifar10_folder, cifar100_folder, tmp_path):
    assert data.cache_folder() == cache
    assert data.cache_folder("cifar10") == cache / "cifar10"
    assert data.find_default() is None
    message = failure("cifar10")
    for part in ("not in the cache", "cifar-10-binary.tar.gz", str(cache / "cifar10"), "kriz/cifar.html"):
        assert part in message
    assert "cifar-100-binary.tar.gz" in failure("cifar100")

    (cache / "cifar10").mkdir(parents=True)
    assert data.find_default() is None
    pack(cache / "cifar10" / "cifar-10-binary.tar.gz", files_of(cifar10_folder))
    assert_same(data.load("cifar10"), data.load(cifar10_folder))
    assert_same(data.find_default(), data.load(cifar10_folder))
    assert_same(data.load(None), data.load(cifar10_folder))
    (cache / "cifar100").mkdir()
    pack(cache / "cifar100" / "cifar-100-binary.tar.gz", files_of(cifar100_folder[0]))
    assert data.load("cifar100").name == "cifar100"


def test_damaged_cache_is_not_passed_over(cache, cifar10_folder):
    (cache / "cifar10").mkdir(parents=True)
    archive = pack(cache / "cifar10" / "cifar-10-binary.tar.gz", files_of(cifar10_folder))
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(DataError, match="ends early"):
        data.find_default()


# ---------------------------------------------------------------------------------------- writing


def test_a_data_set_is_not_written_over(cifar10_folder):
    before = files_of(cifar10_folder)
    with pytest.raises(DataError, match="holds a data set already"):
        data.write_binary(cifar10_folder, make(seed=5))
    assert files_of(cifar10_folder) == before


def test_writing_where_it_cannot_be_done(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write into"):
        data.write_binary(tmp_path / "file", make())


def test_failed_writing_leaves_nothing(tmp_path, monkeypatch):
    real = data.cifar.write_atomically

    def full(path, content):
        if path.name == "data_batch_3.bin":
            raise DataError(f"cannot write {path}: No space left on device")
        real(path, content)

    monkeypatch.setattr(data.cifar, "write_atomically", full)
    with pytest.raises(FastAdamError, match="No space left"):
        data.write_binary(tmp_path / "set", make())
    assert not (tmp_path / "set").exists()
    (tmp_path / "set").mkdir()
    with pytest.raises(FastAdamError, match="No space left"):
        data.write_binary(tmp_path / "set", make())
    assert list((tmp_path / "set").iterdir()) == []
    names = tmp_path / "set" / "batches.meta.txt"
    names.write_text("mine\n")
    with pytest.raises(DataError, match="holds a data set already, or a part of one"):
        data.write_binary(tmp_path / "set", make())
    assert names.read_text() == "mine\n"


def test_what_cannot_be_written(tmp_path):
    zeros = {"train_labels": np.zeros(20, np.int32), "test_labels": np.zeros(10, np.int32)}
    for classes in (("one",), tuple(map(str, range(257)))):
        with pytest.raises(ValueError, match="2 to 256 classes"):
            data.write_binary(tmp_path, dataclasses.replace(make(), classes=classes, **zeros))
    with pytest.raises(ValueError, match="different"):
        data.write_binary(tmp_path, make(classes=("a ", "a", *TEN[2:])))
    with pytest.raises(ValueError, match="without training or test images"):
        data.write_binary(tmp_path, make(test=0))
    with pytest.raises(ValueError, match="printable"):
        data.write_binary(tmp_path, make(classes=("a\nb", *TEN[1:])))


def test_dataset_refuses_wrong_arrays():
    good = make()
    images, labels = good.train_images, good.train_labels
    for bad_images, bad_labels in (
        (images.astype(np.float32), labels),
        (images.transpose(0, 2, 3, 1), labels),
        (np.asfortranarray(images), labels),
        (images, labels.astype(np.int64)),
        (images, labels[:-1]),
        (images, labels + 10),
        (images, labels - 10),
    ):
        with pytest.raises(ValueError, match="train_"):
            data.Dataset("cifar10", bad_images, bad_labels, images, labels, TEN, "here")

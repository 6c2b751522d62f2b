"""Data that is missing, damaged or something else: refused by one line, and nothing but that."""

import os

import numpy as np
import pytest
from cifar_files import RECORD, failure, files_of, make, pack, quick
from hypothesis import given
from hypothesis import strategies as st

from fastadam import data
from fastadam.data import source as data_source


def test_path_that_is_not_there(tmp_path):
    assert f"there is no file or folder {tmp_path / 'nowhere'}" in failure(tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(b"x")
    assert "Not a directory" in failure(tmp_path / "file" / "set")
    assert "empty name" in failure("")
    assert "cannot be a path" in failure("a\0b")
    assert "File name too long" in failure("x" * 5000)
    (tmp_path / "loop").symlink_to("loop")
    assert "symbolic links" in failure(tmp_path / "loop")


def test_what_was_meant_instead_of_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no data set of that name; did you mean 'cifar10'?" in failure("cifar-10")
    assert "did you mean 'synthetic'?" in failure("syntetic")
    (tmp_path / "cifar-10").mkdir()
    assert "no data set in cifar-10 (found nothing)" in failure("cifar-10")
    assert "https://host/c.tar.gz is an address, not a file; download it" in failure("https://host/c.tar.gz")


def test_folder_without_data(tmp_path):
    message = failure(tmp_path)
    assert "found nothing" in message
    assert "data_batch_*.bin and test_batch.bin" in message
    assert "train.bin and test.bin" in message
    for name in ("a.png", "b.png", "c.png", "d\n.png", "e.png", "f.png", "g.png"):
        (tmp_path / name).touch()
    assert "found a.png, b.png, c.png, 'd\\n.png', e.png and 2 more" in failure(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("data_batch_1", "python version of CIFAR-10"),
        ("cifar-10-batches-py", "python version of CIFAR-10"),
        ("cifar-100-python", "python version of CIFAR-100"),
        ("cifar-10-python.tar.gz", "python version of CIFAR-10"),
        ("data_batch_1.mat", "MATLAB"),
    ],
)
def test_folder_of_another_version(tmp_path, name, expected):
    (tmp_path / name).touch()
    message = failure(tmp_path)
    assert expected in message
    assert "get the binary version" in message


@pytest.mark.parametrize("name", ["test_batch.bin", "data_batch_*.bin"])
def test_missing_file(cifar10_folder, tmp_path, name):
    for path in cifar10_folder.glob(name):
        path.unlink()
    for place in (cifar10_folder, pack(tmp_path / "a.tar.gz", files_of(cifar10_folder))):
        message = failure(place)
        assert f"no {name}" in message
        assert str(place) in message
        assert "copy it there from cifar-10-binary.tar.gz" in message


def test_a_missing_number(cifar10_folder, tmp_path):
    (cifar10_folder / "data_batch_4.bin").unlink()
    for place in (cifar10_folder, pack(tmp_path / "a.tar.gz", files_of(cifar10_folder))):
        assert "data_batch_5.bin: some numbers are missing; copy the others there" in failure(place)
    (cifar10_folder / "data_batch_5.bin").unlink()
    assert len(data.load(cifar10_folder).train_labels) < 20


def test_missing_cifar100_file(cifar100_folder):
    (cifar100_folder[0] / "test.bin").unlink()
    message = failure(cifar100_folder[0])
    assert "no test.bin" in message
    assert "cifar-100-binary.tar.gz" in message


def test_empty_file(cifar10_folder):
    (cifar10_folder / "data_batch_3.bin").write_bytes(b"")
    assert f"{cifar10_folder / 'data_batch_3.bin'} is empty" in failure(cifar10_folder)


@quick
@given(cut=st.integers(1, 4 * RECORD - 1))
def test_truncated_file_is_refused_unless_whole_records_are_left(tmp_path_factory, cut):
    place = tmp_path_factory.mktemp("cut")
    made = make(20, 3)
    data.write_binary(place, made)
    file = place / "data_batch_2.bin"
    file.write_bytes(file.read_bytes()[:cut])
    if cut % RECORD == 0:
        read = data.load(place)
        kept = np.r_[0 : 4 + cut // RECORD, 8:20]
        np.testing.assert_array_equal(read.train_images, made.train_images[kept])
        assert data.check(place) == []
        return
    message = failure(place)
    assert str(file) in message
    assert f"{cut:,} bytes are not a whole number of CIFAR-10 records of 3073 bytes" in message
    assert f"record {cut // RECORD} (counted from 0) ends after {cut % RECORD} bytes" in message
    assert "get the file again" in message


@quick
@given(record=st.integers(0, 9), label=st.integers(10, 255))
def test_label_out_of_range(tmp_path_factory, record, label):
    place = tmp_path_factory.mktemp("label")
    data.write_binary(place, make())
    file = place / "test_batch.bin"
    content = bytearray(file.read_bytes())
    content[record * RECORD] = label
    file.write_bytes(content)
    message = failure(place)
    assert str(file) in message
    assert f"record {record} (counted from 0) has label {label}, CIFAR-10 has 0 to 9" in message
    (problem,) = data.check(place)
    assert problem.records == (record,)


@pytest.mark.parametrize(("column", "value", "name", "last"), [(0, 20, "coarse", 19), (1, 100, "fine", 99)])
def test_cifar100_labels_out_of_range(cifar100_folder, column, value, name, last):
    place, records = cifar100_folder
    for record in (4, 9, 11):
        records["train.bin"][record, column] = value
    (place / "train.bin").write_bytes(records["train.bin"].tobytes())
    message = failure(place)
    assert f"record 4 (counted from 0) has {name} label {value}, CIFAR-100 has 0 to {last}" in message
    assert "2 more records" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("closed", ["test_batch.bin", ".", "../a.tar.gz"])
def test_unreadable(cifar10_folder, closed):
    pack(cifar10_folder.parent / "a.tar.gz", files_of(cifar10_folder))
    path = (cifar10_folder / closed).resolve()
    path.chmod(0)
    try:
        message = failure(path if closed.endswith("gz") else cifar10_folder)
    finally:
        path.chmod(0o700)
    assert f"cannot read {path}: Permission denied" in message
    assert "chmod" in message


def test_permission_is_told_apart(cifar10_folder, monkeypatch):
    """The message by itself, as root is never refused."""
    error = PermissionError(13, "Permission denied")
    monkeypatch.setattr(data_source.Path, "read_bytes", lambda path: (_ for _ in ()).throw(error))
    message = failure(cifar10_folder)
    assert "test_batch.bin: Permission denied" in message
    assert "chmod" in message


def test_folder_or_pipe_in_place_of_a_file(cifar10_folder):
    (cifar10_folder / "data_batch_1.bin").unlink()
    (cifar10_folder / "data_batch_1.bin").mkdir()
    assert f"{cifar10_folder / 'data_batch_1.bin'} is a folder where a file is expected" in failure(cifar10_folder)
    (cifar10_folder / "data_batch_1.bin").rmdir()
    os.mkfifo(cifar10_folder / "data_batch_1.bin")
    assert "neither a file nor a folder" in failure(cifar10_folder)
    assert "neither a file nor a folder" in failure("/dev/null")


def test_link_that_leads_nowhere(cifar10_folder):
    (cifar10_folder / "test_batch.bin").unlink()
    (cifar10_folder / "test_batch.bin").symlink_to(cifar10_folder / "gone")
    assert f"there is no file or folder {cifar10_folder / 'test_batch.bin'}" in failure(cifar10_folder)


def test_one_file_of_a_set(cifar10_folder):
    message = failure(cifar10_folder / "data_batch_1.bin")
    assert "one file of a data set" in message
    assert f"give the folder that holds it: {cifar10_folder}" in message


def test_two_data_sets_at_once(cifar10_folder, cifar100_folder, tmp_path):
    for name in ("train.bin", "test.bin"):
        (cifar10_folder / name).write_bytes((cifar100_folder[0] / name).read_bytes())
    assert "CIFAR-10 and CIFAR-100" in failure(cifar10_folder)
    above = tmp_path / "above"
    data.write_binary(above / "cifar-10-batches-bin", make())
    cifar100_folder[0].rename(above / "cifar-100-binary")
    message = failure(above)
    assert "more than one data set" in message
    assert str(above / "cifar-100-binary") in message

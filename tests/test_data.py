"""Data sets: files read and written, damage named, divisions and statistics."""

import dataclasses
import gzip
import io
import json
import os
import tarfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastadam import data
from fastadam.data import source as data_source
from fastadam.data.formats import CIFAR10
from fastadam.errors import DataError, FastAdamError

RECORD = 3073
ZEROS = {"train_labels": np.zeros(20, np.int32), "test_labels": np.zeros(10, np.int32)}
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


@pytest.fixture
def folder(tmp_path):
    """A data set of CIFAR-10 files."""
    place = tmp_path / "set"
    data.write_binary(place, make())
    return place


@pytest.fixture
def hundred(tmp_path):
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


def test_cifar100_is_learned_by_its_fine_labels(hundred):
    place, records = hundred
    read = data.load(place)
    np.testing.assert_array_equal(read.train_labels, records["train.bin"][:, 1])
    np.testing.assert_array_equal(read.test_images.reshape(7, 3072), records["test.bin"][:, 2:])
    assert read.name == "cifar100"
    assert len(read.classes) == 100
    assert (read.classes[0], read.classes[99]) == ("apple", "worm")


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_archives(folder, tmp_path, mode):
    files = {"cifar-10-batches-bin/readme.html": b"<html>", **files_of(folder)}
    archive = pack(tmp_path / "some.tar.gz", files, mode)
    assert_same(data.load(archive), data.load(folder))
    assert sorted(os.listdir(tmp_path)) == ["set", "some.tar.gz"]  # nothing was unpacked


def test_members_go_by_their_base_names_and_nothing_is_written(folder, tmp_path):
    archive = pack(tmp_path / "a.tgz", files_of(folder, "../../../tmp/"))
    before = sorted(tmp_path.rglob("*"))
    assert_same(data.load(archive), data.load(folder))
    assert sorted(tmp_path.rglob("*")) == before


def test_archive_of_cifar100(hundred, tmp_path):
    place, _ = hundred
    assert_same(data.load(pack(tmp_path / "c.tar.gz", files_of(place, "x/"))), data.load(place))


@pytest.mark.parametrize("lies", ["unpacked", "archive", "both"])
def test_folder_above_the_data(folder, tmp_path, lies):
    above = tmp_path / "above"
    above.mkdir()
    if lies != "archive":
        data.write_binary(above / "cifar-10-batches-bin", make())
    if lies != "unpacked":
        pack(above / "cifar-10-binary.tar.gz", files_of(folder))
    assert_same(data.load(above), data.load(folder))


def test_class_names_come_along_if_they_make_sense(folder):
    names = folder / "batches.meta.txt"
    assert data.load(folder).classes == TEN
    names.write_text("\n".join("zyxwvutsrq") + "\n\n\n")
    assert data.load(folder).classes == tuple("zyxwvutsrq")
    for nonsense in (
        b"",
        b"one\n",
        b"".join(b"%d\n" % number for number in range(257)),
        b"a\n" * 10,
        b"\xff\xfe" * 30,
        b"\n".join([b"\x1b[31m%d" % i for i in range(10)]),
    ):
        names.write_bytes(nonsense)
        assert data.load(folder).classes == TEN
        (problem,) = (str(problem) for problem in data.check(folder) if "batches.meta.txt" in str(problem))
        assert data.load(folder).notes == (f"{problem}: classes have CIFAR-10's names",)
    names.unlink()
    assert (data.load(folder).classes, data.load(folder).notes) == (TEN, ())
    assert data.check(folder) == []


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


def test_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert_same(data.load("~/set"), data.load(folder))


# ------------------------------------------------------------------------------------- the cache


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(data.library.platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    return tmp_path / "cache" / "fastadam"


def test_cache(cache, folder, hundred, tmp_path):
    assert data.cache_folder() == cache
    assert data.cache_folder("cifar10") == cache / "cifar10"
    assert data.find_default() is None
    message = failure("cifar10")
    for part in ("not in the cache", "cifar-10-binary.tar.gz", str(cache / "cifar10"), "kriz/cifar.html"):
        assert part in message
    assert "cifar-100-binary.tar.gz" in failure("cifar100")

    (cache / "cifar10").mkdir(parents=True)
    assert data.find_default() is None
    pack(cache / "cifar10" / "cifar-10-binary.tar.gz", files_of(folder))
    assert_same(data.load("cifar10"), data.load(folder))
    assert_same(data.find_default(), data.load(folder))
    assert_same(data.load(None), data.load(folder))
    (cache / "cifar100").mkdir()
    pack(cache / "cifar100" / "cifar-100-binary.tar.gz", files_of(hundred[0]))
    assert data.load("cifar100").name == "cifar100"


def test_damaged_cache_is_not_passed_over(cache, folder):
    (cache / "cifar10").mkdir(parents=True)
    archive = pack(cache / "cifar10" / "cifar-10-binary.tar.gz", files_of(folder))
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(DataError, match="ends early"):
        data.find_default()


# ---------------------------------------------------------------------------------------- damage


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
def test_missing_file(folder, tmp_path, name):
    for path in folder.glob(name):
        path.unlink()
    for place in (folder, pack(tmp_path / "a.tar.gz", files_of(folder))):
        message = failure(place)
        assert f"no {name}" in message
        assert str(place) in message
        assert "copy it there from cifar-10-binary.tar.gz" in message


def test_a_missing_number(folder, tmp_path):
    (folder / "data_batch_4.bin").unlink()
    for place in (folder, pack(tmp_path / "a.tar.gz", files_of(folder))):
        assert "data_batch_5.bin: some numbers are missing; copy the others there" in failure(place)
    (folder / "data_batch_5.bin").unlink()
    assert len(data.load(folder).train_labels) < 20


def test_missing_cifar100_file(hundred):
    (hundred[0] / "test.bin").unlink()
    message = failure(hundred[0])
    assert "no test.bin" in message
    assert "cifar-100-binary.tar.gz" in message


def test_empty_file(folder):
    (folder / "data_batch_3.bin").write_bytes(b"")
    assert f"{folder / 'data_batch_3.bin'} is empty" in failure(folder)


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
def test_cifar100_labels_out_of_range(hundred, column, value, name, last):
    place, records = hundred
    for record in (4, 9, 11):
        records["train.bin"][record, column] = value
    (place / "train.bin").write_bytes(records["train.bin"].tobytes())
    message = failure(place)
    assert f"record 4 (counted from 0) has {name} label {value}, CIFAR-100 has 0 to {last}" in message
    assert "2 more records" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("closed", ["test_batch.bin", ".", "../a.tar.gz"])
def test_unreadable(folder, closed):
    pack(folder.parent / "a.tar.gz", files_of(folder))
    path = (folder / closed).resolve()
    path.chmod(0)
    try:
        message = failure(path if closed.endswith("gz") else folder)
    finally:
        path.chmod(0o700)
    assert f"cannot read {path}: Permission denied" in message
    assert "chmod" in message


def test_permission_is_told_apart(folder, monkeypatch):
    """The message by itself, as root is never refused."""
    error = PermissionError(13, "Permission denied")
    monkeypatch.setattr(data_source.Path, "read_bytes", lambda path: (_ for _ in ()).throw(error))
    message = failure(folder)
    assert "test_batch.bin: Permission denied" in message
    assert "chmod" in message


def test_folder_or_pipe_in_place_of_a_file(folder):
    (folder / "data_batch_1.bin").unlink()
    (folder / "data_batch_1.bin").mkdir()
    assert f"{folder / 'data_batch_1.bin'} is a folder where a file is expected" in failure(folder)
    (folder / "data_batch_1.bin").rmdir()
    os.mkfifo(folder / "data_batch_1.bin")
    assert "neither a file nor a folder" in failure(folder)
    assert "neither a file nor a folder" in failure("/dev/null")


def test_link_that_leads_nowhere(folder):
    (folder / "test_batch.bin").unlink()
    (folder / "test_batch.bin").symlink_to(folder / "gone")
    assert f"there is no file or folder {folder / 'test_batch.bin'}" in failure(folder)


def test_one_file_of_a_set(folder):
    message = failure(folder / "data_batch_1.bin")
    assert "one file of a data set" in message
    assert f"give the folder that holds it: {folder}" in message


def test_two_data_sets_at_once(folder, hundred, tmp_path):
    for name in ("train.bin", "test.bin"):
        (folder / name).write_bytes((hundred[0] / name).read_bytes())
    assert "CIFAR-10 and CIFAR-100" in failure(folder)
    above = tmp_path / "above"
    data.write_binary(above / "cifar-10-batches-bin", make())
    hundred[0].rename(above / "cifar-100-binary")
    message = failure(above)
    assert "more than one data set" in message
    assert str(above / "cifar-100-binary") in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "is a web page (HTML)"),
        (b"\xef\xbb\xbf  <HTML>", "is a web page (HTML)"),
        (b"404: Not Found\n", "is a text file"),
        (b"PK\x03\x04....", "is a zip file"),
        (b"BZh91AY&SY", "something other than gzip"),
        (b"\x00\x01\x02" * 999, "is not a gzip-compressed tar archive"),
        (gzip.compress(b"hello"), "holds no readable tar archive"),
        (gzip.compress(bytes(10240)), "found nothing"),
        (gzip.compress(b""), "holds no readable tar archive"),
        (b"\x1f\x8b", "ends early"),
        (b"\x1f\x8b" + b"junk" * 99, "is damaged"),
    ],
)
def test_archive_that_is_none(tmp_path, content, expected):
    archive = tmp_path / "cifar-10-binary.tar.gz"
    archive.write_bytes(content)
    message = failure(archive)
    assert expected in message
    assert str(archive) in message
    assert "fastadam data fetch" in message or "expected data_batch_*.bin" in message


def test_published_archive_cut_off_tells_its_size(folder, tmp_path):
    archive = pack(tmp_path / "cifar-100-binary.tar.gz", files_of(folder))
    archive.write_bytes(archive.read_bytes()[:5000])
    message = failure(archive)
    assert "ends early, after 5,000 bytes" in message
    assert "168,513,733 bytes" in message


@quick
@given(cut=st.floats(0, 1, exclude_max=True), packed=st.booleans())
def test_truncated_archive_is_refused_or_read_whole(tmp_path_factory, cut, packed):
    """A compressed archive shows any cut; a plain one may lose the zeros at its end."""
    place = tmp_path_factory.mktemp("cut")
    data.write_binary(place / "set", make(3, 2))
    archive = pack(place / "a.tar.gz", files_of(place / "set"), "w:gz" if packed else "w")
    content = archive.read_bytes()
    archive.write_bytes(content[: int(cut * len(content))])
    try:
        read = data.load(archive)
    except DataError:
        return
    assert not packed
    assert_same(read, data.load(place / "set"))


@quick
@given(at=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_changed_byte_in_an_archive_never_gives_other_data(tmp_path_factory, at, change):
    place = tmp_path_factory.mktemp("flip")
    data.write_binary(place / "set", make(3, 2))
    archive = pack(place / "a.tar.gz", files_of(place / "set"))
    content = bytearray(archive.read_bytes())
    content[int(at * len(content))] ^= change
    archive.write_bytes(content)
    try:
        read = data.load(archive)
    except DataError:
        return
    assert_same(read, data.load(place / "set"))  # the change was in a header field that is not used


@quick
@given(content=st.binary(max_size=4000), wrap=st.sampled_from(["plain", "gzip", "tar", "member"]))
def test_random_bytes_are_refused_and_nothing_else(tmp_path_factory, content, wrap):
    place = tmp_path_factory.mktemp("junk")
    path = place / "x.tar.gz"
    if wrap == "plain":
        path.write_bytes(content)
    elif wrap == "gzip":
        path.write_bytes(gzip.compress(content))
    elif wrap == "tar":
        head = bytearray(pack(place / "y", {"test_batch.bin": b"abc"}, "w").read_bytes()[:512])
        head[100 : 100 + len(content)] = content[:412]
        path.write_bytes(gzip.compress(bytes(head)))
    else:
        pack(path, {"data_batch_1.bin": content, "test_batch.bin": content, "batches.meta.txt": content})
    with pytest.raises(DataError):
        data.load(path)
    assert data.check(path)


@quick
@given(contents=st.lists(st.binary(max_size=3 * RECORD), min_size=3, max_size=3))
def test_random_files_are_refused_or_read(tmp_path_factory, contents):
    place = tmp_path_factory.mktemp("junk")
    for name, content in zip(("data_batch_1.bin", "test_batch.bin", "batches.meta.txt"), contents, strict=True):
        (place / name).write_bytes(content)
    with pytest.raises(DataError):  # so few random bytes are no record
        data.load(place)
    assert data.check(place)


def test_python_archives(tmp_path):
    ten = {f"cifar-10-batches-py/{name}": b"\x80\x04." for name in ("data_batch_1", "test_batch", "batches.meta")}
    hundred = {f"cifar-100-python/{name}": b"\x80\x04." for name in ("train", "test", "meta")}
    message = failure(pack(tmp_path / "ten.tar.gz", ten))
    assert "python version of CIFAR-10 (pickles)" in message
    assert "get the binary version, cifar-10-binary.tar.gz" in message
    message = failure(pack(tmp_path / "hundred.tar.gz", hundred))
    assert "python version of CIFAR-100 (pickles)" in message
    assert "cifar-100-binary.tar.gz" in message


def test_archive_of_something_else(tmp_path):
    message = failure(pack(tmp_path / "a.tar.gz", {"x/cat.png": b"", "x/dog.png": b""}))
    assert "found cat.png, dog.png" in message
    assert "data_batch_*.bin" in message


def test_archive_with_a_file_twice(folder, tmp_path):
    files = {**files_of(folder), "again/test_batch.bin": b"x"}
    assert "two files called test_batch.bin" in failure(pack(tmp_path / "a.tar.gz", files))


def test_links_in_an_archive_are_not_followed(folder, tmp_path):
    archive = pack(tmp_path / "a.tar", {k: v for k, v in files_of(folder).items() if "test" not in k}, "w")
    with tarfile.open(archive, "a") as tar:
        link = tarfile.TarInfo("test_batch.bin")
        link.type, link.linkname = tarfile.SYMTYPE, str(folder / "test_batch.bin")
        tar.addfile(link)
    assert "no test_batch.bin" in failure(archive)


def test_archives_that_unpack_to_far_too_much(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(data_source, "ARCHIVE_LIMIT", 2**20)
    bomb = pack(tmp_path / "a.tar.gz", {"zeros": bytes(2**21), **files_of(folder)})
    assert "unpacks to more than 1 MiB" in failure(bomb)
    monkeypatch.setattr(data_source, "MEMBER_LIMIT", 10)
    many = pack(tmp_path / "b.tar.gz", {str(number): b"" for number in range(20)})
    assert "over 10 members" in failure(many)


# --------------------------------------------------------------------------------- info and check


def test_check_names_all_files_and_records(folder):
    (folder / "data_batch_1.bin").write_bytes(b"")
    (folder / "data_batch_2.bin").write_bytes(bytes([3]) * 4000)
    content = bytearray((folder / "data_batch_3.bin").read_bytes())
    content[0], content[2 * RECORD] = 10, 200
    (folder / "data_batch_3.bin").write_bytes(content + b"more")
    (folder / "data_batch_4.bin").unlink()
    (folder / "test_batch.bin").write_bytes(bytes(2 * RECORD) + bytes([1]) * RECORD)
    problems = data.check(folder)
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
def test_check_finds_nothing_wrong_with_good_data(folder, hundred, tmp_path, where):
    for place in (folder, hundred[0]):
        spec = place if where == "folder" else pack(tmp_path / f"{place.name}.tar.gz", files_of(place))
        assert data.check(spec) == []
    assert data.check("synthetic") == []


@pytest.mark.parametrize("where", ["folder", "archive"])
def test_inspect(folder, tmp_path, where):
    made = make()
    spec = folder if where == "folder" else pack(tmp_path / "a.tar.gz", files_of(folder))
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


def test_inspect_knows_the_published_archive(folder, tmp_path, monkeypatch):
    archive = pack(tmp_path / "a.tar.gz", files_of(folder))
    published = data_source.sha256(archive)
    monkeypatch.setattr("fastadam.data.report.PUBLISHED", {published})
    assert data.inspect(archive).published is True


def test_inspect_generated_images():
    report = data.inspect("synthetic")
    assert (report.kind, report.files, report.published) == ("generated", (), None)
    assert report.train_counts == (1000,) * 10
    json.dumps(report.to_dict())


# ---------------------------------------------------------------------------------------- writing


def test_a_data_set_is_not_written_over(folder):
    before = files_of(folder)
    with pytest.raises(DataError, match="holds a data set already"):
        data.write_binary(folder, make(seed=5))
    assert files_of(folder) == before


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


def test_what_cannot_be_written(tmp_path):
    for classes in (("one",), tuple(map(str, range(257)))):
        with pytest.raises(ValueError, match="2 to 256 classes"):
            data.write_binary(tmp_path, dataclasses.replace(make(), classes=classes, **ZEROS))
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

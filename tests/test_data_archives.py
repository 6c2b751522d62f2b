"""Archives that are damaged, hostile or something else."""

import gzip
import tarfile

import pytest
from cifar_files import RECORD, assert_same, failure, files_of, make, pack, quick
from hypothesis import given
from hypothesis import strategies as st

from fastadam import data
from fastadam.data import source as data_source
from fastadam.errors import DataError


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


def test_published_archive_cut_off_tells_its_size(cifar10_folder, tmp_path):
    archive = pack(tmp_path / "cifar-100-binary.tar.gz", files_of(cifar10_folder))
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
    cifar100_folder = {f"cifar-100-python/{name}": b"\x80\x04." for name in ("train", "test", "meta")}
    message = failure(pack(tmp_path / "ten.tar.gz", ten))
    assert "python version of CIFAR-10 (pickles)" in message
    assert "get the binary version, cifar-10-binary.tar.gz" in message
    message = failure(pack(tmp_path / "hundred.tar.gz", cifar100_folder))
    assert "python version of CIFAR-100 (pickles)" in message
    assert "cifar-100-binary.tar.gz" in message


def test_archive_of_something_else(tmp_path):
    message = failure(pack(tmp_path / "a.tar.gz", {"x/cat.png": b"", "x/dog.png": b""}))
    assert "found cat.png, dog.png" in message
    assert "data_batch_*.bin" in message


def test_archive_with_a_file_twice(cifar10_folder, tmp_path):
    files = {**files_of(cifar10_folder), "again/test_batch.bin": b"x"}
    assert "two files called test_batch.bin" in failure(pack(tmp_path / "a.tar.gz", files))


def test_links_in_an_archive_are_not_followed(cifar10_folder, tmp_path):
    archive = pack(tmp_path / "a.tar", {k: v for k, v in files_of(cifar10_folder).items() if "test" not in k}, "w")
    with tarfile.open(archive, "a") as tar:
        link = tarfile.TarInfo("test_batch.bin")
        link.type, link.linkname = tarfile.SYMTYPE, str(cifar10_folder / "test_batch.bin")
        tar.addfile(link)
    assert "no test_batch.bin" in failure(archive)


def test_archives_that_unpack_to_far_too_much(cifar10_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(data_source, "ARCHIVE_LIMIT", 2**20)
    bomb = pack(tmp_path / "a.tar.gz", {"zeros": bytes(2**21), **files_of(cifar10_folder)})
    assert "unpacks to more than 1 MiB" in failure(bomb)
    monkeypatch.setattr(data_source, "MEMBER_LIMIT", 10)
    many = pack(tmp_path / "b.tar.gz", {str(number): b"" for number in range(20)})
    assert "over 10 members" in failure(many)

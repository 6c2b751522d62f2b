"""Where a data set lies: a folder, or a tar archive that is read member by member and never unpacked.

Nothing here knows what is in a file; that is ``cifar.py``. Whatever keeps a file from being read is a
``DataError`` of one line.
"""

import errno
import gzip
import hashlib
import io
import os
import stat
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fastadam.data.formats import CIFAR10, EXPECTED, FORMATS, Format, is_wanted, python_version
from fastadam.errors import DataError

ARCHIVE_LIMIT = 512 * 2**20
"""An archive that unpacks to more bytes is refused: the published ones hold 185 MB."""

MEMBER_LIMIT = 1000
"""An archive of more members is refused: the published ones have about ten."""

_SHOWN = 5  # names told in an error message


@dataclass(frozen=True)
class Source:
    """The files of a data set by name, wherever they are.

    path    the folder or archive, for messages       archive   whether it is an archive
    sizes   bytes of each file that a reader may want
    """

    path: Path
    archive: bool
    sizes: Mapping[str, int]
    _contents: dict[str, bytes] = field(default_factory=dict, repr=False)

    def where(self, name: str) -> str:
        """How a message calls one of the files."""
        return f"{name} in {self.path}" if self.archive else str(self.path / name)

    def read(self, name: str) -> bytes:
        """All bytes of a file. DataError if it is unreadable or not a file."""
        if self.archive:
            return self._contents[name]
        path = self.path / name
        try:
            # Asked first: opening a pipe would wait for a writer.
            _require_file(path, os.stat(path).st_mode)
            return path.read_bytes()
        except OSError as error:
            raise cannot_read(path, error) from error

    def release(self, name: str) -> None:
        """Give back the memory that an archive's file takes; it cannot be read again."""
        self._contents.pop(name, None)


def open_source(path: Path) -> Source:
    """The data set at ``path``: a folder or an archive.

    A folder may hold the files themselves, or the folder that a published archive unpacks to, or that
    archive. DataError if there is nothing of the kind, naming what was found.
    """
    mode = _mode(path)
    if stat.S_ISDIR(mode):
        return _open_folder(path)
    _require_file(path, mode)
    if path.suffix == ".bin":
        raise DataError(f"{path} is one file of a data set; give the folder that holds it: {path.parent}")
    return _open_archive(path)


def holds_data(folder: Path) -> bool:
    """Whether ``folder`` looks like a data set; False too if it is missing or cannot be read."""
    try:
        return any(data_places(folder))
    except (OSError, DataError):
        return False


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise cannot_read(path, error) from error


def cannot_read(path: Path, error: OSError) -> DataError:
    """The error that tells why ``path`` was not read, and what to do about it."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"there is no file or folder {path}; check the path")
    if isinstance(error, PermissionError):
        cure = "give yourself the right to read it (chmod -R u+rX)"
    elif error.errno == errno.EIO:
        cure = "the disk may be failing: get the data again"
    else:
        cure = "check the path"
    return DataError(f"cannot read {path}: {error.strerror or error}; {cure}")


# ------------------------------------------------------------------------------------------- folders


def _open_folder(path: Path) -> Source:
    found = data_places(path)
    if len(found) > 1:
        places = " or ".join(map(str, found))
        raise DataError(f"{path} holds more than one data set; name one of them: {places}")
    if not found:
        raise _nothing_in(path)
    place = found[0]
    return _open_archive(place) if place.is_file() else Source(place, False, _sizes(place))


def data_places(path: Path) -> list[Path]:
    """The places in and below ``path`` that hold data; the folder itself counts before all others.

    DataError if the folder cannot be listed.
    """
    here = _names(path)
    if any(form.is_data(name) for form in FORMATS for name in here):
        return [path]
    found = []
    for form in FORMATS:
        folder, archive = path / form.folder, path / form.archive.name
        if os.path.isdir(folder) and any(map(form.is_data, _names(folder))):
            found.append(folder)  # if the archive is there too, it is the same data, and slower to read
        elif os.path.isfile(archive):
            found.append(archive)
    return found


def _sizes(folder: Path) -> dict[str, int]:
    sizes = {}
    for name in filter(is_wanted, _names(folder)):
        try:
            sizes[name] = os.stat(folder / name).st_size
        except OSError:
            sizes[name] = 0  # a link that leads nowhere, say: reading it will tell
    return sizes


def _nothing_in(path: Path) -> DataError:
    names = _names(path)
    form = python_version(names)
    for other in FORMATS:
        if other.python_folder in names or other.python_archive in names:
            form = form or other
    if form is not None:
        return _is_python_version(path, form)
    if any(name.endswith(".mat") for name in names):
        return DataError(f"{path} holds MATLAB files, which are not read; {_get_binary(CIFAR10)}")
    return DataError(f"no data set in {path} (found {_listed(names)}); expected {EXPECTED}")


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise cannot_read(folder, error) from error


# ------------------------------------------------------------------------------------------ archives


class _Unpacked(io.RawIOBase):
    """The tar archive in a file: unpacked if need be, of limited size, its damage told as a ``DataError``."""

    def __init__(self, stream: BinaryIO | gzip.GzipFile, path: Path):
        self._stream = stream
        self._path = path
        self._left = ARCHIVE_LIMIT

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._stream.read(size)
        except EOFError as error:
            raise _ends_early(self._path) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{self._path} is damaged ({error}); {_download_again(self._path)}") from error
        self._left -= len(data)
        if self._left < 0:
            raise _too_large(self._path)
        return data


def _open_archive(path: Path) -> Source:
    contents: dict[str, bytes] = {}
    names: set[str] = set()
    try:
        with open(path, "rb") as raw:
            compressed = _require_archive(path, raw.read(512))
            raw.seek(0)
            stream = _Unpacked(gzip.GzipFile(fileobj=raw) if compressed else raw, path)
            _read_members(path, stream, contents, names)
            while stream.read(2**16):  # to the end: only there is the checksum
                pass
    except OSError as error:
        raise cannot_read(path, error) from error
    if not any(form.is_data(name) for form in FORMATS for name in contents):
        form = python_version(names)
        if form is not None:
            raise _is_python_version(path, form)
        raise DataError(f"no data set in {path} (found {_listed(sorted(names))}); expected {EXPECTED}")
    return Source(path, True, {name: len(data) for name, data in contents.items()}, contents)


def _read_members(path: Path, stream: _Unpacked, contents: dict[str, bytes], names: set[str]) -> None:
    """Put the wanted members into ``contents`` by their base names, and all base names into ``names``."""
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for count, member in enumerate(tar):
                if count >= MEMBER_LIMIT:
                    raise DataError(f"{path} has over {MEMBER_LIMIT} members: no CIFAR archive; {_get_binary()}")
                name = member.name.rpartition("/")[2]
                if not member.isreg() or member.issparse():
                    continue  # a link or a device holds no records
                names.add(name)
                if not is_wanted(name):
                    continue
                if name in contents:
                    raise DataError(f"{path} holds two files called {name}; {_get_binary()}")
                if member.size > ARCHIVE_LIMIT:
                    raise _too_large(path)
                file = tar.extractfile(member)
                contents[name] = file.read() if file is not None else b""
    except (tarfile.TarError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        if "unexpected end of data" in str(error):
            raise _ends_early(path) from error
        raise DataError(f"{path} holds no readable tar archive ({error}); {_download_again(path)}") from error


def _require_archive(path: Path, head: bytes) -> bool:
    """Whether the archive with these first bytes is compressed. DataError if it is no archive at all."""
    if head.startswith(b"\x1f\x8b"):
        return True
    if head[257:262] == b"ustar":
        return False
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head:
        what = "is empty"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")):
        what = "is a web page (HTML), not an archive"
    elif head.startswith(b"PK"):
        what = "is a zip file"
    elif head.startswith((b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        what = "is compressed with something other than gzip"
    elif all(byte >= 32 or byte in b"\t\n\r\f" for byte in head):
        what = "is a text file, not an archive"
    else:
        what = "is not a gzip-compressed tar archive"
    raise DataError(f"{path} {what}; {_download_again(path)}")


def _ends_early(path: Path) -> DataError:
    size = path.stat().st_size if path.exists() else 0
    return DataError(f"{path} ends early, after {size:,} bytes: the download was cut off; {_download_again(path)}")


def _too_large(path: Path) -> DataError:
    limit = ARCHIVE_LIMIT // 2**20
    return DataError(f"{path} unpacks to more than {limit} MiB, which no CIFAR archive does; {_get_binary()}")


# -------------------------------------------------------------------------------------------- messages


def _mode(path: Path) -> int:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError as error:
        raise DataError(f"{cannot_read(path, error)}, or use `synthetic`, generated images") from error
    except OSError as error:
        raise cannot_read(path, error) from error
    except ValueError as error:
        raise DataError(f"{str(path)!r} cannot be a path: {error}; check it") from error


def _require_file(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise DataError(f"{path} is a folder where a file is expected; put the file of that name in its place")
    if not stat.S_ISREG(mode):
        raise DataError(f"{path} is neither a file nor a folder; give a folder or a .tar.gz archive")


def _is_python_version(path: Path, form: Format) -> DataError:
    return DataError(f"{path} is the python version of {form.title} (pickles), which is not read; {_get_binary(form)}")


def _get_binary(form: Format = CIFAR10) -> str:
    return f"get the binary version, {form.archive.name}: {form.cure}"


def _download_again(path: Path) -> str:
    for form in FORMATS:
        if form.archive.name == path.name:
            return f"get it again: {form.cure} ({form.archive.bytes:,} bytes)"
    return _get_binary()


def _listed(names: Iterable[str]) -> str:
    shown = [name if name.isprintable() else ascii(name) for name in names]
    if not shown:
        return "nothing"
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more

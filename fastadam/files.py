"""Files that are either the old one or the new one, whenever the process or the machine stops."""

import contextlib
import errno
import os
import secrets
from pathlib import Path

from fastadam.errors import RunError

_PREFIX, _SUFFIX = ".fastadam-", ".tmp"

_CURES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there",
    errno.EFBIG: "raise the limit on file sizes",
    errno.EACCES: "choose a folder you may write to",
    errno.EPERM: "choose a folder you may write to",
    errno.EROFS: "choose a folder you may write to",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "check the path",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def write_atomically(path: Path | str, data: bytes) -> None:
    """Make ``data`` the content of ``path``: written beside it, flushed to the disk, then renamed over it.

    A kill or a power failure at any moment leaves the old file or the new one, whole. RunError, one line,
    if that is not possible: the old file is untouched then and nothing else is left behind.
    """
    target = Path(os.path.realpath(path))
    beside = target.parent / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(8)}{_SUFFIX}"
    try:
        try:
            _write_new(beside, data)
            os.replace(beside, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise
        sync_folder(target.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed ``write_atomically`` left in ``folder``, to which nobody else may be writing."""
    for name in os.listdir(folder):
        if is_leftover(name):
            with contextlib.suppress(OSError):
                os.unlink(folder / name)


def is_leftover(name: str) -> bool:
    """Whether a file of this name is an unfinished write."""
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


def cannot_write(path: Path | str, error: OSError) -> RunError:
    """The error that tells the user why ``path`` was not written, and what to do about it."""
    cure = _CURES.get(error.errno or 0)
    return RunError(f"cannot write {path}: {error.strerror or error}" + (f"; {cure}" if cure else ""))


def write_all(file: int, data: bytes) -> None:
    """Write all of ``data`` to a file descriptor: a single ``os.write`` may take only a part."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def sync_folder(folder: Path) -> None:
    """Put the names in ``folder`` on the disk, where its file system can do that."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def _write_new(path: Path, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        write_all(file, data)
        os.fsync(file)
    finally:
        os.close(file)

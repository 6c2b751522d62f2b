"""The published archives, from the internet or from a file, into the cache: the facts behind ``fastadam data fetch``.

Nothing but the published file, by size and SHA-256, ever stands in the cache under its name. What has arrived of
an unfinished download stays beside it as ``NAME.part``, and the next call goes on from there.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shlex
import signal
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fastadam.data.formats import CIFAR10, FORMATS, Archive
from fastadam.data.library import cache_folder
from fastadam.data.progress import Progress, Silent
from fastadam.data.report import check
from fastadam.data.source import cannot_read, data_places, open_source, sha256
from fastadam.errors import DataError, InterruptedRunError
from fastadam.files import cannot_write, sync_folder, write_all

if TYPE_CHECKING:
    from fastadam.data.download import Download, Patience

ARCHIVES: dict[str, Archive] = {form.name: form.archive for form in FORMATS}
"""What can be fetched, by the name of the data set."""

_GROWTH = 2**20  # an attempt that brought so much is repeated at once, at the same address
_PART, _COPY, _LOCK = ".part", ".copy", ".lock"
_POOCH_LEFTOVER = re.compile(r"tmp[a-z0-9_]{8}")


@dataclass(frozen=True)
class Fetched:
    """A data set that is in the cache now.

    name     of the data set           path     of the archive, or of the folder with its files
    bytes, sha256   of the archive; None for a folder
    source   the address or file it came from now; "cache" if it was there already
    received bytes that came over the network, and ``resumed_from`` how many were here before
    """

    name: str
    path: str
    bytes: int | None
    sha256: str | None
    source: str
    received: int
    resumed_from: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def fetch(
    name: str = CIFAR10.name,
    *,
    mirrors: Sequence[str] = (),
    file: str | Path | None = None,
    progress: Progress | None = None,
    archive: Archive | None = None,
    patience: "Patience | None" = None,
) -> Fetched:
    """Put the published archive of the data set ``name`` ("cifar10" or "cifar100") into the cache folder.

    ``mirrors`` are addresses of the archive, or of folders (ending in "/") that hold it, asked before those that
    are known. With ``file`` nothing is downloaded: that file is checked and copied. If the archive is there and
    right, nothing is done; if it is there and wrong, it is replaced when the right one has arrived. A second process
    waits for the first. ``archive`` replaces the entry of ``ARCHIVES``.

    DataError, one line, if no address gave the archive or the file is another one. KeyboardInterrupt becomes
    InterruptedRunError, and what had arrived is kept. ValueError for a name there is not.
    """
    if name not in ARCHIVES:
        raise ValueError(f"there is no archive of {name!r}; known are {', '.join(ARCHIVES)}")
    archive = archive or ARCHIVES[name]
    urls = list(dict.fromkeys([*(address(mirror, archive) for mirror in mirrors), *archive.urls]))
    told: Progress = progress or Silent()
    target = cache_folder(name) / archive.name
    try:
        os.makedirs(target.parent, exist_ok=True)
    except OSError as error:
        raise cannot_write(target.parent, error) from error
    began = time.monotonic()
    try:
        with _locked(target, told):
            _sweep(target.parent)
            return _Fetch(name, archive, target, told, began).run(urls, file, patience)
    except KeyboardInterrupt:
        raise InterruptedRunError(f"stopped; {_kept(target, archive)}", signal.SIGINT) from None


def address(mirror: str, archive: Archive) -> str:
    """The archive's address at a mirror. DataError if ``mirror`` is no http or https address."""
    try:
        parts = urlsplit(mirror)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and mirror.isprintable()
        usable = usable and not any(map(str.isspace, mirror)) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise DataError(f"{mirror!r} is no address to download from; give one that begins with https:// or http://")
    return mirror + archive.name if mirror.endswith("/") else mirror


class _Fetch:
    """One call, with the lock held."""

    def __init__(self, name: str, archive: Archive, target: Path, progress: Progress, began: float):
        self.name, self.archive, self.target = name, archive, target
        self.progress = progress
        self.began = began

    def run(self, urls: list[str], file: str | Path | None, patience: "Patience | None") -> Fetched:
        beside = self._files_beside()
        if beside is not None:
            return beside
        if self._is_there():
            return self._result("cache")
        if file is not None:
            self._copy(Path(os.path.expanduser(file)))
            return self._result(str(file))
        return self._download(urls, patience)

    def _result(self, source: str, received: int = 0, resumed_from: int = 0) -> Fetched:
        seconds = round(time.monotonic() - self.began, 3)
        size, digest = self.archive.bytes, self.archive.sha256
        return Fetched(self.name, str(self.target), size, digest, source, received, resumed_from, seconds)

    def _files_beside(self) -> Fetched | None:
        """Files that were put into the cache folder by hand: readers take them before the archive."""
        folder = self.target.parent
        others = [place for place in data_places(folder) if place.is_dir()]
        if not others:
            return None
        place = others[0]
        problems = check(place)
        if not problems:
            seconds = round(time.monotonic() - self.began, 3)
            return Fetched(self.name, str(place), None, None, "cache", 0, 0, seconds)
        quoted = shlex.quote(str(place))
        command = f"rm {quoted}/*.bin" if place == folder else f"rm -r {quoted}"
        raise DataError(
            f"{place} holds a damaged data set, which would be read before the archive ({problems[0].file}); "
            f"remove it ({command}), then fetch again"
        )

    def _is_there(self) -> bool:
        try:
            size = os.stat(self.target).st_size
        except FileNotFoundError:
            return False
        except OSError as error:
            raise cannot_read(self.target, error) from error
        if self.target.is_dir():
            raise DataError(f"{self.target} is a folder where the archive belongs; move it away, then fetch again")
        if size == self.archive.bytes and sha256(self.target) == self.archive.sha256:
            return True
        self.progress.message(f"{self.target} is not the published file; it is replaced when that is here")
        return False

    # ------------------------------------------------------------------------------------- from the internet

    def _download(self, urls: list[str], patience: "Patience | None") -> Fetched:
        from fastadam.data.download import Download, Patience

        patience = patience or Patience()
        load = Download(self.archive, _part(self.target), patience, self.progress)
        resumed_from = load.kept
        if resumed_from:
            self.progress.message(f"going on after {resumed_from:,} of {self.archive.bytes:,} bytes")
        reasons: dict[str, str] = {}
        for number in range(patience.rounds):
            if number and urls:
                time.sleep(patience.pause * 2 ** (number - 1))
            for url in list(urls):
                failure, again = self._try(url, load)
                if failure is None:
                    return self._result(url, load.received, min(resumed_from, load.began) if resumed_from else 0)
                reasons[url] = failure
                self.progress.message(failure)
                if not again:
                    urls.remove(url)
        raise DataError(
            f"{self.archive.name} could not be had ({'; '.join(reasons.values()) or 'no address is known'}); "
            f"{_kept(self.target, self.archive)}; or give another address with --mirror, or a file with --from"
        )

    def _try(self, url: str, load: "Download") -> tuple[str | None, bool]:
        """Why ``url`` did not give the archive, None if it did; and whether to ask there once more."""
        import pooch

        from fastadam.data.download import MirrorError, shown

        pooch.get_logger().setLevel("ERROR")
        while True:
            before = load.kept
            try:
                pooch.retrieve(url, f"sha256:{self.archive.sha256}", self.target.name, self.target.parent, None, load)
                sync_folder(self.target.parent)
                return None, False
            except MirrorError as error:
                if error.again and load.kept - before >= _GROWTH:
                    self.progress.message(f"{shown(url)} {error}; going on")
                    continue
                return f"{shown(url)} {error}", error.again
            except ValueError:  # pooch's word for another checksum; what arrived is deleted
                # Bytes from several attempts may be from several files: then this address gets another chance.
                mixed = load.began > 0
                return f"what came from {shown(url)} is not the published file (SHA-256)", mixed
            except OSError as error:
                raise cannot_write(self.target, error) from error

    # ------------------------------------------------------------------------------------------ from a file

    def _copy(self, file: Path) -> None:
        """Copy the archive that the user has, hashing what is copied."""
        beside = self.target.with_name(self.target.name + _COPY)
        try:
            with _reading(file) as source:
                digest = self._copy_bytes(source, file, beside)
            if digest != self.archive.sha256:
                raise self._another(file, f"its SHA-256 is {digest}")
            try:
                os.replace(beside, self.target)
                sync_folder(self.target.parent)
                _part(self.target).unlink(missing_ok=True)  # of a download that is no longer needed
            except OSError as error:
                raise cannot_write(self.target, error) from error
        finally:
            with contextlib.suppress(OSError):
                os.unlink(beside)

    def _copy_bytes(self, source: int, file: Path, beside: Path) -> str:
        size, position, digest = self.archive.bytes, 0, hashlib.sha256()
        found = os.fstat(source).st_size
        if found != size:
            raise self._another(file, f"it has {found:,} bytes, not {size:,}")
        try:
            out = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        except OSError as error:
            raise cannot_write(beside, error) from error
        self.progress.begin(f"{self.archive.name} from {file}", size)
        try:
            while True:
                try:
                    chunk = os.read(source, 2**20)
                except OSError as error:
                    raise cannot_read(file, error) from error
                if not chunk:
                    break
                digest.update(chunk)
                position += len(chunk)
                try:
                    write_all(out, chunk)
                except OSError as error:
                    raise cannot_write(beside, error) from error
                self.progress.advance(position)
            with contextlib.suppress(OSError):
                os.fsync(out)
        finally:
            os.close(out)
            self.progress.end()
        return digest.hexdigest()

    def _another(self, file: Path, difference: str) -> DataError:
        """What the file is instead of the published archive."""
        for name, archive in ARCHIVES.items():
            if name != self.name and os.stat(file).st_size == archive.bytes:
                return DataError(
                    f"{file} seems to be {archive.name}, not {self.archive.name} ({difference}); "
                    f"fastadam data fetch {name} --from {shlex.quote(str(file))}"
                )
        try:
            open_source(file)
        except DataError as error:
            return error  # a web page, the python version, cut off ...: it says so
        return DataError(
            f"{file} is a data set, but not the published {self.archive.name}: {difference}; "
            f"use it as it is with --data {shlex.quote(str(file))}"
        )


def _part(target: Path) -> Path:
    return target.with_name(target.name + _PART)


def _kept(target: Path, archive: Archive) -> str:
    """What to do to go on, and how much is here already."""
    try:
        size = os.stat(_part(target)).st_size
    except OSError:
        size = 0
    if not size:
        return "the same command begins anew"
    return f"{size:,} of {archive.bytes:,} bytes are here, the same command goes on from there"


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[int]:
    """A descriptor of a regular file. DataError if it cannot be had."""
    try:
        mode = os.stat(file).st_mode  # asked first: opening a pipe would wait for a writer
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "no file"
            raise DataError(f"{file} is {what}; give the archive itself with --from")
        source = os.open(file, os.O_RDONLY)
    except OSError as error:
        raise cannot_read(file, error) from error
    except ValueError as error:
        raise DataError(f"{str(file)!r} cannot be a path: {error}; check it") from error
    try:
        yield source
    finally:
        os.close(source)


@contextlib.contextmanager
def _locked(target: Path, progress: Progress) -> Iterator[None]:
    """Let one process at a time fetch ``target``. The system frees the lock however the process ends."""
    path = target.with_name(target.name + _LOCK)
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.message(f"another process is fetching {target.name}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        os.close(lock)
        raise DataError(
            f"cannot lock {path}: {error.strerror}; set XDG_CACHE_HOME to a folder on a local disk"
        ) from error
    except BaseException:
        os.close(lock)
        raise
    try:
        yield
    finally:
        os.close(lock)


def _sweep(folder: Path) -> None:
    """Remove what a killed process left: the empty files that pooch makes before a download, unfinished copies."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if (_POOCH_LEFTOVER.fullmatch(entry.name) or entry.name.endswith(_COPY)) and entry.is_file():
                with contextlib.suppress(OSError):
                    os.unlink(entry)

"""Bringing a file of known size here by HTTP, going on where an earlier attempt stopped.

``pooch`` checks what arrived and puts it in place, but it begins each download anew. This is the downloader it
is given: one attempt at one address, into a partial file that outlives the attempt and the process.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3.exceptions

from fastadam.data.formats import Archive, python_version_of_size
from fastadam.data.progress import Progress
from fastadam.files import cannot_write, write_all

CHUNK = 2**16
_GZIP = b"\x1f\x8b"
_NO_ADDRESS = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
    urllib3.exceptions.LocationParseError,
)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


@dataclass(frozen=True)
class Patience:
    """When to give up on an address.

    connect   seconds to wait for a connection
    silence   seconds without a byte, or with fewer than ``slowest`` bytes a second, after which it has stalled
    rounds    attempts at each address        pause   seconds after the first round, twice as many after the next
    """

    connect: float = 15.0
    silence: float = 30.0
    slowest: float = 1000.0
    rounds: int = 3
    pause: float = 1.0


class MirrorError(Exception):
    """An attempt failed; ``again`` if another one at the same address may do better."""

    def __init__(self, reason: str, again: bool = False):
        super().__init__(reason)
        self.again = again


class Download:
    """A ``pooch`` downloader: called with an address and a file name, it leaves the whole file under that name.

    What arrives goes to ``part`` first, which is moved only when it has all its bytes. A partial file of an earlier
    attempt, at whatever address, is gone on with: what the bytes are is for the checksum to say. MirrorError if the
    address does not give all of them, RunError if they cannot be written.

    began     where in the file the last attempt began: 0 if all of its bytes are from there
    received  bytes that came over the network, in all attempts
    """

    def __init__(self, archive: Archive, part: Path, patience: Patience, progress: Progress):
        self.archive = archive
        self.part = part
        self.began = self.received = 0
        self._patience = patience
        self._progress = progress

    @property
    def kept(self) -> int:
        """Bytes that are in the partial file."""
        try:
            return self.part.stat().st_size
        except OSError:
            return 0

    def __call__(self, url: str, output_file: str | os.PathLike[str], _: Any = None) -> None:
        """Bring the file at ``url`` to ``output_file``."""
        if self.kept > self.archive.bytes:
            self.discard()
        self.began = self.kept
        if self.began < self.archive.bytes:
            self._attempt(url)
        with _writing(self.part):
            os.replace(self.part, output_file)

    def discard(self) -> None:
        """Forget what is in the partial file."""
        with _writing(self.part):
            self.part.unlink(missing_ok=True)

    def _attempt(self, url: str) -> None:
        with _network(), requests.Session() as session:
            # The bytes of the file as they are; a server that packs on the way would change them.
            headers = {"Accept-Encoding": "identity", "User-Agent": "fastadam"}
            if self.began:
                headers["Range"] = f"bytes={self.began}-"
            timeout = (self._patience.connect, self._patience.silence)
            with session.get(url, headers=headers, stream=True, timeout=timeout) as response:
                self.began = _start(response, self.began, self.archive)
                self._progress.begin(f"{self.archive.name} from {shown(url)}", self.archive.bytes, self.began)
                try:
                    # Undecoded: some servers call the archive's own compression a Content-Encoding.
                    self._receive(lambda: response.raw.read1(CHUNK, decode_content=False))
                finally:
                    self._progress.end()

    def _receive(self, read: Callable[[], bytes]) -> None:
        """Write what ``read`` gives from byte ``began`` on. Nothing is cut off: a shorter answer loses nothing."""
        position, size = self.began, self.archive.bytes
        watch = _Watch(self._patience)
        with _writing(self.part):
            file = os.open(self.part, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.lseek(file, position, os.SEEK_SET)
            while position < size:
                chunk = read()[: size - position]
                if not chunk:
                    raise MirrorError(f"broke off after {position:,} of {size:,} bytes", again=True)
                if position == 0:
                    _require_gzip(chunk)
                with _writing(self.part):
                    write_all(file, chunk)
                position += len(chunk)
                self.received += len(chunk)
                self._progress.advance(position)
                watch.count(len(chunk))
            with _writing(self.part):
                os.fsync(file)
        finally:
            os.close(file)


class _Watch:
    """Raises MirrorError when too little has come for too long."""

    def __init__(self, patience: Patience):
        self._patience = patience
        self._since, self._bytes = time.monotonic(), 0

    def count(self, size: int) -> None:
        self._bytes += size
        seconds = time.monotonic() - self._since
        if seconds >= self._patience.silence:
            if self._bytes < seconds * self._patience.slowest:
                raise MirrorError(f"stalled: {self._bytes:,} bytes in {seconds:.0f} s", again=True)
            self._since, self._bytes = time.monotonic(), 0


def shown(url: str) -> str:
    """An address for messages: without passwords and keys."""
    parts = urlsplit(url)
    return f"{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _start(response: requests.Response, wanted: int, archive: Archive) -> int:
    """The byte of the file that the answer begins with. MirrorError if it is not an answer to build on."""
    status, headers = response.status_code, response.headers
    if status == 206:
        found = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
        if found is None or int(found[1]) != wanted:
            raise MirrorError("answered with another part of the file than was asked for")
        if found[2] != "*":
            _require_size(int(found[2]), archive, headers)
        return wanted
    if status == 200:  # the server knows no Range: from the beginning, over what is here
        length = headers.get("Content-Length", "")
        if length.isdecimal():
            _require_size(int(length), archive, headers)
        return 0
    if status == 416:
        raise MirrorError("has a shorter file than the published one")
    reason = f" {response.reason}" if response.reason else ""
    raise MirrorError(f"answered {status}{reason}", again=status in (408, 425, 429) or status >= 500)


def _require_size(size: int, archive: Archive, headers: Any) -> None:
    if size == archive.bytes:
        return
    if "html" in headers.get("Content-Type", ""):
        raise MirrorError("sent a web page instead of the archive", again=True)
    python = python_version_of_size(size)
    told = f", the python version of {python.title}," if python else ""
    raise MirrorError(f"has a file of {size:,} bytes{told} where the published one has {archive.bytes:,}")


def _require_gzip(chunk: bytes) -> None:
    if chunk[:2] != _GZIP[: len(chunk)]:
        what = "a web page" if chunk.lstrip().startswith(b"<") else "something else"
        raise MirrorError(f"sent {what} instead of the archive", again=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


@contextmanager
def _network() -> Iterator[None]:
    """What goes wrong between here and a server, as a MirrorError."""
    try:
        yield
    except (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError) as error:
        raise MirrorError("stalled: no answer in time", again=True) from error
    except requests.exceptions.SSLError as error:
        raise MirrorError("has no certificate that this machine trusts") from error
    except requests.exceptions.ProxyError as error:
        raise MirrorError("cannot be reached through the proxy that the environment names", again=True) from error
    except requests.exceptions.TooManyRedirects as error:
        raise MirrorError("leads in a circle") from error
    except _NO_ADDRESS as error:
        raise MirrorError("is no address that can be asked") from error
    except requests.exceptions.ConnectionError as error:
        raise MirrorError("cannot be reached", again=True) from error
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
        raise MirrorError("broke off", again=True) from error

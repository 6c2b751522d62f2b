"""The folder of a training run: settings, log, checkpoints, summary, and the lock on them."""

import errno
import fcntl
import json
import math
import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fastadam.config import dump_toml, load_toml
from fastadam.errors import ConfigError, RunError
from fastadam.files import (
    cannot_write,
    is_leftover,
    remove_leftovers,
    sync_folder,
    write_all,
    write_atomically,
)

CONFIG, METRICS, SUMMARY = "config.toml", "metrics.jsonl", "summary.json"
NET = "model.toml"
LAST, BEST = "last.safetensors", "best.safetensors"
_LOCK = ".lock"


def json_text(value: Any, *, ascii_only: bool = False, indent: int | None = None) -> str:
    """``value`` as JSON, keys in their order; a number that is not finite becomes null.

    On one line without ``indent``. Bytes of a path that are not UTF-8 are escaped, and so is all that is not
    ASCII if ``ascii_only``: such a text can be written anywhere.
    """
    text = json.dumps(_finite(value), ensure_ascii=ascii_only, allow_nan=False, indent=indent)
    return text.encode("utf-8", "backslashreplace").decode()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def default_folder(model: str) -> Path:
    """Make a new, empty folder ``runs/<date>-<time>-<model>`` that no other process has."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{model}"
    number = 1
    while True:
        path = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            path.parent.mkdir(exist_ok=True)
            path.mkdir()
        except FileExistsError as error:
            if not path.parent.is_dir():
                raise cannot_write(path, error) from error
            number += 1
        except OSError as error:
            raise cannot_write(path, error) from error
        else:
            return path


class RunFolder:
    """A run folder that this process alone may write to, until ``close`` or the end of the process.

    path       the folder                        last   Path of the checkpoint to resume from
    settings   its resolved settings, by name    best   Path of the checkpoint of the best epoch
    """

    def __init__(self, path: Path, settings: dict[str, Any], lock: int):
        self.path = path
        self.settings = settings
        self.last = path / LAST
        self.best = path / BEST
        self.net = path / NET
        self._lock = lock

    @classmethod
    def create(cls, path: Path | str, settings: Mapping[str, Any], net: str | None = None) -> "RunFolder":
        """Start a run in ``path``, which is made if need be, and write its settings to ``config.toml``.

        ``net`` is the text of a net's file: it goes into ``model.toml``, and the setting ``model`` says so.
        RunError if the folder is in use, holds a run or anything else, or cannot be written.
        """
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise RunError(f"{path} is a file, not a folder for a run; give another --out") from None
        except OSError as error:
            raise cannot_write(path, error) from error
        # Looked at before the lock file is made: somebody else's folder is left as it was.
        _refuse_foreign(path)
        lock = _take_lock(path)
        try:
            _refuse_foreign(path)
            remove_leftovers(path)
            run = cls(path, dict(settings), lock)
            if net is None:
                run.net.unlink(missing_ok=True)
            else:
                write_atomically(run.net, net.encode())
                settings = {**settings, "model": os.path.abspath(run.net)}
            run.write_settings(settings)
            return run
        except BaseException:
            os.close(lock)
            raise

    @staticmethod
    def check_new(path: Path | str) -> None:
        """RunError if ``create`` would refuse this folder for what is in it; nothing is made."""
        if Path(path).is_dir():
            _refuse_foreign(Path(path))

    @classmethod
    def open(cls, path: Path | str) -> "RunFolder":
        """Take up the run in ``path`` again. RunError if there is none or a living process is at it."""
        path = Path(path)
        _refuse_what_is_no_run(path)
        lock = _take_lock(path)
        try:
            remove_leftovers(path)
            return cls(path, _read_settings(path / CONFIG), lock)
        except BaseException:
            os.close(lock)
            raise

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Replace the settings, here and in ``config.toml``."""
        write_atomically(self.path / CONFIG, dump_toml(settings).encode())
        self.settings = dict(settings)

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add a line to ``metrics.jsonl``, flushed to disk. RunError if that fails: nothing of it stays."""
        path = self.path / METRICS
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                before = os.fstat(file).st_size
                try:
                    write_all(file, json_text(record).encode() + b"\n")
                    os.fsync(file)
                except OSError:
                    os.ftruncate(file, before)
                    raise
            finally:
                os.close(file)
            if before == 0:
                sync_folder(self.path)
        except OSError as error:
            raise cannot_write(path, error) from error

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``."""
        try:
            return [json.loads(line) for line in (self.path / METRICS).read_bytes().splitlines()]
        except FileNotFoundError:
            return []

    def cut_metrics(self, step: int) -> None:
        """Drop the lines of ``metrics.jsonl`` about steps after ``step``, and a line torn by a kill."""
        path = self.path / METRICS
        try:
            old = path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror}") from error
        new = b"".join(line for line in old.splitlines(keepends=True) if _tells_of(line, step))
        if new != old:
            write_atomically(path, new)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace ``summary.json``: its presence says that the run is finished."""
        write_atomically(self.path / SUMMARY, json_text(summary, indent=2).encode() + b"\n")

    def read_summary(self) -> dict[str, Any] | None:
        """The summary, or None if the run is not finished."""
        path = self.path / SUMMARY
        try:
            summary = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror}") from error
        except ValueError:
            summary = None
        if not isinstance(summary, dict):
            raise RunError(f"{path} is damaged; delete it to have it written again")
        return summary

    def remove_summary(self) -> None:
        """The run goes on: it is no longer finished."""
        path = self.path / SUMMARY
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error

    def close(self) -> None:
        """Let others have the folder."""
        if self._lock >= 0:
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # a child process may hold the descriptor too
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _tells_of(line: bytes, step: int) -> bool:
    """Whether a whole line of the log tells of a moment not after ``step``."""
    try:
        record = json.loads(line)
    except ValueError:
        return False
    if not line.endswith(b"\n") or not isinstance(record, dict):
        return False
    at = record.get("step")
    return not isinstance(at, int) or at <= step


def _refuse_what_is_no_run(path: Path) -> None:
    try:
        if not path.exists():
            raise RunError(f"there is no run at {path}; start one with --out {shlex.quote(str(path))}")
        if not path.is_dir():
            raise RunError(f"{path} is a file, not the folder of a run; give the folder with {CONFIG} in it")
        if not (path / CONFIG).is_file():
            raise RunError(f"{path} holds no run (it has no {CONFIG}); start one with --out")
    except OSError as error:
        raise RunError(f"cannot look into {path}: {error.strerror}; give the folder of a run of yours") from error


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = load_toml(path)
    except ConfigError as error:
        raise RunError(f"{error}; put it right, or start a new run with --out") from error
    if not settings:
        raise RunError(f"{path} is empty; put it back, or start a new run with --out")
    return settings


def _refuse_foreign(path: Path) -> None:
    try:
        names = set(os.listdir(path))
    except OSError as error:
        raise RunError(f"cannot look into {path}: {error.strerror}") from error
    if CONFIG in names or LAST in names:
        quoted = shlex.quote(str(path))
        raise RunError(f"{path} already holds a run; go on with it by --resume {quoted}, or give another --out")
    ours = {_LOCK, NET} if _LOCK in names else set()  # of a start that was killed before it wrote its settings
    others = sorted(name for name in names - ours if not is_leftover(name))
    if others:
        raise RunError(f"{path} is not empty (it holds {others[0]!r}); give a new or empty folder as --out")


def _take_lock(path: Path) -> int:
    """The descriptor of the folder's lock: the system frees it when the process ends, however it ends."""
    try:
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise cannot_write(path / _LOCK, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        owner = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        os.close(lock)
        raise RunError(
            f"{path} is in use by process {owner or 'unknown'}; wait for it, stop it or use another folder"
        ) from None
    except OSError as error:
        os.close(lock)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # the process number found no place
            raise cannot_write(path / _LOCK, error) from error
        raise RunError(f"cannot lock {path}: {error.strerror}; use a folder on a local disk") from error
    return lock

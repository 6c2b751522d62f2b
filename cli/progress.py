"""How far a download or an import is, on standard error: a bar on a terminal, plain lines anywhere else."""

import contextlib
import os
import sys
import time
from typing import Any

from fastadam.units import human_bytes

from .options import human_seconds
from .report import PlainReporter

LINE_EVERY = 10.0  # seconds between plain lines


def make_progress(quiet: bool) -> "PlainProgress":
    """The one that suits standard error."""
    if not quiet and sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return BarProgress()
    return PlainProgress(quiet)


class PlainProgress(PlainReporter):
    """Lines of text: how much, how fast, how long still."""

    def begin(self, what: str, total: int, done: int = 0, unit: str = "bytes") -> None:
        """A task of ``total`` units begins, or goes on after ``done`` of them."""
        self._total, self._unit = total, unit
        self._told, self._told_at = done, time.monotonic()
        self.message(f"{what}: {self._amount(total)}")

    def advance(self, done: int) -> None:
        """``done`` units are done."""
        seconds = time.monotonic() - self._told_at
        if seconds >= LINE_EVERY and done < self._total:
            rate = (done - self._told) / seconds
            left = f", {human_seconds((self._total - done) / rate)} left" if rate > 0 else ""
            self.message(f"{self._amount(done)} of {self._amount(self._total)}, {self._amount(round(rate))}/s{left}")
            self._told, self._told_at = done, time.monotonic()

    def end(self) -> None:
        """The task is over."""

    def _amount(self, count: int) -> str:
        return human_bytes(count) if self._unit == "bytes" else f"{count:,} {self._unit}"


class BarProgress(PlainProgress):
    """A bar with amount, rate and time left, below the messages."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._progress: Any = None
        self._task: Any = None

    def close(self) -> None:
        """Take the bar away and give the terminal back."""
        self.end()

    def begin(self, what: str, total: int, done: int = 0, unit: str = "bytes") -> None:
        """Show a new bar."""
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self.end()
        self.message(what)  # a line of its own: beside the bar it would not fit
        in_bytes = unit == "bytes"
        columns = [DownloadColumn(), TransferSpeedColumn()] if in_bytes else [MofNCompleteColumn()]
        self._progress = Progress(
            BarColumn(),
            *columns,
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._progress.start()
        self._task = self._progress.add_task("", total=total, completed=done)

    def advance(self, done: int) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=done)

    def end(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._console.print(line, markup=False, soft_wrap=True)

"""Progress on standard error: a bar on a terminal, plain lines anywhere else."""

import contextlib
import os
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

LINE_EVERY = 30.0  # seconds between plain lines within an epoch


def make_reporter(quiet: bool) -> "PlainReporter":
    """The reporter that suits standard error."""
    if not quiet and sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return BarReporter()
    return PlainReporter(quiet)


def epoch_line(record: Mapping[str, Any]) -> str:
    """One line for a line of ``metrics.jsonl``."""
    return (
        f"epoch {record['epoch']:3}  step {record['step']:6,}  lr {record['lr']:.2e}  "
        f"train {_loss(record['train_loss'])} {_percent(record['train_accuracy'])}  "
        f"val {_loss(record['val_loss'])} {_percent(record['val_accuracy'])}  "
        f"{rate(record['samples_per_second'])}  {record['seconds']:.1f} s"
    )


def rate(samples_per_second: float) -> str:
    """How fast it trained; a run that went on with nothing left of its epoch did not."""
    return f"{samples_per_second:,.0f} images/s" if samples_per_second else "- images/s"


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


class PlainReporter:
    """Lines of text. A reader of standard error that goes away does not stop the training."""

    def __init__(self, quiet: bool = False):
        self._quiet = quiet
        self._silent = False
        self._epoch = self._steps = self._done = 0
        self._next_line = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the display."""

    def message(self, text: str) -> None:
        """Something worth knowing."""
        if not self._quiet:
            self._write(text)

    def warning(self, text: str) -> None:
        """Something the user should look at; shown with ``--quiet`` too."""
        self._write(f"Warning: {text}")

    def begin_epoch(self, epoch: int, steps: int, done: int) -> None:
        """An epoch of ``steps`` steps begins, or goes on after ``done`` of them."""
        self._epoch, self._steps, self._done = epoch, steps, done
        self._next_line = time.monotonic() + LINE_EVERY

    def step(self, loss: float | None) -> None:
        """A step is done; ``loss`` if it was asked for."""
        self._done += 1
        if time.monotonic() >= self._next_line and self._done < self._steps:
            self._next_line = time.monotonic() + LINE_EVERY
            told = "" if loss is None else f"  loss {loss:.4f}"
            self.message(f"epoch {self._epoch:3}  step {self._done:,} of {self._steps:,}{told}")

    def end_epoch(self, record: Mapping[str, Any]) -> None:
        """An epoch and its validation are done."""
        self.message(epoch_line(record))

    def _write(self, line: str) -> None:
        if self._silent or sys.stderr is None:  # None: closed before we began
            return
        try:
            print(line, file=sys.stderr, flush=True)
        except (OSError, ValueError):
            self._silent = True


class BarReporter(PlainReporter):
    """A progress bar below the lines."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task: Any = None

    def close(self) -> None:
        """Take the bar away and give the terminal back."""
        self._progress.stop()

    def begin_epoch(self, epoch: int, steps: int, done: int) -> None:
        """Show a new bar."""
        self._progress.start()
        self._task = self._progress.add_task("", total=steps, completed=done, epoch=epoch, loss="-")

    def step(self, loss: float | None) -> None:
        """Move the bar."""
        fields: dict[str, Any] = {} if loss is None else {"loss": f"{loss:.4f}"}
        self._progress.update(self._task, advance=1, **fields)

    def end_epoch(self, record: Mapping[str, Any]) -> None:
        """Replace the bar by the epoch's line."""
        self._progress.remove_task(self._task)
        self.message(epoch_line(record))

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._console.print(line, markup=False, soft_wrap=True)

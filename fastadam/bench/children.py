"""A process that is asked, one question at a time, and sleeps in between."""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from fastadam.errors import BenchError, FastAdamError

OWN_VARIABLES = ("GOMP_SPINCOUNT",)
"""What fastadam may have set for its own threads. PyTorch's process must have its own default."""

PATIENCE = 1.0
"""Seconds in which a child may end by itself."""


class Child:
    """An object in a process of its own, made there by ``make(*arguments)``; ``ask`` calls its methods.

    name    what it is called in messages
    peer    whether the process is PyTorch's, and is not to see ``OWN_VARIABLES``

    Between two questions the process waits for the pipe and uses no CPU. FastAdamError raised in it is raised
    here too, with the same text and exit code; a process that dies is a BenchError.
    """

    def __init__(self, name: str, make: Callable[..., Any], *arguments: Any, peer: bool = False):
        self.name = name
        context = multiprocessing.get_context("spawn")  # a process that has run kernels must not fork
        self._pipe, end = context.Pipe()
        self._process = context.Process(target=_serve, args=(end, make, arguments), daemon=True)
        with without(OWN_VARIABLES if peer else ()):
            self._process.start()
        end.close()
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, method: str, *arguments: Any) -> Any:
        """What the method returns."""
        try:
            self._pipe.send((method, arguments))
        except OSError:  # it has died meanwhile
            raise self._dead() from None
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()  # it reads the end of the pipe, and ends
        self._process.join(PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self) -> Any:
        try:
            kind, value = self._pipe.recv()
        except (EOFError, OSError):
            raise self._dead() from None
        if kind == "refused":
            message, exit_code = value
            error = BenchError(message)
            error.exit_code = exit_code
            raise error
        if kind == "failed":
            raise RuntimeError(f"the process of {self.name} failed:\n{value}")
        return value

    def _dead(self) -> BenchError:
        self._process.join(PATIENCE)
        return BenchError(died(self.name, self._process.exitcode))


def died(name: str, code: int | None) -> str:
    """What to say of a process that ended before it had answered."""
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
    return f"the process of {name} {how}; is there enough memory? try a smaller --batch-size"


@contextmanager
def without(names: tuple[str, ...]) -> Iterator[None]:
    """The environment without these variables, for processes started inside."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _serve(pipe: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """The child: make the object, then answer until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who ends the pipe
    made: Any = None
    question: tuple[str, tuple[Any, ...]] = ("", arguments)
    try:
        while True:
            method, given = question
            try:
                if method:
                    answer = "done", getattr(made, method)(*given)
                else:
                    made, answer = make(*given), ("done", None)
            except FastAdamError as error:
                answer = "refused", (str(error), error.exit_code)
            except Exception as error:
                if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # PyTorch's, of a GPU
                    answer = "refused", ("out of memory; try a smaller --batch-size", 1)
                else:
                    answer = "failed", traceback.format_exc()
            pipe.send(answer)
            question = pipe.recv()
    except (EOFError, OSError):  # nobody asks any more
        return


def side_names(vs: str | None) -> Mapping[str, str]:
    """{key of a side: its name for people}."""
    return {"fastadam": "fastadam"} | ({"torch": "PyTorch"} if vs else {})

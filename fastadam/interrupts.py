"""Signals that ask a run to stop."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


@contextlib.contextmanager
def collect_signals(tell: Callable[[], None]) -> Iterator[list[int]]:
    """Yields a list that gets the first SIGINT or SIGTERM, which then only calls ``tell``; a second one acts at once.

    Only the main thread of Python may do so; in any other the list stays empty.
    """
    caught: list[int] = []
    before: dict[int, Any] = {}

    def remember(number: int, _: FrameType | None) -> None:
        caught.append(number)
        _restore(before)
        with contextlib.suppress(RuntimeError):  # it came while something was being printed
            tell()

    with contextlib.suppress(ValueError):
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            before[number] = signal.signal(number, remember)
    try:
        yield caught
    finally:
        _restore(before)


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        if handler is not None:  # None: it was not set from Python, and cannot be
            with contextlib.suppress(ValueError):
                signal.signal(number, handler)

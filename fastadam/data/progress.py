"""How long work on data tells how far it is: what the command line implements, and what says nothing."""

from typing import Literal, Protocol

Unit = Literal["bytes", "images"]


class Progress(Protocol):
    """Somebody to tell. One task at a time: ``begin``, ``advance`` ..., ``end``; messages at any time."""

    def message(self, text: str) -> None:
        """Something worth knowing, one line."""

    def begin(self, what: str, total: int, done: int = 0, unit: Unit = "bytes") -> None:
        """A task of ``total`` units begins, or goes on after ``done`` of them."""

    def advance(self, done: int) -> None:
        """``done`` units of the task are done, those before it began among them."""

    def end(self) -> None:
        """The task is over, however it ended."""


class Silent:
    """Tells nobody."""

    def message(self, text: str) -> None:
        """Nothing."""

    def begin(self, what: str, total: int, done: int = 0, unit: Unit = "bytes") -> None:
        """Nothing."""

    def advance(self, done: int) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""

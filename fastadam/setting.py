"""What values a setting may have: the same for command line, environment, files and Python."""

import difflib
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["count", "number", "flag", "text", "choice", "device", "list", "numbers"]

FLOAT32_LEAST, FLOAT32_MOST = 2.0**-126, 2.0**128 - 2.0**104
"""What kernels compute with: a number smaller than the one loses digits, one above the other is infinite."""

_FLOAT32_SIZES = "0 or 1.2e-38 to 3.4e38"


@dataclass(frozen=True)
class Setting:
    """What values a setting may have, and how it is described.

    ``low`` and ``high`` bound a count or a number; an open bound is not itself allowed. ``default_text``
    describes the default where the value itself would say too little. A choice with an ``ending`` may also
    be the path of a file that ends so.
    """

    kind: Kind
    help: str
    metavar: str
    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    choices: tuple[str, ...] = ()
    ending: str = ""
    default_text: str | None = None

    def parse(self, text: str) -> Any:
        """The value that ``text``, as a user types it, stands for; ValueError says why none."""
        if self.kind == "count":
            try:
                return self.check(int(text))
            except ValueError as error:
                if re.fullmatch(r"\s*[+-]?\d{1,30}\s*", text):
                    raise
                raise ValueError(f"must be a whole number, found {shown(text)}") from error
        if self.kind == "number":
            try:
                number = float(text)
            except ValueError as error:
                raise ValueError(f"must be a number, found {shown(text)}") from error
            return self.check(number)
        return self.check(text)

    def check(self, value: Any) -> Any:
        """``value``, from a file or from Python, in the setting's own type; ValueError says why not."""
        match self.kind:
            case "count":
                if not isinstance(value, int) or isinstance(value, bool):
                    raise ValueError(f"must be a whole number, found {shown(value)}")
                return self._in_range(value)
            case "number":
                if not isinstance(value, int | float) or isinstance(value, bool):
                    raise ValueError(f"must be a number, found {shown(value)}")
                return self._in_range(_as_float(value))
            case "flag":
                if not isinstance(value, bool):
                    raise ValueError(f"must be true or false, found {shown(value)}")
                return value
            case "list":
                return self._check_list(value)
            case "numbers":
                return self._check_numbers(value)
        if not isinstance(value, str):
            raise ValueError(f"must be text, found {shown(value)}")
        if self.kind == "choice" and value not in self.choices and not (self.ending and value.endswith(self.ending)):
            file = f" or a file that ends in {self.ending}" if self.ending else ""
            raise ValueError(f"must be one of {self._names}{file}, found {shown(value)}{nearest(value, self.choices)}")
        if self.kind == "device" and not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", value):
            raise ValueError(f"must be auto, cpu, cuda or cuda:N, found {shown(value)}")
        if not value or "\0" in value or not _is_unicode(value):
            raise ValueError(f"must be text of at least one character, in UTF-8, found {shown(value)}")
        return value

    @property
    def _names(self) -> str:
        return ", ".join(self.choices)

    def _in_range(self, value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"must be a finite number, found {value}")
        low, high = _plain(self.low), _plain(self.high)
        if value < self.low or (self.low_open and value == self.low):
            raise ValueError(f"must be {'above' if self.low_open else 'at least'} {low}, found {shown(value)}")
        if value > self.high or (self.high_open and value == self.high):
            raise ValueError(f"must be {'below' if self.high_open else 'at most'} {high}, found {shown(value)}")
        if isinstance(value, float) and value and not FLOAT32_LEAST <= abs(value) <= FLOAT32_MOST:
            raise ValueError(f"must be a number that float32 can hold, {_FLOAT32_SIZES}, found {value}")
        return value

    def _check_numbers(self, value: Any) -> tuple[float, ...]:
        try:
            if isinstance(value, str):
                value = [float(word) for word in value.split(",")]
            numbers = tuple(_as_float(number + 0) for number in value if not isinstance(number, bool))
        except (TypeError, ValueError):
            numbers = ()
        if not numbers or len(numbers) < len(value):
            raise ValueError(f"must be numbers separated by commas, found {shown(value)}")
        numbers = tuple(map(self._in_range, numbers))
        if list(numbers) != sorted(set(numbers)):
            raise ValueError(f"must rise from number to number, found {shown(value)}")
        return numbers

    def _check_list(self, value: Any) -> tuple[str, ...]:
        if isinstance(value, str):
            value = [] if value.strip() in ("", "none") else [word.strip() for word in value.split(",")]
        if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
            raise ValueError(f"must be a list of {self._names}, found {shown(value)}")
        for word in value:
            if word not in self.choices:
                found = f"{shown(word)}{nearest(word, self.choices)}"
                raise ValueError(f"must be none or a list of {self._names}, found {found}")
        return tuple(word for word in self.choices if word in value)


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _plain(bound: float) -> str:
    return str(int(bound)) if math.isfinite(bound) and bound == int(bound) else str(bound)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: Any) -> str:
    """``value`` for a message: as Python writes it, on one line and not too long."""
    text = ascii(value) if isinstance(value, str) and not _is_unicode(value) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def nearest(word: str, known: Collection[str]) -> str:
    """``"; did you mean 'X'?"`` for the nearest of the known words, or nothing."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""

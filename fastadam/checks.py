"""Numbers that make no sense are refused, by name: hyperparameters, counts, sizes."""

import math

import numpy as np


def finite(name: str, value: float) -> float:
    """A number that is neither infinite nor NaN; true and false are none."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a number, it is {value!r}")
    if not _is_finite(name, value):
        raise ValueError(f"{name} must be a finite number, it is {value}")
    return float(value)


def _is_finite(name: str, value: float) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        raise TypeError(f"{name} must be a number, it is {value!r}") from None


def whole(name: str, value: float, least: float = -math.inf, most: float = math.inf) -> int:
    """A whole number, not below ``least`` nor above ``most``; true and false are none."""
    number = _is_finite(name, value) and not isinstance(value, (bool, np.bool_))
    if not (number and value == int(value) and least <= value <= most):
        of = f" from {least} to {most}" if math.isfinite(most) else f" of {least} or more" if least > -math.inf else ""
        raise ValueError(f"{name} must be a whole number{of}, it is {value}")
    return int(value)


def positive(name: str, value: float) -> float:
    """A number above 0."""
    with np.errstate(over="ignore"):
        narrow = np.float32(finite(name, value))
    if not 0 < narrow < np.inf:
        raise ValueError(f"{name} must be above 0 and finite, in float32 too, it is {value}")
    return float(value)


def not_negative(name: str, value: float) -> float:
    """A number of 0 or more."""
    if not finite(name, value) >= 0:
        raise ValueError(f"{name} must be 0 or more, it is {value}")
    return float(value)


def fraction(name: str, value: float) -> float:
    """A number of at least 0 and below 1."""
    if not 0 <= finite(name, value) < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, it is {value}")
    return float(value)

"""What a case is: one call of one op, with all it takes to make its arguments and to judge its outs."""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Shape = tuple[int, ...]
Fill = Callable[[np.random.Generator, Shape], np.ndarray]

EPSILON = float(np.finfo(np.float32).eps)


# What arrays are filled with --------------------------------------------------------------------------------


def junk(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """NaN: an out that is added to, or left as it was, shows it."""
    return np.full(shape, np.nan, np.float32)


def normal(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Standard normal float32."""
    return rng.standard_normal(shape, np.float32)


def squares(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Squares of normal numbers, float32."""
    return normal(rng, shape) ** 2


def grid(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Quarters from -2 to 2, float32."""
    return (rng.integers(-8, 9, shape) / 4).astype(np.float32)


def image_bytes(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Pixels, uint8."""
    return rng.integers(0, 256, shape, np.uint8)


def below(count: int, dtype: type = np.int64) -> Fill:
    """Integers of 0 .. count - 1."""
    return lambda rng, shape: rng.integers(0, count, shape).astype(dtype)


def given(*values: float, dtype: type = np.float32) -> Fill:
    """These numbers."""
    return lambda rng, shape: np.array(values, dtype).reshape(shape)


# Cases ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Array:
    """An argument: its shape, what it is filled with before the call, and how much it may be off after it.

    ``terms``: how many float32 numbers are added up to make one of its elements; 0 for an exact op.
    """

    shape: Shape
    fill: Fill = junk
    terms: float = 1


@dataclass(frozen=True)
class Case:
    """One call of one op, its arguments by name in the order of the signature: outs, ins, scalars."""

    op: str
    outs: Mapping[str, Array]
    ins: Mapping[str, Array] = field(default_factory=dict)
    scalars: Mapping[str, Any] = field(default_factory=dict)
    rtol: float = 1e-5

    @property
    def seed(self) -> int:
        """Seed of the case's own numbers: a hash of its description, whatever its place in the table."""
        return zlib.crc32(str(self).encode())

    def make(self, rng: np.random.Generator | None = None) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """(outs, ins) by name. Outs are filled with NaN, but for those that the op reads too."""
        rng = np.random.default_rng(self.seed) if rng is None else rng
        outs, ins = (
            {name: array.fill(rng, array.shape) for name, array in arrays.items()} for arrays in (self.outs, self.ins)
        )
        return outs, ins

    def atol(self, out: str) -> float:
        """Absolute tolerance of an out against float64: by term, 8 last places of a number of size one.

        Each term carries a few roundings of its own; the sum is rounded once a term, by half a last place of
        its size, which for terms of either sign stays near the root of their number.
        """
        return 8 * EPSILON * self.outs[out].terms

    def __str__(self) -> str:
        outs = [f"{name}:{'x'.join(map(str, a.shape))}" for name, a in self.outs.items() if 0 not in a.shape]
        ins = [f"{name}:{'x'.join(map(str, a.shape))}" for name, a in list(self.ins.items())[:1]]
        options = [name for name in ("base", "of", "bias") if name in self.ins and 0 not in self.ins[name].shape]
        scalars = [f"{name}={value}" for name, value in self.scalars.items()]
        return " ".join([self.op, *outs, *ins, *options, *scalars])


def absent(rank: int) -> Array:
    """An optional argument that is left out: size 0, of the rank it would have."""
    return Array((0,) * rank, normal)


def optional(present: bool, shape: Shape, fill: Fill = normal, terms: int = 1) -> Array:
    """An optional argument."""
    return Array(shape, fill, terms) if present else absent(len(shape))


def pending(shape: Shape, act: int, name: str = "x", prefix: str = "") -> dict[str, Array]:
    """A pending activation: x, scale, shift."""
    affine = optional(bool(act & 1), shape[-1:], grid)
    return {name: Array(shape, grid), f"{prefix}scale": affine, f"{prefix}shift": affine}


def gradient(shape: Shape, gact: int) -> dict[str, Array]:
    """A pending gradient: dz, raw, gscale, ga, gb."""
    by_channel = optional(bool(gact), shape[-1:])
    return {
        "dz": Array(shape, normal), "raw": optional(bool(gact), shape),
        "gscale": by_channel, "ga": by_channel, "gb": by_channel,
    }  # fmt: skip

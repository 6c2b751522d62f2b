"""The cases of the ops with sums over whole tensors, or over their units."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from fastadam.arena import segment_table, tile_rows, unit_rows
from fastadam.case import Array, Case, Shape, given, junk, normal, squares
from fastadam.kernels import TILE, UNITS


def layerwise_cases(hyper: Callable[[bool, float], Array]) -> Iterator[Case]:
    """One tensor and many, smaller and larger than a tile, in both groups, and an empty one.

    hyper   (nesterov, grad_scale) -> the numbers of one step, for two groups
    """

    def norms(rng: np.random.Generator, shape: Shape) -> np.ndarray:
        """Positive numbers, but for a tensor or two that have none."""
        drawn = squares(rng, shape) + np.float32(0.5)
        drawn[2::7, 0], drawn[3::5, 1] = 0, 0
        return drawn

    for sizes, nesterov, grad_scale in (
        ((1,), True, 1.0),
        ((7, 100, 1, 0, 33, 2, 64), False, 0.25),
        ((1003, 9000, 16), False, 1.0),
        ((50_001,), False, 0.5),
    ):
        shapes = {str(i): (size,) for i, size in enumerate(sizes)}
        n = segment_table(shapes)[1]
        rows = tile_rows(shapes, lambda name: int(name) % 3 // 2)
        tiles = Array((len(rows), 4), given(*itertools.chain(*rows), dtype=np.int64))
        flat, total = Array((n,), normal), Array((2, len(rows)), junk, terms=TILE)
        p, m, v = (Array((n,), fill, terms=4) for fill in (normal, normal, squares))
        h, of_tensors = hyper(nesterov, grad_scale), Array((len(sizes), 2), norms)
        yield Case("tile_squares", {"squares": total}, {"p": flat, "g": flat, "tiles": tiles})
        yield Case(
            "tensor_norms", {"norms": Array((len(sizes), 2))},
            {"squares": Array((2, len(rows)), squares), "tiles": tiles}, rtol=1e-6,
        )  # fmt: skip
        yield Case("lamb_moments", {"m": m, "v": v, "squares": total}, {"p": flat, "g": flat, "h": h, "tiles": tiles})
        kept = {"m": flat, "v": Array((n,), squares)}
        yield Case("lamb_update", {"p": p}, {**kept, "norms": of_tensors, "h": h, "tiles": tiles})
        yield Case("lars_update", {"p": p, "m": m}, {"g": flat, "norms": of_tensors, "h": h, "tiles": tiles})


def unit_cases() -> Iterator[Case]:
    """Filters, linear weights and vectors: fewer units than are worked on as one, as many, and more."""
    for shapes in (
        {"a": (1,)},
        {"a": (3, 3, 2, 5), "b": (5,), "c": (7, 33), "none": (0,), "d": (1, 1, 3, 16), "spared": (20,), "e": (1, 1)},
        {"a": (3, 3, 20, 35), "b": (50, 401), "c": (1003,), "d": (2, 1, 1, 1)},
    ):
        n = segment_table(shapes)[1]
        rows = unit_rows(shapes, lambda name: name != "spared")
        units = Array((len(rows), 5), given(*itertools.chain(*rows), dtype=np.int64))
        flat, g, by_unit = Array((n,), normal), Array((n,), normal, terms=4), Array((len(rows), UNITS), junk, terms=4)
        for clip in (0.01, 1.0):  # nearly all clipped, or about half
            yield Case("clip_units", {"g": g, "factors": by_unit}, {"p": flat, "units": units}, {"clip": clip})
        yield Case("centre_units", {"g": g, "means": by_unit}, {"units": units})

"""The cases of the ops with norms of whole tensors."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from fastadam.arena import segment_table, tile_rows
from fastadam.case import Array, Case, Shape, given, junk, normal, squares
from fastadam.kernels import TILE


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

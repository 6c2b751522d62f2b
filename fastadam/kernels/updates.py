"""The ops that make up the update of each rule, in their order, on arrays by name.

p, g              the flat arrays of parameters and gradients; the names of ``rules.MOMENTS`` those of moments
h                 the numbers of ``rules.Hyper``, a row a group
groups, tiles     which elements are of which group, and of which tensor
squares, norms    what lies between the ops: sums by tile and norms by tensor (``between``)
"""

from typing import NamedTuple

from fastadam.kernels import rules


class Step(NamedTuple):
    """One op, and the names of its arrays: outs, then ins."""

    op: str
    outs: tuple[str, ...]
    ins: tuple[str, ...]


NORMS = Step("tensor_norms", ("norms",), ("squares", "tiles"))

UPDATES: dict[str, tuple[Step, ...]] = {
    **{rule: (Step(f"{rule}_update", ("p", *kept), ("g", "h", "groups")),) for rule, kept in rules.MOMENTS.items()},
    "lamb": (
        Step("lamb_moments", ("m", "v", "squares"), ("p", "g", "h", "tiles")),
        NORMS,
        Step("lamb_update", ("p",), ("m", "v", "norms", "h", "tiles")),
    ),
    "lars": (
        Step("tile_squares", ("squares",), ("p", "g", "tiles")),
        NORMS,
        Step("lars_update", ("p", "m"), ("g", "norms", "h", "tiles")),
    ),
}
"""By the names of ``rules.MOMENTS``. A rule that looks at one element at a time takes one op."""


def between(tiles: int, tensors: int) -> dict[str, tuple[int, int]]:
    """Shapes of what lies between the ops of an update, for so many tiles of so many tensors."""
    return {"squares": (2, tiles), "norms": (tensors, 2)}

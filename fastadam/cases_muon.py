"""The cases of Muon's step of a matrix."""

import itertools
from collections.abc import Iterator

import numpy as np

from fastadam.case import Array, Case, Shape, given, normal
from fastadam.kernels.rules import Hyper

MATRICES: tuple[Shape, ...] = (
    (1, 1),
    (1, 1003),
    (101, 1),
    (3, 50),
    (33, 17),
    (3, 3, 5, 40),
    (2, 3, 3, 64),
    (100, 257),
    (205, 97),
    (1, 1, 48, 48),
)


def muon_cases() -> Iterator[Case]:
    """Matrices wide and tall, of more than a block and of less; few steps and many; a rate that shows each digit."""
    rates = itertools.cycle(((1.0, True, 1.0), (0.7, False, 0.25), (3.0, True, 100.0)))
    numbers = {"a": 3.4445, "b": -4.775, "c": 2.0315, "eps": 1e-7}
    for number, (shape, (rate, nesterov, grad_scale)) in enumerate(zip(MATRICES, rates, strict=False)):
        h = Hyper(
            matrix_lr=1.0, matrix_decay=0.1, momentum=0.95, one_minus_dampening=0.05, nesterov=float(nesterov),
            grad_scale=grad_scale,
        )  # fmt: skip
        rows = Array((3, len(h)), given(*Hyper(matrix_lr=7.0), *Hyper(matrix_lr=8.0), *h))
        for steps in range(1, 8) if number == 4 else (5,):
            yield Case(
                "muon_update", {"p": Array(shape, normal, terms=4), "m": Array(shape, normal, terms=grad_scale + 1)},
                {"g": Array(shape, normal), "h": rows}, {"row": 2, "rate": rate, **numbers, "steps": steps},
            )  # fmt: skip
    for shape, size in (((20, 30), 0.0), ((30, 20), 1e-12)):  # shorter than eps

        def fill(rng: np.random.Generator, shape: Shape, size: float = size) -> np.ndarray:
            return np.float32(size) * normal(rng, shape)

        small = Array(shape, fill)
        outs, ins = {"p": Array(shape, normal, terms=4), "m": small}, {"g": small, "h": rows}
        yield Case("muon_update", outs, ins, {"row": 2, "rate": 1.0, **numbers, "steps": 5})

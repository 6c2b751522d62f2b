"""Turns: the sides are asked for some steps each, one after the other, the first one last in the next round."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastadam.bench.children import Child

LEAST = 3
"""Rounds, however long they take."""

TURN = 0.5
"""Seconds that a turn should last."""

LEAST_STEPS = 3
"""In one turn, besides its first."""

MOST_STEPS = 100
"""In one turn."""

Rounds = list[list[float]]
"""Seconds of every step, by round."""


@dataclass(frozen=True)
class Budget:
    """How long to measure: so many rounds, or if None as many as fit into ``seconds``, but ``LEAST``."""

    seconds: float
    repeats: int | None

    def more(self, done: int, begun: float) -> bool:
        """Whether there is to be another round, ``begun`` being when the first one was."""
        if self.repeats is not None:
            return done < self.repeats
        return done < LEAST or time.perf_counter() - begun < self.seconds


def turn_steps(step_seconds: float) -> int:
    """Steps of a turn, where one takes so long."""
    return max(LEAST_STEPS, min(MOST_STEPS, round(TURN / max(step_seconds, 1e-9))))


def take_turns(sides: Mapping[str, Child], steps: int, budget: Budget) -> dict[str, list[Any]]:
    """What each side tells of every step, by round: its method ``run`` is asked for ``steps`` of them at a time.

    And for one more, which comes first and is not counted: it meets caches full of the other side's data and
    threads that sleep, which steps of a training do not.
    """
    told: dict[str, list[Any]] = {key: [] for key in sides}
    order, begun, done = list(sides), time.perf_counter(), 0
    while budget.more(done, begun):
        for key in order:
            told[key].append(sides[key].ask("run", steps + 1)[1:])
        order.reverse()  # what the first one leaves in caches and clocks meets both alike
        done += 1
    return told

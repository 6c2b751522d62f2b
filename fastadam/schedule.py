"""What changes by step: the learning rate, with linear warm-up if asked for; the decay of averaged weights.

And which of a run's settings exclude each other, for the command line and the trainer alike.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastadam.errors import ConfigError

SCHEDULES = ("constant", "cosine", "onecycle", "step")

MILESTONES, GAMMA = (0.5, 0.75), 0.1
"""Where and how much a step schedule lowers the rate unless told otherwise: He et al. 2016, section 4.2."""

ONECYCLE_RISE = 0.3
ONECYCLE_START = 25.0
ONECYCLE_END = 1e4
"""PyTorch's defaults: the rise takes 30 % of the steps from lr / 25; the end is lr / 25 / 10,000."""


@dataclass(frozen=True)
class Schedule:
    """``schedule(step)`` is the learning rate of step 0, 1, ... ``total - 1``.

    constant   lr
    cosine     from lr to 0 along half a cosine (Loshchilov & Hutter 2017, equation 5, one period)
    onecycle   up from lr / 25 to lr, then down to lr / 250,000, both along cosines (Smith & Topin 2018);
               ``warmup`` is the length of the rise, 30 % of the steps if 0
    step       lr, times ``gamma`` from each of the steps ``milestones`` on (PyTorch's MultiStepLR)

    ``warmup`` steps rise linearly to lr before any of the others begins. The highest rate is ``lr``.
    """

    kind: str
    lr: float
    total: int
    warmup: int = 0
    milestones: tuple[int, ...] = ()
    gamma: float = GAMMA

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise ConfigError(f"no schedule is called {self.kind!r}; use one of {', '.join(SCHEDULES)}")

    def __call__(self, step: int) -> float:
        if self.kind == "onecycle":
            return self._onecycle(step)
        if step < self.warmup:
            return self.lr * (step + 1) / (self.warmup + 1)
        if self.kind == "constant":
            return self.lr
        if self.kind == "step":
            return self.lr * self.gamma ** sum(step >= milestone for milestone in self.milestones)
        return self.lr * _half_cosine((step - self.warmup) / max(1, self.total - self.warmup))

    def _onecycle(self, step: int) -> float:
        peak = (self.warmup or ONECYCLE_RISE * self.total) - 1
        start, end = self.lr / ONECYCLE_START, self.lr / ONECYCLE_START / ONECYCLE_END
        if step <= peak:
            return self.lr + (start - self.lr) * _half_cosine(step / peak if peak > 0 else 1.0)
        return end + (self.lr - end) * _half_cosine((step - peak) / max(1.0, self.total - 1 - peak))


def milestone_steps(milestones: Sequence[float], total: int, steps_per_epoch: int) -> tuple[int, ...]:
    """Milestones as steps: below 1 they are fractions of the ``total`` steps, from 1 on epochs.

    ConfigError if they are not above 0 and rising.
    """
    if not all(before < m < math.inf for before, m in itertools.pairwise((0, *milestones))):
        raise ConfigError(f"milestones must be above 0 and rise, they are {', '.join(f'{m:g}' for m in milestones)}")
    return tuple(round(m * (total if m < 1 else steps_per_epoch)) for m in milestones)


def average_kind(optimizer: str, **asked: float | None) -> str | None:
    """The average of the weights that these settings keep: the name of the one that is not None, if any is.

    ``optimizer`` keeps one itself, if that is schedulefree. ConfigError where there would be two.
    """
    kinds = ["schedulefree"] if optimizer == "schedulefree" else []
    kinds += [name for name, value in asked.items() if value is not None]
    if len(kinds) < 2:
        return kinds[0] if kinds else None
    if kinds[0] == "schedulefree":
        raise ConfigError(f"{kinds[1]} has no meaning for optimizer schedulefree, which averages the weights itself")
    raise ConfigError(f"{kinds[0]} and {kinds[1]} each keep an average of the weights; give one of them")


def check_schedule(optimizer: str, schedule: str) -> None:
    """ConfigError for a schedule of the rate where the optimiser's average stands in for one."""
    if optimizer == "schedulefree" and schedule != "constant":
        raise ConfigError(
            f"schedule {schedule} has no meaning for optimizer schedulefree, whose rate is constant after the warmup; "
            "give schedule constant, or leave it away"
        )


def check_sam(sam: float | None, accumulate: int) -> None:
    """ConfigError for several batches a step."""
    if sam is not None and accumulate > 1:
        raise ConfigError(f"sam takes both gradients of a step on one batch; give accumulate 1, not {accumulate}")


def check_average(swa: int | None, lookahead: int | None, steps: int, epochs: int) -> None:
    """ConfigError for an average that a course of so many steps, in so many epochs, ends before."""
    if swa is not None and swa > epochs:
        raise ConfigError(f"swa begins with epoch {swa}, and the last one is {epochs}; give less")
    if lookahead is not None and lookahead > steps:
        raise ConfigError(f"lookahead needs {lookahead} steps, and there are {steps}; give less")


def ema_decay(decay: float, step: int) -> float:
    """How much an average of weights keeps of itself at step 1, 2, ...: less at first, when all are still bad.

    min(decay, (1 + step) / (10 + step)), as TensorFlow's ExponentialMovingAverage does with ``num_updates``.
    """
    return min(decay, (1 + step) / (10 + step))


def _half_cosine(progress: float) -> float:
    """From 1 down to 0."""
    return (1 + math.cos(math.pi * min(1.0, max(0.0, progress)))) / 2

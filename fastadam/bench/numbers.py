"""From seconds to what is reported: medians, spreads, ratios, shares of a roof. No clock in here."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """(lower quartile, median, upper quartile), between values by linear interpolation."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def spread(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Median and quartiles for JSON, times ``scale``."""
    low, middle, high = quartiles(values)
    return {"median": middle * scale, "low": low * scale, "high": high * scale}


def paired_ratio(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> dict[str, float]:
    """How many times longer theirs takes: the spread over rounds of the ratio of a round's medians.

    ours, theirs   seconds of every step, by round; the two sides of a round were measured one after the other
    """
    pairs = zip(ours, theirs, strict=True)
    return spread([statistics.median(b) / statistics.median(a) for a, b in pairs])


def median(rounds: Sequence[Sequence[float]]) -> float:
    """The median over all steps of all rounds."""
    return statistics.median(seconds for part in rounds for seconds in part)


@dataclass(frozen=True)
class Limits:
    """What a device can do at the most; None for what it does not have.

    fma         multiply-adds, in operations a second, each counting two
    copy, mix   bytes a second read and written: one stream each; four read and three written, as Adam has it
    fma_one     as ``fma``, of one CPU thread
    fork_join   seconds that a parallel loop with nothing in it takes on the CPU
    launch      seconds from one launch to the next of a kernel with nothing in it, the host's part included
    """

    fma: float
    copy: float
    mix: float
    fma_one: float | None = None
    fork_join: float | None = None
    launch: float | None = None

    @property
    def memory(self) -> float:
        """The best rate of memory seen, bytes a second."""
        return max(self.copy, self.mix)

    def share(self, seconds: float, flops: float, moved: float) -> float:
        """Share of the roof (Williams et al. 2009): the least time for so many operations and bytes, over the time.

        Above 1 where arrays stay in caches, which are faster than memory, or where an algorithm needs fewer
        operations than are counted.
        """
        return max(flops / self.fma, moved / self.memory) / seconds

    def to_dict(self) -> dict[str, float]:
        """For JSON, units in the names."""
        named = {
            "fma_gflops_one_thread": (self.fma_one, 1e-9),
            "fma_gflops": (self.fma, 1e-9),
            "copy_gb_per_second": (self.copy, 1e-9),
            "adam_mix_gb_per_second": (self.mix, 1e-9),
            "fork_join_microseconds": (self.fork_join, 1e6),
            "launch_microseconds": (self.launch, 1e6),
        }
        return {name: value * scale for name, (value, scale) in named.items() if value is not None}


def both_sides(ours: dict[str, Any], theirs: dict[str, Any] | None, ratio: dict[str, float] | None) -> dict[str, Any]:
    """Results of one thing for JSON; without the other side they are null."""
    return {"fastadam": ours, "torch": theirs, "ratio": ratio}

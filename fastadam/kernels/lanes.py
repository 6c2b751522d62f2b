"""How many partial sums a sum over a batch is kept in: by shapes only, so that any number of threads adds alike.

The arithmetic, for 64 cores: what has no sum of its own to keep (forward products, statistics by channel) has up
to 64 lanes, a core each. A filter's gradient is kept once a lane, so there are as many lanes as 16 MiB hold,
but 8: at batch 128 vgg's convolutions have 64, 64, 56 and 28, and a lane of fewer than 512 pixels is not worth its
sum. On two cores a lane is at the most an eighth of the work, and tasks are taken as threads come free, so that both
end within one lane of each other. An op that shares its work out otherwise has one lane, and adds up itself.
"""

from collections.abc import Callable

from fastadam.kernels import MOST_LANES

DEEP_PAIRS = 1 << 15
"""Pairs of channels of a filter whose gradient, at Winograd's 36 numbers each, is too much for every lane to have."""

LANE_PIXELS = 512
"""Pixels of its output that a convolution's lane has: fewer are not worth partial sums of the filters' gradient."""

FilterLanes = Callable[[int, tuple[int, ...], tuple[int, ...], int], int]
"""How many lanes a filter's gradient has, of a number of samples, (OH, OW), (KH, KW, C, OC) and the stride.

The op's sums have as many. 0: the op adds up the gradient itself, into one lane, and its sums are free to have any.
"""


def lane_count(samples: int, partial_bytes: int) -> int:
    """How many lanes a sum over a batch has.

    Up to 64, for cores to share; fewer, but 8, where partial sums of ``partial_bytes`` would exceed 16 MiB; and
    fewer than that, down to 1, where they would exceed 1 GiB: the sums of a huge filter must not cost more room
    than its training.
    """
    few = max(1, min(8, (1 << 30) // partial_bytes))
    return min(samples, max(few, min(MOST_LANES, (16 << 20) // partial_bytes)))


def lanes_of_samples(samples: int, out: tuple[int, ...], filters: tuple[int, ...], stride: int) -> int:
    """``FilterLanes`` of an op that goes through its lanes of samples, in each of which it writes dw and sums."""
    height, width, channels, outputs = filters
    most = max(8, samples * out[0] * out[1] // LANE_PIXELS)
    return min(most, lane_count(samples, 4 * height * width * channels * outputs))

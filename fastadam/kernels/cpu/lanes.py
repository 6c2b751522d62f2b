"""Lanes: how a batch is shared out, whatever the number of threads.

A sum over a batch is cut into lanes, contiguous shares of the samples. Their number depends on shapes
only (the plan decides it); a thread takes a whole lane, and the lanes are added in their order. So any
number of threads gives the same bits.

The arithmetic, for 64 cores: what has no sum of its own to keep (forward products, statistics by channel) has up
to 64 lanes, a core each. A filter's gradient is kept once a lane, so there are as many lanes as 16 MiB hold,
but 8: at batch 128 vgg's convolutions have 64, 64, 56, 28, 14 and 8, and a lane of fewer than 512 pixels is not
worth its sum. On two cores a lane is at the most an eighth of the work, and tasks are taken as threads come
free, so that both end within one lane of each other.
"""

from fastadam.kernels.cpu.jit import leaf


@leaf
def lane_range(lane, lanes, samples):
    """First sample of a lane and the one after its last: shares differ by one at most, the larger ones spread out."""
    return lane * samples // lanes, (lane + 1) * samples // lanes

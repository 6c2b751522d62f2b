"""Lanes: how a batch is shared out, whatever the number of threads.

A sum over a batch is cut into lanes, contiguous shares of the samples. Their number depends on shapes
only (``fastadam.kernels.lanes`` has it); a thread takes a whole lane, and the lanes are added in their order. So
any number of threads gives the same bits.
"""

from fastadam.kernels.cpu.jit import leaf


@leaf
def lane_range(lane, lanes, samples):
    """First sample of a lane and the one after its last: shares differ by one at most, the larger ones spread out."""
    return lane * samples // lanes, (lane + 1) * samples // lanes

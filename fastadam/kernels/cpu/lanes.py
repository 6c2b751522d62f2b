"""Lanes: how a batch is shared out, whatever the number of threads.

A sum over a batch is cut into lanes, contiguous shares of the samples. Their number depends on shapes
only (the plan decides it); a thread takes a whole lane, and the lanes are added in their order. So any
number of threads gives the same bits. With 8 to 64 lanes, up to 64 cores have work; on few cores a lane
is small enough that a busy neighbour costs little.
"""

import numpy as np

from fastadam.kernels.cpu.jit import leaf


@leaf
def lane_range(lane, lanes, samples):
    """First sample of a lane and the one after its last: ``samples // lanes`` each, one more for the first ones."""
    share, more = samples // lanes, samples % lanes
    number = np.int64(lane)  # prange counts unsigned, and numba meets signed with unsigned in float64
    first = number * share + min(number, more)
    return first, first + share + (1 if number < more else 0)

"""What a GPU can do at the most: kernels that do nothing but multiply and add, or move numbers, or nothing at all.

They are no ops of a network. ``fastadam.bench`` times them, and measures every op against what they reach.
"""

import numpy as np
from numba import cuda, uint32

from fastadam.kernels.cuda.jit import SIMULATED, device, kernel
from fastadam.kernels.cuda.launch import Launch, blocks_of, op
from fastadam.kernels.cuda.ptx import load4, multiply_add_each, store4

THREADS = 256
ACCUMULATORS = 16
"""Independent sums of a thread: more than the latency of a fused multiply-add, whatever the number of warps."""

LANE = THREADS * ACCUMULATORS
"""Floats of one lane of ``multiply_add``, the work of a block: each takes a multiply and an add every time."""

BLOCKS = 8
"""Lanes for a multiprocessor: all its threads, on any of them."""

UNROLLED = 16
"""Times in one turn of the loop, whose counter and branch then cost next to nothing."""

PATIENCE = 200e-6
"""Seconds that ``hold`` gives the host for each action it then launches; most take it a quarter of that."""

NAP = 50_000
"""Nanoseconds of one sleep; the hardware takes a million at the most, and keeps to them roughly."""

FOUR, QUARTER = uint32(4), uint32(4 * THREADS)
HALF = np.float32(0.5)
HALVES, ONES = (HALF,) * ACCUMULATORS, (np.float32(1),) * ACCUMULATORS


@device
def _four_times(a):
    """a / 2 + 1, four times over."""
    a = multiply_add_each(ONES, a, HALVES)
    a = multiply_add_each(ONES, a, HALVES)
    a = multiply_add_each(ONES, a, HALVES)
    return multiply_add_each(ONES, a, HALVES)


@kernel(THREADS)
def _multiply_add(a, turns):
    """A block has a lane; a thread has four numbers in each quarter of it."""
    at = uint32(uint32(cuda.blockIdx.x) * uint32(LANE) + uint32(cuda.threadIdx.x) * FOUR)
    second = uint32(at + QUARTER)
    third = uint32(second + QUARTER)
    fourth = uint32(third + QUARTER)
    sums = load4(a, at) + load4(a, second) + load4(a, third) + load4(a, fourth)
    for _ in range(turns):
        sums = _four_times(_four_times(_four_times(_four_times(sums))))
    store4(a, at, sums[0:4])
    store4(a, second, sums[4:8])
    store4(a, third, sums[8:12])
    store4(a, fourth, sums[12:16])


@op
def multiply_add(a, times):
    """a = a / 2 + 1, so many times, all in registers: 2 * a.size * times operations.

    a (L, LANE)   in and out; a block has a lane
    times         a multiple of UNROLLED
    """
    yield Launch(_multiply_add, a.shape[0], (a, times // UNROLLED))


@kernel(THREADS)
def _copy(y, x, n):
    i = uint32(uint32(cuda.grid(1)) * FOUR)
    if i < n:
        store4(y, i, load4(x, i))


@op
def copy(y, x):
    """y = x, both (n,), n a multiple of 4: 8 n bytes of traffic."""
    yield Launch(_copy, blocks_of(y.size, 4 * THREADS), (y, x, y.size))


@kernel(THREADS)
def _mix(p, m, v, g, n):
    i = uint32(uint32(cuda.grid(1)) * FOUR)
    if i < n:
        a, b, c, d = load4(p, i), load4(m, i), load4(v, i), load4(g, i)
        store4(m, i, (HALF * (b[0] + d[0]), HALF * (b[1] + d[1]), HALF * (b[2] + d[2]), HALF * (b[3] + d[3])))
        store4(v, i, (HALF * (c[0] - d[0]), HALF * (c[1] - d[1]), HALF * (c[2] - d[2]), HALF * (c[3] - d[3])))
        store4(p, i, (HALF * (a[0] + d[0]), HALF * (a[1] + d[1]), HALF * (a[2] + d[2]), HALF * (a[3] + d[3])))


@op
def mix(p, m, v, g):
    """Reads and writes in Adam's proportion, with next to no arithmetic: 28 n bytes of traffic.

    p, m, v (n,)   in and out, n a multiple of 4
    g (n,)         in
    """
    yield Launch(_mix, blocks_of(p.size, 4 * THREADS), (p, m, v, g, p.size))


@kernel(32)
def _nothing(y):
    return


@op
def launches(y, times):
    """So many launches, one after the other, of a kernel with nothing in it; y (n,) is what it is given."""
    for _ in range(times):
        yield Launch(_nothing, 1, (y,))


@kernel(1)
def _sleep(naps):
    for _ in range(naps):
        cuda.nanosleep(uint32(NAP))


def hold(actions):
    """Let the GPU sleep while the host launches so many actions: then it need not wait for the host in between.

    It sleeps about as long as it is told to. Too short, and small kernels seem to take as long as their launch.
    """
    if not SIMULATED:
        _sleep[1, 1](np.uint32(actions * PATIENCE * 1e9 / NAP))

"""What this machine can do at the most: loops that do nothing but multiply and add, or move numbers, or fork.

They are no ops of a network. ``fastadam.bench`` times them, and measures every op against what they reach.
"""

from numpy import float32

from fastadam.kernels.cpu.jit import leaf
from fastadam.kernels.cpu.parallel import parallel
from fastadam.kernels.cpu.simd import WIDTH, load, splat, store

ACCUMULATORS = 12
"""Independent sums: more than a fused multiply-add's latency times its units, and few enough for 16 registers."""

LANE = ACCUMULATORS * WIDTH
"""Floats of one lane of ``multiply_add``: each takes a multiply and an add every time."""

CHUNK = 1 << 14
"""Elements of one task of the loops over memory."""

_HALF = float32(0.5)


@leaf
def _multiply_add_lane(worker, lane, lanes, times):
    a = lanes[lane]
    half, one = splat(_HALF), splat(float32(1))
    a0, a1, a2 = load(a, 0), load(a, WIDTH), load(a, 2 * WIDTH)
    a3, a4, a5 = load(a, 3 * WIDTH), load(a, 4 * WIDTH), load(a, 5 * WIDTH)
    a6, a7, a8 = load(a, 6 * WIDTH), load(a, 7 * WIDTH), load(a, 8 * WIDTH)
    a9, a10, a11 = load(a, 9 * WIDTH), load(a, 10 * WIDTH), load(a, 11 * WIDTH)
    for _ in range(times):
        a0, a1, a2 = a0 * half + one, a1 * half + one, a2 * half + one
        a3, a4, a5 = a3 * half + one, a4 * half + one, a5 * half + one
        a6, a7, a8 = a6 * half + one, a7 * half + one, a8 * half + one
        a9, a10, a11 = a9 * half + one, a10 * half + one, a11 * half + one
    store(a, 0, a0)
    store(a, WIDTH, a1)
    store(a, 2 * WIDTH, a2)
    store(a, 3 * WIDTH, a3)
    store(a, 4 * WIDTH, a4)
    store(a, 5 * WIDTH, a5)
    store(a, 6 * WIDTH, a6)
    store(a, 7 * WIDTH, a7)
    store(a, 8 * WIDTH, a8)
    store(a, 9 * WIDTH, a9)
    store(a, 10 * WIDTH, a10)
    store(a, 11 * WIDTH, a11)


def multiply_add(a, times):
    """a = a / 2 + 1, so many times, all in registers: 2 * a.size * times operations.

    a (L, LANE)   in and out; a thread owns its lanes
    """
    parallel(_multiply_add_lane, len(a), a, times)


@leaf
def _copy_chunk(worker, chunk, y, x):
    i, j = chunk * CHUNK, (chunk + 1) * CHUNK
    ys, xs = y[i:j], x[i:j]
    for k in range(ys.size):
        ys[k] = xs[k]


def copy(y, x):
    """y = x, both (n,): 8 n bytes of traffic."""
    parallel(_copy_chunk, -(-y.size // CHUNK), y, x)


@leaf
def _mix_chunk(worker, chunk, p, m, v, g):
    i, j = chunk * CHUNK, (chunk + 1) * CHUNK
    ps, ms, vs, gs = p[i:j], m[i:j], v[i:j], g[i:j]
    for k in range(ps.size):
        ms[k] = _HALF * (ms[k] + gs[k])
        vs[k] = _HALF * (vs[k] - gs[k])
        ps[k] = _HALF * (ps[k] + gs[k])


def mix(p, m, v, g):
    """Reads and writes in Adam's proportion, with next to no arithmetic: 28 n bytes of traffic.

    p, m, v (n,)   in and out
    g (n,)         in
    """
    parallel(_mix_chunk, -(-p.size // CHUNK), p, m, v, g)


@leaf
def _add_one(worker, task, y):
    y[task] += float32(1)


def fork_joins(y, times):
    """So many parallel loops, one after the other, with next to nothing in them. y (n,)   in and out"""
    for _ in range(times):
        parallel(_add_one, y.size, y)

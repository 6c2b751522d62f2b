"""Passes over all gradients before an update: sums of micro-batches, norms and clipping."""

import numpy as np
from numba import float64

from fastadam.kernels.cpu.jit import leaf, serial
from fastadam.kernels.cpu.lanes import lane_range
from fastadam.kernels.cpu.parallel import parallel
from fastadam.kernels.cpu.updates import CHUNK, chunks
from fastadam.kernels.rules import GRAD_SCALE


@leaf
def _add_chunk(worker, chunk, y, x):
    i, j = chunk * CHUNK, (chunk + 1) * CHUNK
    ys, xs = y[i:j], x[i:j]
    for k in range(ys.size):
        ys[k] += xs[k]


def accumulate(y, x):
    """y (n,), in and out: y + x.    x (n,)   in"""
    parallel(_add_chunk, chunks(y), y, x)


@leaf
def _sum_of_squares(worker, lane, part, g):
    first, last = lane_range(lane, len(part), g.size)
    total = float64(0)
    for value in g[first:last]:
        total += float64(value) * float64(value)
    part[lane, 0] = np.float32(total)
    rest = np.float32(total - float64(part[lane, 0]))
    part[lane, 1] = rest if rest - rest == 0 else np.float32(0)  # beyond float32 there is no rest


def norm_lanes(part, g):
    """Sums of squares of a flat array by lanes, each as two numbers that add up to it: twice float32's digits.

    part (L, 2)         out: lane l has the sum of g*g over its contiguous share, rounded, and what rounding took
    g (n,)              in
    """
    parallel(_sum_of_squares, len(part), part, g)


@serial
def clip_factor(h, part, max_norm):
    """Clipping by global norm: Pascanu et al. 2013, section 3.2, with PyTorch's 1e-6 in the denominator.

    h (G, fields)       in and out: grad_scale of every row becomes min(1, max_norm / (norm + 1e-6)); a norm that
                        is not finite gives a factor that is not finite or zero, and the loss shows it
    part (L, 2)         in: sums of squares by ``norm_lanes``
    """
    total = float64(0)
    for lane in range(len(part)):
        total += float64(part[lane, 0]) + float64(part[lane, 1])
    factor = float64(max_norm) / (np.sqrt(total) + 1e-6)
    h[:, GRAD_SCALE] = np.float32(factor) if not factor >= 1.0 else np.float32(1)

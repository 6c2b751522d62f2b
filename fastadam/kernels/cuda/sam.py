"""Where sharpness-aware minimization takes its second gradient."""

import math

import numpy as np
from numba import cuda, float32, uint32

from fastadam.kernels.cuda import exact
from fastadam.kernels.cuda.flat import THREADS, each, flat_launch
from fastadam.kernels.cuda.gradients import BOTH, sum_pairs
from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.launch import Launch, Scratch, op

NORM_EPS = np.float32(1e-12)


@kernel(THREADS)
def _ascent_factor(factor, part, rho, lanes):
    shared = cuda.shared.array(BOTH, float32)
    high, low = sum_pairs(shared, part, uint32(0), lanes)
    if uint32(cuda.threadIdx.x) == uint32(0):
        factor[0] = rho / (math.sqrt(exact.rounded(high, low)) + NORM_EPS)


@device
def _uphill(p, g, factor):
    return (p + factor * g,)


@kernel(THREADS)
def _ascent(q, p, g, factor, size):
    each(_uphill, (q,), (p, g), (factor[0],), size)


@op
def sam_ascent(q, p, g, part, rho):
    """The point near p where the loss is highest, to first order (Foret et al. 2021, equation 2 with p = 2).

    q (n,)         out: p + rho * g / (norm of g + 1e-12)
    p, g (n,)      in: parameters and their gradient
    part (L, 2)    in: sums of squares of g by ``norm_lanes``
    rho            how far it is
    """
    factor = Scratch(1)
    yield Launch(_ascent_factor, 1, (factor, part, float(rho), part.shape[0]))
    yield flat_launch(_ascent, q.size, q, p, g, factor)

"""Where sharpness-aware minimization takes its second gradient."""

import math

import numpy as np
from numba import cuda, float32, uint32

from fastadam.kernels.cuda import exact
from fastadam.kernels.cuda.gradients import BOTH, sum_pairs
from fastadam.kernels.cuda.jit import kernel
from fastadam.kernels.cuda.launch import Launch, Scratch, blocks_of, op
from fastadam.kernels.cuda.ptx import load4, store4
from fastadam.kernels.cuda.updates import THREADS

ONE, FOUR = uint32(1), uint32(4)
NORM_EPS = np.float32(1e-12)


@kernel(THREADS)
def _ascent_factor(factor, part, rho, lanes):
    shared = cuda.shared.array(BOTH, float32)
    high, low = sum_pairs(shared, part, uint32(0), lanes)
    if uint32(cuda.threadIdx.x) == uint32(0):
        factor[0] = rho / (math.sqrt(exact.rounded(high, low)) + NORM_EPS)


@kernel(THREADS)
def _ascent(q, p, g, factor, n):
    i, f = uint32(uint32(cuda.grid(1)) * FOUR), factor[0]
    if uint32(i + FOUR) <= n:
        a, b = load4(p, i), load4(g, i)
        store4(q, i, (a[0] + f * b[0], a[1] + f * b[1], a[2] + f * b[2], a[3] + f * b[3]))
    else:
        while i < n:
            q[i] = p[i] + f * g[i]
            i = uint32(i + ONE)


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
    yield Launch(_ascent, blocks_of(q.size, 4 * THREADS), (q, p, g, factor, q.size))

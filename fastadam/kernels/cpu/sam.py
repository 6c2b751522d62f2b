"""Where sharpness-aware minimization takes its second gradient."""

import numpy as np
from numba import float64

from fastadam.kernels.cpu.jit import leaf, serial
from fastadam.kernels.cpu.parallel import parallel
from fastadam.kernels.cpu.updates import CHUNK, chunks


@serial
def _factor(part, rho):
    total = float64(0)
    for lane in range(len(part)):
        total += float64(part[lane, 0]) + float64(part[lane, 1])
    return np.float32(rho / (np.sqrt(total) + 1e-12))


@leaf
def _ascent_chunk(worker, chunk, q, p, g, factor):
    i, j = chunk * CHUNK, (chunk + 1) * CHUNK
    qs, ps, gs = q[i:j], p[i:j], g[i:j]
    for k in range(qs.size):
        qs[k] = ps[k] + factor * gs[k]


def sam_ascent(q, p, g, part, rho):
    """The point near p where the loss is highest, to first order (Foret et al. 2021, equation 2 with p = 2).

    q (n,)         out: p + rho * g / (norm of g + 1e-12)
    p, g (n,)      in: parameters and their gradient
    part (L, 2)    in: sums of squares of g by ``norm_lanes``
    rho            how far it is
    """
    parallel(_ascent_chunk, chunks(q), q, p, g, np.float32(_factor(part, float(rho))))

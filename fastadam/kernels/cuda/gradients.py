"""Passes over all gradients before an update: sums of micro-batches, norms and clipping."""

import math

import numpy as np
from numba import cuda, float32, uint32

from fastadam.kernels.cuda import exact
from fastadam.kernels.cuda.flat import THREADS, each, flat_launch
from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.launch import Launch, Scratch, blocks_of, op
from fastadam.kernels.cuda.ptx import ZERO, load4
from fastadam.kernels.cuda.updates import FIELDS
from fastadam.kernels.rules import GRAD_SCALE

ONE, FOUR = uint32(1), uint32(4)
ALIGNED = uint32(0xFFFFFFFC)
FLOAT1, NORM_EPS = np.float32(1), np.float32(1e-6)
BOTH = 2 * THREADS

TILE = 16 * THREADS
"""Numbers of a lane that a block sums the squares of."""


@device
def _sum(a, b):
    return (a + b,)


@kernel(THREADS)
def _accumulate(y, x, size):
    each(_sum, (y,), (y, x), (), size)


@op
def accumulate(y, x):
    """y (n,), in and out: y + x.    x (n,)   in"""
    yield flat_launch(_accumulate, y.size, y, x)


# Clipping by the norm of all gradients ------------------------------------------------------------------------


@device
def _put_pair(part, i, high, low):
    """part[i] = the pair with all that fits in ``high``; beyond float32 there is no rest."""
    total = exact.rounded(high, low)
    rest = low - (total - high)
    part[uint32(i + i)] = total
    part[uint32(i + i + ONE)] = rest if rest == rest else ZERO


@device
def sum_pairs(shared, part, first, end):
    """The sum of part[first : end], pairs."""
    high = low = ZERO
    i = uint32(first + uint32(cuda.threadIdx.x))
    while i < end:
        high, low = exact.add(high, low, part[uint32(i + i)])
        low += part[uint32(i + i + ONE)]
        i = uint32(i + uint32(THREADS))
    return exact.block_sum(shared, high, low, ONE)


@kernel(THREADS)
def _square_tiles(part, g, lanes, tiles, n):
    """A block has a tile of a lane; 64-bit shares, as a large arena times the number of lanes goes beyond 32."""
    shared = cuda.shared.array(BOTH, float32)
    block = uint32(cuda.blockIdx.x)
    lane = uint32(block // tiles)
    first, end = uint32(lane * n // lanes), uint32((lane + 1) * n // lanes)
    first = uint32(first + uint32(block % tiles) * uint32(TILE))
    end = min(end, uint32(first + uint32(TILE)))
    high = low = ZERO
    i = uint32((first & ALIGNED) + uint32(cuda.threadIdx.x) * FOUR)
    while i < end:
        if i >= first and uint32(i + FOUR) <= end:
            v = load4(g, i)
            high, low = exact.add_product(high, low, v[0], v[0])
            high, low = exact.add_product(high, low, v[1], v[1])
            high, low = exact.add_product(high, low, v[2], v[2])
            high, low = exact.add_product(high, low, v[3], v[3])
        else:
            k = max(i, first)
            while k < min(end, uint32(i + FOUR)):
                high, low = exact.add_product(high, low, g[k], g[k])
                k = uint32(k + ONE)
        i = uint32(i + uint32(4 * THREADS))
    high, low = exact.block_sum(shared, high, low, ONE)
    if uint32(cuda.threadIdx.x) == uint32(0):
        _put_pair(part, block, high, low)


@kernel(THREADS)
def _join_squares(part, tiled, tiles):
    """A block has a lane."""
    shared = cuda.shared.array(BOTH, float32)
    lane = uint32(cuda.blockIdx.x)
    high, low = sum_pairs(shared, tiled, uint32(lane * tiles), uint32(uint32(lane + ONE) * tiles))
    if uint32(cuda.threadIdx.x) == uint32(0):
        _put_pair(part, lane, high, low)


@op
def norm_lanes(part, g):
    """Sums of squares of a flat array by lanes, each as two numbers that add up to it.

    part (L, 2)         out: lane l has the sum of g*g over its contiguous share, rounded, and what rounding took
    g (n,)              in
    """
    lanes, _ = part.shape
    tiles = blocks_of(blocks_of(g.size, lanes), TILE)
    tiled = Scratch(lanes * tiles * 2) if tiles > 1 else part
    yield Launch(_square_tiles, lanes * tiles, (tiled, g, lanes, tiles, g.size))
    if tiles > 1:
        yield Launch(_join_squares, lanes, (part, tiled, tiles))


@kernel(THREADS)
def _clip_factor(h, part, max_norm, lanes, groups):
    shared = cuda.shared.array(BOTH, float32)
    high, low = sum_pairs(shared, part, uint32(0), lanes)
    if uint32(cuda.threadIdx.x) == uint32(0):
        factor = max_norm / (math.sqrt(exact.rounded(high, low)) + NORM_EPS)
        if factor >= FLOAT1:
            factor = FLOAT1
        for group in range(groups):
            h[uint32(uint32(group) * uint32(FIELDS) + uint32(GRAD_SCALE))] = factor


@op
def clip_factor(h, part, max_norm):
    """Clipping by global norm: Pascanu et al. 2013, section 3.2, with PyTorch's 1e-6 in the denominator.

    h (G, fields)       in and out: grad_scale of every row becomes min(1, max_norm / (norm + 1e-6)); a norm that
                        is not finite gives a factor that is not finite or zero, and the loss shows it
    part (L, 2)         in: sums of squares by ``norm_lanes``
    """
    yield Launch(_clip_factor, 1, (h, part, float(max_norm), part.shape[0], h.shape[0]))

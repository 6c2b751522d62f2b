"""What is done to gradients by unit (``units`` in ``fastadam.kernels``): clipped by norms, or freed of their means.

A block has a row of ``units``: whole units of one tensor, 16 threads for each, so laid out that neighbours read
neighbours. The sums, in pairs of float32 (see ``exact.py``), stay within the block; what was read for them is in the
caches when it is read again.
"""

import math

import numpy as np
from numba import cuda, float32, uint32

from fastadam.kernels import UNITS, rules
from fastadam.kernels.cuda import exact
from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.launch import Launch, op
from fastadam.kernels.cuda.ptx import ZERO

_factor = device(rules.unit_factor)

SLOTS = 16
"""Threads of a unit."""

THREADS = UNITS * SLOTS
BOTH = 2 * THREADS
NONE, ONE, TWO, THREE, FOUR, FIVE = (uint32(i) for i in range(6))
WIDE, STEP = uint32(UNITS), uint32(SLOTS)
FLOAT1 = np.float32(1)


@device
def _place(units):
    """(unit of this thread, its slot; the unit's first element, its step, its length, 0 if there is no such unit)."""
    at = uint32(uint32(cuda.blockIdx.x) * FIVE)
    start, across, along = uint32(units[at]), uint32(units[uint32(at + ONE)]), uint32(units[uint32(at + TWO)])
    count, length = uint32(units[uint32(at + THREE)]), uint32(units[uint32(at + FOUR)])
    t = uint32(cuda.threadIdx.x)
    by_row = along == ONE
    unit = uint32(t // STEP) if by_row else uint32(t % WIDE)
    slot = uint32(t % STEP) if by_row else uint32(t // WIDE)
    return unit, slot, uint32(start + unit * across), along, (length if unit < count else NONE)


@device
def _sum_of_unit(shared, high, low, unit, slot):
    """The sum over the slots of this thread's unit, rounded, in all of its threads."""
    t, place = uint32(cuda.threadIdx.x), uint32(slot * WIDE + unit)
    shared[place], shared[uint32(place + uint32(THREADS))] = high, low
    cuda.syncthreads()
    high, low = shared[t], shared[uint32(t + uint32(THREADS))]
    cuda.syncthreads()
    exact.block_sum(shared, high, low, WIDE)  # leaves the sum of unit u in place u
    total = exact.rounded(shared[unit], shared[uint32(unit + uint32(THREADS))])
    cuda.syncthreads()
    return total


@kernel(THREADS)
def _clip(g, factors, p, units, clip):
    shared = cuda.shared.array(BOTH, float32)
    unit, slot, first, along, length = _place(units)
    high = low = p_high = p_low = ZERO
    k = slot
    while k < length:
        i = uint32(first + k * along)
        high, low = exact.add_product(high, low, g[i], g[i])
        p_high, p_low = exact.add_product(p_high, p_low, p[i], p[i])
        k = uint32(k + STEP)
    g_norm = math.sqrt(_sum_of_unit(shared, high, low, unit, slot))
    p_norm = math.sqrt(_sum_of_unit(shared, p_high, p_low, unit, slot))
    factor = _factor(g_norm, p_norm, clip)
    if slot == NONE:
        factors[uint32(uint32(cuda.blockIdx.x) * WIDE + unit)] = factor
    if not factor == FLOAT1:
        k = slot
        while k < length:
            g[uint32(first + k * along)] *= factor
            k = uint32(k + STEP)


@op
def clip_units(g, factors, p, units, clip):
    """Adaptive gradient clipping (``rules.unit_factor``): no unit's gradient longer than a share of its parameters.

    g (n,)               in and out: gradients
    factors (T, UNITS)   out: what each unit was multiplied by; 1 where there is none
    p (n,)               in: parameters
    units (T, 5) int64   in: those not in it are left alone
    clip                 the share
    """
    yield Launch(_clip, units.shape[0], (g, factors, p, units, float(clip)))


@kernel(THREADS)
def _centre(g, means, units):
    shared = cuda.shared.array(BOTH, float32)
    unit, slot, first, along, length = _place(units)
    high = low = ZERO
    k = slot
    while k < length:
        high, low = exact.add(high, low, g[uint32(first + k * along)])
        k = uint32(k + STEP)
    total = _sum_of_unit(shared, high, low, unit, slot)
    mean = total / float32(length) if length > NONE else ZERO
    if slot == NONE:
        means[uint32(uint32(cuda.blockIdx.x) * WIDE + unit)] = mean
    k = slot
    while k < length:
        g[uint32(first + k * along)] -= mean
        k = uint32(k + STEP)


@op
def centre_units(g, means, units):
    """Gradient centralisation: Yong et al. 2020, equation 1: the gradient of each unit without its mean.

    g (n,)               in and out: gradients
    means (T, UNITS)     out: what was taken off each unit; 0 where there is none
    units (T, 5) int64   in: those not in it are left alone
    """
    yield Launch(_centre, units.shape[0], (g, means, units))

"""What is done to gradients by unit (``units`` in ``fastadam.kernels``): clipped by norms, or freed of their means.

A task has a row of ``units``: whole units of one tensor, whose sums in float64 no other task needs. A unit that is a
column is summed up beside its neighbours, a vector of them at a time.
"""

import math

from numba import float64
from numpy import float32

from fastadam.kernels import rules
from fastadam.kernels.cpu.jit import inlined, leaf
from fastadam.kernels.cpu.parallel import parallel
from fastadam.kernels.cpu.simd import WIDTH, load
from fastadam.kernels.cpu.sums import add_squares, add_values, no_sums, sum_at, sum_of

_factor = inlined(rules.unit_factor)
ONE, ZERO = float32(1), float32(0)


@leaf
def _norm_of_unit(x, start, along, length):
    """The root of the sum of squares of one unit."""
    total, k = float64(0), 0
    if along == 1:
        of_x = no_sums()
        while k + WIDTH <= length:
            of_x = add_squares(of_x, load(x, start + k))
            k += WIDTH
        total = sum_of(of_x)
    while k < length:
        value = float64(x[start + k * along])
        total += value * value
        k += 1
    return float32(math.sqrt(total))


@leaf
def _sum_of_unit(x, start, along, length):
    """The sum of one unit."""
    total, k = float64(0), 0
    if along == 1:
        of_x = no_sums()
        while k + WIDTH <= length:
            of_x = add_values(of_x, load(x, start + k))
            k += WIDTH
        total = sum_of(of_x)
    while k < length:
        total += float64(x[start + k * along])
        k += 1
    return total


@leaf
def _clip_task(worker, task, g, factors, p, units, clip):
    start, across, along = units[task, 0], units[task, 1], units[task, 2]
    count, length = units[task, 3], units[task, 4]
    own, u, changed = factors[task], 0, False
    if along > 1:
        while u + WIDTH <= count:
            of_g, of_p = no_sums(), no_sums()
            for k in range(length):
                at = start + u + k * along
                of_g, of_p = add_squares(of_g, load(g, at)), add_squares(of_p, load(p, at))
            for i in range(WIDTH):
                norms = float32(math.sqrt(sum_at(of_g, i))), float32(math.sqrt(sum_at(of_p, i)))
                own[u + i] = _factor(norms[0], norms[1], clip)
            u += WIDTH
    while u < count:
        first = start + u * across
        g_norm, p_norm = _norm_of_unit(g, first, along, length), _norm_of_unit(p, first, along, length)
        own[u] = _factor(g_norm, p_norm, clip)
        u += 1
    for u in range(count):
        changed = changed or not own[u] == ONE
    for u in range(count, own.size):
        own[u] = ONE
    if changed and along > 1:
        for k in range(length):
            row = g[start + k * along : start + k * along + count]
            for u in range(row.size):
                row[u] *= own[u]
    elif changed:
        for u in range(count):
            unit, factor = g[start + u * across : start + u * across + length], own[u]
            for k in range(unit.size):
                unit[k] *= factor


def clip_units(g, factors, p, units, clip):
    """Adaptive gradient clipping (``rules.unit_factor``): no unit's gradient longer than a share of its parameters.

    g (n,)               in and out: gradients
    factors (T, UNITS)   out: what each unit was multiplied by; 1 where there is none
    p (n,)               in: parameters
    units (T, 5) int64   in: those not in it are left alone
    clip                 the share
    """
    parallel(_clip_task, len(units), g, factors, p, units, float32(clip))


@leaf
def _centre_task(worker, task, g, means, units):
    start, across, along = units[task, 0], units[task, 1], units[task, 2]
    count, length = units[task, 3], units[task, 4]
    own, u = means[task], 0
    if along > 1:
        while u + WIDTH <= count:
            of_g = no_sums()
            for k in range(length):
                of_g = add_values(of_g, load(g, start + u + k * along))
            for i in range(WIDTH):
                own[u + i] = float32(sum_at(of_g, i) / length)
            u += WIDTH
    while u < count:
        own[u] = float32(_sum_of_unit(g, start + u * across, along, length) / length)
        u += 1
    for u in range(count, own.size):
        own[u] = ZERO
    if along > 1:
        for k in range(length):
            row = g[start + k * along : start + k * along + count]
            for u in range(row.size):
                row[u] -= own[u]
    else:
        for u in range(count):
            unit, mean = g[start + u * across : start + u * across + length], own[u]
            for k in range(unit.size):
                unit[k] -= mean


def centre_units(g, means, units):
    """Gradient centralisation: Yong et al. 2020, equation 1: the gradient of each unit without its mean.

    g (n,)               in and out: gradients
    means (T, UNITS)     out: what was taken off each unit; 0 where there is none
    units (T, 5) int64   in: those not in it are left alone
    """
    parallel(_centre_task, len(units), g, means, units)

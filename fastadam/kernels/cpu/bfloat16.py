"""Moments in bfloat16: half of float32's bytes and its range, 8 significant bits, rounded at random.

A bfloat16 is the upper half of a float32, kept as uint16. Rounding to the nearest would stall an average that
changes by less than half of its last place, 1/512 of it: with beta2 = 0.999, v forgets 1/1000 of itself a step, which
is rounded away, so v never shrinks. Stochastic rounding goes up with the probability that is the part cut off: each
number is right on average, and so are sums of many (Gupta et al. 2015, section 3.2).

What is added before the cut is a pure function of (the step's own bits, element), so equal training gives equal bits.
"""

import numpy as np
from numpy import float32, uint16, uint32

from fastadam.kernels import rules
from fastadam.kernels.cpu.jit import inlined, leaf
from fastadam.kernels.cpu.parallel import parallel
from fastadam.kernels.cpu.updates import chunks, hyper_of, part_of

NOT_A_NUMBER, LOW = uint16(0x7FC0), uint32(0xFFFF)
ONE, S13, S16 = uint32(1), uint32(13), uint32(16)
FIRST, SECOND = uint32(0x85EBCA6B), uint32(0xC2B2AE35)

_adamw = inlined(rules.adamw)


@inlined
def _mix(z):
    """The last step of MurmurHash3 (Appleby 2011), uint32 to uint32: in lanes of 32 bits, unlike splitmix64."""
    z = uint32(uint32(z ^ (z >> S16)) * FIRST)
    z = uint32(uint32(z ^ (z >> S13)) * SECOND)
    return uint32(z ^ (z >> S16))


@inlined
def _widened(bits):
    """bfloat16 to float32, exactly."""
    return uint32(uint32(bits) << S16).view(np.float32)


@inlined
def _rounded(x, random):
    """float32 to bfloat16: away from zero with the probability that is the part cut off; ``random`` < 2**16."""
    bits = uint32(float32(x).view(np.uint32) + random)
    return uint16(bits >> S16) if x == x else NOT_A_NUMBER


@leaf
def adamw_bf16_pass(p, m, v, g, hyper, element):
    """Elements that have the numbers ``element``, ``element`` + 1, ... (uint32) in what is drawn."""
    own = _mix(uint32(hyper.draw))
    for k in range(p.size):
        p[k], new_m, new_v = _adamw(p[k], _widened(m[k]), _widened(v[k]), g[k], hyper)
        random = _mix(uint32(own ^ element))
        m[k] = _rounded(new_m, uint32(random & LOW))
        v[k] = _rounded(new_v, uint32(random >> S16))
        element = uint32(element + ONE)


@leaf
def _adamw_bf16_chunk(worker, chunk, p, m, v, g, h, groups):
    for run in range(len(groups)):
        i, j = part_of(chunk, groups, run)
        adamw_bf16_pass(p[i:j], m[i:j], v[i:j], g[i:j], hyper_of(h[groups[run, 2]]), uint32(i))


def adamw_bf16_update(p, m, v, g, h, groups):
    """One step of ``rules.adamw`` by moments kept in bfloat16.

    p (n,)            in and out
    m, v (n,) uint16  in and out: bfloat16; the step itself uses them before they are rounded
    g, h, groups      in, as of every update; ``draw`` of h, a whole number below 2**24, is what the step draws from
    """
    parallel(_adamw_bf16_chunk, chunks(p), p, m, v, g, h, groups)

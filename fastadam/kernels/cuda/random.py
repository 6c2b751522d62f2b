"""The one source of randomness inside a step: splitmix64, a pure function of what it is asked for.

Nothing is drawn in an order, so a run gives the same numbers whatever block drew them, and those of the CPU.
"""

from numba import uint64
from numpy import uint64 as host_uint64

from fastadam.kernels.cuda.jit import device

GAMMA = host_uint64(0x9E3779B97F4A7C15)
FIRST = host_uint64(0xBF58476D1CE4E5B9)
SECOND = host_uint64(0x94D049BB133111EB)
S30, S27, S31, S40 = (host_uint64(bits) for bits in (30, 27, 31, 40))


@device
def mix(z):
    """One step of splitmix64 (Steele, Lea & Flood 2014, figure 16), uint64 to uint64, wrapping."""
    z = z + GAMMA
    z = (z ^ (z >> S30)) * FIRST
    z = (z ^ (z >> S27)) * SECOND
    return z ^ (z >> S31)


@device
def sample_stream(key, sample):
    """What a sample draws from in an epoch; ``key`` (2,) int64 is seed, epoch."""
    return mix(mix(mix(uint64(key[0])) ^ uint64(key[1])) ^ uint64(sample))


@device
def sample_state(key, sample, salt):
    """What one user of randomness (``salt``) draws from for one sample."""
    return mix(sample_stream(key, sample) ^ uint64(salt))


@device
def draw24(state, element):
    """24 random bits for an element: a uniform number of [0, 1) when divided by ``2**24``."""
    return mix(state ^ uint64(element)) >> S40

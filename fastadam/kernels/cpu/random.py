"""The one source of randomness inside a step: splitmix64, a pure function of what it is asked for.

Nothing is drawn in an order, so a run gives the same numbers for any number of threads, batch size, or
place at which it was stopped and resumed.
"""

from numpy import uint64

from fastadam.kernels.cpu.jit import leaf

GAMMA = uint64(0x9E3779B97F4A7C15)
FIRST = uint64(0xBF58476D1CE4E5B9)
SECOND = uint64(0x94D049BB133111EB)
S30, S27, S31, S40 = uint64(30), uint64(27), uint64(31), uint64(40)


@leaf
def mix(z):
    """One step of splitmix64 (Steele, Lea & Flood 2014, figure 16), uint64 to uint64, wrapping."""
    z = z + GAMMA
    z = (z ^ (z >> S30)) * FIRST
    z = (z ^ (z >> S27)) * SECOND
    return z ^ (z >> S31)


@leaf
def sample_state(key, sample, salt):
    """What one user of randomness (``salt``) draws from for one sample; ``key`` (2,) is seed, epoch."""
    z = mix(mix(uint64(key[0])) ^ uint64(key[1]))
    return mix(mix(z ^ uint64(sample)) ^ uint64(salt))


@leaf
def draw24(state, element):
    """24 random bits for an element: a uniform number of [0, 1) when divided by ``2**24``."""
    return mix(state ^ uint64(element)) >> S40

"""Random numbers as a pure function of (seed, ..., index): the same on every machine, whatever the order.

The generator is splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
It is written out here because the streams of ``numpy.random.Generator`` may change between NumPy releases.
"""

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def mix(z: np.ndarray) -> np.ndarray:
    """splitmix64 of each uint64 of ``z``, modulo 2**64; an array of the same shape."""
    z = z + _GAMMA
    z ^= z >> np.uint64(30)
    z *= _FIRST
    z ^= z >> np.uint64(27)
    z *= _SECOND
    z ^= z >> np.uint64(31)
    return z


def keys(seed: int, *parts: int | np.ndarray) -> np.ndarray:
    """uint64 key of (seed, part, part, ...): ``mix(mix(mix(seed) ^ part) ^ part)``.

    An array among the parts gives one key for each of its numbers. The seed and the parts may be any
    integers of up to 64 bits; they are taken modulo 2**64.
    """
    key = mix(_uint64(seed))
    for part in parts:
        key = mix(key ^ _uint64(part))
    return key


def _uint64(value: int | np.ndarray) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return np.atleast_1d(value).astype(np.uint64)
    return np.array([value % 2**64], np.uint64)

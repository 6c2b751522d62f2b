"""bfloat16 as NumPy has it: the upper 16 bits of a float32, in uint16 arrays."""

import numpy as np


def widened(bits: np.ndarray) -> np.ndarray:
    """The float32 numbers that bfloat16 ``bits`` (any shape, uint16) stand for, exactly."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def cut(x: np.ndarray) -> np.ndarray:
    """float32 numbers, any shape, to bfloat16 bits, rounded towards zero."""
    return (np.asarray(x, np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)

"""Sums in twice the digits of float32, where the CPU uses float64: GPUs for pictures are slow at that.

A number is a pair (high, low): ``high`` is the sum rounded, ``low`` what rounding took.
"""

from fastadam.kernels.cuda.jit import device
from fastadam.kernels.cuda.ptx import exact_product


@device
def add(high, low, x):
    """high + low + x: Knuth 1969, section 4.2.2, theorem B, the rest kept."""
    total = high + x
    part = total - high
    return total, low + ((high - (total - part)) + (x - part))


@device
def add_product(high, low, x, y):
    """high + low + x * y, the product exact (Ogita, Rump and Oishi 2005, algorithm 5.3)."""
    product, rest = exact_product(x, y)
    high, low = add(high, low, product)
    return high, low + rest

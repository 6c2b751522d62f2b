"""Sums in twice the digits of float32, where the CPU uses float64: GPUs for pictures are slow at that.

A number is a pair (high, low): ``high`` is the sum rounded, ``low`` what rounding took.
"""

from numba import cuda, uint32

from fastadam.kernels.cuda.jit import device
from fastadam.kernels.cuda.ptx import exact_product

ONE = uint32(1)


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


@device
def rounded(high, low):
    """The pair as one number; of a sum that overflowed, ``high`` is infinite and ``low`` NaN."""
    return high + low if low == low else high


@device
def block_sum(shared, high, low, columns):
    """The block's sum of pairs by column, thread t's being t % columns, in all threads: by halves, a fixed order.

    shared    two floats a thread
    columns   threads left over by whole rows of columns take no part
    """
    t, threads = uint32(cuda.threadIdx.x), uint32(cuda.blockDim.x)
    shared[t], shared[uint32(t + threads)] = high, low
    cuda.syncthreads()
    rows = uint32(threads // columns)
    while rows > ONE:
        half = uint32(uint32(rows + ONE) >> ONE)
        other = uint32(t + half * columns)
        if other < rows * columns:
            high, low = add(high, low, shared[other])
            low += shared[uint32(other + threads)]
            shared[t], shared[uint32(t + threads)] = high, low
        rows = half
        cuda.syncthreads()
    first = uint32(t % columns)
    high, low = shared[first], shared[uint32(first + threads)]
    cuda.syncthreads()
    return high, low

"""Passes over flat arrays whose elements are independent of each other: four a thread, by a formula for one."""

from numba import cuda, uint32

from fastadam.kernels.cuda.jit import device
from fastadam.kernels.cuda.launch import Launch, blocks_of
from fastadam.kernels.cuda.ptx import load_rows, store_rows

THREADS = 256
ONE, FOUR = uint32(1), uint32(4)


@device
def each(formula, outs, ins, numbers, size):
    """outs = formula(ins, numbers), element by element; tuples all, what the formula returns too. outs may be ins."""
    i = uint32(uint32(cuda.grid(1)) * FOUR)
    if uint32(i + FOUR) <= size:
        a, b, c, d = load_rows(ins, i, 4)
        first, second = formula(*a, *numbers), formula(*b, *numbers)
        third, fourth = formula(*c, *numbers), formula(*d, *numbers)
        store_rows(outs, i, (first, second, third, fourth))
    else:
        while i < size:
            (row,) = load_rows(ins, i, 1)
            store_rows(outs, i, (formula(*row, *numbers),))
            i = uint32(i + ONE)


def flat_launch(kernel, size, *arguments):
    """The launch of a kernel of four elements a thread, which takes ``size``, the number of elements, last."""
    return Launch(kernel, blocks_of(size, 4 * THREADS), (*arguments, size))

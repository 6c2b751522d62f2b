"""Arrays by their addresses: what it takes to make one call of a loop over many NumPy arrays.

Numba takes arguments one by one and compiles for their number. A loop over a table of addresses costs neither, but
it checks nothing: no size, no type, no lifetime. So whoever makes a table keeps the arrays, and whoever runs a loop
over it asks ``check_arrays`` before, which takes a few reads an array.

NumPy's C interface fixes how an array object begins; programs compiled against it read that themselves. After the
head of every Python object, whose last word is its type, come, eight bytes apart,

    data, rank (int), dimensions, strides, base, dtype, flags (int)

``READABLE`` says whether that is so in this interpreter.
"""

import ctypes

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from fastadam.kernels.cpu.jit import leaf, serial

_HEAD = object.__basicsize__
_TYPE, _DATA, _RANK, _SHAPE, _DTYPE, _FLAGS = (_HEAD + offset for offset in (-8, 0, 8, 16, 40, 48))

_LOW = 0xFFFFFFFF
"""An int, of the word that it begins."""

CONTIGUOUS, ALIGNED, WRITEABLE = 0x1, 0x100, 0x400
"""NumPy's flags of an array: in C's order, at an address its numbers may have, open to changes."""

TYPE, DTYPE, FLAGS, RANK, FIRST = range(5)
"""Columns of what is expected of an array: ids of its type and its dtype, flags it must have, its rank, and where its
dimensions begin in the list of all."""


@intrinsic
def _pointer(typingctx, address, like):
    """A pointer to numbers of the type that the array ``like`` has."""
    kind = types.CPointer(like.dtype)

    def generate(context, builder, sig, args):
        return builder.inttoptr(args[0], context.get_value_type(kind))

    return kind(types.int64, like), generate


def _reader(bits, kind):
    @intrinsic
    def read(typingctx, address):
        def generate(context, builder, sig, args):
            pointer = builder.inttoptr(args[0], ir.IntType(bits).as_pointer())
            return builder.load(pointer)

        return kind(types.int64), generate

    return read


_word = _reader(64, types.int64)
_int = _reader(32, types.int32)


@leaf
def array_at(address, size, like):
    """The flat array of ``size`` numbers at an address, of the type of number that the array ``like`` has."""
    return carray(_pointer(address, like), size)


@serial
def _find(found, objects):
    for i in range(len(objects)):
        found[i] = _word(objects[i] + _DATA)


@leaf
def _is_expected(at, expected, i, dimensions):
    if _word(at + _TYPE) != expected[i, TYPE] or _word(at + _DTYPE) != expected[i, DTYPE]:
        return False
    if _int(at + _FLAGS) & expected[i, FLAGS] != expected[i, FLAGS] or _int(at + _RANK) != expected[i, RANK]:
        return False
    shape, first = _word(at + _SHAPE), expected[i, FIRST]
    for d in range(expected[i, RANK]):
        if _word(shape + 8 * d) != dimensions[first + d]:
            return False
    return True


@leaf
def _overlaps(begin, end, own, begins, ends):
    """Whether a gradient shares memory with what an optimiser writes, other than being its own parameter."""
    low, high = 0, len(begins)
    while low < high:  # the first range that ends behind its begin
        middle = (low + high) // 2
        if ends[middle] > begin:
            high = middle
        else:
            low = middle + 1
    return low < len(begins) and begins[low] < end and begin < end and begin != own


@serial
def check_arrays(table, own, own_expected, given, expected, dimensions, sizes, begins, ends):
    """Fill in where the gradients are, if all is as it should be.

    table (n, 2 + kept) int64    in: addresses of a parameter and of what is kept of it; last column out: its gradient's
    own (n * (1 + kept),) int64  in: ids of those arrays, row by row
    given (n,) int64             in: ids of the gradients, of whatever kind they are
    own_expected, expected       in: (., 5) int64, what they must be
    dimensions (.,) int64        in: of all arrays
    sizes (n,) int64             in: bytes of each parameter
    begins, ends (k,) int64      in: what memory belongs to the optimiser: ranges that rise and do not meet
    Returns whether something is not as expected.
    """
    kept = table.shape[1] - 1
    for i in range(len(own)):
        if not _is_expected(own[i], own_expected, i, dimensions) or _word(own[i] + _DATA) != table[i // kept, i % kept]:
            return True
    for i in range(len(given)):
        if not _is_expected(given[i], expected, i, dimensions):
            return True
        at = _word(given[i] + _DATA)
        if _overlaps(at, at + sizes[i], table[i, 0], begins, ends):
            return True
        table[i, kept] = at
    return False


def expectations(arrays, flags):
    """What ``check_arrays`` is to expect of arrays: rows of its ``expected``, but for the column FIRST, which counts
    from the first dimension of the first array; and their dimensions."""
    ranks = np.array([array.ndim for array in arrays], np.int64)
    rows = np.zeros((len(arrays), 5), np.int64)
    rows[:, TYPE], rows[:, DTYPE] = [id(type(array)) for array in arrays], [id(array.dtype) for array in arrays]
    rows[:, FLAGS], rows[:, RANK], rows[:, FIRST] = flags, ranks, np.cumsum(ranks) - ranks
    return rows, np.array([size for array in arrays for size in array.shape], np.int64)


def _readable():
    """Whether array objects begin as ``check_arrays`` has it; looks at no memory but theirs."""
    for array in (np.zeros((2, 3), np.float32), np.asfortranarray(np.zeros((2, 3))), np.zeros((), np.float64)):
        if type(array).__basicsize__ < _FLAGS + 4:
            return False
        words = np.frombuffer(ctypes.string_at(id(array), _FLAGS + 8), np.int64)
        type_id, data, rank, shape, strides, dtype, flags = (
            int(words[at // 8]) for at in (_TYPE, _DATA, _RANK, _SHAPE, _SHAPE + 8, _DTYPE, _FLAGS)
        )
        if (type_id, data, dtype) != (id(type(array)), array.ctypes.data, id(array.dtype)):
            return False
        if (rank & _LOW, flags & _LOW) != (array.ndim, array.flags.num):
            return False
        if array.ndim and strides - shape != 8 * array.ndim:  # one block has both
            return False
    return True


READABLE = _readable()


def addresses_of(arrays):
    """Where the numbers of NumPy arrays are: (n,) int64."""
    if not READABLE:
        return np.array([array.ctypes.data for array in arrays], np.int64)
    found = np.empty(len(arrays), np.int64)
    _find(found, np.fromiter(map(id, arrays), np.int64, len(arrays)))
    return found

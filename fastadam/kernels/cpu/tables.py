"""Passes over many arrays that lie anywhere in memory, in one call: their table has addresses.

    update_table(rule, table, pieces, bounds, h)

table (n, 2 + kept) int64   a row a tensor: addresses of p, of what the rule keeps in its order, and of g
pieces (K, 5) int64         rows (0, size, group, tensor, start): ``size`` elements of a tensor, from ``start`` on, and
                            the row of h that they use
bounds (T + 1,) int64       pieces bounds[t] to bounds[t + 1] - 1 are one task
h (G, fields)               the numbers of ``rules.Hyper``; its type of number is that of all arrays

What is computed is what ``updates`` computes, by the same loops: in float32 the same bits. Nothing is checked:
``addresses`` tells how that is done before. The arrays must not overlap, but g may be p itself.
"""

import numpy as np
from numba import float64, njit, uint32

from fastadam.kernels.cpu import updates
from fastadam.kernels.cpu.addresses import array_at
from fastadam.kernels.cpu.bfloat16 import adamw_bf16_pass
from fastadam.kernels.cpu.jit import leaf
from fastadam.kernels.cpu.parallel import parallel
from fastadam.kernels.cpu.updates import CHUNK, _four, _one, _three, _two, hyper_of

_SIZE, _GROUP, _TENSOR, _START = 1, 2, 3, 4

_APART = np.uint32(0x9E3779B1)
"""From tensor to tensor, for what is drawn at random: so far apart that equal numbers are rare."""


def cut(sizes, groups):
    """(pieces, bounds) of tensors of these sizes: large ones are shared out, small ones packed into tasks.

    sizes, groups (n,) int64   elements and group of each tensor
    A piece has no more than CHUNK elements, a task fewer than twice as many.
    """
    counts = -(-sizes // CHUNK)
    tensor = np.repeat(np.arange(len(sizes)), counts)
    start = CHUNK * (np.arange(len(tensor)) - np.repeat(np.cumsum(counts) - counts, counts))
    size = np.minimum(sizes[tensor] - start, CHUNK)
    pieces = np.stack([np.zeros_like(size), size, groups[tensor], tensor, start], axis=1)
    task = (np.cumsum(size) - size) // CHUNK
    bounds = np.concatenate([[0], 1 + np.flatnonzero(np.diff(task)), [len(size)] if len(size) else []])
    return pieces, bounds.astype(np.int64)


def update_table(rule, table, pieces, bounds, h):
    """One step of a rule of ``kernels.rules``, by its name."""
    parallel(_UPDATES[rule], len(bounds) - 1, table, pieces, bounds, h)


def sums_of_squares(part, table, pieces, bounds, like):
    """part (K,) float64, out: the sum of the squares of each piece of the arrays in the last column of a table.

    like   an array of their type of number
    """
    parallel(_squares_of_task, len(bounds) - 1, part, table, pieces, bounds, like)


def scale(table, pieces, bounds, factor):
    """x = factor[0] * x for the arrays in the last column of a table; factor (1,) has their type of number."""
    parallel(_scale_task, len(bounds) - 1, table, pieces, bounds, factor)


def clamp(table, pieces, bounds, limit):
    """x = x between -limit[0] and limit[0] for the arrays in the last column of a table; a NaN stays."""
    parallel(_clamp_task, len(bounds) - 1, table, pieces, bounds, limit)


@leaf
def _at(table, pieces, k, column, like):
    """The elements of a piece, in the array that a column of the table has."""
    return array_at(table[pieces[k, _TENSOR], column] + pieces[k, _START] * like.itemsize, pieces[k, _SIZE], like)


@leaf
def _squares_of_task(worker, task, part, table, pieces, bounds, like):
    for k in range(bounds[task], bounds[task + 1]):
        x = _at(table, pieces, k, table.shape[1] - 1, like)
        a, b, c, d = float64(0), float64(0), float64(0), float64(0)  # four sums: an addition waits for the one before
        whole = x.size // 4 * 4
        for i in range(0, whole, 4):
            a += float64(x[i]) * float64(x[i])
            b += float64(x[i + 1]) * float64(x[i + 1])
            c += float64(x[i + 2]) * float64(x[i + 2])
            d += float64(x[i + 3]) * float64(x[i + 3])
        for i in range(whole, x.size):
            a += float64(x[i]) * float64(x[i])
        part[k] = (a + b) + (c + d)


@leaf
def _scale_task(worker, task, table, pieces, bounds, factor):
    for k in range(bounds[task], bounds[task + 1]):
        x, f = _at(table, pieces, k, table.shape[1] - 1, factor), factor[0]
        for i in range(x.size):
            x[i] *= f


@leaf
def _clamp_task(worker, task, table, pieces, bounds, limit):
    for k in range(bounds[task], bounds[task + 1]):
        x, high = _at(table, pieces, k, table.shape[1] - 1, limit), limit[0]
        for i in range(x.size):
            x[i] = high if x[i] > high else -high if x[i] < -high else x[i]


@njit(inline="always")
def _update_one(rule, k, table, pieces, h):
    p, r, g = _at(table, pieces, k, 0, h), _at(table, pieces, k, 1, h), _at(table, pieces, k, 2, h)
    _one(rule, 0, p, r, g, h, pieces[k : k + 1])


@njit(inline="always")
def _update_two(rule, k, table, pieces, h):
    p, r, s = _at(table, pieces, k, 0, h), _at(table, pieces, k, 1, h), _at(table, pieces, k, 2, h)
    g = _at(table, pieces, k, 3, h)
    _two(rule, 0, p, r, s, g, h, pieces[k : k + 1])


@njit(inline="always")
def _update_three(rule, k, table, pieces, h):
    p, r, s = _at(table, pieces, k, 0, h), _at(table, pieces, k, 1, h), _at(table, pieces, k, 2, h)
    t, g = _at(table, pieces, k, 3, h), _at(table, pieces, k, 4, h)
    _three(rule, 0, p, r, s, t, g, h, pieces[k : k + 1])


@njit(inline="always")
def _update_four(rule, k, table, pieces, h):
    p, r, s = _at(table, pieces, k, 0, h), _at(table, pieces, k, 1, h), _at(table, pieces, k, 2, h)
    t, u, g = _at(table, pieces, k, 3, h), _at(table, pieces, k, 4, h), _at(table, pieces, k, 5, h)
    _four(rule, 0, p, r, s, t, u, g, h, pieces[k : k + 1])


# A leaf a rule, as in ``updates``.


@leaf
def _adam_task(worker, task, table, pieces, bounds, h):
    for k in range(bounds[task], bounds[task + 1]):
        _update_two(updates._adam, k, table, pieces, h)


@leaf
def _adamw_task(worker, task, table, pieces, bounds, h):
    for k in range(bounds[task], bounds[task + 1]):
        _update_two(updates._adamw, k, table, pieces, h)


@leaf
def _amsgrad_task(worker, task, table, pieces, bounds, h):
    for k in range(bounds[task], bounds[task + 1]):
        _update_three(updates._amsgrad, k, table, pieces, h)


@leaf
def _adamax_task(worker, task, table, pieces, bounds, h):
    for k in range(bounds[task], bounds[task + 1]):
        _update_two(updates._adamax, k, table, pieces, h)


@leaf
def _nadam_task(worker, task, table, pieces, bounds, h):
    for k in range(bounds[task], bounds[task + 1]):
        _update_two(updates._nadam, k, table, pieces, h)


@leaf
def _radam_task(worker, task, table, pieces, bounds, h):
    for k in range(bounds[task], bounds[task + 1]):
        _update_two(updates._radam, k, table, pieces, h)


@leaf
def _adabelief_task(worker, task, table, pieces, bounds, h):
    for k in range(bounds[task], bounds[task + 1]):
        _update_two(updates._adabelief, k, table, pieces, h)


@leaf
def _adabound_task(worker, task, table, pieces, bounds, h):
    for k in range(bounds[task], bounds[task + 1]):
        _update_two(updates._adabound, k, table, pieces, h)


@leaf
def _padam_task(worker, task, table, pieces, bounds, h):
    for k in range(bounds[task], bounds[task + 1]):
        _update_three(updates._padam, k, table, pieces, h)


@leaf
def _adan_task(worker, task, table, pieces, bounds, h):
    for k in range(bounds[task], bounds[task + 1]):
        _update_four(updates._adan, k, table, pieces, h)


@leaf
def _lion_task(worker, task, table, pieces, bounds, h):
    for k in range(bounds[task], bounds[task + 1]):
        _update_one(updates._lion, k, table, pieces, h)


@leaf
def _sgd_task(worker, task, table, pieces, bounds, h):
    for k in range(bounds[task], bounds[task + 1]):
        _update_one(updates._sgd, k, table, pieces, h)


@leaf
def _schedulefree_task(worker, task, table, pieces, bounds, h):
    for k in range(bounds[task], bounds[task + 1]):
        _update_two(updates._schedulefree, k, table, pieces, h)


@leaf
def _adamw_bf16_task(worker, task, table, pieces, bounds, h):
    for k in range(bounds[task], bounds[task + 1]):
        half = table[0].view(np.uint16)  # for its type
        p, m, v = _at(table, pieces, k, 0, h), _at(table, pieces, k, 1, half), _at(table, pieces, k, 2, half)
        element = uint32(uint32(pieces[k, _TENSOR]) * _APART + uint32(pieces[k, _START]))
        adamw_bf16_pass(p, m, v, _at(table, pieces, k, 3, h), hyper_of(h[pieces[k, _GROUP]]), element)


_UPDATES = {
    "adam": _adam_task,
    "adamw": _adamw_task,
    "amsgrad": _amsgrad_task,
    "adamax": _adamax_task,
    "nadam": _nadam_task,
    "radam": _radam_task,
    "adabelief": _adabelief_task,
    "adabound": _adabound_task,
    "padam": _padam_task,
    "adan": _adan_task,
    "lion": _lion_task,
    "sgd": _sgd_task,
    "schedulefree": _schedulefree_task,
    "adamw_bf16": _adamw_bf16_task,
}

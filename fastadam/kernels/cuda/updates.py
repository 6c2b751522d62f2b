"""The optimisers' updates: one pass over flat arrays, elements independent of each other.

    update(p, *kept, g, h, groups)

p (n,)               in and out: parameters
kept (n,) each       in and out: what the rule keeps of them, in the order of ``rules.MOMENTS``
g (n,)               in: gradients
h (G, fields)        in: the numbers of ``rules.Hyper``, a row a group
groups (K, 3) int64  in: rows (start, end, group), in order: elements start to end - 1 use row ``group`` of h

A thread owns four elements. The pass is written once, over a table whose columns are the arrays, however many a rule
keeps; it takes the rule as an argument, and LLVM melts the rule's formula into each kernel.
"""

from numba import cuda, uint32

from fastadam.kernels import rules
from fastadam.kernels.cuda.flat import THREADS, flat_launch
from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.launch import op
from fastadam.kernels.cuda.ptx import load_many, load_rows, store_rows
from fastadam.kernels.rules import Hyper

FIELDS = len(Hyper._fields)
ONE, TWO, THREE, FOUR = (uint32(i) for i in range(1, 5))


@device
def hyper_of(h, group):
    """Row ``group`` of h; what the rule does not read, nobody loads."""
    return Hyper(*load_many(h, group * uint32(FIELDS), FIELDS))


@device
def run_of(i, groups, runs):
    """(group, end) of the last run that begins at element i or before; the first begins at 0."""
    low, high = uint32(0), runs
    while uint32(high - low) > ONE:
        middle = uint32(uint32(low + high) >> ONE)
        if uint32(groups[uint32(THREE * middle)]) <= i:
            low = middle
        else:
            high = middle
    at = uint32(THREE * low)
    return uint32(groups[uint32(at + TWO)]), uint32(groups[uint32(at + ONE)])


@device
def _update(rule, own, g, h, groups, runs, size):
    """``own`` is (p, *kept). Four elements at once where they are of one group."""
    i = uint32(uint32(cuda.grid(1)) * FOUR)
    if i >= size:
        return
    group, end = run_of(i, groups, runs)
    if uint32(i + FOUR) <= end:
        hyper = hyper_of(h, group)
        a, b, c, d = load_rows((*own, g), i, 4)
        store_rows(own, i, (rule(*a, hyper), rule(*b, hyper), rule(*c, hyper), rule(*d, hyper)))
    else:
        stop = min(size, uint32(i + FOUR))
        while i < stop:
            group, end = run_of(i, groups, runs)
            if i < end:  # else between two runs
                (row,) = load_rows((*own, g), i, 1)
                store_rows(own, i, (rule(*row, hyper_of(h, group)),))
            i = uint32(i + ONE)


def _launch(update, p, *others):
    """The launch of a kernel; ``others`` end with the groups."""
    groups = others[-1]
    return flat_launch(update, p.size, p, *others, groups.shape[0])


# Wrapped at module level: a rule closed over in a factory would never hit the compile cache.
_adam = device(rules.adam)
_adamw = device(rules.adamw)
_amsgrad = device(rules.amsgrad)
_adamax = device(rules.adamax)
_nadam = device(rules.nadam)
_radam = device(rules.radam)
_adabelief = device(rules.adabelief)
_adabound = device(rules.adabound)
_padam = device(rules.padam)
_adan = device(rules.adan)
_lion = device(rules.lion)
_sgd = device(rules.sgd)
_schedulefree = device(rules.schedulefree)


@kernel(THREADS)
def _adam_kernel(p, m, v, g, h, groups, runs, size):
    _update(_adam, (p, m, v), g, h, groups, runs, size)


@op
def adam_update(p, m, v, g, h, groups):
    """One step of ``rules.adam``."""
    yield _launch(_adam_kernel, p, m, v, g, h, groups)


@kernel(THREADS)
def _adamw_kernel(p, m, v, g, h, groups, runs, size):
    _update(_adamw, (p, m, v), g, h, groups, runs, size)


@op
def adamw_update(p, m, v, g, h, groups):
    """One step of ``rules.adamw``."""
    yield _launch(_adamw_kernel, p, m, v, g, h, groups)


@kernel(THREADS)
def _amsgrad_kernel(p, m, v, v_max, g, h, groups, runs, size):
    _update(_amsgrad, (p, m, v, v_max), g, h, groups, runs, size)


@op
def amsgrad_update(p, m, v, v_max, g, h, groups):
    """One step of ``rules.amsgrad``."""
    yield _launch(_amsgrad_kernel, p, m, v, v_max, g, h, groups)


@kernel(THREADS)
def _adamax_kernel(p, m, u, g, h, groups, runs, size):
    _update(_adamax, (p, m, u), g, h, groups, runs, size)


@op
def adamax_update(p, m, u, g, h, groups):
    """One step of ``rules.adamax``."""
    yield _launch(_adamax_kernel, p, m, u, g, h, groups)


@kernel(THREADS)
def _nadam_kernel(p, m, v, g, h, groups, runs, size):
    _update(_nadam, (p, m, v), g, h, groups, runs, size)


@op
def nadam_update(p, m, v, g, h, groups):
    """One step of ``rules.nadam``."""
    yield _launch(_nadam_kernel, p, m, v, g, h, groups)


@kernel(THREADS)
def _radam_kernel(p, m, v, g, h, groups, runs, size):
    _update(_radam, (p, m, v), g, h, groups, runs, size)


@op
def radam_update(p, m, v, g, h, groups):
    """One step of ``rules.radam``."""
    yield _launch(_radam_kernel, p, m, v, g, h, groups)


@kernel(THREADS)
def _adabelief_kernel(p, m, s, g, h, groups, runs, size):
    _update(_adabelief, (p, m, s), g, h, groups, runs, size)


@op
def adabelief_update(p, m, s, g, h, groups):
    """One step of ``rules.adabelief``."""
    yield _launch(_adabelief_kernel, p, m, s, g, h, groups)


@kernel(THREADS)
def _adabound_kernel(p, m, v, g, h, groups, runs, size):
    _update(_adabound, (p, m, v), g, h, groups, runs, size)


@op
def adabound_update(p, m, v, g, h, groups):
    """One step of ``rules.adabound``."""
    yield _launch(_adabound_kernel, p, m, v, g, h, groups)


@kernel(THREADS)
def _padam_kernel(p, m, v, v_max, g, h, groups, runs, size):
    _update(_padam, (p, m, v, v_max), g, h, groups, runs, size)


@op
def padam_update(p, m, v, v_max, g, h, groups):
    """One step of ``rules.padam``."""
    yield _launch(_padam_kernel, p, m, v, v_max, g, h, groups)


@kernel(THREADS)
def _adan_kernel(p, m, d, n, past, g, h, groups, runs, size):
    _update(_adan, (p, m, d, n, past), g, h, groups, runs, size)


@op
def adan_update(p, m, d, n, past, g, h, groups):
    """One step of ``rules.adan``."""
    yield _launch(_adan_kernel, p, m, d, n, past, g, h, groups)


@kernel(THREADS)
def _lion_kernel(p, m, g, h, groups, runs, size):
    _update(_lion, (p, m), g, h, groups, runs, size)


@op
def lion_update(p, m, g, h, groups):
    """One step of ``rules.lion``."""
    yield _launch(_lion_kernel, p, m, g, h, groups)


@kernel(THREADS)
def _sgd_kernel(p, m, g, h, groups, runs, size):
    _update(_sgd, (p, m), g, h, groups, runs, size)


@op
def sgd_update(p, m, g, h, groups):
    """One step of ``rules.sgd``."""
    yield _launch(_sgd_kernel, p, m, g, h, groups)


@kernel(THREADS)
def _schedulefree_kernel(p, z, v, g, h, groups, runs, size):
    _update(_schedulefree, (p, z, v), g, h, groups, runs, size)


@op
def schedulefree_update(p, z, v, g, h, groups):
    """One step of ``rules.schedulefree``."""
    yield _launch(_schedulefree_kernel, p, z, v, g, h, groups)

"""How every CPU kernel is compiled: one place for the flags.

``error_model="numpy"``: a division never raises, so loops that divide still vectorise.
``contract`` lets a multiply and an add become one fused instruction; no flag that assumes NaN away or
reorders sums is ever set: a diverged loss must be seen, and equal training must give equal bits.
"""

from numba import njit, types

from fastadam.kernels.cache import cached_here

FLAGS = {"error_model": "numpy", "fastmath": {"contract"}, "nogil": True, "cache": True}


def leaf(function):
    """Serial code: one task of an op, for ``parallel``, or what it calls."""
    with cached_here():
        compiled = njit(**FLAGS)(function)
    template = compiled.get_call_template

    def without_literals(args, kws):
        """As numba looks for the code of a call, but 0 and 1 are integers: it would compile once more for each."""
        return template(tuple(map(types.unliteral, args)), {name: types.unliteral(t) for name, t in kws.items()})

    compiled.get_call_template = without_literals
    return compiled


def inlined(function):
    """A scalar formula that must melt into the loop around it."""
    with cached_here():
        return njit(inline="always", **FLAGS)(function)

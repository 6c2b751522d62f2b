"""How every CPU kernel is compiled: one place for the flags.

``error_model="numpy"``: a division never raises, so loops that divide still vectorise.
``contract`` lets a multiply and an add become one fused instruction; no flag that assumes NaN away or
reorders sums is ever set: a diverged loss must be seen, and equal training must give equal bits.
"""

from collections.abc import Callable
from typing import Any

from numba import njit, types

from fastadam.kernels.cache import keep
from fastadam.kernels.start import uncollected

FLAGS = {"error_model": "numpy", "fastmath": {"contract"}, "nogil": True}

BARE = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""Without code to call it from Python or C, which takes a sixth of the time to compile."""


def leaf(function):
    """Serial code that other compiled code calls: one task of an op, for ``parallel``, or a part of one."""
    compiled = _compiled(function, **BARE)
    compiled._compile_for_args = _refuse(function.__name__)
    return compiled


def serial(function):
    """Serial code that Python calls: the whole of an op that is not worth a parallel loop."""
    return _compiled(function)


def inlined(function):
    """A scalar formula that must melt into the loop around it."""
    return _compiled(function, inline="always")


def _compiled(function: Callable[..., Any], **flags: Any) -> Any:
    compiled = keep(njit(**FLAGS, **flags)(function))
    template, compiler = compiled.get_call_template, compiled.compile

    def without_literals(args, kws):
        """As numba looks for the code of a call, but 0 and 1 are integers: it would compile once more for each."""
        return template(tuple(map(types.unliteral, args)), {name: types.unliteral(t) for name, t in kws.items()})

    def compiled_uncollected(signature):
        with uncollected():
            return compiler(signature)

    compiled.get_call_template, compiled.compile = without_literals, compiled_uncollected
    return compiled


def _refuse(name: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kws: Any) -> Any:
        raise TypeError(f"{name} is a leaf: call it by ``parallel`` or from compiled code")

    return refuse

"""The parallel loop of every op: ``parallel(leaf, tasks, *args)`` calls ``leaf(worker, task, *args)`` for every task.

Numba's own parallel loop compiles its body twice more, seconds for a large one, and shares the tasks out before the
first has run. Here a leaf is an ordinary compiled function that is called by its address: what is compiled for
the loop is small. Workers, one a thread, take the next task when they have done one, so that a core that is
busy with something else does fewer. Which worker does a task makes no difference to what it computes:
``worker`` (0, 1, ...) may choose scratch memory and nothing else.

Numba hands out ``leaf`` as machine code only for given types of arguments. ``parallel`` keeps the address by
those, so that a leaf called with other types is another address, never a wrong call.
"""

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba._dispatcher import compute_fingerprint
from numba.core import cgutils
from numba.extending import intrinsic

from fastadam.kernels.cache import keep
from fastadam.kernels.cpu.jit import FLAGS

_I64 = ir.IntType(64)
_WORKER = ir.FunctionType(ir.VoidType(), [_I64, _I64])
_NEXT, _TASKS, _LEAF, _FAILED, _ARGS = range(5)
"""Fields of the record that the workers share."""

_addresses: dict[tuple[Any, bytes], int] = {}


def parallel(leaf: Callable[..., None], tasks: int, *args: Any) -> None:
    """Call ``leaf(worker, task, *args)`` for task = 0 .. tasks - 1, on as many threads as numba is set to.

    leaf    made by ``jit.leaf``; worker and task are int64, nothing is returned
    args    arrays and numbers, the same for every task
    Raises IndexError where numba checks bounds (``NUMBA_BOUNDSCHECK=1``) and one was broken.
    """
    key = leaf, compute_fingerprint(args)
    address = _addresses.get(key)
    if address is None:
        kinds = types.int64, types.int64, *map(numba.typeof, args)
        address = _addresses[key] = _address(leaf, kinds)
    if _run(_fork_address(), address, tasks, min(tasks, numba.get_num_threads()), args):
        raise IndexError(f"an index is out of bounds in {leaf.__module__}.{leaf.__name__}")


def compile_only() -> None:
    """From now on ``parallel`` compiles what it is given, and does none of its tasks."""
    global _run
    compiled = _run

    def run(fork: int, address: int, tasks: int, workers: int, args: Any) -> Any:
        return compiled(fork, address, 0, 0, args)

    _run = run


def _address(function: Any, kinds: tuple[types.Type, ...]) -> int:
    """Where a function's code for arguments of these types is."""
    function.compile(kinds)
    result = function.overloads[kinds]
    return result.library.get_pointer_to_function(result.fndesc.llvm_func_name)


@functools.cache
def _fork_address() -> int:
    return _address(_fork, (types.int64,) * 3)


def _record(context, kind):
    """LLVM's type of what workers share, for arguments of type ``kind``, a tuple."""
    return ir.LiteralStructType([_I64, _I64, _I64, _I64, context.get_value_type(kind)])


@intrinsic
def _share(typingctx, address, tasks, args):
    """A record on the stack of the caller; its address."""

    def generate(context, builder, sig, values):
        record = cgutils.alloca_once(builder, _record(context, sig.args[2]))
        for field, value in ((_NEXT, _I64(0)), (_TASKS, values[1]), (_LEAF, values[0]), (_FAILED, _I64(0))):
            builder.store(value, cgutils.gep_inbounds(builder, record, 0, field))
        builder.store(values[2], cgutils.gep_inbounds(builder, record, 0, _ARGS))
        return builder.ptrtoint(record, _I64)

    return types.int64(types.int64, types.int64, args), generate


@intrinsic
def _worker_of(typingctx, args):
    """The address of a function ``(record, worker)`` that does tasks until there are none."""
    kinds = (types.int64, types.int64, *args.types)

    def generate(context, builder, sig, values):
        module = builder.module
        function = ir.Function(module, _WORKER, module.get_unique_name("fastadam_worker"))
        function.linkage = "internal"
        entry, take, work, failed, end = (
            function.append_basic_block(name) for name in ("entry", "take", "work", "failed", "end")
        )
        b = ir.IRBuilder(entry)
        record = b.inttoptr(function.args[0], _record(context, sig.args[0]).as_pointer())
        field = [cgutils.gep_inbounds(b, record, 0, i) for i in range(5)]
        tasks, arguments = b.load(field[_TASKS]), b.load(field[_ARGS])
        leaf_type = context.call_conv.get_function_type(types.none, kinds).as_pointer()
        leaf = b.inttoptr(b.load(field[_LEAF]), leaf_type)
        unpacked = [b.extract_value(arguments, i) for i in range(len(args.types))]
        b.branch(take)
        b.position_at_end(take)
        task = b.atomic_rmw("add", field[_NEXT], _I64(1), "monotonic")
        b.cbranch(b.icmp_signed("<", task, tasks), work, end)
        b.position_at_end(work)
        call = [function.args[1], task, *unpacked]
        status, _ = context.call_conv.call_function(b, leaf, types.none, kinds, call)
        b.cbranch(status.is_error, failed, take)
        b.position_at_end(failed)
        b.store(_I64(1), field[_FAILED])
        b.branch(take)
        b.position_at_end(end)
        b.ret_void()
        return builder.ptrtoint(function, _I64)

    return types.int64(args), generate


@intrinsic
def _call(typingctx, function, record, worker):
    """Call a function of ``_worker_of`` by its address."""

    def generate(context, builder, sig, values):
        builder.call(builder.inttoptr(values[0], _WORKER.as_pointer()), values[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def _call_fork(typingctx, fork, function, record, workers):
    """Call ``_fork`` by its address: linked to each ``_run``, it would be compiled with each."""
    kinds = (types.int64,) * 3

    def generate(context, builder, sig, values):
        kind = context.call_conv.get_function_type(types.none, kinds).as_pointer()
        target = builder.inttoptr(values[0], kind)
        context.call_conv.call_function(builder, target, types.none, kinds, values[1:])
        return context.get_dummy_value()

    return types.void(types.int64, *kinds), generate


@intrinsic
def _has_failed(typingctx, record):
    """Whether any task ended in an error."""

    def generate(context, builder, sig, values):
        fields = builder.inttoptr(values[0], _I64.as_pointer())
        return builder.icmp_signed("!=", builder.load(builder.gep(fields, [_I64(_FAILED)])), _I64(0))

    return types.boolean(types.int64), generate


@keep
@njit(parallel=True, **FLAGS)
def _fork(function, record, workers):
    for worker in prange(workers):
        _call(function, record, np.int64(worker))


@keep
@njit(**FLAGS)
def _run(fork, address, tasks, workers, args):
    record = _share(address, tasks, args)
    function = _worker_of(args)
    if workers > 1:
        _call_fork(fork, function, record, workers)
    else:
        _call(function, record, 0)
    return _has_failed(record)

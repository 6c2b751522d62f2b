"""The CUDA kernels and the types they are called with, gathered from the launches of every case."""

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from numba import types

from fastadam import models
from fastadam.calls import Slot
from fastadam.case import Case
from fastadam.cases import CASES
from fastadam.kernels import cuda as ops
from fastadam.kernels.cuda.launch import Launch, Scratch
from fastadam.plan import Plan


def launches(case: Case) -> list[Launch]:
    """The launches of a case, from the shapes of its arrays."""
    outs, ins = case.make()
    slots = [Slot(name, a.shape, "ACT", str(a.dtype)) for name, a in (outs | ins).items()]
    return list(getattr(ops, case.op).launches(*slots, *case.scalars.values()))


def threads(case: Case) -> int:
    """How many threads a case runs in all."""
    return sum(int(np.prod(launch.grid)) * launch.kernel.threads for launch in launches(case))


def _type(argument: Any) -> types.Type:
    if isinstance(argument, Scratch):
        return types.Array(types.float32, 1, "C")
    if isinstance(argument, Slot):
        return types.Array(getattr(types, argument.dtype), 1, "C")
    return types.float32 if isinstance(argument, (float, np.floating)) else types.uint32


def signature(launch: Launch) -> tuple[types.Type, ...]:
    """The types a launch calls its kernel with."""
    return tuple(map(_type, launch.arguments))


@functools.cache
def every_kernel() -> dict[tuple[str, tuple[types.Type, ...]], Any]:
    """{(module.name, types): kernel} of all that the cases launch."""

    def found() -> Iterator[tuple[tuple[str, tuple[types.Type, ...]], Any]]:
        for case in CASES:
            for launch in launches(case):
                function = launch.kernel.py_func
                place = f"{function.__module__.rpartition('.')[2]}.{function.__name__}:{launch.kernel.threads}"
                yield (place, signature(launch)), launch.kernel

    return dict(found())


def kernels_of_step(net: str) -> list[tuple[Any, tuple[types.Type, ...]]]:
    """(kernel, types) of all that a training step of a network launches, once each."""
    plan = Plan(models.graph_of(net), 128, update="adamw", image_count=50_000, filter_lanes=lambda *_: 0)
    step = [
        launch
        for call in plan.calls
        for launch in getattr(ops, call.op).launches(*call.outs, *call.ins, *call.scalars.values())
    ]
    return list(dict.fromkeys((launch.kernel, signature(launch)) for launch in step))


@contextmanager
def compiling_for(capability: tuple[int, int]) -> Iterator[None]:
    """numba-cuda asks the current device what to compile for; here it is told, and no driver is needed."""
    from numba.cuda import api, compiler, dispatcher

    device = SimpleNamespace(compute_capability=capability)
    with ExitStack() as stack:
        for module in (api, compiler, dispatcher):
            if hasattr(module, "get_current_device"):
                stack.enter_context(patch.object(module, "get_current_device", lambda: device))
        yield

"""The CUDA kernels and the types they are called with, gathered from the launches of every case."""

import functools
import re
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


def launches(case: Case, precision: str = "float32") -> list[Launch]:
    """The launches of a case, from the shapes of its arrays."""
    outs, ins = case.make()
    slots = [Slot(name, a.shape, "ACT", str(a.dtype)) for name, a in (outs | ins).items()]
    return list(getattr(ops.with_precision(precision), case.op).launches(*slots, *case.scalars.values()))


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


def launches_of_step(net: str, batch_size: int = 128, precision: str = "float32") -> Iterator[Launch]:
    """What a training step of a network launches, from the shapes of its plan."""
    plan = Plan(models.graph_of(net), batch_size, update="adamw", image_count=50_000, filter_lanes=lambda *_: 0)
    for call in plan.calls:
        op = getattr(ops.with_precision(precision), call.op)
        yield from op.launches(*call.outs, *call.ins, *call.scalars.values())


def kernels_of_step(net: str) -> list[tuple[Any, tuple[types.Type, ...]]]:
    """(kernel, types) of all that a training step of a network launches, once each."""
    return list(dict.fromkeys((launch.kernel, signature(launch)) for launch in launches_of_step(net)))


@functools.cache
def every_kernel(precision: str = "float32") -> list[tuple[Any, tuple[types.Type, ...]]]:
    """(kernel, types) of all that cases and nets launch, once each; in another precision what float32 has not."""

    def found() -> Iterator[Launch]:
        for case in CASES:
            yield from launches(case, precision)
        for net in ("mlp", "cnn", "vgg", "resnet20"):
            for batch_size in (32, 128, 512):
                yield from launches_of_step(net, batch_size, precision)

    kernels = dict.fromkeys((launch.kernel, signature(launch)) for launch in found())
    return [pair for pair in kernels if precision == "float32" or pair not in every_kernel()]


def name_of(kernel: Any) -> str:
    """module.function:threads."""
    function = kernel.py_func
    return f"{function.__module__.rpartition('.')[2]}.{function.__name__}:{kernel.threads}"


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


def spills(text: str, capability: tuple[int, int]) -> list[str]:
    """What the assembler says of stacks and spilled registers, the lines that do not say 0."""
    from cuda.bindings import nvjitlink

    options = [f"-arch=sm_{capability[0]}{capability[1]}", "-verbose"]
    linker, code = nvjitlink.create(len(options), options), text.encode()
    nvjitlink.add_data(linker, nvjitlink.InputType.PTX, code, len(code), "kernel")
    nvjitlink.complete(linker)
    log = bytearray(nvjitlink.get_info_log_size(linker))
    nvjitlink.get_info_log(linker, log)
    nvjitlink.destroy(linker)
    told = [line for line in log.decode().splitlines() if "spill" in line]
    assert told, log.decode()
    return [line for line in told if set(re.findall(r"\d+", line)) != {"0"}]

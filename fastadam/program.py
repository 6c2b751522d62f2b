"""A plan bound to a device's ops and to memory: a list of (function, arguments)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from fastadam.arena import ALIGN_BYTES, Arena, Empty, Placed, allocate
from fastadam.calls import Call, Slot
from fastadam.memory import place
from fastadam.plan import Plan

GIVEN = ("data.mean", "data.rstd")
"""Constants only the caller knows; ``ones`` and the tables of the plan are made here."""

_NAMES = ("images", "labels", "index", "key", "step", "h", "share", *GIVEN)


class Program:
    """Every slot of ``plan`` as an array, once; after that a run allocates nothing.

    ops      the kernels: a module with a function for each op.
    arenas   {"PARAM": Arena, "STATE": ..., and for training "GRAD", "M", "V" as the plan has them}.
    empty    ``empty(shape, dtype)``: where memory comes from, as ``numpy.empty``.
    write    ``write(array, value)``: how the host fills such memory, as ``numpy.copyto``.
    memory   uint8 block for the planned slots, starting on a 64-byte boundary, or None to take one.
             Programs that never run at once may share one, the largest of ``plan.memory``.
    inputs   {name: array} for INPUT slots the caller holds (a resident data set), and the constants
             "data.mean" and "data.rstd"; inputs not given are taken and zeroed. Names the plan has
             no use for are left alone, so one dict may serve several programs.
    share    False gives every slot memory of its own; ``guard`` bytes are left untouched round each.

    Attributes: ``inputs`` {name: array}, filled by the caller before ``run``, on the host unless given;
    ``outputs`` {"loss": (2,), "logits": (N, classes)}, to be read before another program runs on the same memory;
    ``calls``, a list of (function, arguments) in step with ``plan.calls``; ``arrays`` {slot: array}; ``arenas``;
    ``memory``; ``has_run``.

    Raises ``ValueError`` for an arena, an input or a block that is missing or does not fit.
    """

    def __init__(
        self,
        plan: Plan,
        ops: Any,
        arenas: Mapping[str, Arena | Placed],
        empty: Empty = np.empty,
        write: Callable[[Any, Any], None] = np.copyto,
        memory: Any = None,
        inputs: Mapping[str, Any] | None = None,
        *,
        share: bool = True,
        guard: int = 0,
    ) -> None:
        self.plan, self.arenas, self.has_run = plan, arenas, False
        given = dict(inputs or {})
        unknown = given.keys() - set(_NAMES)
        if unknown:
            raise ValueError(f"no input is called {sorted(unknown)[0]!r}; there are {', '.join(_NAMES)}")
        if "PARAM" not in arenas:
            raise ValueError("a program needs the arena PARAM")
        self._real = arenas["PARAM"].flat.dtype  # float64 where a reference is run
        sizes = {slot: slot.size * self._dtype(slot).itemsize for slot in plan.lifetimes}
        offsets, total = place(plan.lifetimes, share=share, guard=guard, sizes=sizes)
        self.memory = allocate(total, np.uint8, empty) if memory is None else _check_block(memory, total)

        self.inputs: dict[str, Any] = {}
        self.arrays: dict[Slot, Any] = {}
        self._write = write
        own = [slot for slot in plan.slots if slot.kind == "INPUT" and slot.name not in given]
        self._stage(own, empty)
        for slot in plan.slots:
            if slot.planned:
                at = offsets[slot]
                flat = self.memory[at : at + sizes[slot]].view(self._dtype(slot))
                self.arrays[slot] = flat.reshape(slot.shape)
            elif slot in self.arrays:  # an input of its own
                continue
            elif slot.kind in ("INPUT", "CONST"):
                self.arrays[slot] = self._bind_input(slot, given, empty)
            else:
                self.arrays[slot] = _bind_arena(slot, arenas, self._dtype(slot))
        self.outputs = {slot.name: array for slot, array in self.arrays.items() if slot.kind == "OUT"}
        absents: dict[Slot, Any] = {}

        def arguments(call: Call) -> Iterable[Any]:
            for slot in call.outs + call.ins:
                if slot.present:
                    yield self.arrays[slot]
                else:
                    if slot not in absents:
                        absents[slot] = allocate(0, self._real, empty).reshape(slot.shape)
                    yield absents[slot]
            yield from call.scalars.values()

        self.calls = [(getattr(ops, call.op), tuple(arguments(call))) for call in plan.calls]
        self._steps = [step for function, arguments in self.calls for step in bound(function, arguments)]

    def run(self) -> None:
        """One step, over the inputs as they are now."""
        if self._sent is not self._staged:
            self._write(self._sent, self._staged)
        for step in self._steps:
            step()
        self.has_run = True

    def _stage(self, slots: Sequence[Slot], empty: Empty) -> None:
        """Make the inputs that are not given: side by side, so that a device with memory of its own gets one copy."""
        sizes = [-(-slot.size * self._dtype(slot).itemsize // ALIGN_BYTES) * ALIGN_BYTES for slot in slots]
        self._sent = allocate(sum(sizes), np.uint8, empty)
        self._staged = self._sent if isinstance(self._sent, np.ndarray) else allocate(sum(sizes), np.uint8)
        self._staged[:] = 0
        at = 0
        for slot, size in zip(slots, sizes, strict=True):
            end = at + slot.size * self._dtype(slot).itemsize
            self.arrays[slot], self.inputs[slot.name] = (
                block[at:end].view(self._dtype(slot)).reshape(slot.shape) for block in (self._sent, self._staged)
            )
            at += size

    def _dtype(self, slot: Slot) -> Any:
        return self._real if slot.dtype == "float32" else np.dtype(slot.dtype)

    def _bind_input(self, slot: Slot, given: Mapping[str, Any], empty: Empty) -> Any:
        dtype = self._dtype(slot)
        if slot.name in given:
            array = given[slot.name]
            if array.shape != slot.shape or array.dtype != dtype or not array.flags["C_CONTIGUOUS"]:
                raise ValueError(
                    f"{slot.name}: expected a C-contiguous array {slot.shape} of {dtype}, "
                    f"found {array.shape} of {array.dtype}"
                )
        elif slot.name in GIVEN:
            raise ValueError(f"{slot.name}: give its {slot.shape[0]} numbers as an input; images are normalised by it")
        else:
            array = allocate(slot.size, dtype, empty).reshape(slot.shape)
            self._write(array, 1 if slot.name == "ones" else self.plan.tables[slot.name])
        if slot.kind == "INPUT":
            self.inputs[slot.name] = array
        return array


def bound(function: Any, arguments: tuple[Any, ...]) -> list[Callable[[], None]]:
    """What runs one call: each launch of an op that is a list of them, its arguments converted now."""
    bind = getattr(function, "bind", None)
    return bind(*arguments) if bind else [partial(function, *arguments)]


def _bind_arena(slot: Slot, arenas: Mapping[str, Arena | Placed], dtype: Any) -> Any:
    """The flat array of the arena ``slot.name`` (FLAT), or its view in the arena ``slot.kind``."""
    name = slot.name if slot.kind == "FLAT" else slot.kind
    if name not in arenas:
        raise ValueError(f"this plan needs the arena {name}; given: {', '.join(arenas)}")
    arena = arenas[name]
    array = arena.flat if slot.kind == "FLAT" else arena.views.get(slot.name)
    if array is not None and slot.shape == (1, *array.shape):  # a sum by lanes, of one lane
        array = array.reshape(slot.shape)
    if array is None or array.shape != slot.shape or array.dtype != dtype:
        found = "nothing" if array is None else f"{array.shape} of {array.dtype}"
        raise ValueError(f"arena {name}: expected {slot.name} {slot.shape} of {dtype}, found {found}")
    return array


def _check_block(memory: Any, size: int) -> Any:
    """The first ``size`` bytes of a block, if it has them."""
    if memory.dtype != np.uint8 or memory.ndim != 1 or memory.size < size:
        raise ValueError(f"memory: expected {size} bytes of uint8, found {memory.shape} of {memory.dtype}")
    if isinstance(memory, np.ndarray) and memory.ctypes.data % 64:
        raise ValueError("memory: expected a block that starts on a 64-byte boundary; see arena.allocate")
    return memory[:size]


def run_checked(program: Program) -> None:
    """``program.run()`` on host memory, with every promise about memory checked; for tests.

    All planned memory outside the slots alive at a call holds NaN, as does every out before its call, so
    that a read out of place spreads. After each call, nothing but its own outs may have changed: not the
    guards, not other slots, not arenas or inputs. Planned outs and gradients must be overwritten whole.

    Raises ``AssertionError`` naming the call.
    """
    life, arrays = program.plan.lifetimes, program.arrays
    program.memory[:] = 0xFF  # all bits set is a NaN in both precisions
    flats = [arena.flat for arena in program.arenas.values()]
    watched = [a.reshape(-1).view(np.uint8) for a in (program.memory, *flats, *program.inputs.values())]
    for i, (call, (function, arguments)) in enumerate(zip(program.plan.calls, program.calls, strict=True)):
        outs = [arrays[slot] for slot in call.outs if slot.present]
        fresh = [arrays[slot] for slot in call.outs if slot.planned or slot.kind == "GRAD"]
        for array in fresh:
            array.view(np.uint8 if array.ndim else array.dtype)[...] = 0xFF
        before, outs_before = [w.copy() for w in watched], [a.copy() for a in outs]
        function(*arguments)
        for array in fresh:
            if _poisoned(array):
                raise AssertionError(f"call {i} left part of an out unwritten, or read where nothing is: {call}")
        outs_after = [a.copy() for a in outs]
        for array, old in zip(outs, outs_before, strict=True):
            array[...] = old
        if not all(np.array_equal(w, old) for w, old in zip(watched, before, strict=True)):
            raise AssertionError(f"call {i} wrote outside its outs: {call}")
        for array, new in zip(outs, outs_after, strict=True):
            array[...] = new
        for slot, (_, last) in life.items():
            if last == i:
                arrays[slot].view(np.uint8)[...] = 0xFF


def _poisoned(array: np.ndarray) -> bool:
    bits = array.view(f"u{array.itemsize}")
    return bool((bits == np.iinfo(bits.dtype).max).any())

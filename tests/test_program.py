"""Binding: what is refused, what is shared; and that checked runs see a kernel's mistakes."""

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest
from graphs import chain, cnn, draw_arrays, mlp, vgg
from plans import bind, make_arenas

from fastadam import reference
from fastadam.arena import Arena, allocate
from fastadam.interpret import interpret
from fastadam.plan import Plan
from fastadam.program import Program, run_checked


def program_of(graph, batch=3, mode="train", ops=reference, dtype=np.float64, **options):
    params, state, x, labels = draw_arrays(graph, batch)
    plan = Plan(graph, batch, mode, source="float32")
    return bind(plan, make_arenas(graph, params, state, dtype), x, labels, ops=ops, **options)


def with_op(name, function):
    """The reference ops with one replaced."""
    ops = SimpleNamespace(**{key: value for key, value in vars(reference).items() if callable(value)})
    setattr(ops, name, function)
    return ops


def test_slots_start_on_64_bytes_and_absent_ones_have_their_rank():
    program = program_of(vgg(), dtype=np.float32)
    for call, (_, arguments) in zip(program.plan.calls, program.calls, strict=True):
        slots = call.outs + call.ins
        for slot, array in zip(slots, arguments, strict=False):
            assert array.shape == slot.shape
            assert array.flags.c_contiguous
            assert not array.size or array.ctypes.data % 64 == 0
            assert array.dtype == (np.float32 if slot.dtype == "float32" else slot.dtype)
        assert arguments[len(slots) :] == tuple(call.scalars.values())
    first = program.calls[1][1]  # the first convolution reads images as they are
    assert (first[3].shape, first[4].shape) == ((0,), (0,))


def test_programs_share_one_block():
    """Training, inference and a smaller batch take turns on the memory of the largest."""
    graph = vgg()
    params, state, x, labels = draw_arrays(graph, 4)
    plans = [Plan(graph, n, mode, source="float32") for n, mode in ((4, "train"), (4, "infer"), (2, "train"))]
    arenas = make_arenas(graph, params, state, np.float32)
    block = allocate(max(plan.memory for plan in plans), np.uint8)
    programs = [bind(p, arenas, x[: p.batch], labels[: p.batch], memory=block, momentum=0.0) for p in plans]
    for _ in range(2):
        losses = []
        for program in programs:
            program.run()
            losses.append(float(program.outputs["loss"][0]))
            assert np.shares_memory(program.outputs["loss"], block)
    wants = [
        interpret(graph, params, state, x[: p.batch], labels[: p.batch], training=p.mode == "train").loss for p in plans
    ]
    np.testing.assert_allclose(losses, wants, rtol=1e-5)


def test_a_run_allocates_no_slot():
    program = program_of(cnn())
    before = {slot: array.ctypes.data for slot, array in program.arrays.items()}
    program.run()
    program.run()
    assert {slot: array.ctypes.data for slot, array in program.arrays.items()} == before


def test_given_inputs_are_not_copied():
    graph = mlp()
    arenas = make_arenas(graph, *draw_arrays(graph, 2)[:2])
    data = {"labels": np.zeros(5, np.int32), "images": np.zeros((5, 3, 4, 5), np.uint8)}
    scale = {"data.mean": np.zeros(3), "data.rstd": np.ones(3)}
    program = Program(Plan(graph, 2, image_count=5), reference, arenas, inputs=data | scale)
    assert program.inputs["images"] is data["images"]
    assert program.inputs["labels"] is data["labels"]
    assert program.inputs["index"].dtype == program.inputs["key"].dtype == np.int64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"labels": np.zeros(4, np.int32)},
            r"labels: expected a C-contiguous array \(5,\) of int32, found \(4,\)",
        ),
        ({"labels": np.zeros(5, np.int64)}, "labels: .* found .* int64"),
        (
            {"images": np.zeros((5, 3, 5, 4), np.uint8).transpose(0, 1, 3, 2)},
            "images: expected a C-contiguous",
        ),
        ({"data.mean": None}, "data.mean: give its 3 numbers"),
        ({"image": np.zeros(1)}, "no input is called 'image'"),
    ],
)
def test_refused_inputs(change, message):
    graph = mlp()
    arenas = make_arenas(graph, *draw_arrays(graph, 2)[:2])
    inputs = {"data.mean": np.zeros(3), "data.rstd": np.ones(3), **change}
    inputs = {name: array for name, array in inputs.items() if array is not None}
    with pytest.raises(ValueError, match=message):
        Program(Plan(graph, 2, image_count=5), reference, arenas, inputs=inputs)


@pytest.mark.parametrize(
    ("name", "arena", "message"),
    [
        ("GRAD", None, "needs the arena GRAD"),
        ("PARAM", None, "needs the arena PARAM"),
        (
            "GRAD",
            Arena(mlp(hidden=(16, 13)).trained(), dtype=np.float64),
            r"arena GRAD: expected fc.weight \(10, 12\) .* found \(10, 13\)",
        ),
        ("GRAD", Arena({}, dtype=np.float64), "arena GRAD: .* found nothing"),
        ("GRAD", Arena(mlp().trained()), "arena GRAD: expected .* float64, found .* float32"),
        ("M", Arena({"w": (3,)}, dtype=np.float64), "arena M: expected M"),
    ],
)
def test_refused_arenas(name, arena, message):
    graph = mlp()
    arenas = make_arenas(graph, *draw_arrays(graph, 2)[:2])
    arenas[name] = arena
    arenas = {key: value for key, value in arenas.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        Program(Plan(graph, 2, source="float32", update="adam"), reference, arenas)


def test_refused_memory():
    graph = cnn()
    size = Plan(graph, 3, source="float32").memory
    assert program_of(graph, dtype=np.float32, memory=allocate(size, np.uint8)).memory.size == size
    with pytest.raises(ValueError, match=f"expected {size} bytes"):
        program_of(graph, dtype=np.float32, memory=allocate(size - 1, np.uint8))
    with pytest.raises(ValueError, match="64-byte boundary"):
        program_of(graph, dtype=np.float32, memory=allocate(size + 4, np.uint8)[4:])


class TestCheckedRun:
    """Mistakes a kernel could make; with some of them a plain run would even give right results."""

    graph = staticmethod(lambda: chain(("c", "conv", {"bias": True}), ("r", "relu"), ("m", "maxpool")))

    def run(self, op, function, message):
        program = program_of(self.graph(), ops=with_op(op, function), guard=64)
        with pytest.raises(AssertionError, match=message):
            run_checked(program)

    def test_accumulating_for_overwriting(self):
        def sum_lanes(y, part):
            reference.sum_lanes(part[0], part.copy())
            y += part[0]

        self.run("sum_lanes", sum_lanes, "sum_lanes")

    def test_leaving_part_of_an_out(self):
        def maxpool_forward(y, *rest):
            kept = y[-1, -1, -1, -1]
            reference.maxpool_forward(y, *rest)
            y[-1, -1, -1, -1] = kept

        self.run("maxpool_forward", maxpool_forward, "left part of an out unwritten.*maxpool_forward")

    @pytest.mark.parametrize("distance", [-1, 1])
    def test_writing_next_to_an_out(self, distance):
        def batch_load(y, images):
            reference.batch_load(y, images)
            end = y.size if distance > 0 else -1
            ctypes.c_double.from_address(y.ctypes.data + 8 * end).value = 5.0

        self.run("batch_load", batch_load, "wrote outside its outs.*batch_load")

    def test_writing_an_input(self):
        def linear_forward(y, moments, x, scale, shift, w, act):
            reference.linear_forward(y, moments, x, scale, shift, w, act)
            x *= 2

        self.run("linear_forward", linear_forward, "wrote outside its outs.*linear_forward")

    def test_writing_a_parameter(self):
        def linear_forward(y, moments, x, scale, shift, w, act):
            reference.linear_forward(y, moments, x, scale, shift, w, act)
            w[0, 0] += 1

        self.run("linear_forward", linear_forward, "wrote outside its outs.*linear_forward")

    def test_reading_a_neighbour(self):
        def maxpool_forward(y, x, scale, shift, act):
            reference.maxpool_forward(y, x, scale, shift, act)
            y[0, 0, 0, 0] += ctypes.c_double.from_address(x.ctypes.data + x.nbytes).value

        self.run("maxpool_forward", maxpool_forward, "read where nothing is")

    def test_right_ops_pass_with_arguments_and_results_as_a_plain_run(self):
        plain, checked = program_of(self.graph()), program_of(self.graph(), guard=64)
        plain.run()
        run_checked(checked)
        assert (plain.outputs["loss"] == checked.outputs["loss"]).all()
        assert (plain.arenas["GRAD"].flat == checked.arenas["GRAD"].flat).all()

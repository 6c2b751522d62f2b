"""Whole plans on the CPU kernels: equal to the interpreter, within their memory, the same bits always."""

import numpy as np
import pytest
from graphs import MODELS, PATTERNS, chain, draw_arrays, resnet
from plans import assert_agrees, bind, make_arenas

from fastadam.device import get_device
from fastadam.plan import Plan


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern_on_kernels(name):
    graph, device = chain(*PATTERNS[name]), get_device("cpu", 2)
    with device.running():  # gradients through two batch norms of 150 rows, in float32
        assert_agrees(graph, 5, dtype=np.float32, tolerance=5e-4, ops=device.ops)


@pytest.mark.parametrize("name", MODELS)
def test_model_on_kernels(name):
    device = get_device("cpu", 2)
    with device.running():
        assert_agrees(MODELS[name](), 8, dtype=np.float32, tolerance=3e-4, ops=device.ops)


def test_step_has_the_same_bits_on_any_threads_and_memory():
    """ResNet-20 forward and backward: 1 to 4 threads, memory shared between slots or not."""
    graph = resnet()
    params, state, x, labels = draw_arrays(graph, 37)
    results = set()
    for threads in (1, 2, 3, 4):
        device = get_device("cpu", threads)
        arenas = make_arenas(graph, params, state, np.float32)
        plan = Plan(graph, 37, source="float32")
        program = bind(plan, arenas, x, labels, ops=device.ops, share=threads != 3)
        with device.running():
            program.run()
        values = [arenas[name].flat.tobytes() for name in ("GRAD", "STATE")]
        results.add((*values, program.outputs["loss"].tobytes()))
    assert len(results) == 1

"""Ops with matrix products on tensor cores: which there are, and what they are compiled to."""

import re
from concurrent.futures import ProcessPoolExecutor

import numba
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'fastadam[cuda13]'")

from fastadam.kernels import OPS, PRODUCTS, cuda

REDUCED = ("tf32", "bf16")
CAPABILITIES = ((8, 0), (9, 0))
MODULES = ("implicit", "implicit_weights", "patch_conv", "patch_weights")


def test_float32_is_the_package_itself():
    assert cuda.with_precision("float32") is cuda


@pytest.mark.parametrize("name", REDUCED)
def test_the_products_alone_differ(name):
    ops = cuda.with_precision(name)
    for op in OPS:
        assert (getattr(ops, op) is getattr(cuda, op)) == (op not in PRODUCTS)
    for op in PRODUCTS:
        assert getattr(ops, op).__name__ == op
        assert callable(getattr(ops, op).launches)
        assert callable(getattr(ops, op).bind)


def test_an_unknown_precision_is_told_which_there_are():
    with pytest.raises(ValueError, match=r"float32, tf32, bf16"):
        cuda.with_precision("fp8")


def product_kernels(name):
    """{(module, function, threads): (kernel, types)} of the products that the cases launch in a precision."""
    from cuda_kernels import signature

    from fastadam.calls import Slot
    from fastadam.cases import CASES

    found = {}
    for case in CASES:
        if case.op in PRODUCTS:
            outs, ins = case.make()
            slots = [Slot(array, a.shape, "ACT", str(a.dtype)) for array, a in (outs | ins).items()]
            for launch in getattr(cuda.with_precision(name), case.op).launches(*slots, *case.scalars.values()):
                function = launch.kernel.py_func
                key = function.__module__.rpartition(".")[2], function.__name__, launch.kernel.threads
                if key[0] in MODULES or key[1].startswith("linear"):
                    found[key] = launch.kernel, signature(launch)
                    for tile, other in large_tiles(launch.kernel):
                        found[(*key, tile)] = other, signature(launch)
    return found


def large_tiles(kernel):
    """(tile, kernel) of what takes the same arguments where there are more pixels or channels than in cases."""
    from fastadam.kernels.cuda import patch_conv

    for kernels in (patch_conv.FORWARD, patch_conv.DATA):
        for (_, precision), one in kernels.items():
            if one is kernel:
                for (tile, its), other in kernels.items():
                    if its is precision and other is not one:
                        yield tile, other


def compiled(name_and_key):
    """{capability: PTX} of one kernel."""
    from cuda_kernels import compiling_for
    from numba import cuda as compiler
    from numba import types

    name, key = name_and_key
    (kernel, signature), texts = product_kernels(name)[key], {}
    for capability in CAPABILITIES:
        with compiling_for(capability):
            texts[capability], _ = compiler.compile_ptx(
                kernel.py_func,
                types.void(*signature),
                cc=capability,
                launch_bounds=kernel.targetoptions["launch_bounds"],
            )
    return texts


@pytest.mark.skipif(bool(numba.config.ENABLE_CUDASIM), reason="the simulator compiles nothing")
def test_products_run_on_tensor_cores():
    keys = [(name, key) for name in REDUCED for key in product_kernels(name)]
    assert len(keys) >= 10
    with ProcessPoolExecutor(2) as pool:
        for (name, key), texts in zip(keys, pool.map(compiled, keys), strict=True):
            for capability, text in texts.items():
                assert f".target sm_{capability[0]}{capability[1]}" in text
                numbers = "tf32" if key[0] == "patch_weights" else name  # see there
                assert re.search(rf"mma\.sync\.\S+\.{numbers}\.{numbers}\.f32", text), key
                for unwanted in (r"\.f64", r"\.local"):
                    assert not re.search(unwanted, text), f"{key} in {name} for {capability}: {unwanted}"

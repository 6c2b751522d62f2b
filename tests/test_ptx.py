"""Every CUDA kernel, compiled for three generations of GPUs; what must not be in the code is looked for in it."""

import re
from concurrent.futures import ProcessPoolExecutor

import numba
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'fastadam[cuda13]'")
pytestmark = pytest.mark.skipif(bool(numba.config.ENABLE_CUDASIM), reason="the simulator compiles nothing")

CAPABILITIES = ((7, 5), (8, 0), (9, 0))


def _compiled(key) -> dict[tuple[int, int], str]:
    """{capability: PTX} of one kernel."""
    from cuda_kernels import compiling_for, every_kernel
    from numba import cuda, types

    kernel, texts = every_kernel()[key], {}
    bounds, signature = kernel.targetoptions.get("launch_bounds"), types.void(*key[1])
    for capability in CAPABILITIES:
        with compiling_for(capability):
            texts[capability] = cuda.compile_ptx(kernel.py_func, signature, cc=capability, launch_bounds=bounds)[0]
    return texts


def test_no_float64_no_local_memory_no_atomics():
    from cuda_kernels import every_kernel

    with ProcessPoolExecutor(2) as pool:
        for (name, _), texts in zip(every_kernel(), pool.map(_compiled, every_kernel()), strict=True):
            for capability, text in texts.items():
                assert f".target sm_{capability[0]}{capability[1]}" in text
                for unwanted in (r"\.f64", r"\.local", r"\batom\.", r"\bred\.(?!sync)"):
                    lines = [line.strip() for line in text.splitlines() if re.search(unwanted, line)]
                    assert not lines, f"{name} for {capability}: {lines[:3]}"


def test_a_kernel_has_one_signature():
    from cuda_kernels import every_kernel

    names = [name for name, _ in every_kernel()]
    assert len(names) == len(set(names))

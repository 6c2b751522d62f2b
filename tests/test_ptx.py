"""Every CUDA kernel, compiled for three generations of GPUs; what must not be in the code is looked for in it."""

import re
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import numba
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'fastadam[cuda13]'")
pytestmark = pytest.mark.skipif(bool(numba.config.ENABLE_CUDASIM), reason="the simulator compiles nothing")

CAPABILITIES = {"float32": ((7, 5), (8, 0), (9, 0)), "tf32": ((8, 0), (9, 0)), "bf16": ((8, 0), (9, 0))}


def _compiled(place) -> dict[tuple[int, int], tuple[str, list[str]]]:
    """{capability: (PTX, what spills)} of one kernel."""
    from cuda_kernels import compiling_for, every_kernel, spills
    from numba import cuda, types

    precision, number = place
    (kernel, signature), found = every_kernel(precision)[number], {}
    bounds = kernel.targetoptions.get("launch_bounds")
    for capability in CAPABILITIES[precision]:
        with compiling_for(capability):
            text, _ = cuda.compile_ptx(kernel.py_func, types.void(*signature), cc=capability, launch_bounds=bounds)
        found[capability] = text, spills(text, capability)
    return found


@pytest.mark.parametrize("precision", CAPABILITIES)
def test_no_float64_no_local_memory_no_spills_no_atomics(precision):
    from cuda_kernels import every_kernel, name_of

    kernels = every_kernel(precision)
    places = [(precision, number) for number in range(len(kernels))]
    with ProcessPoolExecutor(2) as pool:
        for (kernel, _), found in zip(kernels, pool.map(_compiled, places), strict=True):
            name = name_of(kernel)
            for capability, (text, spilled) in found.items():
                assert f".target sm_{capability[0]}{capability[1]}" in text
                for unwanted in (r"\.f64", r"\.local", r"\batom\.", r"\bred\.(?!sync)"):
                    lines = [line.strip() for line in text.splitlines() if re.search(unwanted, line)]
                    assert not lines, f"{name} for {capability}: {lines[:3]}"
                assert not spilled, f"{name} for {capability}: {spilled}"
                if precision != "float32":
                    numbers = "tf32" if name.startswith("patch_weights") else precision  # see there
                    assert re.search(rf"mma\.sync\.\S+\.{numbers}\.{numbers}\.f32", text), name


def test_a_kernel_has_one_signature():
    from cuda_kernels import every_kernel, name_of

    for precision in CAPABILITIES:
        assert len(every_kernel(precision)) >= 10
        kernels = Counter(kernel for kernel, _ in every_kernel(precision))
        assert [name_of(kernel) for kernel, count in kernels.items() if count > 1] == []

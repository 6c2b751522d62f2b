"""Compiled CUDA kernels are kept for the next process: shown without a GPU, up to where a driver would load them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'fastadam[cuda13]'")

COMPILE = """
import json, sys, time
from types import SimpleNamespace
from unittest.mock import patch

from numba.cuda import dispatcher
from numba.cuda.cudadrv import devices

from cuda_kernels import compiling_for, kernels_of_step

capability = 9, 0
dispatcher._Kernel.bind = lambda self: self._codelibrary.get_cubin(cc=capability)
context = SimpleNamespace(device=SimpleNamespace(compute_capability=capability))
begun, hits, misses = time.perf_counter(), 0, 0
with (
    compiling_for(capability),
    patch.object(devices, "get_context", lambda *_: context),
    patch.object(dispatcher, "get_context", lambda *_: context, create=True),
):
    for kernel, signature in kernels_of_step(sys.argv[1]):
        kernel.compile(signature)
        hits += sum(kernel.stats.cache_hits.values())
        misses += sum(kernel.stats.cache_misses.values())
print(json.dumps({"hits": hits, "misses": misses, "seconds": time.perf_counter() - begun}))
"""


def compile_step(net: str, cache: Path) -> dict[str, float]:
    """In a process of its own: {"hits", "misses", "seconds"} of the kernels of a training step."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, net],
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("net", ["mlp", pytest.param("vgg", marks=pytest.mark.slow)])
def test_a_second_process_compiles_nothing(net, tmp_path):
    first, second = compile_step(net, tmp_path), compile_step(net, tmp_path)
    print(
        f"\n{net}: {first['misses']} kernels in {first['seconds']:.1f} s, from the cache in {second['seconds']:.1f} s"
    )
    assert first["hits"] == 0
    assert first["misses"] > 5
    assert second["hits"] == first["misses"]
    assert second["misses"] == 0
    kept = [path.suffix for path in tmp_path.rglob("*") if path.is_file()]
    assert kept == [".nbc"] * first["misses"]  # a file each, and no index that two processes could spoil
    assert second["seconds"] < first["seconds"] / 3

"""``test_cuda.py`` once more, in Numba's CUDA simulator: kernels as Python, thread by thread."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'fastadam[cuda13]'")


def test_kernels_and_training_steps_in_the_simulator():
    tests = Path(__file__).with_name("test_cuda.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        cwd=tests.parent.parent,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout

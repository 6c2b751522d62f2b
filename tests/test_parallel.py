"""The parallel loop: every task once, whoever does it; addresses by types; errors that come back."""

import subprocess
import sys

import numba
import numpy as np
import pytest

from fastadam import optim
from fastadam.device import get_device
from fastadam.kernels.cpu.jit import leaf
from fastadam.kernels.cpu.parallel import parallel

THREADS = (1, 2, 3, 4)


@leaf
def _count(worker, task, done, workers):
    done[task] += 1
    workers[task] = worker


@leaf
def _scale(worker, task, y, factor):
    y[task] = factor * task


@pytest.fixture(autouse=True)
def running():
    with get_device("cpu").running():
        yield


@pytest.mark.parametrize("tasks", [0, 1, 3, 1000])
@pytest.mark.parametrize("threads", THREADS)
def test_every_task_is_done_once_by_a_worker_there_is(threads, tasks):
    if threads > numba.config.NUMBA_NUM_THREADS:
        pytest.skip(f"numba was started with {numba.config.NUMBA_NUM_THREADS} threads")
    numba.set_num_threads(threads)
    done, workers = np.zeros(tasks, np.int64), np.full(tasks, -1, np.int64)
    parallel(_count, tasks, done, workers)
    assert (done == 1).all()
    assert set(workers) <= set(range(threads))


def test_an_inner_device_gives_the_threads_back():
    """So an optimiser's step, on all cores, leaves a loop on one thread as it was."""
    with get_device("cpu", 1).running():
        w = np.ones(3, np.float32)
        optim.SGD({"w": w}).step({"w": w.copy()})
        assert numba.get_num_threads() == 1


def test_other_types_are_other_code():
    """The same leaf for float32 and float64, for a whole factor and a broken one, in turns."""
    single, double = np.zeros(5, np.float32), np.zeros(5)
    for _ in range(2):
        parallel(_scale, 5, single, 2)
        parallel(_scale, 5, double, 0.5)
        np.testing.assert_array_equal(single, [0, 2, 4, 6, 8])
        np.testing.assert_array_equal(double, [0, 0.5, 1, 1.5, 2])


def test_a_broken_bound_is_told_where_bounds_are_checked(tmp_path):
    """Numba does not check them unless asked; then the error of a worker must reach the caller."""
    script = tmp_path / "broken.py"
    script.write_text(
        "import numpy as np\n"
        "from fastadam.device import get_device\n"
        "device = get_device('cpu', 2)\n"
        "from fastadam.kernels.cpu.jit import leaf\n"
        "from fastadam.kernels.cpu.parallel import parallel\n"
        "@leaf\n"
        "def write(worker, task, y):\n"
        "    y[task] = 1\n"
        "with device.running():\n"
        "    parallel(write, 8, np.zeros(8))\n"
        "    parallel(write, 9, np.zeros(8))\n"
    )
    environment = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert "IndexError: an index is out of bounds in" in run.stderr
    assert "line 11" in run.stderr

"""How numba is started: the threads it may use, and without work that nobody here needs."""

import contextlib
import functools
import gc
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from types import ModuleType

LAYERS = "omp tbb workqueue"
"""Threading layers, fastest fork and join first."""

SPIN_COUNT = "10000"
"""Turns an idle OpenMP thread spins before it sleeps: longer than from one op to the next, but a thirtieth of
the default, which on a machine with other work to do costs a third of the speed."""

BLAS = "scipy.linalg.cython_blas"


def cores() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _allowed() -> int:
    """``NUMBA_NUM_THREADS`` if that is a number, else all cores."""
    asked = os.environ.get("NUMBA_NUM_THREADS", "")
    return max(1, int(asked)) if asked.isdigit() else cores()


def default_threads() -> int:
    """Threads where nobody asks for a number: all cores, or ``NUMBA_NUM_THREADS`` if that is fewer."""
    return min(cores(), _allowed())


def start_numba(threads: int) -> ModuleType:
    """Import numba, if that is still to do, able to run so many threads, and on all cores unless told otherwise."""
    if "numba" in sys.modules:
        return sys.modules["numba"]
    asked, most = os.environ.get("NUMBA_NUM_THREADS"), max(threads, _allowed())
    os.environ["NUMBA_NUM_THREADS"] = str(most)
    os.environ.setdefault("NUMBA_THREADING_LAYER_PRIORITY", LAYERS)
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    try:
        with uncollected():
            numba = importlib.import_module("numba")
    finally:  # child processes decide for themselves
        if asked is None:
            del os.environ["NUMBA_NUM_THREADS"]
        else:
            os.environ["NUMBA_NUM_THREADS"] = asked
    # numba reads variables that have changed before it compiles again: now, or it would ask for fewer running threads
    numba.config.reload_config()
    numba.config.NUMBA_NUM_THREADS = most
    return numba


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector: starting and compiling make millions of objects, nearly all of which stay.

    Looking through them again and again is a tenth of the time that compiling takes.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@functools.cache
def import_array_functions() -> None:
    """Import what numba imports before it compiles anything, but not all of ``scipy.linalg``.

    Numba only looks whether SciPy's BLAS is there, for the ``np.dot`` of other people's kernels, and a look costs
    as much as the rest of NumPy. It finds an empty module; whoever compiles an ``np.dot`` later has the real one.
    """
    importlib.import_module("numba.np.linalg")
    importlib.import_module("numba.np.arrayobj")
    known = BLAS in sys.modules or importlib.util.find_spec("scipy") is None
    if not known:
        sys.modules[BLAS] = ModuleType(BLAS)
    try:
        importlib.import_module("numba.np.arraymath")
    finally:
        if not known:
            del sys.modules[BLAS]

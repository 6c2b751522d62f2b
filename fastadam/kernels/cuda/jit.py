"""How every CUDA kernel is compiled: one place for the flags, and for what Numba's simulator does not know.

``SIMULATED`` is true under ``NUMBA_ENABLE_CUDASIM=1``: kernels then run as Python, thread by thread. The
simulator has no intrinsics, no warp shuffles and no alignment of shared arrays; ``ptx.py`` has a plain twin of
each, and this module leaves the options out.
"""

import contextlib
import time

from numba import config, cuda

from fastadam.kernels import cache
from fastadam.kernels.cache import FilePerKey, cached_here

SIMULATED = bool(config.ENABLE_CUDASIM)


def device(function):
    """A function that kernels call. LLVM inlines it: ten times faster to compile than numba's own inlining."""
    return cuda.jit(device=True)(function) if SIMULATED else cuda.jit(device=True, forceinline=True)(function)


def kernel(threads, blocks=None):
    """A kernel for blocks of ``threads`` threads; ``blocks`` of them shall fit a multiprocessor.

    The bound on registers follows from both. The compiled code is kept (see ``fastadam.kernels.cache``), which
    numba can do for functions of a module and for those that close over numbers alone: a kernel that closes over
    a device function would be compiled anew each time.
    """

    def compiled(function):
        if SIMULATED:
            made = cuda.jit(function)
        else:
            bounds = (threads,) if blocks is None else (threads, blocks)
            with cached_here():
                made = cuda.jit(cache=True, launch_bounds=bounds)(function)
            kept = made._cache  # its index would number the files: see ``cache.KernelCache``
            kept._cache_file = FilePerKey(
                kept.cache_path, kept._impl.filename_base, kept._impl.locator.get_source_stamp()
            )
        made.threads = threads
        return made

    return compiled


class _Clock:
    """Seconds of those spans of the compiler's lock in which it ran a pass: a kernel from the cache needs none."""

    def __init__(self, started):
        self.seconds, self._started = 0.0, started
        self._depth, self._begun, self._compiles = 0, 0.0, False

    def lock(self):
        if self._depth == 0:
            self._begun, self._compiles = time.perf_counter(), False
        self._depth += 1

    def unlock(self):
        self._depth -= 1
        if self._depth == 0 and self._compiles:
            self.seconds += time.perf_counter() - self._begun

    def passes(self):
        if not self._compiles and self.seconds == 0.0:
            self._started()
        self._compiles = True


@contextlib.contextmanager
def compile_clock(started):
    """As ``cache.compile_clock``, for CUDA kernels: Numba's passes and NVIDIA's compiler."""
    clock = _Clock(started)
    if SIMULATED:
        yield clock
        return
    from numba.cuda.core import event

    with (
        cache.listening(event, "numba-cuda:compiler_lock", clock.lock, clock.unlock),
        cache.listening(event, "numba-cuda:run_pass", clock.passes),
    ):
        yield clock

"""Where compiled kernels are kept between processes, and how much compiling costs."""

import contextlib
import functools
import hashlib
import os
import pickle
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
import numpy as np
import platformdirs
from numba.core import event
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.runtime import rtsys
from numba.core.serialize import dumps

from fastadam.kernels.start import import_array_functions


def cache_roots() -> list[Path]:
    """Folders that may hold compiled kernels, the preferred one first.

    Below ``NUMBA_CACHE_DIR`` if that is set, else in the user's cache; the temporary folder if neither is writable.
    """
    own = os.environ.get("NUMBA_CACHE_DIR")
    user = Path(own) / "fastadam" if own else Path(platformdirs.user_cache_dir("fastadam")) / "kernels"
    name = f"fastadam-{os.getuid()}" if hasattr(os, "getuid") else "fastadam"
    return [user, Path(tempfile.gettempdir()) / name]


def cpu_features() -> tuple[str, set[str]]:
    """LLVM's name of the CPU that numba compiles for, and the instruction sets it has."""
    flat = numba.config.CPU_FEATURES
    features = llvm.get_host_cpu_features().flatten() if flat is None else flat
    name = numba.config.CPU_NAME or llvm.get_host_cpu_name()
    return name, {feature[1:] for feature in features.split(",") if feature.startswith("+")}


def _is_ours(folder: Path) -> bool:
    """Make sure that nobody else can put a file there: numba unpickles what it finds. False for another's folder."""
    if hasattr(os, "getuid"):
        if folder.stat().st_uid != os.getuid():
            return False
        folder.chmod(0o700)
    return True


@functools.cache
def cache_folder() -> Path:
    """The folder for this state of sources, versions, CPU and compiler settings: a stale kernel is never met.

    Numba by itself does not notice an edit in an imported file, so the folder's name is a hash of them all.
    """
    digest = hashlib.sha256()
    sources = Path(__file__).parent
    for source in sorted(sources.rglob("*.py")):
        digest.update(source.relative_to(sources).as_posix().encode() + b"\0" + source.read_bytes())
    versions = numba.__version__, llvmlite.__version__, np.__version__, sys.version
    config = numba.config
    modes = (
        config.BOUNDSCHECK, config.OPT, config.DEBUG, config.ENABLE_AVX, config.LOOP_VECTORIZE, config.SLP_VECTORIZE,
        config.DISABLE_INTEL_SVML,
    )  # fmt: skip
    name, features = cpu_features()
    for part in (*versions, *modes, name, *sorted(features)):
        digest.update(b"\0" + str(part).encode())
    for root in cache_roots():
        folder = root / digest.hexdigest()[:16]
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if all(map(_is_ours, (root, folder))) and os.access(folder, os.W_OK):
                return folder
    return Path(tempfile.mkdtemp(prefix="fastadam-"))


class KernelCache(NullCache):
    """The compiled code of one function, a file for each of its signatures; a dispatcher of numba takes it for its own.

    Numba's numbers the files in an index, which each process writes as a whole: where two compile at once the same
    number may go to different types of arguments, and whoever starts next would run the code of the wrong ones. It
    also makes ready to compile before it looks for what it need not: a fifth of the time from the start of a process
    to its first step.
    """

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    @property
    def cache_path(self) -> str:
        """The folder of the files."""
        return str(cache_folder())

    def load_overload(self, signature: Any, target: Any) -> Any:
        """What numba compiled for a signature, by whatever process; None if none has."""
        rtsys.initialize(target)
        try:
            payload = pickle.loads(self._file(signature).read_bytes())
        except (OSError, EOFError, pickle.UnpicklingError):  # the last two where a machine went down
            import_array_functions()
            return None
        return CompileResult._rebuild(target, *payload)

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep what numba has compiled for a signature; where that cannot be, the next start compiles again."""
        if compiled.library.has_dynamic_globals:  # addresses, which hold in this process alone
            return
        with contextlib.suppress(OSError):
            _write(self._file(signature), dumps(compiled._reduce()))

    def _file(self, signature: Any) -> Path:
        code = self._function.__code__
        key = repr((signature, _digest(code.co_filename), code.co_firstlineno))
        name = f"{self._function.__module__}.{self._function.__qualname__}"
        return cache_folder() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.nbc"


class FilePerKey:
    """What numba's cache of a CUDA kernel keeps its code in, in place of numbered files and an index of them.

    path    the folder
    name    what the files' names begin with
    stamp   of the source
    """

    def __init__(self, path: str, name: str, stamp: Any):
        self._path, self._name, self._stamp = Path(path), name, stamp

    def load(self, key: Any) -> Any:
        """What was saved for a key, by whatever process; None if nothing was."""
        try:
            return pickle.loads(self._file(key).read_bytes())
        except (OSError, EOFError, pickle.UnpicklingError):
            return None

    def save(self, key: Any, data: Any) -> None:
        """Keep ``data`` for a key; where that cannot be, the next start compiles again."""
        with contextlib.suppress(OSError):
            _write(self._file(key), dumps(data))

    def _file(self, key: Any) -> Path:
        return self._path / f"{self._name}-{hashlib.sha256(repr((key, self._stamp)).encode()).hexdigest()[:32]}.nbc"


def _write(file: Path, data: bytes) -> None:
    new = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
    try:
        new.write_bytes(data)
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)


@functools.cache
def _digest(file: str) -> bytes:
    """Of a source, for functions of files that ``cache_folder`` does not know."""
    return hashlib.sha256(Path(file).read_bytes()).digest()


def keep(dispatcher: Any) -> Any:
    """Have what numba compiles of a function kept, if it is one of a module: what others close over is in no file."""
    if dispatcher.py_func.__closure__ is None:
        dispatcher._cache = KernelCache(dispatcher.py_func)
    return dispatcher


@contextlib.contextmanager
def cached_here() -> Iterator[None]:
    """Functions decorated inside keep their code in ``cache_folder()``; the setting of the process is put back."""
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(cache_folder())
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


class Clock:
    """Seconds between the first start and the last end of events that may nest; ``started`` hears of the first."""

    def __init__(self, started: Callable[[], None]):
        self.seconds, self._started, self._depth, self._begun = 0.0, started, 0, 0.0

    def start(self) -> None:
        """An event begins."""
        if self._depth == 0:
            self._begun = time.perf_counter()
            if self.seconds == 0.0:
                self._started()
        self._depth += 1

    def stop(self) -> None:
        """An event ends."""
        self._depth -= 1
        if self._depth == 0:
            self.seconds += time.perf_counter() - self._begun


@contextlib.contextmanager
def listening(
    events: Any, kind: str, started: Callable[[], None], ended: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Calls these two at the start and at the end of each event of a kind; ``events``: numba's module of them."""

    class Listener(events.Listener):
        def on_start(self, _: Any) -> None:
            started()

        def on_end(self, _: Any) -> None:
            ended()

    listener = Listener()
    events.register(kind, listener)
    try:
        yield
    finally:
        events.unregister(kind, listener)


@contextlib.contextmanager
def compile_clock(started: Callable[[], None]) -> Iterator[Clock]:
    """Measures what numba compiles, in ``.seconds``; ``started`` is called when the first compilation begins.

    A kernel loaded from the cache is not compiled and costs nothing here.
    """
    clock = Clock(started)
    with listening(event, "numba:compile", clock.start, clock.stop):
        yield clock

"""Compiled kernels: kept between processes, by several at once, and compiled on all cores."""

import contextlib
import dataclasses
import importlib.util
import io
import os
import pickle
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numba
import numpy as np
import pytest
from numba import njit

from fastadam import models
from fastadam.kernels import cache
from fastadam.kernels.cpu import ahead
from fastadam.kernels.start import cores
from fastadam.trainer import Trainer

STEP = """
import sys
import numpy as np
import fastadam

trainer = fastadam.Trainer(fastadam.models.build("mlp", seed=0), batch_size=8, threads=int(sys.argv[1]))

from numba.core import event

class Count(event.Listener):
    compiled = 0
    def on_start(self, event):
        self.compiled += event.data["dispatcher"].py_func.__module__.startswith("fastadam.")
    def on_end(self, event):
        pass

count = Count()
event.register("numba:compile", count)
images = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
print(float(trainer.step(images, np.arange(8))).hex(), count.compiled)
"""


def first_step(folder: Path, threads: int) -> subprocess.Popen:
    """A process that takes a step; it prints the loss and how many functions it had to compile."""
    env = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    env.pop("NUMBA_NUM_THREADS", None)
    return subprocess.Popen([sys.executable, "-c", STEP, str(threads)], env=env, stdout=subprocess.PIPE, text=True)


def result(step: subprocess.Popen) -> tuple[str, int]:
    out, _ = step.communicate(timeout=300)
    assert step.returncode == 0
    loss, compiled = out.split()
    return loss, int(compiled)


def test_more_threads_than_cores_compile_and_compute_as_one(tmp_path):
    threads = cores() + 1
    loss, alone = result(first_step(tmp_path / "one", 1))
    assert result(first_step(tmp_path / "one", threads)) == (loss, 0)
    shared_loss, shared = result(first_step(tmp_path / "two", threads))
    assert shared_loss == loss
    assert 0 < shared <= alone
    assert result(first_step(tmp_path / "two", 1)) == (loss, 0)


@pytest.fixture
def calls(monkeypatch):
    """Those of the step that ``STEP`` takes."""
    trainer, found = Trainer(models.build("mlp", seed=0), batch_size=8), []
    monkeypatch.setattr(trainer.device, "first_run", lambda calls: found.extend(calls) or contextlib.nullcontext())
    trainer.step(np.zeros((8, 3, 32, 32), np.uint8), np.arange(8))
    return found


@pytest.fixture
def cold(tmp_path, monkeypatch):
    """The folder in which helpers and steps find nothing compiled; this process keeps to its own."""
    folder = tmp_path / "fastadam" / cache.cache_folder().name
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(ahead, "cache_folder", lambda: folder)
    return tmp_path


def test_a_helper_compiles_what_a_step_needs(cold, calls):
    helper = ahead.start(calls)
    assert helper.wait(300) == 0
    helper.communicate()
    assert any("updates" in file.name for file in cold.rglob("*.nbc"))
    assert result(first_step(cold, 1))[1] == 0


def test_a_helper_is_not_asked_to_fill_memory(monkeypatch, calls):
    pipe = io.BytesIO()
    monkeypatch.setattr(ahead.subprocess, "Popen", lambda *_, **__: SimpleNamespace(stdin=pipe))
    ahead.start([dataclasses.replace(calls[0], op="fill"), *calls])
    pipe.seek(0)
    _, sketches = pickle.load(pipe)
    assert {op for op, *_ in sketches} == {call.op for call in calls}


def test_helpers_come_when_compiling_takes_long_and_end_with_the_first_run(cold, calls, monkeypatch):
    started, start = [], ahead.start
    monkeypatch.setattr(ahead, "start", lambda calls: started.append(start(calls)) or started[-1])
    for patience, helpers in (1e9, 0), (-1.0, 2):
        monkeypatch.setattr(ahead, "PATIENCE", patience)
        with ahead.helped(calls, 2), numba.core.event.trigger_event("numba:compile"):
            assert len(started) == helpers
            assert all(helper.poll() is None for helper in started)
    assert all(helper.poll() is not None for helper in started)


def test_a_helper_ends_with_the_process_that_started_it(cold, calls):
    helper = ahead.start(calls)
    helper.stdin.close()  # as the end of this process would
    assert helper.wait(300) == 0
    assert not any("updates" in file.name for file in cold.rglob("*.nbc"))  # of the last call


@pytest.mark.parametrize("python", [None, "", "/usr/bin/an-application", "/nowhere/python"])
def test_without_an_interpreter_there_are_no_helpers(monkeypatch, calls, python):
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(OSError, match=r"interpreter|No such file"):
        ahead.start(calls)
    monkeypatch.setattr(ahead, "PATIENCE", -1.0)
    with ahead.helped(calls, 2), numba.core.event.trigger_event("numba:compile"):
        pass


# Files ------------------------------------------------------------------------------------------------------


def double(x):
    return x + x


def test_code_is_kept_by_the_types_it_is_for(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)
    for value in 2, 2.5, 2j:
        assert cache.keep(njit(double))(value) == 2 * value
    again = cache.keep(njit(double))
    assert [again(value) for value in (2j, 2.5, 2)] == [4j, 5.0, 4]
    assert again.stats.cache_hits.total() == 3
    assert again.stats.cache_misses.total() == 0


def test_a_damaged_file_is_compiled_again(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)
    cache.keep(njit(double))(2)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"")
    for misses in 1, 0:
        again = cache.keep(njit(double))
        assert again(3) == 6
        assert again.stats.cache_misses.total() == misses


def test_a_folder_that_is_gone_costs_time_only(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "gone")
    assert cache.keep(njit(double))(2) == 4


def test_a_full_disk_costs_time_only(tmp_path, monkeypatch):
    def full(self, target):
        raise OSError("No space left on device")

    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(Path, "replace", full)
    assert cache.keep(njit(double))(2) == 4
    assert list(tmp_path.iterdir()) == []


def test_kernels_that_share_a_name_have_a_file_for_each_key(tmp_path, monkeypatch):
    """As those of one factory do: however the steps of two processes that save interleave."""
    one, other = (cache.FilePerKey(tmp_path, "kernel", 1.5) for _ in range(2))
    for number, store in enumerate((one, other, one)):
        assert store.load(("key", number)) is None
        store.save(("key", number), f"code {number}")
    assert [other.load(("key", number)) for number in range(3)] == ["code 0", "code 1", "code 2"]
    assert cache.FilePerKey(tmp_path, "kernel", 2.5).load(("key", 0)) is None  # of an edited source
    next(tmp_path.iterdir()).write_bytes(b"")
    assert [one.load(("key", number)) for number in range(3)].count(None) == 1
    cache.FilePerKey(tmp_path / "gone", "kernel", 1.5).save("key", "code")


def test_functions_that_close_over_values_are_not_kept(tmp_path, monkeypatch):
    def adder(n):
        def add(x):
            return x + n

        return cache.keep(njit(add))

    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)
    assert (adder(1)(1), adder(10)(1)) == (2, 11)


def test_a_file_elsewhere_that_was_edited_is_compiled_again(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)
    for added in 1, 2:
        file = tmp_path / "own.py"
        file.write_text(f"def add(x):\n    return x + {added}\n")
        spec = importlib.util.spec_from_file_location("own", file)
        own = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(own)
        cache._digest.cache_clear()  # as a new process would
        assert cache.keep(njit(own.add))(1) == 1 + added


# The folder -------------------------------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A folder of sources that stands for that of the kernels; nothing is kept for them yet."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "adam.py").write_text("rate = 1")
    monkeypatch.setattr(cache, "__file__", str(folder / "cache.py"))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return folder


def folder_now():
    """As a new process finds it."""
    return cache.cache_folder.__wrapped__()


CHANGES = {
    "an edit": lambda monkeypatch, sources: (sources / "adam.py").write_text("rate = 2"),
    "a name": lambda monkeypatch, sources: (sources / "adam.py").rename(sources / "adamw.py"),
    "a file in a folder": lambda monkeypatch, sources: (
        (sources / "more").mkdir() or (sources / "more" / "sgd.py").write_text("")
    ),
    "numba": lambda monkeypatch, sources: monkeypatch.setattr(numba, "__version__", "0.99"),
    "bounds checks": lambda monkeypatch, sources: monkeypatch.setattr(numba.config, "BOUNDSCHECK", 1),
    "a setting of the compiler": lambda monkeypatch, sources: monkeypatch.setattr(numba.config, "ENABLE_AVX", "off"),
    "the processor": lambda monkeypatch, sources: monkeypatch.setattr(numba.config, "CPU_NAME", "nehalem"),
    "its instructions": lambda monkeypatch, sources: monkeypatch.setattr(numba.config, "CPU_FEATURES", "+sse4.2"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_code_is_never_stale(sources, monkeypatch, change):
    before = folder_now()
    assert folder_now() == before
    CHANGES[change](monkeypatch, sources)
    assert folder_now() != before


def test_nobody_else_can_put_code_there(sources, tmp_path, monkeypatch):
    before = folder_now()
    assert before.is_relative_to(tmp_path / "own")
    before.chmod(0o777)
    before.parent.chmod(0o777)
    assert folder_now() == before
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (before, before.parent)] == [0o700, 0o700]
    if hasattr(os, "getuid"):
        monkeypatch.setattr(os, "getuid", lambda: before.stat().st_uid + 1)
        (tmp_path / "temporary" / f"fastadam-{os.getuid()}").mkdir(mode=0o777)  # another's, in our name
        assert folder_now().parent == tmp_path / "temporary"


def test_without_a_folder_of_its_own_the_temporary_one_is_taken(sources, tmp_path):
    (tmp_path / "own").write_text("a file")
    assert folder_now().is_relative_to(tmp_path / "temporary")

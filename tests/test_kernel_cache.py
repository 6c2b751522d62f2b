"""Compiled kernels: kept between processes, by several at once, and compiled on all cores."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from numba import njit

from fastadam import models
from fastadam.kernels import cache
from fastadam.kernels.cpu import ahead
from fastadam.trainer import Trainer

STEP = """
import sys
import numpy as np
from numba.core import event
import fastadam

class Count(event.Listener):
    compiled = 0
    def on_start(self, event):
        self.compiled += event.data["dispatcher"].py_func.__module__.startswith("fastadam.")
    def on_end(self, event):
        pass

count = Count()
event.register("numba:compile", count)
trainer = fastadam.Trainer(fastadam.models.build("mlp", seed=0), batch_size=8, threads=int(sys.argv[1]))
images = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
print(float(trainer.step(images, np.arange(8))).hex(), count.compiled)
"""


def first_step(folder: Path, threads: int) -> subprocess.Popen:
    """A process that takes a step; it prints the loss and how many functions it had to compile."""
    env = {**os.environ, "NUMBA_NUM_THREADS": "2", "NUMBA_CACHE_DIR": str(folder)}
    return subprocess.Popen([sys.executable, "-c", STEP, str(threads)], env=env, stdout=subprocess.PIPE, text=True)


def result(step: subprocess.Popen) -> tuple[str, int]:
    out, _ = step.communicate(timeout=300)
    assert step.returncode == 0
    loss, compiled = out.split()
    return loss, int(compiled)


def test_two_threads_compile_and_compute_as_one(tmp_path):
    loss, alone = result(first_step(tmp_path / "one", 1))
    assert result(first_step(tmp_path / "one", 2)) == (loss, 0)
    shared_loss, shared = result(first_step(tmp_path / "two", 2))
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
    """The folder in which helpers and steps find nothing compiled."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(ahead, "cache_folder", lambda: tmp_path / "fastadam" / cache.cache_folder().name)
    return tmp_path


def test_a_helper_compiles_what_a_step_needs(cold, calls):
    helper = ahead.start(calls)
    assert helper.wait(300) == 0
    helper.communicate()
    assert any("updates" in file.name for file in cold.rglob("*.nbc"))
    assert result(first_step(cold, 1))[1] == 0


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

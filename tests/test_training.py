"""Whole runs: the folder they leave, stops and what resuming gives, bad luck of every kind."""

import dataclasses
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import Stop, stop_after

from fastadam import checkpoint, data, files, models, training
from fastadam.config import TrainConfig
from fastadam.cuda_device import CudaDevice
from fastadam.device import CpuDevice
from fastadam.engine import Engine
from fastadam.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    InterruptedRunError,
    OutOfMemoryError,
    RunError,
)
from fastadam.evaluation import evaluate_checkpoint
from fastadam.fit import Fit
from fastadam.job import Job
from fastadam.versions import DECISIVE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set small enough for runs of a second."""
    path = tmp_path_factory.mktemp("data")
    data.write_binary(path, data.synthetic.generate(train=260, test=60, seed=1))
    return str(path)


def config(folder: str, **changes: Any) -> TrainConfig:
    settings = {
        "data": folder,
        "model": "mlp",
        "epochs": 3,
        "batch_size": 32,
        "val_size": 30,
        "augment": ["flip", "crop"],
    }
    return TrainConfig.from_dict({**settings, **changes})


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_what_is_promised(folder, tmp_path):
    run = tmp_path / "run"
    summary = training.run_training(config(folder), out=run)
    assert summary == json.loads((run / "summary.json").read_text())
    assert list(summary) == [
        "model", "parameters", "device", "threads", "dataset", "epochs", "steps", "train_loss", "val_accuracy",
        "test_accuracy", "seconds", "compile_seconds", "samples_per_second", "peak_memory_bytes",
        "checkpoint", "versions",
    ]  # fmt: skip
    assert (summary["epochs"], summary["steps"], summary["parameters"]) == (3, 24, 1_841_162)
    log = lines(run)
    assert [(line["event"], line["epoch"], line["step"]) for line in log] == [("epoch", e, 8 * e) for e in (1, 2, 3)]
    assert list(log[0]) == [
        "event", "epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy",
        "samples_per_second", "seconds",
    ]  # fmt: skip
    assert summary["val_accuracy"] == max(line["val_accuracy"] for line in log)
    assert 0 <= summary["test_accuracy"] <= 1
    assert list(summary["versions"]) == ["python", *DECISIVE]
    last = checkpoint.load(run / "last.safetensors")
    names = {name.split("/")[-1] for name in last.tensors}
    assert names == {f"{layer}.{kind}" for layer in ("fc1", "fc2", "fc") for kind in ("weight", "bias")}
    assert {f"optimizer/{m}/fc.bias" for m in "mv"} <= set(last.tensors)
    result = evaluate_checkpoint(run / "best.safetensors", folder)
    assert result["accuracy"] == summary["test_accuracy"]
    again = tmp_path / "again"
    training.run_training(TrainConfig.from_dict(training.RunFolder.open(run).settings), out=again)
    for name in ("last.safetensors", "best.safetensors"):
        assert (run / name).read_bytes() == (again / name).read_bytes()


def test_a_summary_names_what_decides_the_bits_of_its_device(folder, tmp_path, monkeypatch):
    assert CudaDevice.packages == ("numba-cuda",)
    monkeypatch.setattr(CpuDevice, "packages", CudaDevice.packages)
    summary = training.run_training(config(folder, epochs=1), out=tmp_path / "run")
    assert list(summary["versions"]) == ["python", *DECISIVE, "numba-cuda"]


def test_threads_do_not_change_the_bytes(folder, tmp_path):
    contents = set()
    for threads in (1, 2, 3):
        run = tmp_path / str(threads)
        training.run_training(config(folder, model="cnn", epochs=1, threads=threads), out=run)
        contents.add((run / "last.safetensors").read_bytes())
    assert len(contents) == 1


def test_steps_may_end_inside_an_epoch(folder, tmp_path):
    summary = training.run_training(config(folder, epochs=None, steps=11), out=tmp_path / "run")
    assert summary["steps"] == 11
    assert [line["step"] for line in lines(tmp_path / "run")] == [8, 11]
    assert checkpoint.load(tmp_path / "run" / "last.safetensors").metadata["step"] == 11


@pytest.mark.parametrize("steps", [0, 3, 8, 13, 23])
def test_resuming_gives_the_bits_of_running_on(folder, tmp_path, monkeypatch, steps):
    """Stopped after any step, inside an epoch too, with checkpoints by time after every step."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = config(folder, clip_norm=1.0, label_smoothing=0.1, patience=5)
    training.run_training(settings, out=whole)
    with monkeypatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
        stop_after(patch, steps)
        with pytest.raises(Stop):
            training.run_training(settings, out=cut)
    training.run_training(TrainConfig(), resume=cut)
    for name in ("last.safetensors", "best.safetensors"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()
    same = ("epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
    assert [[a[k] for k in same] for a in lines(whole)] == [[b[k] for k in same] for b in lines(cut)]


def test_a_finished_run_stays_and_can_be_extended(folder, tmp_path):
    run = tmp_path / "run"
    first = training.run_training(config(folder, schedule="constant"), out=run)
    assert training.run_training(TrainConfig(), resume=run) == first
    longer = training.run_training(TrainConfig(epochs=4), resume=run)
    assert longer["epochs"] == 4
    assert longer["seconds"] > sum(line["seconds"] for line in lines(run))
    training.run_training(config(folder, schedule="constant", epochs=4), out=tmp_path / "four")
    assert (run / "last.safetensors").read_bytes() == (tmp_path / "four" / "last.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="3 epochs"):
        training.run_training(TrainConfig(epochs=3), resume=run)
    training.run_training(config(folder, epochs=None, steps=3), out=tmp_path / "steps")
    with pytest.raises(ConfigError, match="counts steps"):
        training.run_training(TrainConfig(epochs=3), resume=tmp_path / "steps")


def test_a_run_on_whatever_is_in_the_cache_goes_on(folder, tmp_path, monkeypatch):
    """What a data set is called may depend on its classes; what counts is where it was and its bytes."""
    monkeypatch.setattr(data.library.platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    images = data.load(folder)
    own = dataclasses.replace(images, classes=tuple(f"own {name}" for name in images.classes))
    data.write_binary(tmp_path / "fastadam" / "cifar10", own)
    settings = config(folder, data=None, epochs=1, schedule="constant")
    assert training.run_training(settings, out=tmp_path / "run")["dataset"] == "images"
    (tmp_path / "fastadam" / "cifar10" / "batches.meta.txt").unlink()
    extended = training.run_training(TrainConfig(epochs=2), resume=tmp_path / "run")
    assert (extended["dataset"], extended["epochs"]) == ("cifar10", 2)


def test_stopping_early(folder, tmp_path):
    reached = training.run_training(config(folder, epochs=50, target_accuracy=0.01), out=tmp_path / "target")
    assert reached["epochs"] < 50
    still = training.run_training(config(folder, epochs=50, lr=1e-12, patience=2), out=tmp_path / "patience")
    assert still["epochs"] == 3  # the first is the best, then two without a better one
    assert training.run_training(TrainConfig(), resume=tmp_path / "patience") == still
    with pytest.raises(ConfigError, match="ended by its patience"):
        training.run_training(TrainConfig(epochs=60), resume=tmp_path / "patience")


@pytest.mark.parametrize(("moment", "call"), [("save_best", 1), ("save", 2)])
def test_the_best_checkpoint_survives_a_kill_between_the_files(folder, tmp_path, monkeypatch, moment, call):
    """Stopped before either checkpoint of an epoch is written, and extended: the best file is the log's best epoch."""
    run, real, count = tmp_path / "run", getattr(training._Run, moment), [0]

    def kill(self: Any) -> None:
        count[0] += 1
        if count[0] == call:
            raise Stop
        real(self)

    settings = config(folder, lr=3e-4, schedule="onecycle")
    with monkeypatch.context() as patch:
        patch.setattr(training._Run, moment, kill)
        with pytest.raises(Stop):
            training.run_training(settings, out=run)
    summary = training.run_training(TrainConfig(epochs=5), resume=run)
    best = checkpoint.load(run / "best.safetensors").metadata
    accuracies = [line["val_accuracy"] for line in lines(run)]
    assert best["val_accuracy"] == max(accuracies) == summary["val_accuracy"]
    assert best["epoch"] == 1 + accuracies.index(max(accuracies))


def test_a_signal_during_validation_or_test_is_not_lost(folder, tmp_path, monkeypatch):
    run, whole = tmp_path / "run", tmp_path / "whole"
    training.run_training(config(folder), out=whole)
    real, calls = Engine.evaluate, [0]

    def evaluate(self: Engine, *arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] in (2, 5):  # the second validation, and the test
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)

    monkeypatch.setattr(Engine, "evaluate", evaluate)
    with pytest.raises(InterruptedRunError, match="step 16") as stopped:
        training.run_training(config(folder), out=run)
    assert stopped.value.exit_code == 143
    with pytest.raises(InterruptedRunError, match="step 24"):
        training.run_training(TrainConfig(), resume=run)
    training.run_training(TrainConfig(), resume=run)
    for name in ("last.safetensors", "best.safetensors"):
        assert (whole / name).read_bytes() == (run / name).read_bytes()


def test_throughput_after_a_resume_counts_only_what_was_trained(folder, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
        stop_after(patch, 7)
        with pytest.raises(Stop):
            training.run_training(config(folder), out=run)
    fit_step = Fit.step

    def slow(self: Fit) -> float:
        begun = time.perf_counter()
        loss = fit_step(self)
        time.sleep(0.05)
        self._seconds += 0.05
        assert time.perf_counter() - begun >= 0.05
        return loss

    monkeypatch.setattr(Fit, "step", slow)
    training.run_training(TrainConfig(), resume=run)
    assert lines(run)[0]["samples_per_second"] < 32 / 0.05


def test_divergence_keeps_the_last_good_checkpoint(folder, tmp_path, monkeypatch):
    run = tmp_path / "run"
    real = training.Fit.step

    def explode(self: Fit) -> float:
        if self.cursor.step == 12:
            self.trainer.model.parameters.flat[...] = np.inf
        return real(self)

    monkeypatch.setattr(training.Fit, "step", explode)
    with pytest.raises(DivergedError, match=r"step 13 .*last good checkpoint .* of step 8"):
        training.run_training(config(folder), out=run)
    assert checkpoint.load(run / "last.safetensors").metadata["step"] == 8


def test_no_room_for_a_checkpoint(folder, tmp_path, monkeypatch):
    """The file system fills up: one line, and the old checkpoint is whole."""
    run, real, writes = tmp_path / "run", files.write_all, [0]

    def full(file: int, content: bytes) -> None:
        if len(content) > 100_000:
            writes[0] += 1
            if writes[0] > 3:
                real(file, content[:50_000])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file, content)

    monkeypatch.setattr(files, "write_all", full)
    with pytest.raises(RunError, match=r"cannot write .*No space left on device; free some space"):
        training.run_training(config(folder), out=run)
    step = checkpoint.load(run / "last.safetensors").metadata["step"]
    assert step in (8, 16)
    assert not [path for path in run.iterdir() if files.is_leftover(path.name)]
    monkeypatch.undo()
    training.run_training(TrainConfig(), resume=run)
    training.run_training(config(folder), out=tmp_path / "whole")
    assert (run / "last.safetensors").read_bytes() == (tmp_path / "whole" / "last.safetensors").read_bytes()


def test_what_cannot_be_resumed(folder, tmp_path):
    run = tmp_path / "run"
    training.run_training(config(folder, epochs=1), out=run)
    (run / "summary.json").unlink()
    good = (run / "last.safetensors").read_bytes()

    def refused(error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            training.run_training(TrainConfig(), resume=run)

    (run / "last.safetensors").unlink()
    refused(RunError, r"last\.safetensors is missing.*--init")
    (run / "last.safetensors").write_bytes(b"junk" * 100)
    refused(CheckpointError, "no checkpoint, or damaged")
    from safetensors.numpy import save

    (run / "last.safetensors").write_bytes(save({"w": np.zeros(3, np.float32)}))
    refused(CheckpointError, "not a checkpoint of fastadam")
    checkpoint.save(run / "last.safetensors", {"w": np.zeros(3, np.float32)}, {"model": {"name": "mlp"}})
    refused(CheckpointError, "does not belong")
    content = checkpoint.load(tmp_path / "run" / "best.safetensors")
    fingerprint = Job(config(folder, epochs=1)).fingerprint()
    cursor = {"epoch": 0, "batch": 99, "step": 5, "loss_sum": 0.0, "right": 0}
    checkpoint.save(run / "last.safetensors", content.tensors, {"fingerprint": fingerprint, "cursor": cursor})
    refused(CheckpointError, "does not belong")
    (run / "last.safetensors").write_bytes(good)
    settings = (run / "config.toml").read_text()
    other = tmp_path / "other"
    data.write_binary(other, data.synthetic.generate(train=260, test=60, seed=2))
    (run / "config.toml").write_text(settings.replace(folder, str(other)))
    refused(RunError, "not those the run")
    for changed in (settings.replace('"mlp"', '"cnn"'), settings.replace("batch_size = 32", "batch_size = 31")):
        assert changed != settings
        (run / "config.toml").write_text(changed)
        refused(RunError, "was changed since")
    with pytest.raises(RunError, match="no run"):
        training.run_training(TrainConfig(), resume=tmp_path / "nothing")


def test_memory_is_planned_before_it_is_taken(folder, tmp_path, monkeypatch):
    plan = training.describe_plan(config(folder, batch_size=64, threads=2))
    assert plan.total_bytes == sum(size for _, size in plan.rows)
    assert plan.to_dict()["layers"][0]["shape"] == (64, 32, 32, 3)
    monkeypatch.setattr("fastadam.device.CpuDevice.available_memory", lambda self: 1_000_000)
    with pytest.raises(OutOfMemoryError, match=r"needs \d+\.\d MB .* 1\.0 MB are free; fc1 .* is the first layer"):
        training.run_training(config(folder, batch_size=64), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_eval_wants_images_of_the_models_shape(folder, tmp_path):
    models.build("cnn", shape=(8, 8, 3)).save(tmp_path / "small.safetensors")
    with pytest.raises(CheckpointError, match=r"takes images of \(8, 8, 3\)"):
        evaluate_checkpoint(tmp_path / "small.safetensors", folder)
    models.build("cnn", classes=100).save(tmp_path / "many.safetensors")
    with pytest.raises(CheckpointError, match="100 classes"):
        evaluate_checkpoint(tmp_path / "many.safetensors", folder)


def command(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    parts = [sys.executable, "-m", "fastadam_cli", "train", *map(str, arguments)]
    return subprocess.Popen(parts, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def arguments_of(folder: str, epochs: int = 12) -> list[object]:
    return [
        "--data",
        folder,
        "--model",
        "mlp",
        "--epochs",
        epochs,
        "--batch-size",
        32,
        "--val-size",
        30,
        "--augment",
        "flip",
    ]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_a_checkpoint(folder, tmp_path, number, code):
    run = tmp_path / "a run"
    process = command(*arguments_of(folder, 10_000), "--out", run)
    deadline = time.monotonic() + 120
    while not (run / "last.safetensors").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == ""
    assert f"--resume '{run}'" in err
    assert "Traceback" not in err
    assert checkpoint.load(run / "last.safetensors").metadata["step"] > 0


def kill_and_resume(folder: str, tmp_path: Path, epochs: int, moments: list[float]) -> None:
    """SIGKILL a run after so many seconds of training, again and again; then compare with one never killed."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = command(*arguments_of(folder, epochs), "--out", whole)
    assert process.wait(300) == 0, process.communicate()
    resume, killed = ["--resume", cut], 0
    for seconds in moments:
        process = command(
            *(resume if (cut / "config.toml").exists() else [*arguments_of(folder, epochs), "--out", cut])
        )
        before = (cut / "last.safetensors").stat().st_mtime_ns if (cut / "last.safetensors").exists() else 0
        while process.poll() is None:  # imports and compiling are not what is to be interrupted
            exists = (cut / "last.safetensors").exists()
            if exists and (cut / "last.safetensors").stat().st_mtime_ns != before:
                break
            time.sleep(0.001)
        time.sleep(seconds)
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed > len(moments) / 2, "the run must be long enough to be killed"
    process = command(*resume)
    assert process.wait(300) == 0, process.communicate()
    for name in ("last.safetensors", "best.safetensors"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()
    assert [line["step"] for line in lines(whole)] == [line["step"] for line in lines(cut)]


def test_killed_runs_resume(folder, tmp_path):
    kill_and_resume(folder, tmp_path, 15, [0.05, 0.15])


@pytest.mark.slow
def test_runs_killed_at_twenty_moments_resume(folder, tmp_path):
    kill_and_resume(folder, tmp_path, 80, [random.Random(i).uniform(0, 0.25) for i in range(20)])

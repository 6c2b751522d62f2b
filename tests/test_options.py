"""Runs with every option of the trainer on: stopped, gone on with, extended, on any number of threads; and --init."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_training import Stop, stop_after

from fastadam import checkpoint, data, models, training
from fastadam.budget import COPIES
from fastadam.config import TrainConfig, load_toml
from fastadam.data import split
from fastadam.engine import Engine
from fastadam.errors import CheckpointError, InterruptedRunError
from fastadam.evaluation import evaluate_checkpoint

FILES = ("last.safetensors", "best.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data")
    data.write_binary(path, data.synthetic.generate(train=170, test=50, seed=1))
    return str(path)


def everything(folder: str, **changes: Any) -> TrainConfig:
    """Three steps an epoch, of 48, 48 and 34 images in batches of 16: the last one of all has 2."""
    settings = {
        "data": folder, "model": "resnet20", "epochs": 2, "batch_size": 16, "accumulate": 3, "limit_train": 130,
        "val_size": 40, "optimizer": "sgd", "momentum": 0.9, "nesterov": True, "lr": 0.05, "weight_decay": 1e-3,
        "schedule": "step", "milestones": [1, 1.4], "gamma": 0.3, "warmup": 0.5, "augment": ["flip", "crop", "cutout"],
        "label_smoothing": 0.1, "dropout": 0.3, "clip_norm": 0.7, "ema": 0.8, "patience": 9, "seed": 3,
    }  # fmt: skip
    return TrainConfig.from_dict(settings | changes)


@pytest.fixture(scope="module")
def whole(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    training.run_training(everything(folder), out=run)
    return run


def cut_run(settings: TrainConfig, run: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Stop after so many steps, with a checkpoint after each."""
    with monkeypatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
        stop_after(patch, steps)
        with pytest.raises(Stop):
            training.run_training(settings, out=run)


def log(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "samples_per_second")} for line in lines]


def assert_same_run(run: Path, other: Path) -> None:
    for name in FILES:
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    assert log(run) == log(other)


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_resuming_gives_the_bits_of_running_on(folder, whole, tmp_path, monkeypatch, steps):
    cut_run(everything(folder), tmp_path / "cut", monkeypatch, steps)
    training.run_training(TrainConfig(), resume=tmp_path / "cut")
    assert_same_run(tmp_path / "cut", whole)


def test_a_kill_before_the_best_checkpoint_is_made_good(folder, whole, tmp_path, monkeypatch):
    def kill(self: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "save_best", kill)
        with pytest.raises(Stop):
            training.run_training(everything(folder), out=tmp_path / "cut")
    training.run_training(TrainConfig(), resume=tmp_path / "cut")
    assert_same_run(tmp_path / "cut", whole)


def test_a_stop_while_statistics_are_made_leaves_no_trace(folder, whole, tmp_path, monkeypatch):
    run, real, calls = tmp_path / "cut", Engine.run, [0]

    def interrupted(self: Engine, mode: str, *arguments: Any, **settings: Any) -> Any:
        calls[0] += mode == "stats"
        if mode == "stats" and calls[0] == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, mode, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "run", interrupted)
        with pytest.raises(InterruptedRunError, match="step 3"):
            training.run_training(everything(folder), out=run)
    assert calls[0] == 4
    training.run_training(TrainConfig(), resume=run)
    assert_same_run(run, whole)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_the_bytes(folder, whole, tmp_path, threads):
    training.run_training(everything(folder, threads=threads), out=tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def test_more_epochs_are_those_of_a_longer_run(folder, whole, tmp_path):
    """All that depends on the length is given in epochs, so the first part is the same."""
    run, longer = tmp_path / "run", tmp_path / "longer"
    training.run_training(everything(folder, epochs=1), out=run)
    training.run_training(TrainConfig(epochs=2), resume=run)
    assert_same_run(run, whole)
    assert load_toml(run / "config.toml") == load_toml(whole / "config.toml") | {"threads": 2}
    training.run_training(everything(folder, epochs=None, steps=4), out=longer)
    assert [line["step"] for line in log(longer)] == [3, 4]  # stopped inside an epoch, between groups


def test_the_best_checkpoint_holds_what_was_validated_and_tested(folder, whole):
    summary = json.loads((whole / "summary.json").read_text())
    best, last = (checkpoint.load(whole / name) for name in reversed(FILES))
    assert best.metadata["weights"] == "ema"
    assert best.metadata["model"]["dropout"] == 0.3
    result = evaluate_checkpoint(whole / "best.safetensors", folder)
    assert result["accuracy"] == summary["test_accuracy"]
    model, dataset = models.load(whole), data.load(folder)
    _, val = split(dataset.train_labels, 40, 3)
    right = model.predict(dataset.train_images[val]) == dataset.train_labels[val]
    assert right.mean() == summary["val_accuracy"] == best.metadata["val_accuracy"]
    names = set(best.tensors)
    assert set(last.tensors) == names | {f"ema/{n}" for n in names} | {
        f"optimizer/m/{n}" for n in names if not n.endswith(("running_mean", "running_var"))
    }
    if best.metadata["epoch"] == 2:
        assert all(np.array_equal(last.tensors[f"ema/{name}"], best.tensors[name]) for name in names)
    assert not np.array_equal(last.tensors["ema/fc.weight"], last.tensors["fc.weight"])


def test_the_plan_counts_what_the_options_take(folder):
    """Beside a plain run: an arena of sums, and the average with its statistics, which checkpoints hold too."""
    plain = training.describe_plan(everything(folder, ema=None, accumulate=1))
    full = training.describe_plan(everything(folder))
    arenas = full.step.arena_bytes
    average = arenas["AVERAGE"] + arenas["AVERAGE.STATE"]
    assert arenas.keys() - plain.step.arena_bytes.keys() == {"SUM", "AVERAGE", "AVERAGE.STATE"}
    assert full.total_bytes - plain.total_bytes == arenas["SUM"] + (1 + COPIES) * average
    assert full.step.table() == plain.step.table()
    assert sum(row.arena_bytes for row in full.layers) == sum(arenas.values())
    assert full.layers[-1].total_bytes == full.needed_bytes >= full.layers[-2].total_bytes


# --init -----------------------------------------------------------------------------------------------------


def small(folder: str, **changes: Any) -> TrainConfig:
    settings = {"data": folder, "model": "mlp", "epochs": 1, "batch_size": 32, "val_size": 30, "lr": 1e-30}
    return TrainConfig.from_dict(settings | changes)


def test_a_run_begins_with_the_weights_it_is_given(folder, tmp_path, monkeypatch):
    """By a rate of nothing: they are still there at the end, for the run that was stopped and resumed too."""
    model = models.build("mlp", seed=42)
    model.save(tmp_path / "first.safetensors")
    monkeypatch.chdir(tmp_path)
    settings = small(folder, init="first.safetensors", weight_decay=0.0)
    runs = [tmp_path / name for name in ("run", "at once", "later")]
    training.run_training(settings, out=runs[0])
    assert load_toml(runs[0] / "config.toml")["init"] == str(tmp_path / "first.safetensors")
    cut_run(settings, runs[1], monkeypatch, 0)  # nothing is written yet: the run begins again
    training.run_training(TrainConfig(), resume=runs[1])
    cut_run(settings, runs[2], monkeypatch, 3)
    (tmp_path / "first.safetensors").unlink()  # a checkpoint is all that going on needs
    training.run_training(TrainConfig(), resume=runs[2])
    for run in runs:
        last = checkpoint.load(run / "last.safetensors").tensors
        assert all(np.array_equal(last[name], value) for name, value in model.state_dict().items())


def test_a_run_may_begin_with_another_run(folder, tmp_path):
    notes: list[str] = []
    reporter = training.Silent()
    reporter.message = notes.append
    training.run_training(small(folder, lr=1e-3), out=tmp_path / "first")
    training.run_training(small(folder, init=str(tmp_path / "first")), out=tmp_path / "second")
    best = checkpoint.load(tmp_path / "first" / "best.safetensors").tensors
    last = checkpoint.load(tmp_path / "second" / "last.safetensors").tensors
    np.testing.assert_allclose(last["fc.weight"], best["fc.weight"], rtol=1e-6)
    models.build("mlp", classes=3).save(tmp_path / "three.safetensors")
    settings = small(folder, init=str(tmp_path / "three.safetensors"))
    training.run_training(settings, out=tmp_path / "third", reporter=reporter)
    assert any("fc is drawn anew" in note for note in notes)


def test_weights_that_do_not_fit_leave_no_run(folder, tmp_path):
    models.build("cnn").save(tmp_path / "cnn.safetensors")
    with pytest.raises(CheckpointError, match=r"fc1.weight has the shape"):
        training.run_training(small(folder, init=str(tmp_path / "cnn.safetensors")), out=tmp_path / "run")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        training.run_training(small(folder, init=str(tmp_path / "none.safetensors")), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()

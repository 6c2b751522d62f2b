"""Stochastic weight averaging: which weights are in the mean, what is validated, and that a stop leaves no trace."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest
from small import course, norm_model, small_data, small_model

from fastadam import checkpoint, data, training
from fastadam.budget import COPIES
from fastadam.config import TrainConfig
from fastadam.engine import Engine
from fastadam.errors import ConfigError, InterruptedRunError
from fastadam.fit import Fit
from fastadam.trainer import Trainer
from fastadam.training import run_training


def five_epochs(swa: int | None, **settings: object) -> Fit:
    """Of four steps each, the last of 8 images."""
    return course(norm_model(dropout=0.3), 5, swa=swa, augment=("flip",), **settings)


def epoch(fit: Fit) -> object:
    while not fit.epoch_done:
        fit.step()
    return fit.end_epoch()


def test_the_average_is_the_mean_of_the_ends_of_epochs():
    """From the third on; what is trained is not changed by it."""
    fit, plain = five_epochs(3), five_epochs(None)
    average, ends = fit.trainer.average, []
    for number in range(1, 6):
        record, other = epoch(fit), epoch(plain)
        parameters = fit.trainer.model.parameters.flat
        assert np.array_equal(parameters, plain.trainer.model.parameters.flat)
        assert record.train_loss == other.train_loss
        assert average.ready == (number >= 3)
        if number < 3:
            assert (record.val_loss, record.val_accuracy) == (other.val_loss, other.val_accuracy)
            with pytest.raises(ValueError, match="no epoch has been averaged yet"):
                fit.trainer.averaged_state_dict()
            continue
        ends.append(parameters.astype(np.float64))
        np.testing.assert_allclose(average.weights.flat, np.mean(ends, 0), rtol=1e-6, atol=1e-7)
        if number == 3:
            assert np.array_equal(average.weights.flat, parameters)
        assert not np.array_equal(average.state.flat, fit.trainer.model.state.flat)
        averaged = norm_model()
        averaged.load_state_dict(fit.trainer.averaged_state_dict())
        averaged.set_normalization(fit.trainer.model.mean, fit.trainer.model.std)
        right = averaged.predict(fit.feed.images[fit.val]) == fit.feed.labels[fit.val]
        assert record.val_accuracy == right.mean()


def test_each_course_has_an_average_of_its_own():
    trainer = Trainer(small_model(), "sgd", lr=0.1, batch_size=16, swa=2)
    for _ in range(2):
        fit = trainer.fit(small_data(40), epochs=2, val_size=8)
        next(fit)
        assert not trainer.average.ready
        next(fit)
        assert np.array_equal(trainer.average.weights.flat, trainer.model.parameters.flat)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match="ema and swa each keep an average"):
        Trainer(small_model(), ema=0.9, swa=2)
    with pytest.raises(ConfigError, match="swa has no meaning for optimizer schedulefree"):
        Trainer(small_model(), "schedulefree", swa=2)
    with pytest.raises(ValueError, match="swa must be a whole number of 1 or more"):
        Trainer(small_model(), swa=0)
    with pytest.raises(ValueError, match="swa must be a whole number"):
        Trainer(small_model(), swa=1.5)
    trainer = Trainer(small_model(), batch_size=8, swa=3)
    for length in ({"epochs": 2}, {"steps": 8}):  # of four steps an epoch
        with pytest.raises(ConfigError, match="swa begins with epoch 3, and the last one is 2"):
            next(trainer.fit(small_data(36), val_size=4, **length))
    next(trainer.fit(small_data(36), val_size=4, steps=9))


@pytest.mark.parametrize("stop", [5, 12, 13, 17])
def test_a_course_gone_on_with_has_the_same_bits(stop):
    settings = {"batch_size": 8, "accumulate": 3, "clip_norm": 0.5}
    whole, cut, fit = (five_epochs(3, **settings) for _ in range(3))
    for one in (whole, cut):
        while not one.done and (one is whole or one.cursor.step < stop):
            one.step()
            if one.epoch_done:
                one.end_epoch()
    fit.trainer.model.load_state_dict(cut.trainer.model.state_dict())
    fit.restore(cut.tensors(), json.loads(json.dumps(cut.metadata())))
    while not fit.done:
        epoch(fit)
    bits = [
        {name: tensor.tobytes() for name, tensor in (f.trainer.model.state_dict() | f.tensors()).items()}
        for f in (fit, whole)
    ]
    assert bits[0] == bits[1]


# Runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    path = tmp_path_factory.mktemp("data")
    data.write_binary(path, data.synthetic.generate(train=130, test=40, seed=1))
    return TrainConfig.from_dict({
        "data": str(path), "model": "resnet20", "epochs": 3, "batch_size": 32, "val_size": 34, "swa": 2,
        "schedule": "constant", "augment": [],
    })  # fmt: skip


def assert_same_run(run, other):
    for name in ("best.safetensors", "last.safetensors"):
        assert (run / name).read_bytes() == (other / name).read_bytes()


def test_a_run_keeps_the_average_and_a_stop_anywhere_leaves_no_trace(config, tmp_path, monkeypatch):
    run_training(config, out=tmp_path / "run")
    best, last = (checkpoint.load(tmp_path / "run" / f"{name}.safetensors") for name in ("best", "last"))
    assert best.metadata["weights"] == "swa"
    assert last.metadata["averaged_epochs"] == 2
    assert not np.array_equal(last.tensors["swa/fc.weight"], last.tensors["fc.weight"])
    if best.metadata["epoch"] == 3:
        assert all(np.array_equal(last.tensors[f"swa/{name}"], tensor) for name, tensor in best.tensors.items())
    real, calls = Engine.run, [0]

    def interrupted(self: Engine, mode: str, *arguments: object, **settings: object) -> object:
        """Stopped in the end of the third epoch, after it was averaged."""
        calls[0] += mode == "stats"
        if mode == "stats" and calls[0] == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, mode, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "run", interrupted)
        with pytest.raises(InterruptedRunError, match="step 9"):
            run_training(config, out=tmp_path / "cut")
    assert calls[0] == 5
    run_training(TrainConfig(), resume=tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "run")


def test_more_epochs_go_on_with_the_average(config, tmp_path):
    settings = config.to_dict()
    run_training(TrainConfig.from_dict(settings | {"epochs": 2}), out=tmp_path / "run")
    run_training(TrainConfig(epochs=3), resume=tmp_path / "run")
    run_training(config, out=tmp_path / "longer")
    assert_same_run(tmp_path / "run", tmp_path / "longer")


def test_raw_weights_do_not_compete_with_the_average(config, tmp_path, monkeypatch):
    """Nor do they end a run; in a run that was stopped as in one that was not."""
    real = Fit.end_epoch

    def worse_and_worse(self, between):
        record = real(self, between)
        return dataclasses.replace(record, val_accuracy=0.9 - record.epoch / 10)

    monkeypatch.setattr(Fit, "end_epoch", worse_and_worse)
    config = dataclasses.replace(config, epochs=4, swa=3, target_accuracy=0.75)
    summary = run_training(config, out=tmp_path / "run")
    best = checkpoint.load(tmp_path / "run" / "best.safetensors").metadata
    assert (best["weights"], best["epoch"], summary["val_accuracy"]) == ("swa", 3, 0.9 - 0.3)
    assert summary["epochs"] == 4
    run_training(dataclasses.replace(config, epochs=3), out=tmp_path / "cut")
    run_training(TrainConfig(epochs=4), resume=tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "run")


def test_patience_waits_for_the_average(config, tmp_path):
    """Nothing is learnt: without an average this run would end after its second epoch, with it one after the first."""
    settings = {"model": "mlp", "swa": 3, "patience": 1, "lr": 1e-12, "epochs": 5}
    run_training(TrainConfig.from_dict(config.to_dict() | settings), out=tmp_path / "run")
    last = checkpoint.load(tmp_path / "run" / "last.safetensors")
    assert (last.metadata["cursor"]["epoch"], last.metadata["averaged_epochs"]) == (4, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"swa": 4}, "swa begins with epoch 4, and the last one is 3; give less"),
        ({"swa": 3, "epochs": None, "steps": 6}, "swa begins with epoch 3, and the last one is 2; give less"),
        ({"swa": None, "lookahead": 10}, "lookahead needs 10 steps, and there are 9; give less"),
    ],
)
def test_averages_that_a_run_ends_before_are_refused_by_the_plan_too(config, settings, message):
    for start in (training.describe_plan, run_training):
        with pytest.raises(ConfigError, match=message):
            start(TrainConfig.from_dict(config.to_dict() | settings))


def test_the_plan_counts_the_average(config):
    plan = training.describe_plan(config)
    plain = training.describe_plan(TrainConfig.from_dict({**config.to_dict(), "swa": None}))
    arenas = plan.step.arena_bytes
    assert arenas.keys() - plain.step.arena_bytes.keys() == {"AVERAGE", "AVERAGE.STATE"}
    assert plan.total_bytes - plain.total_bytes == (1 + COPIES) * (arenas["AVERAGE"] + arenas["AVERAGE.STATE"])
    assert [call.op for call in plan.step.calls] == [call.op for call in plain.step.calls]

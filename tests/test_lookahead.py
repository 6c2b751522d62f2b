"""Lookahead: slow and fast weights step by step, what is validated, and that a stop leaves no trace."""

import json

import numpy as np
import pytest
from small import course, norm_model, resumes, small_data, small_model

from fastadam import checkpoint, data, training
from fastadam.budget import COPIES
from fastadam.config import TrainConfig
from fastadam.errors import ConfigError
from fastadam.fit import Fit
from fastadam.trainer import Trainer
from fastadam.training import run_training


@pytest.mark.parametrize("k", [2, 3, 5])
def test_slow_and_fast_weights_are_those_of_the_algorithm(k):
    """In float64 from the gradients of each step, by SGD with momentum, whose velocity is not touched."""
    fit = course(norm_model(), 3, optimizer="sgd", lr=0.05, lookahead=k)
    fit.trainer.optimizer.momentum = 0.9
    model, average = fit.trainer.model, fit.trainer.average
    fast = model.parameters.flat.astype(np.float64)
    slow, velocity = fast.copy(), np.zeros_like(fast)
    while not fit.done:
        fit.step()
        g = fit.trainer.engine().arenas["GRAD"].flat.astype(np.float64)
        velocity = g if fit.cursor.step == 1 else 0.9 * velocity + g
        fast = fast - 0.05 * velocity
        if fit.cursor.step % k == 0:
            slow = slow + 0.5 * (fast - slow)
            fast = slow.copy()
            assert np.array_equal(model.parameters.flat, average.weights.flat)
        np.testing.assert_allclose(model.parameters.flat, fast, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(average.weights.flat, slow, rtol=1e-4, atol=1e-5)
        if fit.epoch_done:
            fit.end_epoch()
    assert fit.cursor.step == 12
    assert not np.allclose(model.parameters.flat, norm_model().parameters.flat, atol=1e-3)


def test_what_is_validated_are_the_slow_weights_with_statistics_of_their_own():
    fit = course(norm_model(), lookahead=3)
    while not fit.epoch_done:
        fit.step()
    trained = fit.trainer.model.parameters.flat.copy(), fit.trainer.model.state.flat.copy()
    record = fit.end_epoch()
    model, average = fit.trainer.model, fit.trainer.average
    assert np.array_equal(trained[0], model.parameters.flat)
    assert np.array_equal(trained[1], model.state.flat)
    assert not np.array_equal(average.weights.flat, model.parameters.flat)  # after four steps, one from the slow ones
    assert not np.array_equal(average.state.flat, model.state.flat)
    slow = norm_model()
    slow.load_state_dict(fit.trainer.averaged_state_dict())
    slow.set_normalization(model.mean, model.std)
    assert record.val_accuracy == (slow.predict(fit.feed.images[fit.val]) == fit.feed.labels[fit.val]).mean()


def test_it_trains():
    images, labels = small_data(16)
    trainer = Trainer(small_model(), "adamw", lr=0.02, lookahead=5)
    trainer.model.set_normalization((0.4,) * 3, (0.2,) * 3)
    losses = [trainer.step(images, labels) for _ in range(150)]
    assert losses[-1] < 0.05 < 1 < losses[0]
    result = trainer.evaluate(images, labels)
    assert result.accuracy == 1


def test_what_makes_no_sense_is_refused():
    for settings, message in (
        ({"ema": 0.9}, "ema and lookahead each keep an average"),
        ({"swa": 1}, "swa and lookahead each keep an average"),
        ({"optimizer": "schedulefree"}, "lookahead has no meaning for optimizer schedulefree"),
    ):
        with pytest.raises(ConfigError, match=message):
            Trainer(small_model(), lookahead=5, **settings)
    with pytest.raises(ValueError, match="lookahead must be a whole number of 2 or more"):
        Trainer(small_model(), lookahead=1)
    with pytest.raises(ConfigError, match="lookahead needs 9 steps, and there are 8"):
        course(small_model(), lookahead=9)


def everything() -> Fit:
    return course(
        norm_model(dropout=0.3), 3, optimizer="adamw", lookahead=3, batch_size=8, accumulate=3, clip_norm=0.5,
        augment=("flip", "crop"),
    )  # fmt: skip


@pytest.mark.parametrize("stop", [2, 3, 4, 7])
def test_a_course_gone_on_with_has_the_same_bits(stop):
    whole, cut, fit = everything(), everything(), everything()
    for one in (whole, cut):
        while not one.done and (one is whole or one.cursor.step < stop):
            one.step()
            if one.epoch_done:
                one.end_epoch()
    fit.trainer.model.load_state_dict(cut.trainer.model.state_dict())
    fit.restore(cut.tensors(), json.loads(json.dumps(cut.metadata())))
    while not fit.done:
        fit.step()
        if fit.epoch_done:
            fit.end_epoch()
    bits = [
        {name: tensor.tobytes() for name, tensor in (f.trainer.model.state_dict() | f.tensors()).items()}
        for f in (fit, whole)
    ]
    assert bits[0] == bits[1]


def test_a_run_keeps_the_slow_weights(tmp_path, monkeypatch):
    data.write_binary(tmp_path / "data", data.synthetic.generate(train=130, test=40, seed=1))
    settings = {"data": str(tmp_path / "data"), "model": "resnet20", "epochs": 2, "batch_size": 32, "val_size": 34}
    config, plain = (TrainConfig.from_dict({**settings, "lookahead": k}) for k in (2, None))
    plan, other = training.describe_plan(config), training.describe_plan(plain)
    average = plan.step.arena_bytes["AVERAGE"] + plan.step.arena_bytes["AVERAGE.STATE"]
    assert plan.total_bytes - other.total_bytes == (1 + COPIES) * average
    run_training(config, out=tmp_path / "run")
    best, last = (checkpoint.load(tmp_path / "run" / f"{name}.safetensors") for name in ("best", "last"))
    assert best.metadata["weights"] == "lookahead"
    assert np.array_equal(last.tensors["lookahead/fc.weight"], last.tensors["fc.weight"])  # after six steps
    if best.metadata["epoch"] == 2:
        assert all(np.array_equal(last.tensors[f"lookahead/{name}"], tensor) for name, tensor in best.tensors.items())
    resumes(config, tmp_path, monkeypatch, after=5)

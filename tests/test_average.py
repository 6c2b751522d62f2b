"""Averaged weights with statistics of their own; and every option of a course at once."""

import json

import numpy as np
import pytest
from small import course, norm_model, small_data, small_model

from fastadam.fit import Fit, statistics_images
from fastadam.interpret import interpret
from fastadam.trainer import Trainer


def test_the_average_is_that_of_the_steps():
    """Every parameter follows the recursion in float64; before the first step it is the parameter itself."""
    fit = course(norm_model(), ema=0.7)
    model, average = fit.trainer.model, fit.trainer.average.weights
    want = model.parameters.flat.astype(np.float64)
    assert np.array_equal(average.flat, model.parameters.flat)
    steps = 0
    while not fit.done:
        while not fit.epoch_done:
            fit.step()
            steps += 1
            decay = min(0.7, (1 + steps) / (10 + steps))
            want = decay * want + (1 - decay) * model.parameters.flat
            np.testing.assert_allclose(average.flat, want, rtol=1e-6, atol=1e-7)
        fit.end_epoch()
    assert steps == 8
    assert not np.allclose(average.flat, model.parameters.flat, atol=1e-4)


@pytest.mark.parametrize("settings", [{"ema": 0.9}, {"lookahead": 3}, {"optimizer": "schedulefree"}], ids=str)
def test_weights_given_before_the_first_step_are_averaged(settings):
    trainer, other = Trainer(small_model(), **settings), small_model(seed=1)
    trainer.model.load_state_dict(other.state_dict())
    images, labels = small_data()
    assert trainer.evaluate(images, labels) == Trainer(other).evaluate(images, labels)
    trainer.model.load_state_dict(other.state_dict())
    averaged = trainer.averaged_state_dict()
    assert all(np.array_equal(averaged[name], tensor) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize("settings", [{"ema": 0.9}, {"lookahead": 3}, {"optimizer": "schedulefree"}], ids=str)
def test_steps_alone_give_the_average_the_statistics_of_the_model(settings):
    trainer, other, (images, labels) = Trainer(norm_model(), **settings), norm_model(), small_data()
    for _ in range(5):
        trainer.step(images, labels)
    averaged, raw = trainer.averaged_state_dict(), trainer.model.state_dict()
    assert np.array_equal(averaged["b1.running_mean"], raw["b1.running_mean"])
    assert not np.array_equal(averaged["c1.weight"], raw["c1.weight"])
    other.load_state_dict(averaged)
    assert Trainer(other).evaluate(images, labels) == trainer.evaluate(images, labels)


def test_statistics_of_the_average_are_those_over_the_training_images():
    """Recomputed in float64, batch by batch over images that are not augmented; raw statistics stay as they were."""
    fit = course(norm_model(), ema=0.7, augment=("flip", "crop"))
    while not fit.epoch_done:
        fit.step()
    raw = fit.trainer.model.state.flat.copy()
    record = fit.end_epoch()
    model, average = fit.trainer.model, fit.trainer.average
    assert np.array_equal(raw, model.state.flat)
    x = (fit.feed.images.transpose(0, 2, 3, 1) / 255 - model.mean) / model.std
    params = {name: view.astype(np.float64) for name, view in average.weights.views.items()}
    state = {name: np.zeros(view.shape) for name, view in model.state.views.items()}
    order, seen = statistics_images(fit.train, 0), 0
    for start in range(0, 80, 24):  # the last batch has 8 images
        part = order[start : start + 24]
        seen += len(part)
        momentum = len(part) / seen
        state = interpret(model.graph, params, state, x[part], fit.feed.labels[part], momentum=momentum).state
    for name, view in average.state.views.items():
        np.testing.assert_allclose(view, state[name], rtol=1e-4, atol=1e-6, err_msg=name)
    restated = average.state.flat.copy()
    average.state.flat[:] = np.nan  # whatever an interrupted pass may leave
    fit.trainer.engine().restate(fit.feed, order, 24)
    assert np.array_equal(average.state.flat, restated)
    averaged = norm_model()
    averaged.load_state_dict(fit.trainer.averaged_state_dict())
    averaged.set_normalization(model.mean, model.std)
    right = averaged.predict(fit.feed.images[fit.val]) == fit.feed.labels[fit.val]
    assert record.val_accuracy == right.mean()


def test_without_an_average_there_is_none():
    trainer = Trainer(small_model())
    assert trainer.average is None
    with pytest.raises(ValueError, match="keeps no average"):
        trainer.averaged_state_dict()
    for wrong in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="ema must be"):
            Trainer(small_model(), ema=wrong)


EVERYTHING = {
    "optimizer": "adamw", "lr": 0.01, "batch_size": 8, "accumulate": 3, "schedule": "step", "milestones": (0.5, 1.5),
    "gamma": 0.3, "warmup": 0.5, "augment": ("flip", "crop", "cutout"), "label_smoothing": 0.1, "clip_norm": 0.5,
    "ema": 0.9, "seed": 7,
}  # fmt: skip


def everything(threads: int = 2) -> Fit:
    return course(norm_model(dropout=0.3), **EVERYTHING, threads=threads)


def bits(fit: Fit) -> list[bytes]:
    model = fit.trainer.model
    return [tensor.tobytes() for tensor in (model.state_dict() | fit.tensors()).values()]


def test_any_number_of_threads_gives_the_same_bits_with_everything_on():
    results = []
    for threads in (1, 2, 3):
        fit = everything(threads)
        records = []
        while not fit.done:
            while not fit.epoch_done:
                fit.step()
            records.append(fit.end_epoch())
        told = [(r.lr, r.train_loss, r.train_accuracy, r.val_loss, r.val_accuracy) for r in records]
        results.append((bits(fit), told))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_course_gone_on_with_has_the_same_bits_with_everything_on(stop):
    """Stopped in mid-epoch or at its end, and taken up by another trainer from what a checkpoint holds."""
    whole, cut = everything(), everything()
    for fit in (whole, cut):
        while not fit.done and (fit is whole or fit.cursor.step < stop):
            fit.step()
            if fit.epoch_done:
                fit.end_epoch()
    fit = everything()
    fit.trainer.model.load_state_dict(cut.trainer.model.state_dict())
    fit.restore(cut.tensors(), json.loads(json.dumps(cut.metadata())))
    while not fit.done:
        fit.step()
        if fit.epoch_done:
            fit.end_epoch()
    assert bits(fit) == bits(whole)
    assert fit.cursor == whole.cursor


def test_an_average_begins_with_the_weights_of_the_first_step():
    """Whatever the model held when the trainer was made."""
    images, labels = small_data(8)
    model, other = small_model(), small_model(1)
    trainer = Trainer(model, "sgd", lr=1e-30, ema=0.5)
    model.load_state_dict(other.state_dict())
    trainer.step(images, labels)
    np.testing.assert_array_equal(trainer.average.weights.flat, other.parameters.flat)

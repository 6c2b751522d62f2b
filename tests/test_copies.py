"""Copies of models and trainers, used ones too: of their own memory, and going on as the originals would."""

import copy
import pickle

import numpy as np
import pytest
from small import norm_model, small_data, small_model

from fastadam import optim
from fastadam.trainer import Trainer

WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value))}


def same(a, b):
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_copied_model_is_the_same_and_apart(way, used):
    images, labels = small_data()
    model = small_model()
    if used:
        model.predict(images)
    twin = WAYS[way](model)
    before = model.predict_proba(images)
    assert twin.predict_proba(images).tobytes() == before.tobytes()
    trainer = Trainer(twin, "sgd", 0.1)
    trainer.step(images, labels)
    assert (twin.predict_proba(images) != before).any()
    assert not same(twin.state_dict(), model.state_dict())
    assert model.predict_proba(images).tobytes() == before.tobytes()


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9}, {"lookahead": 2}, {"optimizer": optim.ScheduleFree()}])
@pytest.mark.parametrize("way", WAYS)
def test_a_copied_trainer_goes_on_as_the_original(way, settings):
    images, labels = small_data()
    trainer = Trainer(norm_model(), **settings)
    for _ in range(3):
        trainer.step(images, labels)
    twin = WAYS[way](trainer)
    assert twin.model is not trainer.model
    assert [twin.step(images, labels) for _ in range(3)] == [trainer.step(images, labels) for _ in range(3)]
    assert same(twin.model.state_dict(), trainer.model.state_dict())
    twin.step(images, labels)
    assert not same(twin.model.state_dict(), trainer.model.state_dict())


def test_a_copy_has_the_threads_of_the_original():
    model = small_model().to("cpu", threads=1)
    twin = copy.deepcopy(model)
    assert np.array_equal(twin.predict(small_data()[0]), model.predict(small_data()[0]))
    assert twin._device.threads == 1

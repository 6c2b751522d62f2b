"""Gradients of several batches in one step."""

import numpy as np
import pytest
from small import small_data, small_model

from fastadam import architectures, optim
from fastadam.data import channel_statistics
from fastadam.engine import Feed
from fastadam.errors import ConfigError
from fastadam.fit import Fit
from fastadam.model import Model
from fastadam.trainer import Trainer


@pytest.mark.parametrize(("rule", "clip_norm"), [("sgd", None), ("sgd", 0.5), ("adamw", 0.5)])
def test_four_batches_of_32_are_one_of_128(rule, clip_norm):
    """Without batch norm: losses, gradients and parameters, to rounding; the last step of an epoch is partial."""
    data, runs = small_data(340), []
    settings = {"lr": 0.1, "momentum": 0.9} if rule == "sgd" else {"lr": 1e-3, "eps": 1e-3}  # no signs of rounding
    for batch_size, accumulate in ((128, 1), (32, 4)):
        model = small_model()
        model.set_normalization(*channel_statistics(data[0], np.arange(300)))
        trainer = Trainer(
            model, optim.OPTIMIZERS[rule](None, **settings), batch_size=batch_size, accumulate=accumulate,
            augment=("flip", "crop"), clip_norm=clip_norm, label_smoothing=0.1,
        )  # fmt: skip
        fit = Fit(trainer, Feed(data[0], data[1].astype(np.int32)), np.arange(300), np.arange(300, 340), 2, None)
        losses, gradients = [], []
        while not fit.done:
            while not fit.epoch_done:
                losses.append(fit.step())
                gradients.append(trainer.engine().arenas["GRAD"].flat.copy())
            record = fit.end_epoch()
        runs.append((losses, gradients, model.parameters.flat.copy(), record))
        assert len(losses) == 6  # 128, 128 and 44 images, twice
        assert trainer.t == 6
    (losses, gradients, parameters, record), (losses_, gradients_, parameters_, record_) = runs
    np.testing.assert_allclose(losses_, losses, rtol=1e-5)
    for one, other in zip(gradients, gradients_, strict=True):
        np.testing.assert_allclose(other, one, atol=2e-5 * np.abs(one).max())
    np.testing.assert_allclose(parameters_, parameters, atol=1e-5 * np.abs(parameters).max())
    assert record_.train_loss == pytest.approx(record.train_loss, rel=1e-5)
    assert (record_.train_accuracy, record_.step) == (record.train_accuracy, record.step)


@pytest.mark.parametrize("stored", [True, False])
def test_a_step_divides_its_batch(stored):
    images, labels = small_data(30)
    if not stored:
        images = ((images - 100.0) / 50).astype(np.float32)
    states = []
    for accumulate in (1, 4, 64):  # 64 parts of 30 images are 30
        model = small_model()
        trainer = Trainer(model, optim.SGD(lr=0.1), accumulate=accumulate)
        loss = [trainer.step(images, labels) for _ in range(3)]
        states.append(np.concatenate([loss, model.parameters.flat]))
    np.testing.assert_allclose(states[1], states[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(states[2], states[0], rtol=1e-4, atol=1e-6)


def test_parts_of_a_float_batch_are_dropped_apart():
    """Equal images in both parts: were the masks equal too, the gradients of the parts would be."""
    images, labels = np.ones((2, 3, 8, 8), np.float32), np.zeros(2)
    model = Model(architectures.mlp(4, (8, 8, 3), dropout=0.5), {"name": "small"})
    trainer = Trainer(model, accumulate=2)
    model.initialize(0)
    engine = trainer.engine()
    run, losses = engine.run, []
    engine.run = lambda *a, **k: (result := run(*a, **k), losses.append(float(result["loss"][0])))[0]
    trainer.step(images, labels.astype(int))
    assert len(losses) == 2
    assert losses[0] != losses[1]


def test_too_many_images_a_step_are_refused():
    with pytest.raises(ConfigError, match=r"5 times batch size 8 .* 36 training images"):
        next(iter(Trainer(small_model(), batch_size=8, accumulate=5).fit(small_data(40), epochs=1)))

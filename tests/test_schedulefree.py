"""Schedule-free AdamW: its three sequences, what is validated and kept, and that a stop leaves no trace."""

import json

import numpy as np
import pytest
from small import course, norm_model, resumes, small_data, small_model

from fastadam import checkpoint, data, models, optim, training
from fastadam.config import TrainConfig
from fastadam.data import split
from fastadam.errors import ConfigError
from fastadam.evaluation import evaluate_checkpoint
from fastadam.fit import Fit, statistics_images
from fastadam.interpret import interpret
from fastadam.optim import ScheduleFree
from fastadam.oracles import ORACLES
from fastadam.schedule import Schedule
from fastadam.trainer import Trainer
from fastadam.training import run_training

SETTINGS = ({}, {"lr": 0.1, "beta1": 0.5, "beta2": 0.9, "weight_decay": 0.1, "warmup_steps": 7})


def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    shapes = {"scalar": (), "filter": (5, 3, 3, 3), "long": (20_001,)}
    return {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_y_and_x_are_those_of_the_algorithm(rng, settings):
    """y where the next gradient is taken, and the average x, each from its own formula in float64."""
    params = arrays(rng)
    want = {name: p.astype(np.float64) for name, p in params.items()}
    kept: dict[str, dict[str, np.ndarray]] = {name: {} for name in params}
    optimizer = ScheduleFree(params, **settings)
    for name, x in optimizer.averaged().items():
        np.testing.assert_array_equal(x, params[name])
    for t in range(1, 21):
        gradients = arrays(rng)
        optimizer.step(gradients)
        averaged = optimizer.averaged()
        for name, g in gradients.items():
            want[name] = ORACLES["schedulefree"](want[name], g.astype(float), kept[name], t, optimizer.settings())
            np.testing.assert_allclose(params[name], want[name], rtol=2e-5, atol=5e-6)
            np.testing.assert_allclose(averaged[name], kept[name]["x"], rtol=2e-5, atol=2e-5)
    assert not np.allclose(averaged["long"], params["long"], atol=1e-3)


def test_a_group_is_averaged_by_its_own_beta1(rng):
    """In float64, to all of its digits."""
    params = {name: p.astype(np.float64) for name, p in arrays(rng).items()}
    own = {"scalar": 0.5, "filter": 0.8}
    optimizer = ScheduleFree(
        [{"params": {name: params[name]}, "beta1": beta1} for name, beta1 in own.items()]
        + [{"params": {"long": params["long"]}}],
        lr=0.1,
    )  # fmt: skip
    want = {name: p.copy() for name, p in params.items()}
    kept: dict[str, dict[str, np.ndarray]] = {name: {} for name in params}
    for t in range(1, 6):
        gradients = {name: g.astype(np.float64) for name, g in arrays(rng).items()}
        optimizer.step(gradients)
        for name, g in gradients.items():
            settings = {**optimizer.settings(), "beta1": own.get(name, 0.9)}
            want[name] = ORACLES["schedulefree"](want[name], g, kept[name], t, settings)
    for name, x in optimizer.averaged().items():
        assert x.dtype == np.float64
        np.testing.assert_allclose(x, kept[name]["x"], rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_as_its_authors_have_it(rng, settings):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("schedulefree", reason="pip install schedulefree")
    params = arrays(rng)
    optimizer = ScheduleFree(params, **settings)
    given = optimizer.settings()
    given["betas"] = (given.pop("beta1"), given.pop("beta2"))
    tensors = {name: torch.tensor(p.astype(np.float64), requires_grad=True) for name, p in params.items()}
    other = theirs.AdamWScheduleFree(tensors.values(), **given)
    other.train()
    for _ in range(20):
        gradients = arrays(rng)
        optimizer.step(gradients)
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradients[name].astype(np.float64))
        other.step()
    for name, tensor in tensors.items():
        np.testing.assert_allclose(params[name], tensor.detach().numpy(), rtol=2e-5, atol=5e-6)
    other.eval()
    for name, x in optimizer.averaged().items():
        np.testing.assert_allclose(x, tensors[name].detach().numpy(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("warmup", [0, 1, 2, 9])
def test_a_step_knows_its_share_without_those_before(warmup):
    """In any order: the square of its rate among the squares of all so far."""
    optimizer = ScheduleFree(lr=0.3, warmup_steps=warmup)
    rates = [0.3 * min(1, t / max(1, warmup)) for t in range(1, 41)]
    for t in (40, 3, 9, 10, 1, 2):
        numbers = optimizer.hyper(t)
        want = rates[t - 1] ** 2 / np.sum(np.square(rates[:t]))
        assert optimizer.numbers(t, 0.3)["average"] == pytest.approx(want, rel=1e-12)
        assert numbers[0] == np.float32(rates[t - 1])


def test_what_makes_no_sense_is_refused():
    for settings, message in (
        ({"beta1": 0.0}, "beta1 must be above 0"),
        ({"warmup_steps": -1}, "warmup_steps must be a whole number of 0 or more, it is -1"),
        ({"warmup_steps": 2.5}, "warmup_steps must be a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            ScheduleFree(**settings)
    for settings, message in (
        ({"schedule": "cosine"}, "schedule cosine has no meaning for optimizer schedulefree"),
        ({"ema": 0.9}, "ema has no meaning for optimizer schedulefree"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            TrainConfig(optimizer="schedulefree", **settings)
        assert "\n" not in str(caught.value)
        with pytest.raises(ConfigError, match=message):
            Trainer(small_model(), "schedulefree", **settings)
    with pytest.raises(ValueError, match="a trainer warms up by epochs"):
        Trainer(small_model(), ScheduleFree(warmup_steps=5))


def test_a_run_by_it_has_a_constant_rate_whatever_the_recipe():
    for model in ("cnn", "vgg", "resnet20"):
        config = TrainConfig(model=model, optimizer="schedulefree").resolved(train_images=1000)
        assert (config.schedule, config.warmup, config.lr, config.weight_decay) == ("constant", 0.0, 0.0025, 0.0)
    config = TrainConfig(optimizer="schedulefree", warmup=0.5).resolved(train_images=1000)
    assert (config.schedule, config.warmup) == ("constant", 0.5)


# Training -----------------------------------------------------------------------------------------------------


def schedule_free(**settings: object) -> Fit:
    return course(norm_model(dropout=0.3), optimizer="schedulefree", warmup=0.75, augment=("flip",), **settings)


def averaged_by_hand(fit: Fit) -> np.ndarray:
    y, z = fit.trainer.model.parameters.flat, fit.trainer.moments["Z"].flat
    return y.astype(np.float64) + (1 - 1 / 0.9) * (z.astype(np.float64) - y)


def test_a_course_is_the_algorithm_with_its_warmup():
    """Parameters after each step from the gradients taken before it; decay spares the vectors."""
    fit = schedule_free(lr=0.02, decay="all")
    fit.trainer.optimizer.weight_decay = 0.1
    model, want, kept = fit.trainer.model, fit.trainer.model.parameters.flat.astype(np.float64), {}
    settings = {**fit.trainer.optimizer.settings(), "warmup_steps": 4}  # 0.75 of 4 steps, then the full rate
    begun = want
    while not fit.done:
        fit.step()
        t, g = fit.cursor.step, fit.trainer.engine().arenas["GRAD"].flat.astype(np.float64)
        want = ORACLES["schedulefree"](want, g, kept, t, settings)
        np.testing.assert_allclose(model.parameters.flat, want, rtol=1e-4, atol=1e-5)
        if fit.epoch_done:
            record = fit.end_epoch()
            np.testing.assert_allclose(fit.trainer.average.weights.flat, kept["x"], rtol=1e-4, atol=1e-5)
    assert record.lr == 0.02
    assert not np.allclose(want, begun, atol=0.01)
    assert fit.trainer.group["warmup_steps"] == 4
    rates = Schedule("constant", 0.02, 8, 3)
    assert [rates(step) for step in range(8)] == pytest.approx([0.02 * min(1, t / 4) for t in range(1, 9)])


def test_what_is_validated_has_the_averaged_weights_and_statistics_made_for_them():
    fit = schedule_free(lr=0.02)
    while not fit.epoch_done:
        fit.step()
    trained = fit.trainer.model.parameters.flat.copy(), fit.trainer.model.state.flat.copy()
    record = fit.end_epoch()
    model, average = fit.trainer.model, fit.trainer.average
    assert np.array_equal(trained[0], model.parameters.flat)
    assert np.array_equal(trained[1], model.state.flat)
    np.testing.assert_allclose(average.weights.flat, averaged_by_hand(fit), rtol=1e-6, atol=1e-7)
    x = (fit.feed.images.transpose(0, 2, 3, 1) / 255 - model.mean) / model.std
    params = {name: view.astype(np.float64) for name, view in average.weights.views.items()}
    state, order, seen = (
        {n: np.zeros(v.shape) for n, v in model.state.views.items()},
        statistics_images(fit.train, 0),
        0,
    )
    for start in range(0, 80, 24):
        part = order[start : start + 24]
        seen += len(part)
        share = len(part) / seen
        result = interpret(
            norm_model().graph, params, state, x[part], fit.feed.labels[part], momentum=share, training=True
        )
        state = result.state
    for name, view in average.state.views.items():
        np.testing.assert_allclose(view, state[name], rtol=1e-4, atol=1e-6, err_msg=name)
    other = norm_model()
    other.load_state_dict(fit.trainer.averaged_state_dict())
    other.set_normalization(model.mean, model.std)
    right = other.predict(fit.feed.images[fit.val]) == fit.feed.labels[fit.val]
    assert record.val_accuracy == right.mean()
    result = fit.trainer.evaluate(fit.feed.images[fit.val], fit.feed.labels[fit.val])
    assert (result.accuracy, result.loss) == (record.val_accuracy, pytest.approx(record.val_loss))


def test_a_step_of_ones_own_and_the_average_after_it():
    """Without ``fit``: x is that of the last step, evaluated with the model's running statistics."""
    images, labels = small_data(16)
    trainer = Trainer(norm_model(), "schedulefree", lr=0.05)
    trainer.model.set_normalization((0.4,) * 3, (0.2,) * 3)
    for _ in range(60):
        trainer.step(images, labels)
    other = norm_model()
    other.load_state_dict({**trainer.averaged_state_dict(), **{
        name: tensor for name, tensor in trainer.model.state_dict().items() if "running" in name
    }})  # fmt: skip
    other.set_normalization(trainer.model.mean, trainer.model.std)
    result = trainer.evaluate(images, labels)
    assert result.accuracy == (other.predict(images) == labels).mean() > 0.8
    weights = trainer.average.weights.flat
    assert 0 < np.abs(weights - trainer.model.parameters.flat).max() < 0.5


def test_an_optimiser_serves_two_trainers():
    """What a course makes of its warm-up stays the trainer's."""
    optimizer = ScheduleFree(lr=0.02)
    for _ in range(2):
        course(small_model(), optimizer=optimizer, lr=None, warmup=0.75)
    assert optimizer.warmup_steps == 0


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_course_gone_on_with_has_the_same_bits(stop):
    settings = {"lr": 0.02, "batch_size": 8, "accumulate": 3, "clip_norm": 0.5}
    whole, cut = schedule_free(**settings), schedule_free(**settings)
    for fit in (whole, cut):
        while not fit.done and (fit is whole or fit.cursor.step < stop):
            fit.step()
            if fit.epoch_done:
                fit.end_epoch()
    fit = schedule_free(**settings)
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


def test_a_run_keeps_the_averaged_weights(tmp_path, monkeypatch):
    """As best and for the test; the last checkpoint has both; a run stopped in an epoch ends with the same bytes."""
    data.write_binary(tmp_path / "data", data.synthetic.generate(train=130, test=40, seed=1))
    config = TrainConfig.from_dict({
        "data": str(tmp_path / "data"), "model": "resnet20", "optimizer": "schedulefree", "epochs": 2, "batch_size": 32,
        "val_size": 34, "warmup": 0.5, "augment": [],
    })  # fmt: skip
    summary = run_training(config, out=tmp_path / "run")
    best, last = (checkpoint.load(tmp_path / "run" / f"{name}.safetensors") for name in ("best", "last"))
    assert best.metadata["weights"] == "schedulefree"
    result = evaluate_checkpoint(tmp_path / "run", config.data)
    assert result["accuracy"] == summary["test_accuracy"]
    model, dataset = models.load(tmp_path / "run"), data.load(config.data)
    _, val = split(dataset.train_labels, 34, 0)
    right = model.predict(dataset.train_images[val]) == dataset.train_labels[val]
    assert right.mean() == summary["val_accuracy"]
    if best.metadata["epoch"] == 2:
        assert all(np.array_equal(last.tensors[f"schedulefree/{name}"], t) for name, t in best.tensors.items())
    assert not np.array_equal(last.tensors["schedulefree/fc.weight"], last.tensors["fc.weight"])
    resumes(config, tmp_path, monkeypatch)
    run_training(TrainConfig.from_dict({"data": config.data, "model": "resnet20", "epochs": 1, "batch_size": 32,
        "init": str(tmp_path / "run" / "last.safetensors")}), out=tmp_path / "next")  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "arenas"),
    [
        ({"optimizer": "schedulefree"}, {"Z", "V", "AVERAGE", "AVERAGE.STATE"}),
        ({"optimizer": "adam", "amsgrad": True}, {"M", "V", "V_MAX"}),
    ],
)
def test_the_plan_counts_what_a_trainer_takes(tmp_path, settings, arenas):
    data.write_binary(tmp_path, data.synthetic.generate(train=130, test=40, seed=1))
    config = TrainConfig.from_dict({"data": str(tmp_path), "model": "resnet20", "batch_size": 32, **settings})
    plan = training.describe_plan(config)
    assert plan.step.arena_bytes.keys() == {"PARAM", "GRAD", "STATE"} | arenas
    trainer = Trainer(models.build("resnet20"), optim.OPTIMIZERS[config.optimizer](amsgrad=True)
                      if config.amsgrad else config.optimizer)  # fmt: skip
    assert sum(plan.step.arena_bytes.values()) == sum(a.flat.nbytes for a in trainer.engine().arenas.values())

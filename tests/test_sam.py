"""Sharpness-aware minimization: both gradients of a step, what is kept, and that a stop leaves no trace."""

import json

import numpy as np
import pytest
from small import course, norm_model, resumes, small_data, small_model

from fastadam import data, training
from fastadam.arena import Arena
from fastadam.budget import NOT_KEPT
from fastadam.config import TrainConfig
from fastadam.errors import ConfigError
from fastadam.fit import Fit
from fastadam.interpret import interpret
from fastadam.model import Model
from fastadam.optim import SGD
from fastadam.plan import Plan
from fastadam.trainer import Trainer
from fastadam.training import run_training

RHO = 0.5


def float_batch(count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, 3, 8, 8), np.float32), rng.integers(0, 4, count)


def flat(model: Model, gradients: dict[str, np.ndarray]) -> np.ndarray:
    """Gradients by name as the arena of parameters has them."""
    arena = Arena(model.graph.trained(), dtype=np.float64)
    arena.load(gradients)
    return arena.flat


def test_steps_are_those_of_the_paper():
    """In float64, node by node: uphill by rho, the same images and dropout there, and then SGD from where it was."""
    images, labels = float_batch()
    model, exact = norm_model(dropout=0.3), norm_model(dropout=0.3)
    trainer = Trainer(model, "sgd", lr=0.1, sam=RHO, seed=5)
    params = {name: view.astype(np.float64) for name, view in exact.parameters.views.items()}
    state = {name: view.astype(np.float64) for name, view in exact.state.views.items()}
    x = images.transpose(0, 2, 3, 1)
    for t in range(4):
        loss = trainer.step(images, labels)
        first = interpret(model.graph, params, state, x, labels, key=(5, t))
        norm = np.sqrt(sum((g**2).sum() for g in first.gradients.values()))
        uphill = {name: p + RHO * first.gradients[name] / norm for name, p in params.items()}
        second = interpret(model.graph, uphill, state, x, labels, key=(5, t))
        assert loss == pytest.approx(first.loss, rel=1e-5)
        np.testing.assert_allclose(trainer.engine().arenas["ASCENT"].flat, flat(model, uphill), rtol=1e-4, atol=2e-5)
        assert second.loss > first.loss
        params = {name: p - 0.1 * second.gradients[name] for name, p in params.items()}
        state = first.state  # of the first pass alone
        for name, p in params.items():
            np.testing.assert_allclose(model.parameters.views[name], p, rtol=1e-4, atol=2e-5, err_msg=name)
        for name, s in state.items():
            np.testing.assert_allclose(model.state.views[name], s, rtol=1e-4, atol=2e-5, err_msg=name)


def test_both_gradients_are_of_the_same_augmented_images():
    """Uphill by almost nothing they are the same, so the step is the plain one."""
    results = []
    for sam in (None, 1e-12):
        fit = course(norm_model(dropout=0.3), optimizer="sgd", augment=("flip", "crop", "cutout"), sam=sam)
        while not fit.done:
            fit.step()
            if fit.epoch_done:
                record = fit.end_epoch()
        results.append((fit.trainer.model.parameters.flat.copy(), fit.trainer.model.state.flat.copy(), record))
    (plain, state, record), (uphill, their_state, their_record) = results
    np.testing.assert_allclose(uphill, plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(their_state, state, rtol=1e-5, atol=1e-6)
    assert their_record.train_loss == pytest.approx(record.train_loss, rel=1e-5)
    assert their_record.train_accuracy == record.train_accuracy


def test_the_parameters_are_never_moved_but_by_the_update():
    """Not even in between, so that a step which fails half way leaves them as they were, to the bit."""
    images, labels = float_batch()
    trainer = Trainer(small_model(), "sgd", lr=0.1, sam=RHO)
    trainer.step(images, labels)
    before, engine, seen = trainer.model.parameters.flat.copy(), trainer.engine(), []
    right = engine.run

    def failing(*arguments: object, **settings: object) -> object:
        if settings["part"] == "descent":
            seen.append(trainer.model.parameters.flat.copy())
            raise MemoryError
        return right(*arguments, **settings)

    engine.run = failing
    with pytest.raises(MemoryError):
        trainer.step(images, labels)
    assert np.array_equal(seen[0], before)
    assert np.array_equal(trainer.model.parameters.flat, before)
    moved = engine.arenas["ASCENT"].flat - before
    assert np.linalg.norm(moved) == pytest.approx(RHO, rel=1e-3)


def test_a_gradient_of_nothing_leads_nowhere():
    """At a point with no slope there is no direction: the parameters stay numbers."""
    images, labels = np.zeros((4, 3, 8, 8), np.float32), np.arange(4)
    model = small_model()
    model.parameters.flat[:] = 0  # all logits equal, one image of each class
    trainer = Trainer(model, "sgd", lr=0.1, sam=RHO)
    trainer.step(images, labels)
    assert np.array_equal(model.parameters.flat, np.zeros_like(model.parameters.flat))


def test_it_trains_and_finds_flatter_ground():
    """Both losses end at nothing; a little uphill of there it is still nothing with SAM, and much without."""
    images, labels = small_data(32)
    uphill = []
    for sam in (None, 0.05):
        model, higher = small_model(), small_model()
        for one in (model, higher):
            one.set_normalization((0.4,) * 3, (0.2,) * 3)
        trainer = Trainer(model, SGD(lr=0.02, momentum=0.9), sam=sam)
        losses = [trainer.step(images, labels) for _ in range(200)]
        assert losses[-1] < 1e-3 < 1 < losses[0]
        _, gradients = model.loss_and_gradients(images, labels)
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values()))
        higher.load_state_dict({n: p + np.float32(0.2 / norm) * gradients[n] for n, p in model.state_dict().items()})
        uphill.append(higher.loss_and_gradients(images, labels)[0])
    assert uphill[0] > 1
    assert uphill[1] < 0.1


def test_what_makes_no_sense_is_refused():
    for sam in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="sam must be a"):
            Trainer(small_model(), sam=sam)
    with pytest.raises(ConfigError, match="give accumulate 1, not 2"):
        Trainer(small_model(), sam=0.05, accumulate=2)
    graph = small_model().graph
    for settings in (
        {"sam": 0.1}, {"part": "ascent"}, {"part": "descent", "update": "sgd"}, {"part": "last", "sam": 0.1},
        {"part": "ascent", "sam": 0.0}, {"part": "ascent", "sam": 0.1, "update": "sgd"},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"sam|ascent"):
            Plan(graph, 4, **settings)


def test_plans_of_both_gradients():
    """The first ends with the point uphill; the second reads its weights there, and updates the parameters."""
    graph = norm_model().graph
    first = Plan(graph, 8, part="ascent", sam=0.1)
    second = Plan(graph, 8, part="descent", sam=0.1, update="adamw", clip_norm=1.0)
    plain = Plan(graph, 8, update="adamw", clip_norm=1.0)
    assert [call.op for call in first.calls[-2:]] == ["norm_lanes", "sam_ascent"]
    assert [call.op for call in second.calls] == [call.op for call in plain.calls]
    weights = {slot.kind for plan in (first, second) for slot in plan.slots if slot.name == "c1.weight"}
    assert weights == {"PARAM", "ASCENT", "GRAD"}
    assert not any(slot.kind == "PARAM" for slot in second.slots)
    assert second.calls[-1].outs[0].name == "PARAM"
    count = plain.arena_bytes["PARAM"]
    assert second.arena_bytes == plain.arena_bytes | {"ASCENT": count}
    assert first.arena_bytes.keys() == {"PARAM", "GRAD", "ASCENT", "STATE"}


# Together with everything else --------------------------------------------------------------------------------


def everything(threads: int = 2, **settings: object) -> Fit:
    return course(
        norm_model(dropout=0.3), 3, optimizer="adamw", sam=0.05, clip_norm=0.5, label_smoothing=0.1,
        augment=("flip", "crop"), threads=threads, **{"ema": 0.9, **settings},
    )  # fmt: skip


def finished(fit: Fit, steps: int = 99) -> Fit:
    while not fit.done and fit.cursor.step < steps:
        fit.step()
        if fit.epoch_done:
            fit.end_epoch()
    return fit


def bits(fit: Fit) -> dict[str, bytes]:
    tensors = fit.trainer.model.state_dict() | fit.tensors()
    return {name: tensor.tobytes() for name, tensor in tensors.items()}


@pytest.mark.parametrize("average", [{"ema": 0.9}, {"ema": None, "swa": 2}, {"ema": None, "lookahead": 3}], ids=str)
@pytest.mark.parametrize("stop", [3, 8])
def test_a_course_gone_on_with_has_the_same_bits(average, stop):
    whole, cut, fit = finished(everything(**average)), finished(everything(**average), stop), everything(**average)
    fit.trainer.model.load_state_dict(cut.trainer.model.state_dict())
    fit.restore(cut.tensors(), json.loads(json.dumps(cut.metadata())))
    assert bits(finished(fit)) == bits(whole)
    assert not any("ascent" in name.lower() for name in bits(fit))


def test_any_number_of_threads_gives_the_same_bits():
    first, second, third = (bits(finished(everything(threads))) for threads in (1, 2, 3))
    assert first == second == third


@pytest.mark.parametrize("optimizer", ["schedulefree", "adamw_bf16"])
def test_other_optimisers_take_it_too(optimizer):
    fit = course(norm_model(), optimizer=optimizer, sam=0.05)
    losses = []
    while not fit.done:
        losses.append(fit.step())
        if fit.epoch_done:
            fit.end_epoch()
    assert losses[-1] < losses[0]


def test_a_run_counts_the_arena_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    data.write_binary(tmp_path / "data", data.synthetic.generate(train=130, test=40, seed=1))
    settings = {"data": str(tmp_path / "data"), "model": "resnet20", "epochs": 2, "batch_size": 40, "val_size": 34}
    config, plain = (TrainConfig.from_dict({**settings, "sam": sam}) for sam in (0.05, None))
    plan, other = training.describe_plan(config), training.describe_plan(plain)
    assert "ASCENT" in NOT_KEPT
    assert plan.total_bytes - other.total_bytes == plan.step.arena_bytes["ASCENT"] == plan.step.arena_bytes["PARAM"]
    assert plan.step.update == "sgd"
    assert sum(row.arena_bytes for row in plan.layers) == sum(plan.step.arena_bytes.values())
    run_training(config, out=tmp_path / "run")
    resumes(config, tmp_path, monkeypatch)

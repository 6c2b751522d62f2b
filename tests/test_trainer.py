"""The trainer: it learns, it is deterministic, it says what is wrong."""

import gc
import os
import re
import subprocess
import sys
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from small import norm_model, small_data, small_model

from fastadam import data, models, optim
from fastadam.augment import Augment
from fastadam.engine import Feed
from fastadam.errors import ConfigError, DeviceError, DivergedError
from fastadam.fit import Fit
from fastadam.graph import Graph, Node
from fastadam.model import Model
from fastadam.trainer import Trainer


@pytest.mark.parametrize("rule", sorted(optim.OPTIMIZERS))
def test_overfits_one_batch(rule):
    images, labels = small_data(16)
    special = {"sgd": {"lr": 0.02, "momentum": 0.9}, "padam": {"lr": 0.1}, "lars": {"lr": 3.0}}
    settings = special.get(rule, {"lr": 0.01})
    model = small_model()
    model.set_normalization((0.4,) * 3, (0.2,) * 3)
    trainer = Trainer(model, optim.OPTIMIZERS[rule](None, **settings))
    losses = [trainer.step(images, labels) for _ in range(150)]
    assert losses[0] > 1.0
    assert losses[-1] < 0.05
    assert (model.predict(images) == labels).all()


def test_its_memory_goes_with_it():
    """At once: a GPU's is not to wait for Python to look for cycles. The model's stays with the model."""
    trainer = Trainer(small_model(), "adamw")
    trainer.step(*small_data(16))
    engine = trainer.engine()
    held = {name: weakref.ref(arena.on(trainer.device).flat) for name, arena in engine.arenas.items()}
    held["programs"], model = weakref.ref(engine), trainer.model
    gc.disable()
    try:
        del trainer, engine
        assert {name for name, it in held.items() if it() is not None} == {"PARAM", "STATE"}
        del model
        assert not any(it() is not None for it in held.values())
    finally:
        gc.enable()


def test_fit_generalises_and_tells_of_it():
    model = small_model()
    records = list(Trainer(model, "adam", 3e-3, batch_size=32).fit(small_data(800), epochs=4, val_size=80))
    assert [record.epoch for record in records] == [1, 2, 3, 4]
    assert [record.step for record in records] == [23, 46, 69, 92]  # 720 images: the last batch of 16 counts
    assert records[-1].val_accuracy > 0.95
    assert records[-1].train_loss < records[0].train_loss
    images, labels = small_data(100, seed=9)
    assert (model.predict(images) == labels).mean() > 0.9


@pytest.mark.parametrize("augment", [(), ("flip", "crop", "cutout")])
def test_any_number_of_threads_gives_the_same_bits(augment):
    data, states = small_data(70), []
    for threads in (1, 2, 3, 4):
        model = small_model(3)
        trainer = Trainer(model, batch_size=32, augment=augment, clip_norm=1.0, label_smoothing=0.1, threads=threads)
        records = list(trainer.fit(data, epochs=2, val_size=10))
        states.append(
            [
                records[-1].train_loss,
                *model.state_dict().values(),
                *(m.flat for m in trainer.moments.values()),
            ]
        )
    for other in states[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(states[0], other, strict=True))


def test_seeds_decide():
    def run(seed: int) -> np.ndarray:
        model = small_model(1)
        list(Trainer(model, batch_size=16, augment=("crop",), seed=seed).fit(small_data(), epochs=1))
        return model.parameters.flat.copy()

    assert np.array_equal(run(5), run(5))
    assert not np.array_equal(run(5), run(6))


def test_a_step_takes_stored_or_normalised_images():
    images, labels = small_data(8)
    models_ = small_model(), small_model()
    for model in models_:
        model.set_normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    normalised = (images / np.float32(255) - models_[0].mean.reshape(3, 1, 1)) / models_[0].std.reshape(3, 1, 1)
    first = Trainer(models_[0]).step(images, labels)
    second = Trainer(models_[1]).step(normalised.astype(np.float32), labels)
    assert first == pytest.approx(second, rel=1e-5)
    np.testing.assert_allclose(
        models_[0].predict_proba(images), models_[1].predict_proba(normalised.astype(np.float32)), atol=1e-4
    )


def test_a_step_allocates_no_memory_to_speak_of():
    """After the first step nothing as large as a single activation is taken."""
    images, labels = small_data(32)
    trainer = Trainer(small_model())
    for _ in range(3):
        trainer.step(images, labels)
    tracemalloc.start()
    trainer.step(images, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16_000, "the smallest activation of this batch takes 32 x 12 x 4 bytes, the largest 32 KB"


def test_gradients_leave_the_model_alone():
    model, (images, labels) = small_model(), small_data(12)
    before = model.state_dict()
    loss, gradients = model.loss_and_gradients(images, labels)
    assert list(gradients) == list(before)
    assert all(np.array_equal(before[name], value) for name, value in model.state_dict().items())
    norm = np.sqrt(sum(float(np.vdot(g, g)) for g in gradients.values()))
    direction = {name: g / norm for name, g in gradients.items()}
    slope, step = norm, 1e-2
    losses = []
    for sign in (1, -1):
        model.load_state_dict({n: before[n] + sign * step * direction[n] for n in before})
        losses.append(model.loss_and_gradients(images, labels)[0])
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=2e-2)  # float32 losses
    assert loss == pytest.approx(np.mean(losses), rel=1e-2)


def test_the_seed_of_gradients_chooses_what_dropout_drops():
    model, (images, labels) = norm_model(dropout=0.5), small_data(12)
    losses = [model.loss_and_gradients(images, labels, seed=seed)[0] for seed in (0, 1, 2, 1)]
    assert losses[1] == losses[3]
    assert len(set(losses)) == 3
    assert model.loss_and_gradients(images, labels)[0] == losses[0]
    with pytest.raises(ValueError, match="seed"):
        model.loss_and_gradients(images, labels, seed=0.5)


def test_clipping_bounds_the_step():
    model, (images, labels) = small_model(), small_data(12)
    before = model.parameters.flat.copy()
    Trainer(model, optim.SGD(lr=1.0), clip_norm=1e-3).step(images, labels)
    assert np.linalg.norm(model.parameters.flat - before) == pytest.approx(1e-3, rel=1e-3)


def test_divergence_is_an_error():
    with pytest.raises(DivergedError, match="step"):
        list(Trainer(small_model(), optim.SGD(lr=1e30), batch_size=8).fit(small_data(), epochs=5))


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ConfigError, match=r"batch size 64 .* 36 training images"):
        next(iter(Trainer(small_model(), batch_size=64).fit(small_data(40), epochs=1)))


def test_arguments_are_checked():
    model, (images, labels) = small_model(), small_data(4)
    trainer = Trainer(model)
    for bad_images, bad_labels, words in (
        (images[:, :2], labels, r"\(N, 3, 8, 8\)"),
        (images.astype(np.float64), labels, "float64"),
        (images, labels[:3], "4 integers"),
        (images, labels + 1, "0 .. 3"),
        (images, labels.astype(float), "integers"),
    ):
        with pytest.raises(ValueError, match=words):
            trainer.step(bad_images, bad_labels)
    with pytest.raises(ConfigError, match="adamm"):
        Trainer(model, "adamm")
    with pytest.raises(ConfigError, match="flop"):
        Trainer(model, augment=("flop",))
    with pytest.raises(ConfigError, match="resnot"):
        models.build("resnot")


def test_settings_are_checked():
    model = small_model()
    for settings, words in (
        ({"batch_size": 0}, "batch_size"),
        ({"schedule": "linear"}, "linear"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"schedule": "cosine", "warmup": -1}, "warmup"),
        ({"schedule": "step", "gamma": -0.5}, "gamma"),
        ({"optimizer": optim.Adam({"w": np.zeros(3, np.float32)})}, "made without parameters"),
        ({"optimizer": optim.Adam(), "lr": 1.0}, "its own lr"),
    ):
        with pytest.raises((ValueError, ConfigError), match=words):
            Trainer(model, **settings)
    for wrong in ({"epochs": 0}, {"steps": 0}):
        with pytest.raises(ValueError, match="1 or more"):
            next(Trainer(model, batch_size=8).fit(small_data(), **wrong))
    for wrong in ({"eps": 0.0}, {"eps": 1e-60}, {"beta1": 1.0}, {"lr": -1}, {"lr": float("nan")}, {"beta2": -0.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            optim.Adam(**wrong)


@pytest.mark.parametrize(
    ("name", "change", "then"),
    [
        ("adam", {"lr": 0.005, "beta2": 0.9}, {}),
        ("muon", {"lr": 0.005}, {"adamw_lr": 0.0005}),
        ("muon", {"ns_steps": 1, "adjust_lr_fn": "match_rms_adamw", "eps": 50.0}, {}),
        ("adabound", {"lr": 0.005}, {"final_lr": 0.05}),
        ("schedulefree", {"lr": 0.005, "weight_decay": 0.5}, {}),
    ],
)
def test_settings_of_the_optimiser_may_change_between_steps(name, change, then):
    """As if it had been made with them; one change is seen, whatever the class."""
    (images, labels), nets = small_data(12), [small_model() for _ in range(2)]
    optimizer = optim.OPTIMIZERS[name](lr=0.01)
    one = Trainer(nets[0], optimizer)
    one.step(images, labels)
    for key, value in change.items():
        setattr(optimizer, key, value)
    other = Trainer(nets[1], optim.OPTIMIZERS[name](**{"lr": 0.01, **change, **then}))
    nets[1].load_state_dict(nets[0].state_dict())
    for key, arena in one.moments.items():
        other.moments[key].flat[:] = arena.flat
    other.t = one.t
    for trainer in (one, other):
        trainer.step(images, labels)
    assert nets[0].parameters.flat.tobytes() == nets[1].parameters.flat.tobytes()


def test_another_beta1_is_another_average():
    optimizer, (images, labels) = optim.ScheduleFree(), small_data(12)
    trainer = Trainer(small_model(), optimizer)
    trainer.step(images, labels)
    trainer.step(images, labels)
    optimizer.beta1 = 0.5
    trainer.averaged_state_dict()
    y, z = trainer.model.parameters.flat, trainer.moments["Z"].flat
    np.testing.assert_allclose(trainer.average.weights.flat, y - (z - y), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "setting", "value", "words"),
    [
        ("adam", "amsgrad", True, "these settings ask for the rule amsgrad"),
        ("adam", "beta1", 1.0, "beta1 must be"),
        ("muon", "ns_steps", 0, "ns_steps must be a whole number from 1 to 99, it is 0"),
        ("schedulefree", "warmup_steps", 5, "a trainer warms up by epochs"),
    ],
)
def test_changes_that_make_no_sense_are_refused(name, setting, value, words):
    (images, labels), optimizer, model = small_data(12), optim.OPTIMIZERS[name](), small_model()
    trainer, before = Trainer(model, optimizer), model.parameters.flat.copy()
    setattr(optimizer, setting, value)
    with pytest.raises(ValueError, match=words):
        trainer.step(images, labels)
    assert trainer.t == 0
    assert (model.parameters.flat == before).all()


@pytest.mark.parametrize("optimizer", [optim.SGD(weight_decay=1e60), optim.AdamW(lr=1e30, weight_decay=1e20)], ids=str)
def test_settings_that_float32_cannot_hold_are_refused(optimizer):
    trainer = Trainer(small_model(), optimizer)
    with pytest.raises(ValueError, match=r"decay of step 1 is .* more than float32 can hold"):
        trainer.step(*small_data(12))


@pytest.mark.parametrize(("side", "crop", "cutout"), [(32, 4, 16), (64, 8, 32), (8, 1, 4), (4, 1, 2)])
def test_augmentations_are_in_proportion(side, crop, cutout):
    assert Augment.named("flip, crop,cutout", side) == Augment(True, crop, cutout)
    assert Augment.named("none", side) == Augment.named((), side) == Augment.named(None, side) == Augment()


def test_holes_leave_something_of_a_small_image():
    images, labels = small_data(64)
    losses = [Trainer(small_model(), augment="cutout").step(x, labels) for x in (images, np.zeros_like(images))]
    assert losses[0] != losses[1]


def test_fit_refuses_as_it_is_called():
    """Not only when the first record is asked for."""
    trainer, (images, labels) = Trainer(small_model()), small_data(40)
    with pytest.raises(TypeError, match=r"a data set or a pair \(images, labels\), it is ndarray"):
        trainer.fit(images, labels)
    with pytest.raises(ValueError, match="labels must lie in 0 "):
        trainer.fit((images, labels + 1))
    for lengths in ({"epochs": labels}, {"epochs": 0}, {"steps": 1.5}):
        with pytest.raises((ValueError, TypeError), match="must be a"):
            trainer.fit((images, labels), **lengths)


def test_a_data_set_is_checked_as_arrays_are_and_names_the_classes():
    made = data.synthetic.generate(train=40, test=4)
    with pytest.raises(ValueError, match="they reach 0 "):
        Trainer(models.build("mlp", classes=5)).fit(made)
    with pytest.raises(ValueError, match="64"):
        Trainer(models.build("mlp", shape=(64, 64, 3))).fit(made)
    model = models.build("mlp")
    next(Trainer(model, batch_size=8).fit(made, steps=1))
    assert model.classes == made.classes


def test_one_image_may_be_trained_on():
    images, labels = small_data(1)
    (record,) = Trainer(small_model(), batch_size=1).fit((images, labels), epochs=1, val_size=0)
    assert record.step == 1


def test_fitting_twice_goes_on():
    """The second course keeps the moments and their step count, and draws new numbers."""
    data, model = small_data(48), small_model()
    trainer = Trainer(model, "adam", 1e-3, batch_size=16, augment=("crop",))
    first = list(trainer.fit(data, epochs=1, val_size=8))
    assert (trainer.t, trainer.epochs) == (3, 1)
    second = list(trainer.fit(data, epochs=1, val_size=8))
    assert (trainer.t, trainer.epochs) == (6, 2)
    assert first[0].step == second[0].step == 3
    assert trainer.moments["M"].flat.any()
    other = small_model()
    together = Trainer(other, "adam", 1e-3, batch_size=16, augment=("crop",))
    list(together.fit(data, epochs=2, val_size=8))  # a constant schedule: two courses are one
    assert np.array_equal(model.parameters.flat, other.parameters.flat)


def test_moments_that_overflow_are_seen():
    model, (images, labels) = small_model(), small_data(16)
    trainer = Trainer(model, "adam", 1e-9, batch_size=8)
    fit = Fit(trainer, Feed(images, labels.astype(np.int32)), np.arange(16), np.arange(0), 1, None)
    fit.step()
    trainer.moments["V"].flat[3] = np.inf
    with pytest.raises(DivergedError, match="V are not finite"):
        fit.end_epoch()


def test_one_model_serves_many_threads():
    model, (images, _) = small_model(), small_data(64)
    parts = [images[16 * i : 16 * i + 16] for i in range(4)]
    want = [model.predict_proba(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda i: model.predict_proba(parts[i % 4]), range(200)))
    assert all(np.array_equal(one, want[i % 4]) for i, one in enumerate(got))


def test_programs_do_not_pile_up():
    model, (images, labels) = small_model(), small_data(64)
    trainer = Trainer(model)
    for size in range(1, 60):
        trainer.step(images[:size], labels[:size])
        trainer.evaluate(images[:size], labels[:size])
    engine = trainer.engine()
    assert max(len(engine._programs), len(engine._rooms)) <= 16


def test_default_threads_follow_numba():
    """Nobody asked for more threads than numba was started with, so nobody is refused."""
    code = (
        "import numba, fastadam, numpy as np; model = fastadam.models.build('mlp');"
        "print(model.predict(np.zeros((1, 3, 32, 32), np.uint8)).shape)"
    )
    environment = {**os.environ, "NUMBA_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.stdout.strip() == "(1,)", run.stderr


def test_state_dicts_are_checked_and_copied():
    model = small_model()
    state = model.state_dict()
    state["fc.bias"][...] = 7
    assert not (model.state_dict()["fc.bias"] == 7).any()
    model.load_state_dict(state)
    assert (model.state_dict()["fc.bias"] == 7).all()
    for wrong, words in (
        ({**state, "more": state["fc.bias"]}, "more"),
        ({k: v for k, v in state.items() if k != "fc.bias"}, "fc.bias"),
        ({**state, "fc.bias": np.zeros(3, np.float32)}, "fc.bias"),
    ):
        with pytest.raises(ValueError, match=words):
            model.load_state_dict(wrong)
    assert (model.state_dict()["fc.bias"] == 7).all()


def test_every_graph_op_trains_alike_on_any_number_of_threads():
    """A graph with every operation: the whole step, not only the networks by name."""
    nodes = [Node("input", "x", (), {"shape": (8, 8, 3)})]

    def add(op: str, *inputs: str, name: str, **attrs: object) -> str:
        nodes.append(Node(op, name, inputs, attrs))
        return name

    conv = {"kernel": 3, "pad": 1}
    a = add(
        "relu",
        add("bn", add("conv", "x", name="c1", out=6, stride=1, bias=False, **conv), name="b1"),
        name="r1",
    )
    b = add("bn", add("conv", a, name="c2", out=8, stride=2, bias=True, **conv), name="b2")
    c = add("conv", a, name="c3", out=8, stride=2, bias=False, kernel=1, pad=0)
    d = add("dropout", add("relu", add("add", b, c, name="s"), name="r2"), name="d", p=0.2)
    e = add("linear", add("avgpool", add("maxpool", d, name="p"), name="g"), name="fc", out=4, bias=True)
    graph = Graph(nodes)
    assert graph.output == e
    images, labels = small_data(48)
    states = []
    for threads in (1, 3):
        model = Model(graph, {"name": "all"})
        model.initialize(0)
        trainer = Trainer(model, "adam", 0.01, threads=threads)
        losses = [trainer.step(images, labels) for _ in range(30)]
        states.append(np.concatenate([model.parameters.flat, model.state.flat, losses]))
    assert np.array_equal(*states)
    assert losses[-1] < losses[0] / 2


def test_biases_and_norms_do_not_decay():
    """A rate so small that nothing but the decay moves: by 0.1 the weights, and the rest only if all decay."""
    for decay, spared in (("weights", {"conv1.bias", "fc1.bias", "fc.bias"}), ("all", set())):
        model, (images, labels) = small_model(), small_data(12)
        before = model.state_dict()
        Trainer(model, optim.AdamW(lr=1e-30, weight_decay=1e29), decay=decay).step(images, labels)
        after = model.state_dict()
        for name in ("conv1.weight", "fc1.weight", "fc.weight", "conv1.bias", "fc1.bias", "fc.bias"):
            shrunk = 1.0 if name in spared else 0.9
            np.testing.assert_allclose(after[name], shrunk * before[name], rtol=1e-6, err_msg=f"{decay} {name}")
    with pytest.raises(ValueError, match="weights, all"):
        Trainer(small_model(), decay="some")


# What users get wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"batch_size": "8"}, "batch_size must be a number, it is '8'"),
        ({"accumulate": 1.5}, "accumulate must be a whole number"),
        ({"seed": 2**63}, "seed must be a whole number"),
        ({"seed": "a"}, "seed must be a number"),
        ({"lr": "0.1"}, "lr must be a number"),
        ({"warmup": np.nan}, "warmup must be a finite number"),
        ({"gamma": "a"}, "gamma must be a number"),
        ({"label_smoothing": None}, "label_smoothing must be a number"),
        ({"clip_norm": -1.0}, "clip_norm must be above 0"),
        ({"clip_agc": "a"}, "clip_agc must be a number"),
        ({"milestones": [np.inf]}, "each of milestones must be a finite number"),
        ({"milestones": "0.5"}, "milestones must be numbers, it is '0.5'"),
        ({"milestones": 3}, "milestones must be numbers, it is 3"),
        ({"milestones": [0.9]}, "milestones and gamma have no meaning for schedule constant"),
        ({"gamma": 0.5, "schedule": "cosine"}, "milestones and gamma have no meaning for schedule cosine"),
        ({"clip_norm": 1e-60}, "clip_norm must be above 0 and finite, in float32 too"),
        ({"sam": 1e60}, "sam must be above 0 and finite, in float32 too"),
        ({"sam": True}, "sam must be a number, it is True"),
        ({"ema": "a"}, "ema must be a number"),
        ({"centralize": "no"}, "centralize must be true or false, it is 'no'"),
        ({"augment": 5}, "augment must be names, it is 5"),
        ({"threads": 1.5}, "use a whole number of 1 or more"),
        ({"threads": "1"}, "threads must be a number, it is '1'"),
        ({"device": None}, "no device is called None"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(settings, expected):
    with pytest.raises((ValueError, TypeError, ConfigError, DeviceError), match=re.escape(expected)):
        Trainer(small_model(), **settings)


@pytest.mark.parametrize("model", ["cnn", None])
def test_a_model_is_made_first(model):
    with pytest.raises(TypeError, match=r"fastadam\.models\.build"):
        Trainer(model)


def test_augmentations_as_the_command_has_them():
    images, labels = small_data()
    losses = {
        Trainer(small_model(), augment=asked, seed=1).step(images, labels)
        for asked in (("flip", "crop"), ["crop", "flip"], "flip,crop")
    }
    assert len(losses) == 1
    plain = {Trainer(small_model(), augment=asked, seed=1).step(images, labels) for asked in ((), None, "")}
    assert len(plain) == 1
    assert plain != losses


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (small_data()[0], "it is ndarray"),
        (None, "it is NoneType"),
        ((*small_data(), 1), "it is tuple of 3"),
        ({"x": 1, "y": 2}, "it is dict"),
    ],
)
def test_data_are_a_pair(data, expected):
    with pytest.raises(TypeError, match=re.escape(expected)):
        next(Trainer(small_model()).fit(data))


@pytest.mark.parametrize("wrong", [{"epochs": 1.5}, {"steps": 2.5}, {"val_size": 0.2}, {"epochs": "2"}])
def test_counts_are_whole(wrong):
    with pytest.raises((ValueError, TypeError), match=f"{next(iter(wrong))} must be a"):
        next(Trainer(small_model(), batch_size=8).fit(small_data(), **wrong))


def test_a_fit_that_is_refused_changes_nothing():
    model = small_model()
    trainer = Trainer(model, batch_size=32)
    list(trainer.fit(small_data(), epochs=1))
    before = model.mean.tolist(), model.predict_proba(small_data()[0]).tobytes()
    images, labels = small_data(8)
    with pytest.raises(ConfigError, match="larger than the 7 training images"):
        next(trainer.fit((images // 2, labels), epochs=1))
    assert before == (model.mean.tolist(), model.predict_proba(small_data()[0]).tobytes())


def test_steps_within_a_fit_count():
    trainer = Trainer(small_model(), batch_size=8)
    for record in trainer.fit(small_data(), epochs=3, val_size=8):
        trainer.step(*small_data(8))
        assert trainer.t == record.epoch * 5
    assert trainer.t == 15


def test_normalisation_may_be_edited_in_place():
    model, (images, _) = small_model(), small_data()
    before = model.predict_proba(images)
    model.mean[:], model.std[:] = 0.5, 0.1
    twin = small_model()
    twin.set_normalization([0.5] * 3, [0.1] * 3)
    assert model.predict_proba(images).tobytes() == twin.predict_proba(images).tobytes() != before.tobytes()


def test_no_images():
    with pytest.raises(ValueError, match="there are no images"):
        small_model().predict(np.zeros((0, 3, 8, 8), np.uint8))

"""Settings: what is allowed, what is refused and how that is said, and the way to TOML and back."""

import itertools
import math
import os
import tomllib

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastadam import models
from fastadam.config import (
    DATA_SETS,
    MODELS,
    OPTIMIZER_SETTINGS,
    TrainConfig,
    choose_val_size,
    defaults,
    dump_toml,
    load_toml,
    settings,
)
from fastadam.data.formats import FORMATS
from fastadam.data.library import SYNTHETIC
from fastadam.errors import ConfigError
from fastadam.optim import OPTIMIZERS
from fastadam.recipes import RECIPES, in_words, recipe_of
from fastadam.setting import FLOAT32_LEAST

NUMBERS = [name for name, setting in settings().items() if setting.kind in ("count", "number")]
MAY_BE_ZERO = ["beta1", "beta2", "beta3", "weight_decay", "momentum", "warmup", "label_smoothing", "dropout", "seed"]


def test_defaults_are_valid_and_every_setting_is_described():
    config = TrainConfig()
    for name, setting in settings().items():
        assert len(setting.help) > 10, name
        assert setting.default_text or defaults()[name] is not None, name
        assert getattr(config, name) == defaults()[name]


@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_may_be_negative_nan_or_infinite(name):
    for value in (-1, -0.5, math.nan, math.inf, -math.inf, 10**400, True, "3"):
        with pytest.raises(ConfigError, match=f"^{name} ") as caught:
            TrainConfig.from_dict({name: value})
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", [name for name in NUMBERS if name not in MAY_BE_ZERO])
def test_zero_is_refused_where_it_makes_no_sense(name):
    with pytest.raises(ConfigError, match=r"must be (above 0|at least [12]), found 0"):
        TrainConfig.from_dict({name: 0})


@pytest.mark.parametrize("name", MAY_BE_ZERO)
def test_zero_is_allowed_where_it_means_off(name):
    optimizer = {"momentum": "sgd", "beta3": "adan"}.get(name, "adam")
    assert getattr(TrainConfig.from_dict({name: 0, "optimizer": optimizer}), name) == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "cn"}, "did you mean 'cnn'"),
        ({"optimizer": "adamx"}, "did you mean 'adam"),
        ({"epochs": 3.0}, "epochs must be a whole number, found 3.0"),
        ({"epochs": 3, "steps": 5}, "exclude each other"),
        ({"beta1": 1.0}, "beta1 must be below 1"),
        ({"target_accuracy": 90}, "target_accuracy must be at most 1"),
        ({"device": "gpu"}, "device must be auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:x"}, "device must be"),
        ({"nesterov": 1}, "nesterov must be true or false"),
        ({"nesterov": True, "optimizer": "sgd"}, "nesterov needs a momentum"),
        ({"nesterov": True, "model": "resnet20", "momentum": 0}, "nesterov needs a momentum"),
        ({"beta1": 0.8, "model": "resnet20"}, "beta1 has no meaning for optimizer sgd"),
        ({"beta1": 0.0, "optimizer": "sgd"}, "beta1 has no meaning for optimizer sgd"),
        ({"momentum": 0}, "momentum has no meaning for optimizer adamw"),
        ({"gamma": 0.5}, "gamma has no meaning for schedule cosine"),
        ({"milestones": [0.5], "schedule": "onecycle"}, "milestones has no meaning for schedule onecycle"),
        ({"milestones": [0.5, 0.25], "schedule": "step"}, "milestones must rise from number to number"),
        ({"milestones": [0.5, 0.5], "schedule": "step"}, "milestones must rise"),
        ({"milestones": [0], "schedule": "step"}, "milestones must be above 0"),
        ({"milestones": [], "schedule": "step"}, "milestones must be numbers separated by commas"),
        ({"milestones": [0.5, "x"], "schedule": "step"}, "milestones must be numbers"),
        ({"milestones": 0.5, "schedule": "step"}, "milestones must be numbers"),
        ({"milestones": [True], "schedule": "step"}, "milestones must be numbers"),
        ({"milestones": [math.nan], "schedule": "step"}, "milestones must be a finite number"),
        ({"gamma": 1.5, "schedule": "step"}, "gamma must be at most 1"),
        ({"ema": 1.0}, "ema must be below 1"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"swa": 0}, "swa must be at least 1"),
        ({"sam": 0}, "sam must be above 0"),
        ({"sam": 0.05, "accumulate": 2}, "sam takes both gradients of a step on one batch; give accumulate 1, not 2"),
        ({"lookahead": 1}, "lookahead must be at least 2"),
        ({"swa": 3, "lookahead": 5}, "swa and lookahead each keep an average of the weights; give one of them"),
        ({"lookahead": 3, "optimizer": "schedulefree"}, "lookahead has no meaning for optimizer schedulefree"),
        ({"swa": 3, "ema": 0.9}, "ema and swa each keep an average of the weights; give one of them"),
        ({"swa": 3, "optimizer": "schedulefree"}, "swa has no meaning for optimizer schedulefree"),
        ({"beta1": 0, "optimizer": "schedulefree"}, "beta1 must be above 0 for optimizer schedulefree, found 0"),
        ({"trust_coefficient": 0.1, "optimizer": "lamb"}, "trust_coefficient has no meaning for optimizer lamb"),
        ({"momentum": 0.9}, "momentum has no meaning for optimizer adamw, which takes beta1, beta2, eps, amsgrad"),
        ({"beta2": 0.9, "optimizer": "sgd"}, "beta2 has no meaning for optimizer sgd"),
        ({"augment": ["flip", "crp"]}, "did you mean 'crop'"),
        ({"augment": 3}, "augment must be a list"),
        ({"data": ""}, "data must be text"),
        ({"data": "a\0b"}, "data must be text"),
        ({"data": "\udcff"}, "data must be text"),
        ({"batchsize": 3}, "there is no setting 'batchsize'; did you mean 'batch_size'?"),
        ({"out": "runs/x"}, "there is no setting 'out'"),
        ({"threads": 1025}, "threads must be at most 1024"),
        ({"seed": 2**63}, f"seed must be at most {2**63 - 1}, found {2**63}"),
        ({"lr": 1e39}, "lr must be a number that float32 can hold, 0 or 1.2e-38 to 3.4e38, found 1e+39"),
        ({"eps": 1e-60}, "eps must be a number that float32 can hold"),
        ({"lr": -1e300}, "lr must be above 0"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(values, message):
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_dict(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_becomes_a_value_of_the_right_type():
    known = settings()
    assert known["epochs"].parse(" 12 ") == 12
    assert known["lr"].parse("1e-3") == 0.001
    assert known["augment"].parse("crop, flip") == ("flip", "crop")
    assert known["augment"].parse("none") == ()
    assert known["milestones"].parse("0.5, 0.75,10") == (0.5, 0.75, 10.0)
    for name, text in [
        ("epochs", "3.5"),
        ("epochs", ""),
        ("epochs", "9" * 5000),
        ("lr", "fast"),
        ("lr", "nan"),
        ("milestones", ""),
        ("milestones", "0.5;0.75"),
    ]:
        with pytest.raises(ValueError, match="must be"):
            known[name].parse(text)


@st.composite
def configs(draw):
    """Valid settings, each optional one sometimes given."""
    values = {}
    for name, setting in settings().items():
        tied = (*itertools.chain(*OPTIMIZER_SETTINGS.values()), "milestones", "gamma")
        if name in ("epochs", "steps", *tied) or not draw(st.booleans()):
            continue
        low = max(setting.low, -1e300)
        high = min(setting.high, 1e38)
        values[name] = draw(
            {
                "count": lambda low=low, high=high: st.integers(int(low), int(high)),
                "number": lambda low=low, high=high, s=setting: st.floats(
                    low, high, exclude_min=s.low_open, exclude_max=s.high_open
                ).filter(lambda x: x == 0 or abs(x) >= FLOAT32_LEAST),
                "text": lambda: st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
                "choice": lambda s=setting: st.sampled_from(s.choices),
                "device": lambda: st.sampled_from(["auto", "cpu", "cuda", "cuda:3"]),
                "list": lambda s=setting: st.lists(st.sampled_from(s.choices), unique=True),
                "numbers": lambda: st.lists(st.floats(2.0**-100, 1e9), min_size=1, unique=True).map(sorted),
            }[setting.kind]()
        )
    length = draw(st.sampled_from(["epochs", "steps", None]))
    if length:
        values[length] = draw(st.integers(1, 10**6))
    averages = [name for name in ("ema", "swa", "lookahead") if name in values]
    for name in averages[values.get("optimizer") != "schedulefree" :]:  # there may be one
        del values[name]
    if "sam" in values:
        values.pop("accumulate", None)
    if "swa" in values:
        values["swa"] = 1
    if values.get("optimizer") == "schedulefree":
        values.pop("schedule", None)
    if values.get("schedule") == "step":
        values["milestones"] = draw(st.lists(st.floats(2.0**-100, 1e9), min_size=1, unique=True).map(sorted))
    return TrainConfig.from_dict(values)


@hypothesis.settings(deadline=None)  # files take as long as the disk is busy
@given(config=configs())
def test_settings_survive_toml(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("toml") / "config.toml"
    path.write_bytes(dump_toml(config.to_dict()).encode())
    assert TrainConfig.from_dict(load_toml(path)) == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"lr = 0.1\nepochs == 3\n", "line 2"),
        (b"lr = 0.1\nname = [1,", "line 2, the end of the file"),
        (b"lr = 0.1\nlr = 0.2\n", "line 2"),
        (b"\xff\xfe", "not UTF-8"),
        (b"lr = " + b"9" * 5000, "far too large"),
        (b"lr = " + b"[" * 5000 + b"]" * 5000, "far too large"),
    ],
)
def test_a_broken_file_is_named_with_the_line(content, message, tmp_path):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_toml(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.toml", ".", "a\0b"])
def test_a_file_that_cannot_be_read_is_named(name, tmp_path):
    with pytest.raises(ConfigError, match="cannot read "):
        load_toml(f"{tmp_path}/{name}")


def test_a_byte_order_mark_is_no_error(tmp_path):
    (tmp_path / "c.toml").write_bytes(b"\xef\xbb\xbflr = 0.1\n")
    assert load_toml(tmp_path / "c.toml") == {"lr": 0.1}


PYTHON_ONLY = (
    "dampening", "decoupled_weight_decay", "momentum_decay", "final_lr", "gamma", "partial", "warmup_steps", "seed",
)  # fmt: skip
"""What optimisers take that the command line has no option for."""

PYTHON_ONLY_OF = {"muon": ("ns_coefficients", "eps", "ns_steps", "adamw_eps")}
"""The same of one that shares the name with others."""


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_defaults_are_the_optimizers_own(name):
    optimizer = OPTIMIZERS[name]
    config = TrainConfig(optimizer=name).resolved(train_images=1000)
    made = optimizer(None).settings()
    assert set(OPTIMIZER_SETTINGS[name]) == set(made) - {
        "lr",
        "weight_decay",
        *PYTHON_ONLY,
        *PYTHON_ONLY_OF.get(name, ()),
    }
    for setting in ("lr", "weight_decay", *OPTIMIZER_SETTINGS[name]):
        assert getattr(config, setting) == made[setting], setting
    # What --help says of the two that depend on the optimizer, where the recipe has another.
    assert f"{optimizer.default_lr:g}" in settings()["lr"].default_text
    assert f"{optimizer.default_weight_decay:g}" in settings()["weight_decay"].default_text
    assert set(OPTIMIZERS) == set(OPTIMIZER_SETTINGS)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_a_recipe_that_needs_no_other_option(model):
    """What is resolved is the recipe, and stays as it is when it is read back."""
    config = TrainConfig(model=model).resolved(train_images=50_000)
    for name, value in RECIPES[model].settings.items():
        assert getattr(config, name) == value, name
    assert all(getattr(config, name) is not None for name in ("lr", "weight_decay", "schedule", "augment"))
    again = TrainConfig.from_dict(tomllib.loads(dump_toml(config.to_dict())))
    assert again == config == again.resolved(train_images=50_000)
    assert in_words().count(model) >= 1


def test_what_is_given_beats_the_recipe_and_takes_along_what_belongs_to_it():
    """Rate, decay and momentum are the optimizer's, warm-up and milestones the schedule's."""
    recipe = RECIPES["resnet20"].settings
    config = TrainConfig(model="resnet20", optimizer="adamw").resolved(train_images=50_000)
    assert (config.lr, config.weight_decay, config.momentum) == (0.001, 0.01, None)
    assert (config.schedule, config.warmup, config.epochs) == ("cosine", recipe["warmup"], recipe["epochs"])
    config = TrainConfig(model="resnet20", schedule="onecycle", lr=0.5).resolved(train_images=50_000)
    assert (config.lr, config.momentum, config.warmup) == (0.5, 0.9, None)
    config = TrainConfig(model="resnet20", schedule="step", optimizer="sgd", nesterov=True, steps=9)
    config = config.resolved(train_images=50_000)
    assert (config.milestones, config.gamma, config.warmup) == ((0.5, 0.75), 0.1, 0.0)
    assert (config.lr, config.momentum, config.epochs, config.nesterov) == (0.1, 0.9, None, True)
    config = TrainConfig(model="resnet20", augment=(), momentum=0.0).resolved(train_images=50_000)
    assert (config.augment, config.optimizer, config.momentum) == ((), "sgd", 0.0)
    assert TrainConfig(optimizer="sgd").resolved(train_images=50_000).momentum == 0.0


def test_a_net_from_a_file_has_the_general_recipe():
    assert recipe_of("/nets/mine.toml") is recipe_of("cnn")


def test_data_sets_with_a_name_are_those_that_load_knows():
    assert {form.name for form in FORMATS} | {SYNTHETIC} == set(DATA_SETS)


def test_every_model_can_be_built():
    for name in MODELS:
        assert models.graph_of(name)
    with pytest.raises(ConfigError):
        models.graph_of("vggg")


def test_resolving_fills_in_what_depends_on_the_run(tmp_path, monkeypatch):
    config = TrainConfig().resolved(train_images=50_000)
    assert (config.epochs, config.steps, config.val_size, config.warmup) == (10, None, 5000, 0.0)
    assert config.threads >= 1
    config = TrainConfig(steps=7, schedule="onecycle", threads=3, lr=0.5).resolved(train_images=49_999)
    assert (config.epochs, config.steps, config.val_size, config.warmup) == (None, 7, 4999, None)
    assert (config.threads, config.lr) == (3, 0.5)
    assert config.resolved(train_images=49_999) == config
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for data in ("images", "./images/", str(tmp_path / "images")):
        assert TrainConfig(data=data).resolved(train_images=100).data == str(tmp_path / "images")
    assert TrainConfig(data="~/images").resolved(train_images=100).data == os.path.expanduser("~/images")


def test_a_name_of_a_data_set_is_not_taken_for_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "synthetic").mkdir()
    assert TrainConfig(data="synthetic").resolved(train_images=100).data == "synthetic"


@given(st.integers(2, 200_000))
def test_validation_leaves_something_to_train_on(images):
    assert 1 <= choose_val_size(None, images) < images


@pytest.mark.parametrize(("asked", "images"), [(5000, 5000), (5000, 10), (None, 1)])
def test_too_large_a_validation_set_is_refused(asked, images):
    with pytest.raises(ConfigError, match=f"the data hold {images} training image"):
        choose_val_size(asked, images)


def test_numpy_numbers_are_not_taken_by_mistake():
    assert TrainConfig(lr=float(np.float32(0.5))).lr == 0.5
    with pytest.raises(ConfigError, match="lr must be a number"):
        TrainConfig(lr=np.float32(0.5))

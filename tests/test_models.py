"""The networks by name: sizes and shapes that are published, names that are torchvision's, fresh parameters."""

import math

import numpy as np
import pytest

from fastadam import architectures, config, models
from fastadam.errors import CheckpointError, ConfigError
from fastadam.layout import public_shape

PARAMETERS = {  # trained ones for CIFAR-10; for the ResNets with projections as common reimplementations count them
    "mlp": 1_841_162,
    "cnn": 1_116_970,
    "vgg": 1_187_274,
    "resnet20": 272_474,
    "resnet32": 466_906,
    "resnet44": 661_338,
    "resnet56": 855_770,
    "resnet50": 23_520_842,
}


@pytest.mark.parametrize("name", architectures.MODELS)
def test_parameters_are_as_many_as_published(name):
    graph = models.graph_of(name)
    assert sum(param.size for param in graph.params if param.kind != "running") == PARAMETERS[name]


def test_the_command_line_knows_the_same_models():
    assert tuple(architectures.MODELS) == config.MODELS


def test_resnets_are_named_as_in_torchvision():
    names = list(models.build("resnet20").state_dict())
    bn = ["weight", "bias", "running_mean", "running_var"]
    assert names[:6] == ["conv1.weight", *(f"bn1.{key}" for key in bn), "layer1.0.conv1.weight"]
    block = [name.removeprefix("layer2.0.") for name in names if name.startswith("layer2.0.")]
    assert block == [
        "conv1.weight", *(f"bn1.{key}" for key in bn), "conv2.weight", *(f"bn2.{key}" for key in bn),
        "downsample.0.weight", *(f"downsample.1.{key}" for key in bn),
    ]  # fmt: skip
    assert names[-2:] == ["fc.weight", "fc.bias"]
    assert not [name for name in names if name.startswith("layer1") and "downsample" in name]
    shapes = {param.name: public_shape(param) for param in models.graph_of("resnet50").params}
    assert shapes["layer3.5.conv2.weight"] == (256, 256, 3, 3)
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["layer4.2.conv3.weight"] == (2048, 512, 1, 1)
    strides = {node.name: node.attrs["stride"] for node in models.graph_of("resnet50").nodes if node.op == "conv"}
    assert (strides["conv1"], strides["layer2.0.conv1"], strides["layer2.0.conv2"]) == (1, 1, 2)


@pytest.mark.parametrize("name", architectures.MODELS)
def test_dropout_changes_no_name_and_comes_back_from_a_checkpoint(name, tmp_path):
    graph = models.graph_of(name, 7, (16, 16, 3), dropout=0.25)
    assert [node.attrs["p"] for node in graph.nodes if node.op == "dropout"] == [0.25] * (2 if name == "mlp" else 1)
    plain = models.graph_of(name, 7, (16, 16, 3))
    assert not [node for node in plain.nodes if node.op == "dropout"]
    assert plain.params == graph.params
    if name in ("mlp", "vgg", "resnet20"):
        model = models.build(name, 7, 1, (16, 16, 3), dropout=0.25)
        model.save(tmp_path / "model.safetensors")
        loaded = models.load(tmp_path / "model.safetensors")
        assert loaded.spec == model.spec
        assert loaded.graph.nodes == model.graph.nodes
        assert "dropout" not in models.build(name, 7, 1, (16, 16, 3)).spec


def test_fresh_parameters_have_the_spread_that_is_promised():
    for name in ("cnn", "vgg", "resnet20"):
        state = models.build(name, seed=4).state_dict()
        for key, w in state.items():
            if key.endswith("running_mean") or ("bn" in key and key.endswith(".bias")):
                assert not w.any(), key
            elif key.endswith("running_var") or ("bn" in key and key.endswith(".weight")):
                assert (w == 1).all(), key
            elif w.ndim == 4 and name != "cnn":
                want = math.sqrt(2 / (w.shape[0] * w.shape[2] * w.shape[3]))
                assert w.std() == pytest.approx(want, rel=5 / math.sqrt(2 * w.size)), key
                assert abs(w.mean()) < 5 * want / math.sqrt(w.size), key
                kurtosis = float((w.astype(np.float64) ** 4).mean() / w.astype(np.float64).var() ** 2)
                assert kurtosis == pytest.approx(3, abs=5 * math.sqrt(24 / w.size) + 0.02), key  # normal
            elif w.ndim > 1:
                bound = 1 / math.sqrt(w[0].size)
                assert 0.9 * bound < np.abs(w).max() <= bound, key
                assert w.std() == pytest.approx(bound / math.sqrt(3), rel=5 / math.sqrt(w.size)), key  # uniform


@pytest.mark.parametrize("seed", [1.5, True, 2**64, "x", None])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises((ValueError, TypeError), match="seed must be a"):
        models.build("mlp", seed=seed)


@pytest.mark.parametrize("name", [None, 3])
def test_a_model_has_a_name_or_a_file(name):
    with pytest.raises(TypeError, match="a model must be a name or the path of a file"):
        models.build(name)


def test_fresh_parameters_are_a_function_of_the_seed():
    first, again, other = (models.build("resnet20", seed=seed).state_dict() for seed in (1, 1, 2))
    for key, w in first.items():
        assert w.tobytes() == again[key].tobytes()
        assert "weight" not in key or w.ndim < 2 or not np.array_equal(w, other[key])


def test_a_large_layer_is_drawn_in_parts(monkeypatch):
    """Whatever the size of a part, the numbers are the same."""
    whole = models.build("resnet20", seed=3).state_dict()
    monkeypatch.setattr("fastadam.model._DRAWS", 1000)
    parts = models.build("resnet20", seed=3).state_dict()
    assert all(whole[key].tobytes() == parts[key].tobytes() for key in whole)


def test_a_name_that_is_not_known_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no model is called 'resnet21'.*did you mean 'resnet"):
        models.build("resnet21")
    with pytest.raises(ConfigError, match=r"must be one of mlp.* or a file that ends in \.toml, found 'restnet50'"):
        config.TrainConfig(model="restnet50")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "alexnet"},
        {"net": []},
        {"net": {"layer": []}},
        {"net": {"layer": [{"op": "linear", "out": 3}]}},
        {"net": {"layer": [{"op": "linear", "out": "classes", "colour": 1}]}},
        {"dropout": 2.0},
        {"shape": [32, 32]},
    ],
    ids=str,
)
def test_a_checkpoint_with_a_spec_that_cannot_be_is_refused(change, tmp_path):
    model = models.build("mlp", dropout=0.5)
    model.spec |= change
    model.save(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="does not hold a model this version can build"):
        models.load(tmp_path / "model.safetensors")


# What users pass ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "file"])
def test_sizes_may_be_numpys_integers(name, tmp_path):
    if name == "file":
        name = tmp_path / "net.toml"
        name.write_text('layer = [{op = "linear", out = "classes"}]\n')
    model = models.build(name, classes=np.int64(3), shape=np.array([8, 8, 3]))
    model.save(tmp_path / "model.safetensors")
    again = models.load(tmp_path / "model.safetensors")
    assert (again.graph.classes, again.graph.input_shape) == (3, (8, 8, 3))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"classes": 2.5}, "classes must be a whole number, it is 2.5"),
        ({"classes": "10"}, "classes must be a number, it is '10'"),
        ({"shape": 28}, "shape must be three whole numbers"),
        ({"shape": None}, "shape must be three whole numbers"),
        ({"shape": (8, 8)}, "shape must be three whole numbers"),
        ({"shape": (8, 8, 2.5)}, "each of shape must be a whole number"),
    ],
)
def test_sizes_that_are_none(settings, expected):
    with pytest.raises((ConfigError, ValueError, TypeError), match=expected):
        models.build("mlp", **settings)


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        ([0.5], [0.5] * 3, "mean must be 3 finite numbers"),
        ([0.5] * 3, 0.5, "std must be 3 finite numbers"),
        ([math.nan] * 3, [1.0] * 3, "mean must be 3 finite numbers"),
        ([0.5] * 3, [-1.0] * 3, "std must not be negative"),
    ],
)
def test_normalisation_that_is_none(mean, std, expected):
    model = models.build("mlp", shape=(8, 8, 3))
    with pytest.raises(ValueError, match=expected):
        model.set_normalization(mean, std)
    assert (model.mean == 0).all()
    assert (model.std == 1).all()


def test_what_is_saved_can_be_loaded(tmp_path):
    model, path = models.build("mlp", classes=3, shape=(8, 8, 3)), tmp_path / "model.safetensors"
    model.classes = ("a", "b")
    with pytest.raises(ValueError, match="3 classes apart, and 2 have names"):
        model.save(path)
    assert not path.exists()
    model.classes = (1, 2, np.int64(3))
    model.save(path)
    assert models.load(path).classes == ("1", "2", "3")

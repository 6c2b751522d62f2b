"""PyTorch's side of a comparison computes what ours does: every operation, logits, gradients, recipes."""

import copy
import random
import time

import graphs
import numpy as np
import pytest

from fastadam import data, models
from fastadam.graph import Graph, Node
from fastadam.model import Model
from fastadam.optim import OPTIMIZERS
from fastadam.trainer import Trainer

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
from fastadam.bench import peer, whole_run  # noqa: E402

torch.set_num_threads(1)  # two pools of spinning threads would fight for the cores

PATTERNS = {name: graphs.chain(*rows) for name, rows in graphs.PATTERNS.items()}
GRAPHS = {**PATTERNS, **{name: build() for name, build in graphs.MODELS.items()}}


def without_dropout(graph: Graph) -> Graph:
    """The same graph where nothing is dropped."""
    return Graph(
        Node(n.op, n.name, n.inputs, {**n.attrs, "p": 0.0}) if n.op == "dropout" else copy.copy(n) for n in graph.nodes
    )


def model_of(graph: Graph) -> Model:
    """A model of any graph, its parameters and running statistics nothing special."""
    model, rng = Model(graph, {}), np.random.default_rng(0)
    model.initialize(0)
    for views in (model.parameters.views, model.state.views):
        for view in views.values():
            if view.ndim == 1:
                view[...] = rng.uniform(0.5, 1.5, view.shape)
    return model


def batch_of(graph: Graph, size: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    H, W, C = graph.input_shape
    return rng.standard_normal((size, C, H, W), np.float32), rng.integers(0, graph.classes, size)


@pytest.mark.parametrize("name", GRAPHS)
def test_logits_are_ours(name):
    model = model_of(GRAPHS[name])
    images, _ = batch_of(model.graph)
    network = peer.Network(model.graph, model.state_dict()).eval()
    with torch.no_grad():
        got = network(torch.tensor(images).contiguous(memory_format=peer.memory_format(model.graph)))
    want = model.logits(images)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("name", GRAPHS)
def test_gradients_are_ours(name):
    """In place or not: nothing is overwritten that a backward pass still needs."""
    model = model_of(without_dropout(GRAPHS[name]))
    images, labels = batch_of(model.graph)
    network = peer.Network(model.graph, model.state_dict()).train()
    x, y = peer.tensors(images, labels, peer.memory_format(model.graph))
    loss = torch.nn.functional.cross_entropy(network(x), y)
    loss.backward()
    want_loss, want = model.loss_and_gradients(images, labels)
    assert loss.item() == pytest.approx(want_loss, rel=1e-4)
    got = network.gradients()
    assert got.keys() == want.keys()
    largest = max(np.abs(g).max() for g in want.values())
    for key, g in want.items():
        np.testing.assert_allclose(got[key], g, rtol=2e-3, atol=2e-4 * largest, err_msg=key)


@pytest.mark.parametrize("seed", range(20))
def test_any_graph_can_be_trained(seed):
    graph = without_dropout(graphs.random_graph(random.Random(seed).choice))
    model = model_of(graph)
    images, labels = batch_of(graph)
    training = peer.Training(graph, model.state_dict(), "adam", lr=1e-3)
    loss = training.step(peer.tensors(images, labels, peer.memory_format(graph)))
    assert loss == pytest.approx(model.loss_and_gradients(images, labels)[0], rel=1e-3)


def test_what_may_be_overwritten():
    """Not what has a second reader, nor the result of a ReLU, whose own backward pass looks at it."""
    assert peer.overwritable(GRAPHS["relu before and after add"]) == {"s", "m"}
    assert peer.overwritable(GRAPHS["bn without relu"]) == {"c", "n", "d"}


@pytest.mark.parametrize("per", ["element", "sample"])
def test_dropout_keeps_the_mean(per):
    node = Node("dropout", "d", ("x",), {"p": 0.25, "per": per})
    x = torch.ones(4000, 3, 2, 2)
    y = peer._layer(node, [(2, 2, 3)]).train()(x)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    alike = (y == y[:, :1, :1, :1]).flatten(1).all(1).float().mean().item()
    assert (alike == 1) is (per == "sample")


@pytest.mark.parametrize("rule", peer.FUSED)
def test_training_follows_ours(rule):
    """Losses of five steps, weight decay sparing biases and norms on both sides."""
    settings = {"sgd": {"momentum": 0.9, "nesterov": True}}.get(rule, {"eps": 1e-3, "beta1": 0.8})
    settings |= {"lr": 0.01, "weight_decay": 0.1}
    model = model_of(graphs.vgg())
    training = peer.Training(model.graph, model.state_dict(), rule, **settings)
    trainer = Trainer(model, OPTIMIZERS[rule](None, **settings))
    images, labels = batch_of(model.graph, 16)
    batch = peer.tensors(images, labels, peer.memory_format(model.graph))
    theirs = [training.step(batch) for _ in range(5)]
    ours = [trainer.step(images, labels) for _ in range(5)]
    np.testing.assert_allclose(theirs, ours, rtol=1e-3)
    assert theirs[-1] < theirs[0]


def test_passes_of_a_layer_are_those_of_the_layer():
    conv = Node("conv", "c", ("x",), {"out": 5, "kernel": 3, "stride": 2, "pad": 1, "bias": True})
    passes = peer.passes(conv, (8, 6, 3), batch=2, needs_dx=True)
    assert passes["forward"]().shape == (2, 5, 4, 3)
    assert [tuple(g.shape) for g in passes["backward"]()] == [(2, 3, 8, 6), (5, 3, 3, 3), (5,)]
    assert len(peer.passes(conv, (8, 6, 3), batch=2, needs_dx=False)["backward"]()) == 2
    pool = peer.passes(Node("maxpool", "m", ("x",)), (4, 4, 3), batch=2, needs_dx=False)
    assert list(pool) == ["forward"]


def test_a_place_times_what_it_runs():
    place, done = peer.Place("cpu", 1), []
    seconds = place.seconds([lambda: done.append(1), lambda: time.sleep(0.02), lambda: done.append(2)])
    assert done == [1, 2]
    assert seconds[1] >= 0.02 > seconds[0] >= 0
    taken = place.memory_meter()
    place.compute_something()
    assert taken() is None or taken() >= 0


def test_pictures_are_normalised_as_ours():
    dataset = data.synthetic.generate(train=20, test=5)
    mean, std = np.float32([0.1, 0.2, 0.3]), np.float32([0.5, 0.25, 1])
    pictures = peer.Pictures(dataset.train_images, dataset.train_labels, mean, std)
    x, labels = pictures.batch(np.array([7, 3]))
    want = (dataset.train_images[[7, 3]] / 255 - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1)
    np.testing.assert_allclose(x.numpy(), want, atol=1e-5)
    assert labels.tolist() == dataset.train_labels[[7, 3]].tolist()
    assert [len(y) for _, y in pictures.batches(np.arange(20), 8)] == [8, 8, 4]


def test_whole_runs_end_alike(tmp_path):
    """The same recipe, weights and order of images: test accuracies differ by a few images at the most."""
    data.write_binary(tmp_path / "data", data.synthetic.generate(train=400, test=200))
    settings = {"data": str(tmp_path / "data"), "model": "mlp", "batch_size": 32, "threads": 1, "epochs": 3}
    ours, theirs = (whole_run.whole_run(side, **settings) for side in ("fastadam", "torch"))
    assert ours["epochs"] == theirs["epochs"] == 3
    assert ours["test_accuracy"] > 0.15
    assert theirs["test_accuracy"] == pytest.approx(ours["test_accuracy"], abs=0.03)


def test_a_graph_with_free_names(tmp_path):
    """Names with dots, or those of attributes of a module, are names like any other."""
    nodes = [
        Node("input", "x", (), {"shape": (4, 4, 3)}),
        Node("linear", "training", ("x",), {"out": 4, "bias": True}),
        Node("relu", "forward", ("training",)),
        Node("linear", "a.b", ("forward",), {"out": 3, "bias": False}),
    ]
    model = model_of(Graph(nodes))
    images, _ = batch_of(model.graph)
    with torch.no_grad():
        got = peer.Network(model.graph, model.state_dict()).eval()(torch.tensor(images))
    np.testing.assert_allclose(got.numpy(), model.logits(images), rtol=1e-4, atol=1e-5)


def test_named_models_have_the_same_first_loss():
    for name in ("mlp", "resnet20"):
        model = models.build(name)
        images, labels = batch_of(model.graph, 4)
        training = peer.Training(model.graph, model.state_dict(), "adam", lr=1e-3)
        loss = training.step(peer.tensors(images, labels, peer.memory_format(model.graph)))
        assert loss == pytest.approx(Trainer(model, "adam").step(images, labels), rel=1e-4)

"""Nets from TOML files: what they become, where an error points, and their PyTorch twins."""

import json
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from graphs import random_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from fastadam import data, models, netfile, training
from fastadam.config import TrainConfig
from fastadam.errors import ConfigError, RunError
from fastadam.graph import Graph, Node

EXAMPLES = Path(__file__).parent.parent / "examples" / "nets"

SMALL = """
layer = [
    {op = "conv", out = 4, stride = 2},
    {op = "relu", name = "stem"},
    {op = "conv", name = "block.conv1", out = 4, bias = false},
    {op = "bn"},
    {op = "add", from = "stem"},
    {op = "dropout"},
    {op = "linear", name = "fc", out = "classes"},
]
"""


def graph_of(text: str, classes: int = 10, shape: tuple[int, int, int] = (8, 8, 3), dropout: float = 0.0) -> Graph:
    return netfile.parse(text, "net.toml").graph(classes, shape, dropout)


def test_both_ways_of_writing_give_the_same_net():
    tables = "\n".join("[[layer]]\n" + tomli_w.dumps(table) for table in netfile.parse_toml(SMALL, "")["layer"])
    assert graph_of(tables).nodes == graph_of(SMALL).nodes
    assert graph_of(SMALL, 3, dropout=0.5).nodes == (
        Node("input", "input", (), {"shape": (8, 8, 3)}),
        Node("conv", "conv1", ("input",), {"out": 4, "kernel": 3, "stride": 2, "pad": 1, "bias": True}),
        Node("relu", "stem", ("conv1",)),
        Node("conv", "block.conv1", ("stem",), {"out": 4, "kernel": 3, "stride": 1, "pad": 1, "bias": False}),
        Node("bn", "bn1", ("block.conv1",)),
        Node("add", "add1", ("bn1", "stem")),
        Node("dropout", "dropout1", ("add1",), {"p": 0.5, "per": "element"}),
        Node("linear", "fc", ("dropout1",), {"out": 3, "bias": True}),
    )


def test_the_documentation_shows_one_net_in_two_ways():
    blocks = re.findall(r"(?:^    .*\n|^\n)+", netfile.__doc__, re.MULTILINE)
    texts = [textwrap.dedent(block) for block in blocks if "op =" in block]
    assert len(texts) == 2
    assert graph_of(texts[0]).nodes == graph_of(texts[1]).nodes
    assert netfile.parse(texts[0], "net.toml").name == "small"
    rows = {line.split("|")[1].strip() for line in netfile.__doc__.splitlines() if line.startswith("|")}
    assert rows >= set(netfile.KEYS)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_graph_can_be_written(drawn):
    """What the graph takes, a file can say; the checkpoint's form of it is the same net."""
    graph = random_graph(lambda options: drawn.draw(st.sampled_from(list(options))))
    rename = {"x": "input"}
    tables = [
        {"op": n.op, "name": n.name, "from": [rename.get(i, i) for i in n.inputs], **n.attrs} for n in graph.nodes[1:]
    ]
    net = netfile.parse(tomli_w.dumps({"layer": tables}), "drawn.toml")
    again = net.graph(graph.classes, graph.input_shape)
    for node, want in zip(again.nodes[1:], graph.nodes[1:], strict=True):
        assert (node.op, node.name) == (want.op, want.name)
        assert node.inputs == tuple(rename.get(i, i) for i in want.inputs)
        assert {**node.attrs, **want.attrs} == dict(node.attrs)
    stored = json.loads(json.dumps(net.to_dict()))
    restored = netfile.Net.from_dict(stored, net.name, "a checkpoint")
    assert restored.graph(graph.classes, graph.input_shape).nodes == again.nodes


# Lines ----------------------------------------------------------------------------------------------------

TRAPS = ("[[layer]]", "layer = [", "{op = 1}", "]", "}", "# [[layer]]", "a = [", "\\\\", "", "é=", "[x]")
VALUES = st.recursive(
    st.one_of(
        st.integers(-5, 5).map(str),
        st.sampled_from(["true", "1979-05-27T07:32:00Z", "0x1F", "inf", "3.5e2"]),
        st.sampled_from(TRAPS).map(lambda s: f'"{s}"'),
        st.sampled_from(['"\\""', '"a\\\\"', "'\"'", "''", '""', "'''it''s'''", '""""quoted""""', "''''q''''"]),
        st.sampled_from(TRAPS).map(lambda s: f"'{s}'"),
        st.lists(st.sampled_from(TRAPS), max_size=4).map(lambda s: '"""' + "\n".join(s) + '"""'),
        st.lists(st.sampled_from(TRAPS), max_size=4).map(lambda s: "'''" + "\n".join(s) + "'''"),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda s: "[\n" + ",  # [[layer]] {\n".join(s) + "\n]"),
        st.lists(inner, max_size=3).map(lambda s: "{" + ", ".join(f"k{i} = {v}" for i, v in enumerate(s)) + "}"),
    ),
    max_leaves=6,
)
HEADERS = ("[[layer]]", "  [[layer]]", "[[ layer ]]", '[["layer"]]', "[['layer']] # ]", "[[layer]]\t")


@settings(deadline=None, max_examples=300)
@given(
    before=st.lists(VALUES, max_size=2),
    layers=st.lists(st.tuples(st.sampled_from(HEADERS), st.lists(VALUES, max_size=3), st.booleans()), max_size=5),
    other=st.sampled_from(["[other]", "[other.layer]", "[[others]]", '["layer]]"]', "[layers]"]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_lines_of_tables_are_found_in_any_text(before, layers, other, end):
    text, lines = "".join(f"b{i} = {value}\n" for i, value in enumerate(before)), []
    for i, (header, values, comment) in enumerate(layers):
        text += "# [[layer]] '''\n\n" * comment
        lines.append(text.count("\n") + 1)
        text += f"{header}\n" + "".join(f"a{i} = {value}\n" for i, value in enumerate(values))
        if i == 1:
            text += f"{other}\nlayer = [{{}}, {{}}]\n"
    text = text.replace("\n", end)
    assert len(netfile.parse_toml(text, "").get("layer", [])) == len(lines)
    assert netfile.layer_lines(text) == lines


@settings(deadline=None, max_examples=200)
@given(
    before=st.lists(VALUES, max_size=2),
    key=st.sampled_from(["layer", '"layer"', "'layer'", "  layer  "]),
    layers=st.lists(st.tuples(st.lists(VALUES, max_size=3), st.sampled_from(["", "\n", " # {\n\n"])), max_size=5),
)
def test_lines_of_a_list_of_layers_are_found_in_any_text(before, key, layers):
    text, lines = "".join(f"b{i} = {value}\n" for i, value in enumerate(before)) + f"{key} = [", []
    for values, between in layers:
        text += between
        lines.append(text.count("\n") + 1)
        text += "{" + ", ".join(f"a{i} = {value}" for i, value in enumerate(values)) + "},"
    text += "]\n[other]\nlayer = [{}]\n"
    try:
        assert len(netfile.parse_toml(text, "")["layer"]) == len(lines)
    except ConfigError:
        return  # some values have no place in an inline table
    assert netfile.layer_lines(text) == lines


STACK = '[[layer]]\nop = "conv"\nout = 6\n\n[[layer]]  # the second\n'
END = '\n[[layer]]\nop = "linear"\nout = "classes"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (STACK + 'op = "convolution"' + END, "net.toml, line 5: op must be one of conv, .*found 'convolution'"),
        (STACK + "out = 3" + END, "net.toml, line 5: op is missing"),
        (STACK + 'op = "conv"\nout = 3\nkernal = 5' + END, "line 5: conv has no key 'kernal'.*did you mean 'kernel'"),
        (STACK + 'op = "relu"\nform = "conv1"' + END, "line 5: relu has no key 'form'.*did you mean 'from'"),
        (STACK + 'op = "conv"' + END, "line 5: conv needs the key 'out'"),
        (STACK + 'op = "conv"\nout = 0' + END, "line 5: conv2: out must be a whole number from 1, it is 0"),
        (STACK + 'op = "conv"\nout = 2.5' + END, "line 5: conv2: out must be a whole number from 1, it is 2.5"),
        (STACK + 'op = "conv"\nout = 2\nbias = 1' + END, "line 5: conv2: bias must be true or false, it is 1"),
        (STACK + 'op = "conv"\nout = 2\nkernel = true' + END, "line 5: conv2: kernel must be a whole number"),
        (STACK + 'op = "conv"\nout = 2\nkernel = 9\npad = 0' + END, r"line 5: conv2: .*conv1 of shape \(8, 8, 6\)"),
        (
            STACK + 'op = "add"\nfrom = "input"' + END,
            r"line 5: add1: .*conv1 has \(8, 8, 6\) and input has \(8, 8, 3\)",
        ),
        (STACK + 'op = "add"' + END, "line 5: from is missing; it must be the name of two earlier layers"),
        (STACK + 'op = "relu"\nfrom = ["conv1", "input"]' + END, "line 5: from must be the name of one earlier layer"),
        (STACK + 'op = "relu"\nfrom = "cnv1"' + END, "line 5: relu reads 'cnv1', which no .*did you mean 'conv1'"),
        (STACK + 'op = "relu"\nfrom = "linear1"' + END, "line 5: relu reads 'linear1', which no earlier layer"),
        (STACK + 'op = "relu"\nname = "conv1"' + END, "line 5: the name 'conv1' is taken: .*net.toml, line 1"),
        (STACK + 'op = "relu"\nname = "input"' + END, "line 5: the name 'input' is taken: the images"),
        (STACK + 'op = "relu"\nname = "a/b"' + END, "line 5: name must be letters, digits"),
        (STACK + 'op = "relu"\nname = ".a"' + END, "line 5: name must be"),
        (STACK + 'op = "dropout"\np = 1.0' + END, "line 5: dropout1: p must be at least 0 and below 1"),
        (STACK + 'op = "dropout"\nper = "batch"' + END, 'line 5: dropout1: per must be "element" or "sample"'),
        (STACK + 'op = "relu"\nfrom = "input"' + END, "line 1: conv1: its value does not reach the output linear1"),
        (
            STACK + 'op = "avgpool"\n[[layer]]\nop = "bn"\n[[layer]]\nop = "avgpool"' + END,
            r"line 9: .*bn1 has shape \(6,\)",
        ),
        (STACK + 'op = "relu"', r"line 5: relu1: the output must be a vector of classes, its shape is \(8, 8, 6\)"),
        (STACK + 'op = "linear"\nout = 7', "line 5: linear1: the last layer gives 7 values, the data have 10 classes"),
        ("", "net.toml: a net is a list of layers"),
        ("layer = []", "net.toml: a net is a list of layers"),
        ("[layer]\nop = 3", "net.toml: a net is a list of layers"),
        ("layer = [1]", "net.toml: a net is a list of layers"),
        ("layers = []", "net.toml: there is no key 'layers'; did you mean 'layer'"),
        ("name = 3" + END, "net.toml: name must be text without a slash, found 3"),
        ('name = "a/b"' + END, "net.toml: name must be text without a slash"),
        ("[[layer]]\nop = \n", "net.toml is not valid TOML: .*line 2"),
    ],
    ids=lambda text: text[-40:] if "line" not in text else "",
)
def test_errors_name_file_line_and_shapes(text, message):
    with pytest.raises(ConfigError) as caught:
        graph_of(text)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_dropout_goes_to_the_layers_that_leave_it_open():
    text = SMALL.replace('{op = "dropout"}', '{op = "dropout", p = 0.1}, {op = "dropout"}')
    ps = [node.attrs["p"] for node in graph_of(text, dropout=0.5).nodes if node.op == "dropout"]
    assert ps == [0.1, 0.5]
    with pytest.raises(ConfigError, match=r"dropout 0\.5 has no place: net\.toml has no dropout layer without a p"):
        graph_of(SMALL.replace('    {op = "dropout"},\n', ""), dropout=0.5)


def test_a_copy_has_the_name_of_its_file(tmp_path):
    path = tmp_path / "my net ü.toml"
    path.write_text("\ufeff" + SMALL)
    (tmp_path / "copy.toml").write_text(netfile.copy_text(path))
    copy = netfile.load(tmp_path / "copy.toml")
    assert copy.name == netfile.load(path).name == "my net ü"
    assert netfile.copy_text(tmp_path / "copy.toml") == (tmp_path / "copy.toml").read_text()
    with pytest.raises(ConfigError, match=r"cannot read .*none\.toml"):
        models.build(tmp_path / "none.toml")


def test_examples_can_be_built():
    model = models.build(EXAMPLES / "residual.toml", 100, dropout=0.1)
    assert (model.spec["name"], model.graph.classes) == ("residual", 100)
    widths = [node.attrs["out"] for node in models.graph_of(EXAMPLES / "deep.toml").nodes if node.op == "conv"]
    wide = [2**k for k in range(10, 17) for _ in "ab"]
    assert widths == [64, 64, 128, 128, 256, 256, *[512] * 4, *wide, 13_104_192]


def test_a_checkpoint_needs_no_file(tmp_path):
    (tmp_path / "small.toml").write_text(SMALL)
    model = models.build(tmp_path / "small.toml", 4, 2, (8, 8, 3), dropout=0.5)
    model.save(tmp_path / "model.safetensors")
    (tmp_path / "small.toml").unlink()
    loaded = models.load(tmp_path / "model.safetensors")
    assert loaded.spec == model.spec
    assert loaded.graph.nodes == model.graph.nodes
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)
    np.testing.assert_array_equal(loaded.logits(images), model.logits(images))


def test_a_run_keeps_its_net(tmp_path):
    """The folder goes on wherever it lies, without the file, with the bits of a run that never stopped."""
    data.write_binary(tmp_path / "data", data.synthetic.generate(train=120, test=40, seed=1))
    (tmp_path / "small.toml").write_text(SMALL)
    given = {"data": str(tmp_path / "data"), "model": str(tmp_path / "small.toml"), "batch_size": 20, "dropout": 0.2}
    config = TrainConfig(**given, val_size=20, epochs=1)
    summary = training.run_training(config, out=tmp_path / "run")
    assert summary["model"] == "small"
    whole = training.run_training(TrainConfig(**given, val_size=20, epochs=2), out=tmp_path / "whole")
    (tmp_path / "small.toml").unlink()
    settings = netfile.parse_toml((tmp_path / "run" / "config.toml").read_text(), "")
    assert settings["model"] == str(tmp_path / "run" / "model.toml")
    (tmp_path / "run").rename(tmp_path / "moved")
    extended = training.run_training(TrainConfig(epochs=2), resume=tmp_path / "moved")
    assert (extended["model"], extended["steps"]) == ("small", whole["steps"])
    settings["model"] = str(tmp_path / "moved" / "model.toml")
    again = training.run_training(TrainConfig(**settings), out=tmp_path / "again")
    assert again["test_accuracy"] == summary["test_accuracy"]

    net = tmp_path / "moved" / "model.toml"
    net.write_text(net.read_text().replace("out = 4", "out = 5"))
    with pytest.raises(RunError, match=r"config\.toml or model\.toml was changed since"):
        training.run_training(TrainConfig(epochs=3), resume=tmp_path / "moved")


# Beside PyTorch -------------------------------------------------------------------------------------------


@st.composite
def two_branches(draw: st.DrawFn) -> str:
    """The text of a net with a stem, two branches that are added up, and a tail."""
    channels, layers, last = draw(st.sampled_from([4, 5, 8])), [], "input"

    def add(op: str, name: str, at: str, **keys: object) -> str:
        layers.append({"op": op, "name": name, "from": at, **keys})
        return name

    if draw(st.booleans()):
        last = add("conv", "stem", last, out=channels, bias=draw(st.booleans()))
        last = add("relu", "stem.relu", last) if draw(st.booleans()) else last
    stride, ends = draw(st.sampled_from([1, 2])), []
    for branch in "ab":
        at = add(
            "conv", f"{branch}.first", last, out=channels, stride=stride, bias=draw(st.booleans()),
            **draw(st.sampled_from([{"kernel": 1}, {"kernel": 3}, {"kernel": 5}])),
        )  # fmt: skip
        for i, op in enumerate(draw(st.lists(st.sampled_from(["bn", "relu", "conv", "skip"]), max_size=4))):
            if op == "conv":
                at = add("conv", f"{branch}.{i}", at, out=channels, bias=draw(st.booleans()))
            elif op == "skip":
                at = add("add", f"{branch}.{i}", [at, draw(st.sampled_from([f"{branch}.first", at]))])
            else:
                at = add(op, f"{branch}.{i}", at)
        ends.append(at)
    last = add("add", "join", ends)
    for op in draw(st.lists(st.sampled_from(["bn", "relu", "maxpool"]), unique=True)):
        last = add(op, f"tail.{op}", last)
    last = add("avgpool", "mean", last) if draw(st.booleans()) else last
    add("linear", "fc", last, out="classes")
    return tomli_w.dumps({"layer": layers})


@settings(deadline=None, max_examples=12)
@given(two_branches(), st.integers(0, 100))
def test_a_net_with_two_branches_equals_its_twin(tmp_path_factory, text, seed):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    from torch_twins import run_graph

    path = tmp_path_factory.mktemp("nets") / "drawn.toml"
    path.write_text(text)
    model = models.build(path, 5, seed, (8, 7, 3))
    rng = np.random.default_rng(seed)
    state = {
        key: rng.uniform(0.5, 1.5, w.shape) if key.endswith("running_var") else w + 0.1 * rng.standard_normal(w.shape)
        for key, w in model.state_dict().items()
    }
    model.load_state_dict(state)
    state = model.state_dict()
    images, labels = rng.standard_normal((9, 3, 8, 7)).astype(np.float32), rng.integers(0, 5, 9)
    loss, gradients = model.loss_and_gradients(images, labels)
    exact = {}
    for dtype in (torch.float64, torch.float32):
        tensors = {key: torch.tensor(w, dtype=dtype, requires_grad="running" not in key) for key, w in state.items()}
        x = torch.tensor(images, dtype=dtype)
        want = torch.nn.functional.cross_entropy(run_graph(model.graph, tensors, x), torch.tensor(labels))
        want.backward()
        logits = run_graph(model.graph, tensors, x, training=False).detach().numpy()
        exact[dtype] = want.item(), logits, {k: t.grad.numpy() for k, t in tensors.items() if t.grad is not None}
    (want, logits, theirs), (_, _, rounded) = exact[torch.float64], exact[torch.float32]
    assert loss == pytest.approx(want, rel=1e-5)
    np.testing.assert_allclose(model.logits(images), logits, atol=1e-5 * np.abs(logits).max())
    assert list(gradients) == list(theirs)
    largest = max(np.linalg.norm(g) for g in theirs.values())  # a bias under a batch norm has none: rounding alone
    for key, g in theirs.items():
        error, torch_error = (np.linalg.norm(got[key] - g) for got in (gradients, rounded))
        assert error < 10 * torch_error + 1e-5 * np.linalg.norm(g) + 1e-7 * largest, (key, error, torch_error)

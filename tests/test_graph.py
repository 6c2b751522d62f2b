"""Graphs: shapes, parameters in the public order, and what is refused."""

import pytest
from graphs import MODELS, chain

from fastadam.graph import Graph, Node, Param

X = Node("input", "x", (), {"shape": (8, 6, 3)})
FC = Node("linear", "fc", ("x",), {"out": 2, "bias": True})


def conv(name: str, source: str, **attrs) -> Node:
    return Node("conv", name, (source,), {"out": 4, "kernel": 3, "stride": 1, "pad": 1, "bias": False, **attrs})


def test_shapes():
    graph = chain(
        ("c", "conv", {"out": 4, "kernel": 3, "stride": 2, "pad": 1}),
        ("n", "bn"), ("r", "relu"), ("m", "maxpool"), ("d", "dropout", {"p": 0.5}), ("s", "add", "d", "m"),
        ("a", "avgpool"), shape=(9, 6, 3), classes=7,
    )  # fmt: skip
    assert graph.shapes == {
        "x": (9, 6, 3), "c": (5, 3, 4), "n": (5, 3, 4), "r": (5, 3, 4), "m": (2, 1, 4), "d": (2, 1, 4),
        "s": (2, 1, 4), "a": (4,), "fc": (7,),
    }  # fmt: skip
    assert (graph.input_shape, graph.classes, graph.output) == ((9, 6, 3), 7, "fc")


def test_parameters_in_public_order():
    """Forward order; weight, bias, then a batch norm's running statistics, which are not trained."""
    graph = Graph([X, conv("c", "x", bias=True), Node("bn", "n", ("c",)), Node("linear", "l", ("n",), FC.attrs)])
    assert graph.params == (
        Param("c.weight", (3, 3, 3, 4), "conv"),
        Param("c.bias", (4,), "vector"),
        Param("n.weight", (4,), "vector"),
        Param("n.bias", (4,), "vector"),
        Param("n.running_mean", (4,), "running"),
        Param("n.running_var", (4,), "running"),
        Param("l.weight", (2, 8 * 6 * 4), "linear", (8, 6, 4)),
        Param("l.bias", (2,), "vector"),
    )
    assert list(graph.trained()) == ["c.weight", "c.bias", "n.weight", "n.bias", "l.weight", "l.bias"]
    assert graph.state() == {"n.running_mean": (4,), "n.running_var": (4,)}


def test_a_node_is_frozen():
    with pytest.raises(AttributeError):
        X.name = "y"


@pytest.mark.parametrize("name", MODELS)
def test_models_are_graphs_of_ten_classes(name):
    assert MODELS[name]().classes == 10


LINEAR = {"out": 2, "bias": True}
REFUSED = {
    "nothing": ([], "begins with an input"),
    "no input": ([Node("relu", "r", ("x",))], "r: reads 'x', which no earlier node makes"),
    "two inputs": ([X, Node("input", "y", (), {"shape": (1, 1, 1)})], "y: a graph has one input"),
    "a name twice": ([X, Node("relu", "x", ("x",))], "x: two nodes have this name"),
    "unknown operation": ([X, Node("softmax", "s", ("x",))], "s: no operation 'softmax'; there are input"),
    "too few inputs": ([X, Node("add", "s", ("x",))], "s: add reads 2 values, 1 were given"),
    "too many inputs": ([X, Node("relu", "r", ("x", "x"))], "r: relu reads 1 values, 2 were given"),
    "dead end": ([X, Node("relu", "r", ("x",)), FC], "r: its value does not reach the output fc"),
    "image as output": ([X, Node("relu", "r", ("x",))], r"r: the output must be a vector.*\(8, 6, 3\)"),
    "adding two shapes": (
        [X, conv("c", "x"), Node("add", "s", ("x", "c")), Node("linear", "fc", ("s",), LINEAR)],
        r"s: add expects equal shapes, x has \(8, 6, 3\) and c has \(8, 6, 4\)",
    ),
    "convolving a vector": ([X, FC, conv("c", "fc")], r"c: conv expects \(H, W, C\), fc has shape \(2,\)"),
    "pooling a vector": ([X, FC, Node("maxpool", "m", ("fc",))], r"m: maxpool expects \(H, W, C\)"),
    "averaging a vector": ([X, FC, Node("avgpool", "m", ("fc",))], r"m: avgpool expects \(H, W, C\)"),
    "kernel too large": ([X, conv("c", "x", kernel=9, pad=1)], r"c: a kernel of 9 does not fit x"),
    "too small to pool": (
        [X, conv("c", "x", kernel=6, pad=0), Node("maxpool", "m", ("c",))],
        r"m: c of shape \(3, 1, 4\) is too small",
    ),
    "missing attribute": ([X, Node("linear", "fc", ("x",), {"out": 2})], "fc: linear needs .* 'bias'"),
    "unknown attribute": (
        [X, conv("c", "x", dilation=2)],
        "c: conv has no attribute 'dilation'; there are: out, kernel, stride, pad, bias",
    ),
    "attribute where none is": (
        [X, Node("relu", "r", ("x",), {"slope": 0.1})], "r: relu has no attribute 'slope'.*none",
    ),
    "no channels": ([X, conv("c", "x", out=0)], "c: out must be a whole number from 1, it is 0"),
    "half a channel": ([X, conv("c", "x", out=2.5)], "c: out must be a whole number from 1, it is 2.5"),
    "true channels": ([X, conv("c", "x", out=True)], "c: out must be a whole number from 1, it is True"),
    "no stride": ([X, conv("c", "x", stride=0)], "c: stride must be a whole number from 1"),
    "endless stride": ([X, conv("c", "x", stride=2**31)], "c: stride must be at most 2,147,483,647"),
    "negative padding": ([X, conv("c", "x", pad=-1)], "c: pad must be a whole number from 0, it is -1"),
    "bias of 1": ([X, conv("c", "x", bias=1)], "c: bias must be true or false, it is 1"),
    "dropping all": ([X, Node("dropout", "d", ("x",), {"p": 1.0})], "d: p must be at least 0 and below 1"),
    "dropping NaN": ([X, Node("dropout", "d", ("x",), {"p": float("nan")})], "d: p must be at least 0"),
    "dropping channels": (
        [X, Node("dropout", "d", ("x",), {"p": 0.5, "per": "channel"})],
        'd: per must be "element" or "sample"',
    ),
    "flat input": ([Node("input", "x", (), {"shape": (3072,)})], r"x: shape must be three whole numbers"),
    "empty input": ([Node("input", "x", (), {"shape": (0, 8, 3)})], r"x: shape must be three whole numbers"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    nodes, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        Graph(nodes)

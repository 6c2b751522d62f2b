"""Graphs for tests: a small builder, models, patterns that a planner may get wrong, and random graphs."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastadam.graph import Graph, Node, Shape, infer_shape


class Builder:
    """``build("relu", x)`` appends a node and returns its name; ``x`` is the input."""

    def __init__(self, shape: Shape) -> None:
        self.nodes: list[Node] = []
        self.shapes: dict[str, Shape] = {}
        self.x = self("input", name="x", shape=shape)

    def __call__(self, op: str, *inputs: str, name: str = "", **attrs: Any) -> str:
        node = Node(op, name or f"{op}{sum(n.op == op for n in self.nodes) + 1}", inputs, attrs)
        self.nodes.append(node)
        self.shapes[node.name] = infer_shape(node, [self.shapes[i] for i in inputs])
        return node.name

    def conv(self, x: str, out: int, kernel: int = 3, stride: int = 1, bias: bool = False) -> str:
        return self("conv", x, out=out, kernel=kernel, stride=stride, pad=kernel // 2, bias=bias)

    def conv_bn_relu(self, x: str, out: int, stride: int = 1) -> str:
        return self("relu", self("bn", self.conv(x, out, stride=stride)))

    def graph(self) -> Graph:
        return Graph(self.nodes)


def mlp(shape: Shape = (4, 5, 3), hidden: Sequence[int] = (16, 12), classes: int = 10, dropout: float = 0.4) -> Graph:
    build = Builder(shape)
    x = build.x
    for out in hidden:
        x = build("relu", build("linear", x, out=out, bias=True))
        x = build("dropout", x, p=dropout) if dropout else x
    build("linear", x, name="fc", out=classes, bias=True)
    return build.graph()


def cnn(shape: Shape = (8, 8, 3), width: int = 4, hidden: int = 12, classes: int = 10) -> Graph:
    build = Builder(shape)
    x = build.x
    for out in (width, 2 * width):
        for _ in range(2):
            x = build("relu", build.conv(x, out, bias=True))
        x = build("maxpool", x)
    x = build("relu", build("linear", x, out=hidden, bias=True))
    build("linear", x, name="fc", out=classes, bias=True)
    return build.graph()


def vgg(shape: Shape = (8, 8, 3), width: int = 4, classes: int = 10) -> Graph:
    build = Builder(shape)
    x = build.x
    for out in (width, 2 * width, 4 * width):
        x = build("maxpool", build.conv_bn_relu(build.conv_bn_relu(x, out), out))
    build("linear", x, name="fc", out=classes, bias=True)
    return build.graph()


def resnet(depth: int = 20, shape: Shape = (8, 8, 3), width: int = 4, classes: int = 10) -> Graph:
    build = Builder(shape)
    x = build.conv_bn_relu(build.x, width)
    for stage in range(3):
        out = width << stage
        for block in range((depth - 2) // 6):
            stride = 2 if stage and not block else 1
            y = build("bn", build.conv(build.conv_bn_relu(x, out, stride), out))
            if stride > 1:
                x = build("bn", build.conv(x, out, kernel=1, stride=stride))
            x = build("relu", build("add", y, x))
    build("linear", build("avgpool", x), name="fc", out=classes, bias=True)
    return build.graph()


MODELS: dict[str, Callable[[], Graph]] = {"mlp": mlp, "cnn": cnn, "vgg": vgg, "resnet20": resnet}


def chain(*rows: Sequence[Any], shape: Shape = (5, 6, 3), classes: int = 4) -> Graph:
    """A graph of (name, op, inputs..., attributes) rows, flattened into a classifier.

    A row without inputs reads the row before; convolutions are 3x3 to 3 channels unless attributes say more.
    """
    build = Builder(shape)
    for name, op, *rest in rows:
        attrs = rest.pop() if rest and isinstance(rest[-1], dict) else {}
        if op == "conv":
            attrs = {"out": 3, "kernel": 3, "stride": 1, "pad": 1, "bias": False, **attrs}
        build(op, *(rest or [build.nodes[-1].name]), name=name, **attrs)
    build("linear", build.nodes[-1].name, name="fc", out=classes, bias=True)
    return build.graph()


BIAS = {"bias": True}
PATTERNS = {
    "conv and add read one value": [("c", "conv"), ("r", "relu"), ("d", "conv", "r"), ("s", "add", "d", "r")],
    "relu before add": [
        ("c", "conv"), ("n", "bn"), ("r", "relu"), ("d", "conv", "x"), ("q", "relu"), ("s", "add", "r", "q"),
    ],
    "relu after add": [("c", "conv"), ("n", "bn"), ("s", "add", "n", "x"), ("r", "relu")],
    "relu before and after add": [
        ("c", "conv", BIAS), ("r", "relu"), ("s", "add", "r", "c"), ("q", "relu"), ("m", "maxpool"),
    ],
    "bn without relu": [("c", "conv"), ("n", "bn"), ("d", "conv")],
    "bare convolutions": [("c", "conv"), ("d", "conv"), ("e", "conv", {"kernel": 2, "stride": 2, "pad": 0})],
    "bias under bn": [("c", "conv", BIAS), ("n", "bn"), ("r", "relu"), ("d", "conv", BIAS)],
    "bias under bn and read too": [
        ("c", "conv", BIAS), ("n", "bn"), ("s", "add", "n", "c"), ("r", "relu"),
    ],
    "bias of a branch": [
        ("c", "conv", BIAS), ("d", "conv", "x", BIAS), ("s", "add", "c", "d"), ("r", "relu"),
    ],
    "two bn on one conv": [("c", "conv", BIAS), ("n", "bn"), ("m", "bn", "c"), ("s", "add", "n", "m")],
    "relu then bn": [("c", "conv"), ("r", "relu"), ("n", "bn"), ("d", "conv")],
    "relu, two bn and a reader": [
        ("c", "conv"), ("r", "relu"), ("n", "bn", "r"), ("m", "bn", "r"), ("s", "add", "n", "m"),
        ("t", "add", "s", "r"),
    ],
    "bn on the input": [("n", "bn"), ("c", "conv")],
    "bn on bn": [("c", "conv"), ("n", "bn"), ("m", "bn"), ("r", "relu")],
    "pre-activation": [
        ("c", "conv"), ("n", "bn", "c"), ("r", "relu"), ("d", "conv"), ("s", "add", "d", "c"), ("m", "bn"),
        ("q", "relu"), ("e", "conv"), ("t", "add", "e", "s"), ("o", "bn"), ("u", "relu"),
    ],
    "dropout after linear": [
        ("l", "linear", {"out": 5, "bias": True}), ("r", "relu"), ("d", "dropout", {"p": 0.5}),
    ],
    "dropout of an image": [
        ("c", "conv"), ("n", "bn"), ("r", "relu"), ("d", "dropout", {"p": 0.3}), ("e", "conv"),
    ],
    "dropout then bn": [
        ("l", "linear", {"out": 5, "bias": True}), ("d", "dropout", {"p": 0.5}), ("n", "bn"), ("r", "relu"),
    ],
    "stochastic depth": [
        ("c", "conv"), ("n", "bn"), ("d", "dropout", {"p": 0.3, "per": "sample"}), ("s", "add", "d", "x"),
        ("r", "relu"),
    ],
    "pools after add": [
        ("c", "conv"), ("n", "bn"), ("s", "add", "n", "x"), ("r", "relu"), ("m", "maxpool"), ("a", "avgpool"),
    ],
    "pool reads bn": [("c", "conv"), ("n", "bn"), ("m", "maxpool"), ("o", "bn"), ("a", "avgpool")],
    "a value added to itself": [
        ("c", "conv"), ("n", "bn"), ("s", "add", "n", "n"), ("r", "relu"), ("t", "add", "r", "r"),
    ],
    "base is the incoming gradient": [
        ("c", "conv"), ("r", "relu"), ("d", "conv", {"kernel": 1, "pad": 0}), ("s", "add", "r", "d"),
    ],
    "one bn with relu and without": [
        ("c", "conv"), ("n", "bn"), ("r", "relu"), ("d", "conv", "r"), ("s", "add", "n", "d"),
        ("m", "maxpool"),
    ],
    "skip with relu, read by conv and two adds": [
        ("c", "conv"), ("n", "bn"), ("r", "relu"), ("d", "conv", "r"), ("m", "bn"), ("s", "add", "m", "r"),
        ("q", "relu"), ("t", "add", "q", "r"), ("o", "bn"), ("p", "relu"),
    ],
    "skip with relu, its value read without": [
        ("c", "conv"), ("n", "bn"), ("r", "relu"), ("d", "conv", "n"), ("s", "add", "d", "r"), ("q", "relu"),
    ],
    "projection, both branches bn": [
        ("c", "conv"), ("n", "bn"), ("d", "conv", "x"), ("m", "bn"), ("s", "add", "n", "m"), ("r", "relu"),
    ],
}  # fmt: skip


def random_graph(choose: Callable[[Sequence[Any]], Any], length: int = 10) -> Graph:
    """A graph drawn by ``choose(sequence)``, as ``random.choice``; all its values join in the logits."""
    sizes = (1, 2, 3, 5, 6, 7, 8)
    build = Builder((choose(sizes), choose(sizes), choose((1, 2, 3))))
    classes = choose((2, 3, 5))

    for _ in range(length):
        names = list(build.shapes)
        x = choose(names[-3:] if choose((0, 1, 1)) else names)
        shape = build.shapes[x]
        image = len(shape) == 3
        ops = ["conv"] * 3 + ["bn"] * 2 + ["relu"] * 2 + ["add"] * 3 + ["maxpool", "dropout"]
        op = choose(ops + ["linear"] * (not image or choose((0, 0, 0, 1))))
        if op == "conv" and image:
            kernel, pad = choose(((1, 0), (3, 1), (3, 1), (3, 1), (2, 0), (5, 2), (3, 0)))
            if min(shape[:2]) + 2 * pad >= kernel:
                out, stride = choose((shape[2], shape[2], 2)), choose((1, 1, 1, 2))
                build(op, x, out=out, kernel=kernel, pad=pad, stride=stride, bias=choose((False, True)))
        elif op == "linear":
            build(op, x, out=choose((3, 4, shape[-1])), bias=choose((False, True)))
        elif op == "add":
            build(op, x, choose([name for name in names if build.shapes[name] == shape]))
        elif op in ("bn", "relu") or (op == "maxpool" and image and min(shape[:2]) > 1):
            build(op, x)
        elif op == "dropout":
            build(op, x, p=choose((0.0, 0.3, 0.5)), per=choose(("element", "sample")))

    read = {name for node in build.nodes for name in node.inputs}
    total = ""
    for x in [name for name in build.shapes if name not in read]:
        x = build("avgpool", x) if len(build.shapes[x]) == 3 and choose((0, 1)) else x
        x = build("linear", x, out=classes, bias=choose((False, True)))
        total = build("add", total, x) if total else x
    for op in choose(((), (), ("bn",), ("relu",), ("bn", "relu"))):
        total = build(op, total)
    return build.graph()


def draw_arrays(graph: Graph, batch: int, seed: int = 0) -> tuple[dict, dict, np.ndarray, np.ndarray]:
    """Parameters and running statistics in kernel layout, a prepared batch (N, H, W, C), labels (N,)."""
    rng = np.random.default_rng(seed)
    params = {}
    for param in graph.params:
        if param.kind == "running":
            continue
        fan_in = param.size // param.shape[-1 if param.kind == "conv" else 0]
        params[param.name] = rng.standard_normal(param.shape) / np.sqrt(fan_in)
        if param.kind == "vector":
            params[param.name] += 0.3
    state = {name: rng.uniform(0.5, 1.5, shape) for name, shape in graph.state().items()}
    x = rng.standard_normal((batch, *graph.input_shape))
    return params, state, x, rng.integers(0, graph.classes, batch).astype(np.int32)

"""What to compute: a frozen list of nodes, checked once.

A graph knows shapes and parameters, but no batch size, no device and no memory. Shapes are of one
sample: images (H, W, C), channels last; vectors (C,).

| op      | inputs | attributes (all required, except ``per``)                              |
|---------|--------|------------------------------------------------------------------------|
| input   | 0      | shape (H, W, C)                                                        |
| conv    | 1      | out, kernel (square), stride, pad (zeros on each side), bias           |
| linear  | 1      | out, bias; an image is flattened first                                 |
| bn      | 1      | none; over the last axis                                               |
| relu    | 1      | none                                                                   |
| maxpool | 1      | none; 2x2, stride 2, an odd last row or column is dropped              |
| avgpool | 1      | none; mean over all pixels                                             |
| add     | 2      | none                                                                   |
| dropout | 1      | p, per = "element" (default) or "sample" (drops a whole sample's value) |
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Shape = tuple[int, ...]

MOST = 2**31 - 1
"""Of an attribute that counts something: what kernels compute with it fits 64 bits."""


@dataclass(frozen=True)
class Node:
    """One operation: its name, the names of the nodes it reads, and its attributes."""

    op: str
    name: str
    inputs: tuple[str, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Param:
    """One named array of a model.

    ``shape`` is the layout kernels use: conv (KH, KW, C, OC), linear (O, I), everything else (C,).
    ``kind`` is "conv", "linear", "vector" (trained) or "running" (statistics, never trained).
    ``source`` is the shape a linear layer flattens, which fixes the order of its columns; else ().
    """

    name: str
    shape: Shape
    kind: str
    source: Shape = ()

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


INPUTS = {
    "input": 0,
    "conv": 1,
    "linear": 1,
    "bn": 1,
    "relu": 1,
    "maxpool": 1,
    "avgpool": 1,
    "add": 2,
    "dropout": 1,
}
"""Operations and how many values each reads."""

_REQUIRED = {
    "input": ("shape",),
    "conv": ("out", "kernel", "stride", "pad", "bias"),
    "linear": ("out", "bias"),
    "dropout": ("p",),
}
_OPTIONAL = {"dropout": ("per",)}


class GraphError(ValueError):
    """A node that cannot be: ``node`` is its name, the text says what was expected and what was found."""

    def __init__(self, node: str, text: str) -> None:
        super().__init__(f"{node}: {text}")
        self.node, self.text = node, text


class Graph:
    """A network: nodes in the order they are computed; the last one gives the logits.

    Attributes: ``nodes``; ``shapes`` {node name: shape of one sample}; ``params`` in the order of the
    public state dict; ``output``, the name of the last node; ``input_shape`` (H, W, C); ``classes``.

    Raises ``GraphError``, a ``ValueError``, for anything that cannot be planned:
    unknown operations or attributes, names used twice or before they are made, shapes that do not
    fit, an output that is not a vector, a node whose value never reaches the output.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.nodes = tuple(nodes)
        self.shapes: dict[str, Shape] = {}
        params: list[Param] = []
        for node in self.nodes:
            self._check_place(node)
            shapes = [self.shapes[name] for name in node.inputs]
            self.shapes[node.name] = infer_shape(node, shapes)
            params += node_params(node, shapes)
        if not self.nodes or self.nodes[0].op != "input":
            raise ValueError("a graph begins with an input node")
        self.params = tuple(params)
        self.output = self.nodes[-1].name
        self.input_shape = self.shapes[self.nodes[0].name]
        if len(self.shapes[self.output]) != 1:
            raise GraphError(
                self.output,
                "the output must be a vector of classes, "
                f"its shape is {self.shapes[self.output]}; end with a linear node",
            )
        (self.classes,) = self.shapes[self.output]
        self._check_reach()

    def trained(self) -> dict[str, Shape]:
        """{name: shape} of the parameters a gradient reaches, in order."""
        return {p.name: p.shape for p in self.params if p.kind != "running"}

    def state(self) -> dict[str, Shape]:
        """{name: shape} of the running statistics, in order."""
        return {p.name: p.shape for p in self.params if p.kind == "running"}

    def _check_place(self, node: Node) -> None:
        """A node is new and reads what earlier nodes made."""
        if node.name in self.shapes:
            raise GraphError(node.name, "two nodes have this name")
        if node.op == "input" and self.shapes:
            raise GraphError(node.name, "a graph has one input, its first node")
        for name in node.inputs:
            if name not in self.shapes:
                raise GraphError(node.name, f"reads {name!r}, which no earlier node makes")

    def _check_reach(self) -> None:
        reached = {self.output}
        for node in reversed(self.nodes):
            if node.name not in reached:
                raise GraphError(node.name, f"its value does not reach the output {self.output}")
            reached.update(node.inputs)


def infer_shape(node: Node, shapes: Sequence[Shape]) -> Shape:
    """The shape of a node's value for one sample, from the shapes of its inputs; checks the node.

    Raises ``GraphError`` if operation, attributes or shapes do not fit.
    """
    _check_node(node, len(shapes))
    attrs, op = node.attrs, node.op
    if op == "input":
        return tuple(attrs["shape"])
    x = tuple(shapes[0])
    if op in ("conv", "maxpool", "avgpool") and len(x) != 3:
        raise GraphError(node.name, f"{op} expects (H, W, C), {node.inputs[0]} has shape {x}")
    if op == "conv":
        H, W = ((n + 2 * attrs["pad"] - attrs["kernel"]) // attrs["stride"] + 1 for n in x[:2])
        if min(H, W) < 1:
            raise GraphError(
                node.name,
                f"a kernel of {attrs['kernel']} does not fit {node.inputs[0]} of shape {x} padded by {attrs['pad']}",
            )
        return (H, W, attrs["out"])
    if op == "linear":
        return (attrs["out"],)
    if op == "maxpool":
        if min(x[:2]) < 2:
            raise GraphError(node.name, f"{node.inputs[0]} of shape {x} is too small to pool by 2")
        return (x[0] // 2, x[1] // 2, x[2])
    if op == "avgpool":
        return (x[2],)
    if op == "add" and x != tuple(shapes[1]):
        raise GraphError(
            node.name, f"add expects equal shapes, {node.inputs[0]} has {x} and {node.inputs[1]} has {tuple(shapes[1])}"
        )
    return x


def node_params(node: Node, shapes: Sequence[Shape]) -> list[Param]:
    """The arrays a node owns, in the order of the public state dict."""
    attrs, params = node.attrs, []
    if node.op == "conv":
        shape = (attrs["kernel"], attrs["kernel"], shapes[0][2], attrs["out"])
        params.append(Param(f"{node.name}.weight", shape, "conv"))
    if node.op == "linear":
        source = tuple(shapes[0])
        params.append(Param(f"{node.name}.weight", (attrs["out"], math.prod(source)), "linear", source))
    if node.op in ("conv", "linear") and attrs["bias"]:
        params.append(Param(f"{node.name}.bias", (attrs["out"],), "vector"))
    if node.op == "bn":
        channels = (shapes[0][-1],)
        params += [Param(f"{node.name}.{key}", channels, "vector") for key in ("weight", "bias")]
        params += [Param(f"{node.name}.{key}", channels, "running") for key in ("running_mean", "running_var")]
    return params


def _check_node(node: Node, inputs: int) -> None:
    """Operation, number of inputs, names and values of the attributes."""
    if node.op not in INPUTS:
        raise GraphError(node.name, f"no operation {node.op!r}; there are {', '.join(INPUTS)}")
    if inputs != INPUTS[node.op]:
        raise GraphError(node.name, f"{node.op} reads {INPUTS[node.op]} values, {inputs} were given")
    required, optional = _REQUIRED.get(node.op, ()), _OPTIONAL.get(node.op, ())
    for key in required:
        if key not in node.attrs:
            raise GraphError(node.name, f"{node.op} needs the attribute {key!r}")
    for key, value in node.attrs.items():
        if key not in required + optional:
            known = ", ".join(required + optional) or "none"
            raise GraphError(node.name, f"{node.op} has no attribute {key!r}; there are: {known}")
        expected = _expectation(key, value)
        if expected:
            raise GraphError(node.name, f"{key} must be {expected}, it is {value!r}")


def _expectation(key: str, value: Any) -> str:
    """What the attribute should have been, or "" if it is right."""
    if key in ("out", "kernel", "stride", "pad"):
        least = int(key != "pad")
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            return f"a whole number from {least}"
        return "" if value <= MOST else f"at most {MOST:,}"
    if key == "bias":
        return "" if isinstance(value, bool) else "true or false"
    if key == "p":
        return "" if isinstance(value, (int, float)) and 0 <= value < 1 else "at least 0 and below 1"
    if key == "per":
        return "" if value in ("element", "sample") else '"element" or "sample"'
    right = isinstance(value, Sequence) and len(value) == 3 and all(isinstance(n, int) and n > 0 for n in value)
    return "" if right else "three whole numbers from 1: (H, W, C)"

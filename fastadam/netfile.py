"""Networks described in a TOML file: any stack, and any net with branches.

A file is a list of layers in the order they are computed. Each reads the layer before it, unless it says ``from``:

    name = "small"              # optional; the file's name without .toml if not given

    [[layer]]
    op = "conv"
    out = 16                    # channels
    bias = false

    [[layer]]
    op = "bn"

    [[layer]]
    op = "relu"
    name = "stem"               # optional: conv1, bn1, relu1, conv2, ... if not given

    [[layer]]
    op = "conv"
    out = 16

    [[layer]]
    op = "add"
    from = ["conv2", "stem"]    # earlier layers by name, or "input"; one name adds the layer before: from = "stem"

    [[layer]]
    op = "avgpool"

    [[layer]]
    op = "linear"
    out = "classes"             # as many as the data have

The same, a line a layer:

    layer = [
        {op = "conv", out = 16, bias = false},
        {op = "bn"},
        {op = "relu", name = "stem"},
        {op = "conv", out = 16},
        {op = "add", from = ["conv2", "stem"]},
        {op = "avgpool"},
        {op = "linear", out = "classes"},
    ]

| op      | keys, with their defaults                                                                       |
|---------|-------------------------------------------------------------------------------------------------|
| conv    | out; kernel = 3 (square), stride = 1, pad = kernel // 2 (zeros on each side), bias = true         |
| linear  | out, a number or "classes"; bias = true. An image is flattened first                            |
| bn      | none; batch norm over the last axis                                                             |
| relu    | none                                                                                            |
| maxpool | none; 2x2, stride 2                                                                             |
| avgpool | none; the mean over all pixels                                                                  |
| add     | none; two inputs of one shape                                                                   |
| dropout | p = what --dropout says; per = "element", or "sample" to drop a whole image's value             |

Parameters are called by their layer: ``conv1.weight``, ``bn1.bias``. The last layer gives the logits. Anything
that cannot be is a ConfigError that names file, line and layer, and the shapes where shapes do not fit.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastadam.config import dump_toml, parse_toml, read_toml
from fastadam.errors import ConfigError
from fastadam.graph import INPUTS, Graph, GraphError, Node, Shape
from fastadam.setting import nearest, shown

CLASSES = "classes"
"""What ``out`` of the last layer says in place of a number."""

KEYS: dict[str, dict[str, Any]] = {
    "conv": {"out": None, "kernel": 3, "stride": 1, "pad": None, "bias": True},
    "linear": {"out": None, "bias": True},
    "bn": {},
    "relu": {},
    "maxpool": {},
    "avgpool": {},
    "add": {},
    "dropout": {"p": None, "per": "element"},
}
"""Keys of each op beside ``op``, ``name`` and ``from``, and their defaults; None: worked out, or must be given."""

_COMMON = ("op", "name", "from")
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


@dataclass(frozen=True)
class Layer:
    """One layer as a file has it: ``attrs`` with all defaults, ``place`` where it stands, for messages."""

    op: str
    name: str
    inputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    place: str


@dataclass(frozen=True)
class Net:
    """A network read from a file: its name and its layers, checked but for shapes, which depend on the data."""

    name: str
    layers: tuple[Layer, ...]
    source: str

    def graph(self, classes: int, shape: Shape, dropout: float = 0.0) -> Graph:
        """The graph for images of ``shape`` (H, W, C) and so many classes.

        ``dropout`` is the p of dropout layers that have none of their own. ConfigError, naming the layer's line
        and shapes, if the layers do not fit together, the images or the classes.
        """
        if dropout and not any(layer.op == "dropout" and "p" not in layer.attrs for layer in self.layers):
            raise ConfigError(f"dropout {dropout:g} has no place: {self.source} has no dropout layer without a p")
        nodes = [Node("input", "input", (), {"shape": tuple(shape)})]
        for layer in self.layers:
            attrs = dict(layer.attrs)
            if attrs.get("out") == CLASSES:
                attrs["out"] = classes
            if layer.op == "dropout":
                attrs.setdefault("p", dropout)
            nodes.append(Node(layer.op, layer.name, layer.inputs, attrs))
        places = {"input": self.source, **{layer.name: layer.place for layer in self.layers}}
        try:
            graph = Graph(nodes)
        except GraphError as error:
            raise ConfigError(f"{places[error.node]}: {error}") from None
        if graph.classes != classes:
            raise ConfigError(
                f"{places[graph.output]}: {graph.output}: the last layer gives {graph.classes} values, the data have "
                f'{classes} classes; write out = "{CLASSES}"'
            )
        return graph

    def to_dict(self) -> dict[str, Any]:
        """The layers with all their keys, for a checkpoint; ``from_dict`` is the way back."""
        return {
            "layer": [
                {"op": layer.op, "name": layer.name, "from": list(layer.inputs), **layer.attrs} for layer in self.layers
            ]
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], name: str, source: str) -> "Net":
        """The net that ``to_dict`` told; ``source`` says in messages where it comes from."""
        tables = _tables(values, source)
        return cls(name, _layers(tables, [f"{source}, layer {i}" for i in range(1, len(tables) + 1)]), source)


def load(path: str | Path) -> Net:
    """The net in a TOML file. ConfigError, with file and line, for anything the module's text does not describe."""
    return parse(read_toml(path), path)


def parse(text: str, path: str | Path) -> Net:
    """The net in the text of a file; ``path`` is for messages and, without its ending, the name if it has none."""
    values, source = parse_toml(text, path), str(path)
    tables, lines = _tables(values, source), layer_lines(text)
    if len(lines) != len(tables):
        raise ConfigError(
            f'{source}: write layers as [[layer]] tables, or one a line in layer = [{{op = "conv"}}, ...]'
        )
    name = values.get("name", default_name(path))
    if not isinstance(name, str) or not name.isprintable() or not name.strip() or "/" in name:
        raise ConfigError(f"{source}: name must be text without a slash, found {shown(name)}")
    return Net(name, _layers(tables, [f"{source}, line {line}" for line in lines]), source)


def default_name(path: str | Path) -> str:
    """The name of a net whose file gives none: the file's, without its ending."""
    return "".join(c if c.isprintable() else "_" for c in Path(path).stem).strip() or "net"


def copy_text(path: str | Path) -> str:
    """The text of a net's file, its name written first if it gives none: a copy is the same net, whatever its path."""
    text = read_toml(path)
    if "name" in parse_toml(text, path):
        return text
    return dump_toml({"name": default_name(path)}) + text


# What a file may say ------------------------------------------------------------------------------------


def _tables(values: Mapping[str, Any], source: str) -> Sequence[Mapping[str, Any]]:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source}: a net is a table, found {shown(values)}")
    for key in values:
        if key not in ("name", "layer"):
            raise ConfigError(f"{source}: there is no key {shown(key)}{nearest(key, ('name', 'layer'))}")
    tables = values.get("layer")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{source}: a net is a list of layers, each a [[layer]] table; found {shown(tables)}")
    return tables


def _layers(tables: Sequence[Mapping[str, Any]], places: Sequence[str]) -> tuple[Layer, ...]:
    layers: list[Layer] = []
    counts, known = Counter[str](), {"input": ""}
    for table, place in zip(tables, places, strict=True):
        op = table.get("op")
        if not isinstance(op, str) or op not in KEYS:
            raise _wrong(place, "op", f"one of {', '.join(KEYS)}", op, KEYS)
        for key in table:
            if key not in (*_COMMON, *KEYS[op]):
                keys = ", ".join(KEYS[op]) or "none of its own"
                near = nearest(key, (*_COMMON, *KEYS[op]))
                raise ConfigError(f"{place}: {op} has no key {shown(key)}; its keys: {keys}{near}")
        counts[op] += 1
        name = table.get("name", f"{op}{counts[op]}")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise _wrong(place, "name", "letters, digits, _ and single dots between them", name)
        if name in known:
            taken = f"the layer at {known[name]} has it" if known[name] else "the images have it"
            raise ConfigError(f"{place}: the name {shown(name)} is taken: {taken}")
        inputs = _inputs(table, op, place, layers[-1].name if layers else "input", known)
        layers.append(Layer(op, name, inputs, _attributes(table, op, place), place))
        known[name] = place
    return tuple(layers)


def _inputs(table: Mapping[str, Any], op: str, place: str, previous: str, known: Mapping[str, str]) -> tuple[str, ...]:
    given = table.get("from", [previous] if INPUTS[op] == 1 else None)
    names = [previous, given] if op == "add" and isinstance(given, str) else given
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) != INPUTS[op]:
        expected = "one earlier layer" if INPUTS[op] == 1 else "two earlier layers, or one to add to the layer before"
        raise _wrong(place, "from", f"the name of {expected}", given)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{place}: {op} reads {shown(name)}, which no earlier layer is called{nearest(name, known)}"
            )
    return tuple(names)


def _attributes(table: Mapping[str, Any], op: str, place: str) -> dict[str, Any]:
    """Values with their defaults; the graph checks them."""
    attrs = {key: table.get(key, default) for key, default in KEYS[op].items()}
    if "out" in attrs and attrs["out"] is None:
        raise ConfigError(f"{place}: {op} needs the key 'out', how many channels or values it gives")
    if op == "conv" and attrs["pad"] is None:
        attrs["pad"] = attrs["kernel"] // 2 if isinstance(attrs["kernel"], int) else 0
    return {key: value for key, value in attrs.items() if value is not None}


def _wrong(
    place: str, key: str, expected: str, found: Any, known: Sequence[str] | Mapping[str, Any] = ()
) -> ConfigError:
    if found is None:
        return ConfigError(f"{place}: {key} is missing; it must be {expected}")
    near = nearest(found, list(known)) if isinstance(found, str) else ""
    return ConfigError(f"{place}: {key} must be {expected}, found {shown(found)}{near}")


# Lines --------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r'''"""(?:\\.|[^\\])*?"""(?:"{0,2})|\'\'\'.*?\'\'\'(?:'{0,2})|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|\#[^\n]*|[\[\]{}=\n]''',
    re.DOTALL,
)
"""What matters to find tables: strings and comments, to be passed over, brackets, equals signs, ends of lines."""


def layer_lines(text: str) -> list[int]:
    """The line (from 1) on which each layer of a valid TOML file begins, in order.

    That is the line of its ``[[layer]]``, or of its ``{`` in ``layer = [...]``.
    """
    lines: list[int] = []
    depth = start = 0  # start of the line, or of what follows a key's value
    at_start, in_root, in_list = True, True, False
    header = -1
    for token in _TOKEN.finditer(text):
        mark, at = token[0], token.start()
        if mark == "\n" and depth == 0:
            start, at_start = token.end(), True
        elif mark in ("[", "{"):
            if depth == 0 and at_start and not text[start:at].strip():
                header, in_root = at, False
            if mark == "{" and depth == 1 and in_list:
                lines.append(text.count("\n", 0, at) + 1)
            depth, at_start = depth + 1, False
        elif mark in ("]", "}"):
            depth -= 1
            if depth == 0:
                if header >= 0 and _is(text[header : token.end()], [{}]):
                    lines.append(text.count("\n", 0, header) + 1)
                header, in_list = -1, False
        elif mark == "=" and depth == 0 and at_start:
            in_list, at_start = in_root and _is(text[start:at] + "= 0", 0), False
    return lines


def _is(text: str, value: Any) -> bool:
    """Whether this line of TOML gives the key ``layer`` this value."""
    try:
        return parse_toml(text, "") == {"layer": value}
    except ConfigError:
        return False

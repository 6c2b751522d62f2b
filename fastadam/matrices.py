"""The matrices of hidden layers, which Muon updates, and the calls for them."""

from collections.abc import Iterable, Iterator
from typing import Any

from fastadam.calls import Slot
from fastadam.errors import ConfigError
from fastadam.graph import Graph, Param
from fastadam.kernels import rules

_WEIGHTED = ("conv", "linear")


def hidden_matrices(graph: Graph) -> tuple[Param, ...]:
    """Weights of convolutions and linear layers, but for those that read the input and those that make the output.

    Jordan et al. 2024 leave these to AdamW. What lies between them and input or output may be anything without
    weights. ConfigError if none is left.
    """
    weighted = [node for node in graph.nodes if node.op in _WEIGHTED]
    outer = input_layers(graph) | output_layers(graph)
    hidden = {f"{node.name}.weight" for node in weighted if node.name not in outer}
    if not hidden:
        raise ConfigError(
            f"optimizer muon is for matrices of hidden layers, and none of this network's {len(weighted)} layers with "
            "weights lies between two others; use another optimizer, or a deeper network"
        )
    return tuple(param for param in graph.params if param.name in hidden)


def input_layers(graph: Graph) -> set[str]:
    """Convolutions and linear layers that the input reaches through no other."""
    reached, layers = {graph.nodes[0].name}, set[str]()
    for node in graph.nodes[1:]:
        if reached.intersection(node.inputs):
            (layers if node.op in _WEIGHTED else reached).add(node.name)
    return layers


def output_layers(graph: Graph) -> set[str]:
    """Convolutions and linear layers whose value reaches the output through no other."""
    makes, layers = {graph.output}, set[str]()
    for node in reversed(graph.nodes):
        if node.name in makes and node.op in _WEIGHTED:
            layers.add(node.name)
        elif node.name in makes:
            makes.update(node.inputs)
    return layers


def matrix_updates(
    matrices: Iterable[Param], h: Slot, adjust_lr_fn: str = "", **constants: Any
) -> Iterator[tuple[list[Slot], list[Slot], dict[str, Any]]]:
    """(outs, ins, scalars) of ``muon_update`` for each matrix, as kernels have it.

    Orthogonalising commutes with transposing and with permuting columns; the rate is that of PyTorch's layout.
    """
    for matrix in matrices:
        outputs = matrix.shape[-1] if matrix.kind == "conv" else matrix.shape[0]
        rate = rules.muon_rate(outputs, matrix.size // outputs, adjust_lr_fn)
        p, m, g = (Slot(matrix.name, matrix.shape, arena) for arena in ("PARAM", "M", "GRAD"))
        yield [p, m], [g, h], {"row": 0, "rate": rate, **constants}

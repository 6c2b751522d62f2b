"""Beginning with the weights of another training: what a checkpoint holds, as far as the model can take it."""

from pathlib import Path

from fastadam import checkpoint
from fastadam.averages import KINDS
from fastadam.errors import CheckpointError
from fastadam.graph import Graph
from fastadam.layout import public_shape
from fastadam.model import Model

EXTRAS = ("optimizer/", *(f"{kind.name}/" for kind in KINDS))
"""Prefixes of the tensors of a checkpoint that are not the model's."""


def load_weights(model: Model, path: str | Path) -> list[str]:
    """Give ``model`` the parameters and running statistics in a checkpoint, or in the best one of a run folder.

    A last linear layer for another number of classes keeps the model's own fresh parameters: one line of the result
    says so, as it does of as many classes with other names. Moments and averages are left where they are, and so is
    the normalisation of images.
    CheckpointError, naming the tensor, for anything else that is missing, unknown or of another shape.
    """
    path = checkpoint.locate(path)
    content = checkpoint.load(path)
    found = {name: tensor for name, tensor in content.tensors.items() if not name.startswith(EXTRAS)}
    expected = {param.name: public_shape(param) for param in model.graph.params}
    fresh = {}
    for name, shape in expected.items():
        if name not in found:
            raise CheckpointError(f"{path} has no tensor {name}, which the model needs; give one of this model")
        if found[name].shape == shape:
            continue
        if name not in _head(model.graph) or found[name].shape[1:] != shape[1:]:
            raise CheckpointError(
                f"{path}: {name} has the shape {found[name].shape}, the model needs {shape}; give one of this model"
            )
        fresh[name] = len(found[name])
    for name in found:
        if name not in expected:
            raise CheckpointError(f"{path} has a tensor {name}, which the model lacks; give one of this model")
    own = model.state_dict()
    model.load_state_dict({name: own[name] if name in fresh else found[name] for name in expected})
    if not fresh:
        names = content.metadata.get("classes", list(model.classes))
        if [*names] == [*model.classes]:
            return []
        return [f"the classes of {path} have other names than those of this training; its last layer is kept"]
    layer, classes = model.graph.output, next(iter(fresh.values()))
    return [f"{path} is for {classes} classes, this training for {model.graph.classes}: {layer} is drawn anew"]


def _head(graph: Graph) -> tuple[str, ...]:
    """Names of the parameters of a last linear layer."""
    last = graph.nodes[-1]
    return (f"{last.name}.weight", f"{last.name}.bias") if last.op == "linear" else ()

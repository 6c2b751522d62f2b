"""Networks by name or from a file, with parameters: fresh, or from a checkpoint."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastadam import checkpoint, netfile
from fastadam.architectures import CIFAR_SHAPE, MODELS
from fastadam.checks import whole
from fastadam.config import NET_ENDING
from fastadam.errors import CheckpointError, ConfigError
from fastadam.graph import Graph, Shape
from fastadam.model import Model
from fastadam.setting import nearest


def build(
    name: str | Path, classes: int = 10, seed: int = 0, shape: Shape = CIFAR_SHAPE, dropout: float = 0.0
) -> Model:
    """A model with fresh parameters drawn from ``seed``, on the CPU.

    name      one of ``fastadam.architectures.MODELS``, or the path of a TOML file (``fastadam.netfile``)
    shape     (H, W, C) of its images
    dropout   probability that a value is dropped, at the places the network has for it

    ConfigError for a name that is not known or a file that does not describe a network for such images; ValueError or
    TypeError for sizes that are no whole numbers.
    """
    seed = whole("seed", seed, -(2**63), 2**63 - 1)
    spec = spec_of(name, classes, shape, dropout)
    model = Model(graph_of_spec(spec, str(name)), spec)
    model.initialize(seed)
    return model


def graph_of(name: str | Path, classes: int = 10, shape: Shape = CIFAR_SHAPE, dropout: float = 0.0) -> Graph:
    """The graph of the model that ``build`` makes of the same arguments."""
    if is_file(name):
        return netfile.load(_expanded(name)).graph(whole("classes", classes), _shape(shape), dropout)
    return graph_of_spec(spec_of(name, classes, shape, dropout), str(name))


def spec_of(name: str | Path, classes: int, shape: Shape, dropout: float = 0.0) -> dict[str, Any]:
    """What a checkpoint says of a model: all that its graph depends on, the net of a file included."""
    classes, shape = whole("classes", classes), _shape(shape)
    spec: dict[str, Any] = {"name": str(name), "classes": classes, "shape": list(shape)}
    if dropout:
        spec["dropout"] = dropout
    if is_file(name):
        net = netfile.load(_expanded(name))
        net.graph(classes, shape, dropout)  # its errors name lines, which a spec no longer has
        spec |= {"name": net.name, "net": net.to_dict()}
    return spec


def _shape(shape: Any) -> Shape:
    if not isinstance(shape, Iterable) or len(sizes := tuple(shape)) != 3:
        raise ConfigError(f"shape must be three whole numbers (H, W, C), it is {shape!r}")
    high, wide, channels = (whole("each of shape", size) for size in sizes)
    return high, wide, channels


def graph_of_spec(spec: Mapping[str, Any], source: str) -> Graph:
    """The graph of a spec; ``source`` says in messages where it comes from. ConfigError if there can be none."""
    name, classes, shape = spec["name"], int(spec["classes"]), tuple(spec["shape"])
    dropout = float(spec.get("dropout", 0.0))
    if "net" in spec:
        return netfile.Net.from_dict(spec["net"], name, source).graph(classes, shape, dropout)
    if name not in MODELS:
        raise ConfigError(
            f"no model is called {name!r}; use one of {', '.join(MODELS)} or a file that ends in {NET_ENDING}"
            f"{nearest(name, MODELS)}"
        )
    return MODELS[name](classes, shape, dropout)


def is_file(name: str | Path) -> bool:
    """Whether ``name`` stands for a TOML file, not for a model with a name. TypeError if it is neither."""
    if not isinstance(name, str | Path):
        raise TypeError(f"a model must be a name or the path of a file, it is {name!r}")
    return isinstance(name, Path) or name.endswith(NET_ENDING)


def title(name: str | Path) -> str:
    """What a model is called in logs and summaries: its name, that of the net for a file."""
    return netfile.load(_expanded(name)).name if is_file(name) else str(name)


def _expanded(name: str | Path) -> str:
    return os.path.expanduser(name)


def load(path: str | Path) -> Model:
    """The model in a checkpoint, or in the best checkpoint of a run folder.

    Raises CheckpointError, saying what is wrong, for anything that is not a checkpoint of a known model.
    """
    path = checkpoint.locate(path)
    return from_checkpoint(checkpoint.load(path), path)


def from_checkpoint(content: checkpoint.Checkpoint, path: Path) -> Model:
    """The model in a checkpoint that has been read from ``path``."""
    metadata = content.metadata
    try:
        spec = metadata["model"]
        model = Model(graph_of_spec(spec, str(path)), spec)
        names = [param.name for param in model.graph.params]
        model.load_state_dict({name: content.tensors[name] for name in names})
        model.set_normalization(metadata["mean"], metadata["std"])
        model.classes = tuple(map(str, metadata["classes"]))
        if len(model.classes) != model.graph.classes or {model.mean.shape, model.std.shape} != {(spec["shape"][2],)}:
            raise ValueError("its classes, mean or std are not as many as the model has classes or channels")
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"{path} does not hold a model this version can build ({checkpoint.reason(error)}); "
            "was it written by another version?"
        ) from error
    return model

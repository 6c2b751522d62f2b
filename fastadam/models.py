"""The networks by name. A model here is only a graph; ``build`` gives it parameters."""

from collections.abc import Callable, Sequence
from pathlib import Path

from fastadam import checkpoint
from fastadam.errors import CheckpointError, ConfigError
from fastadam.graph import Graph, Node, Shape
from fastadam.model import Model

CIFAR_SHAPE = (32, 32, 3)
"""Height, width, channels."""


class _Chain:
    """Nodes in a row, each reading the one before."""

    def __init__(self, shape: Shape):
        self.nodes = [Node("input", "input", (), {"shape": tuple(shape)})]

    def add(self, op: str, name: str, **attrs: object) -> "_Chain":
        self.nodes.append(Node(op, name, (self.nodes[-1].name,), attrs))
        return self

    def linear(self, name: str, out: int) -> "_Chain":
        return self.add("linear", name, out=out, bias=True)

    def conv(self, name: str, out: int) -> "_Chain":
        return self.add("conv", name, out=out, kernel=3, stride=1, pad=1, bias=True)


def mlp(classes: int = 10, shape: Shape = CIFAR_SHAPE, hidden: Sequence[int] = (512, 512)) -> Graph:
    """A multilayer perceptron: ``fc1``, ``fc2``, ... with ReLU, then ``fc``."""
    chain = _Chain(shape)
    for i, width in enumerate(hidden, 1):
        chain.linear(f"fc{i}", width).add("relu", f"relu{i}")
    return Graph(chain.linear("fc", classes).nodes)


def cnn(classes: int = 10, shape: Shape = CIFAR_SHAPE, width: int = 32, hidden: int = 256) -> Graph:
    """A small convolutional network: two 3x3 convolutions and a pool, twice, then ``fc1`` and ``fc``."""
    chain = _Chain(shape)
    for i, out in enumerate((width, width, 2 * width, 2 * width), 1):
        chain.conv(f"conv{i}", out).add("relu", f"relu{i}")
        if i % 2 == 0:
            chain.add("maxpool", f"pool{i // 2}")
    chain.linear("fc1", hidden).add("relu", "relu5")
    return Graph(chain.linear("fc", classes).nodes)


MODELS: dict[str, Callable[..., Graph]] = {"mlp": mlp, "cnn": cnn}
"""Graph builders by name."""


def build(name: str, classes: int = 10, seed: int = 0, shape: Shape = CIFAR_SHAPE) -> Model:
    """The model called ``name`` with fresh parameters drawn from ``seed``, on the CPU.

    Raises ConfigError for a name that is not in ``MODELS``.
    """
    if name not in MODELS:
        raise ConfigError(f"no model is called {name!r}; use one of {', '.join(MODELS)}")
    model = Model(MODELS[name](classes, tuple(shape)), {"name": name, "classes": classes, "shape": list(shape)})
    model.initialize(seed)
    return model


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
        model = build(spec["name"], int(spec["classes"]), shape=tuple(spec["shape"]))
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

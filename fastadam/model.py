"""A model: a graph with its parameters, how its images are normalised, and what its classes are called."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastadam import checkpoint
from fastadam.arena import Arena
from fastadam.checks import whole
from fastadam.device import Device, get_device
from fastadam.draws import keys
from fastadam.engine import Engine
from fastadam.errors import OutOfMemoryError
from fastadam.graph import Graph
from fastadam.layout import to_kernel, to_public
from fastadam.setting import shown
from fastadam.units import human_bytes

PREDICT_BATCH = 256

_NO_QUESTION = 1 << 28  # bytes of parameters that any machine has
_DRAWS = 1 << 14  # random numbers drawn at a time: what they are made of stays in the caches


class Model:
    """What a network knows. Made by ``fastadam.models.build`` or ``fastadam.load``.

    graph                 what it computes
    spec                  how ``fastadam.models.build`` makes the graph again; goes into checkpoints
    parameters, state     arenas in kernel layout: trained parameters, running statistics
    mean, std             (C,) float32 in units of 0 .. 1: uint8 images become (pixel / 255 - mean) / std
    classes               names of the classes
    """

    def __init__(self, graph: Graph, spec: Mapping[str, Any], classes: Sequence[str] | None = None):
        self.graph, self.spec = graph, dict(spec)
        _check_room(graph)
        self.parameters, self.state = Arena(graph.trained()), Arena(graph.state())
        channels = graph.input_shape[2]
        self.mean, self.std = np.zeros(channels, np.float32), np.ones(channels, np.float32)
        self.classes = tuple(classes or map(str, range(graph.classes)))
        self._engine: Engine | None = None
        self._device: Device | None = None

    def initialize(self, seed: int) -> None:
        """Draw fresh parameters; each number is a function of the seed, the parameter's place and its own.

        conv without bias     normal with variance 2 / fan out: He et al. 2015, section 2.2, backward case, as
                              torchvision initialises ResNets and VGGs; a batch norm or an addition follows
        conv with, linear     weights and biases uniform within 1 / sqrt(fan in), PyTorch's default
        batch norm            the identity: weight 1, bias 0, running mean 0 and variance 1
        """
        views = {**self.parameters.views, **self.state.views}
        owners = {node.name: node for node in self.graph.nodes}
        bound = 0.0
        for place, param in enumerate(self.graph.params):
            flat = views[param.name].reshape(-1)
            owner, _, kind = param.name.rpartition(".")
            node = owners[owner]
            if node.op == "bn":
                flat[:] = kind in ("weight", "running_var")
                continue
            if param.kind in ("conv", "linear"):
                bound = 1 / math.sqrt(math.prod(param.shape[:3]) if param.kind == "conv" else param.shape[1])
            for start in range(0, flat.size, _DRAWS):
                part = flat[start : start + _DRAWS]
                draws = keys(seed, place, np.arange(start, start + part.size))
                if node.op == "conv" and not node.attrs["bias"]:
                    fan_out = node.attrs["kernel"] ** 2 * node.attrs["out"]
                    part[:] = _normal(draws) * math.sqrt(2 / fan_out)
                else:
                    part[:] = ((draws >> np.uint64(40)) / 2.0**23 - 1) * bound  # 24 bits

    def __getstate__(self) -> dict[str, Any]:
        """For copies, which make programs of their own."""
        return {**self.__dict__, "_engine": None}

    # Parameters by name ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and running statistics, in forward order, in PyTorch's names and layouts."""
        return self.to_public(self.parameters.views | self.state.views)

    def load_state_dict(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Take over the arrays of ``state_dict`` (copied). ValueError names what is missing, unknown or misshapen."""
        known = {param.name: param for param in self.graph.params}
        missing, unknown = [n for n in known if n not in tensors], [n for n in tensors if n not in known]
        if missing or unknown:
            raise ValueError(f"the state dict does not fit the model: missing {missing}, unknown {unknown}")
        for name, array in self.to_kernel(tensors).items():
            (self.state if known[name].kind == "running" else self.parameters).views[name][...] = array

    def to_public(self, views: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Copies in PyTorch's layout of arrays of an arena (gradients, moments, ...), by name, in forward order."""
        return {p.name: to_public(p, views[p.name]) for p in self.graph.params if p.name in views}

    def to_kernel(self, tensors: Mapping[str, np.ndarray], dtype: Any = np.float32) -> dict[str, np.ndarray]:
        """The inverse of ``to_public``; ValueError for a shape that is not the parameter's."""
        known = {param.name: param for param in self.graph.params}
        return {name: to_kernel(known[name], np.asarray(t, dtype)) for name, t in tensors.items()}

    def set_normalization(self, mean: np.ndarray, std: np.ndarray) -> None:
        """Normalise uint8 images by these channel means and deviations, (C,) in units of 0 .. 1, from now on.

        A channel of one value everywhere has deviation 0 and is only shifted. ValueError for other than C finite
        numbers, or a negative deviation.
        """
        mean, std = np.array(mean, np.float32), np.array(std, np.float32)
        channels = self.graph.input_shape[2]
        for what, values in (("mean", mean), ("std", std)):
            if values.shape != (channels,) or not np.isfinite(values).all():
                raise ValueError(f"{what} must be {channels} finite numbers, it is {shown(values.tolist())}")
        if (std < 0).any():
            raise ValueError(f"std must not be negative, it is {shown(std.tolist())}")
        self.mean, self.std = mean, np.where(std > 0, std, np.float32(1))

    def save(self, path: str | Path) -> None:
        """Write parameters, normalisation and classes to a safetensors file that ``fastadam.load`` reads."""
        checkpoint.save(Path(path), self.state_dict(), self.metadata())

    def metadata(self) -> dict[str, Any]:
        """What a checkpoint says of the model beside its tensors. ValueError if ``classes`` are not its classes."""
        if len(self.classes) != self.graph.classes:
            raise ValueError(f"the model tells {self.graph.classes} classes apart, and {len(self.classes)} have names")
        return {
            "model": self.spec,
            "classes": list(map(str, self.classes)),
            "mean": [float(x) for x in self.mean],
            "std": [float(x) for x in self.std],
        }

    # Use ------------------------------------------------------------------------------------------------

    def to(self, device: str = "auto", threads: int | None = None) -> "Model":
        """Predict and take gradients on this device and with so many CPU threads from now on; returns the model itself.

        A ``Trainer`` has a device of its own.
        """
        self._device, self._engine = get_device(device, threads), None
        return self

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The most probable class of each image, (N,) int64; images as ``predict_proba`` takes them."""
        return self.logits(images).argmax(1)

    def predict_proba(self, images: np.ndarray) -> np.ndarray:
        """Probabilities of the classes, (N, classes) float32, with the running statistics of batch norms.

        images   (N, C, H, W) uint8, or float32 already normalised with ``mean`` and ``std``
        """
        z = self.logits(images).astype(np.float64)
        e = np.exp(z - z.max(1, keepdims=True))
        return (e / e.sum(1, keepdims=True)).astype(np.float32)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """The network's output before softmax, (N, classes) float32; images as ``predict_proba`` takes them."""
        images = check_images(images, self.graph)
        out = np.empty((len(images), self.graph.classes), np.float32)
        engine = self._own_engine()
        for start in range(0, len(images), PREDICT_BATCH):
            part = images[start : start + PREDICT_BATCH]
            with engine.device.running():  # the room is everybody's until the outputs are copied
                outputs = engine.run("infer", engine.room(part), np.arange(len(part)))
            out[start : start + len(part)] = outputs["logits"]
        return out

    def loss_and_gradients(
        self, images: np.ndarray, labels: np.ndarray, seed: int = 0
    ) -> tuple[float, dict[str, np.ndarray]]:
        """Mean cross-entropy in training mode, and its gradients by parameter name in PyTorch's layouts.

        images   (N, C, H, W) uint8, or float32 already normalised with ``mean`` and ``std``
        labels   (N,) integers
        seed     of what dropout drops: equal seeds drop equal units, so give another in each step
        The model is unchanged: batch norms use the batch's statistics but leave the running ones.
        """
        images, labels = check_images(images, self.graph), check_labels(labels, len(images), self.graph)
        key = (whole("seed", seed, -(2**63), 2**63 - 1), 0)
        engine = self._own_engine()
        with engine.device.running():
            outputs = engine.run("train", engine.room(images, labels), np.arange(len(images)), key=key)
            return float(outputs["loss"][0]), self.to_public(engine.arenas["GRAD"].views)

    def _own_engine(self) -> Engine:
        if self._engine is None or not self._engine.normalizes_by(self.mean, self.std):
            arenas = {"PARAM": self.parameters, "STATE": self.state, "GRAD": Arena(self.graph.trained())}
            self._engine = Engine(self.graph, self._device or get_device("cpu"), arenas, self.mean, self.std)
        return self._engine


def _check_room(graph: Graph) -> None:
    """OutOfMemoryError, naming the first parameter that is too much, unless the parameters alone fit."""
    needed = 4 * sum(param.size for param in graph.params)
    if needed < _NO_QUESTION:
        return
    free, total = get_device("cpu").available_memory(), 0
    for param in graph.params:
        total += 4 * param.size
        if total > free:
            raise OutOfMemoryError(
                f"this network's parameters need {human_bytes(needed)} and {human_bytes(free)} are free; "
                f"{param.name} is the first that breaks the budget; use a smaller network"
            )


def _normal(draws: np.ndarray) -> np.ndarray:
    """Standard normal numbers (n,) float64 from as many uniform 64-bit ones: Box and Muller 1958, equation 2."""
    radius = np.sqrt(-2 * np.log(((draws >> np.uint64(32)) + 1.0) / 2.0**32))
    return radius * np.cos((draws & np.uint64(0xFFFFFFFF)) * (2 * math.pi / 2.0**32))


def check_images(images: np.ndarray, graph: Graph) -> np.ndarray:
    """Images a graph can take, C-contiguous; else ValueError with what was expected."""
    images = np.asarray(images)
    high, wide, channels = graph.input_shape
    if images.ndim == 4 and not len(images):
        raise ValueError("there are no images: their array has a length of 0")
    if images.ndim != 4 or images.shape[1:] != (channels, high, wide):
        hint = ""
        if images.shape == (channels, high, wide):
            hint = "; give one image as image[None]"
        elif images.shape[1:] == (high, wide, channels):
            hint = "; give images.transpose(0, 3, 1, 2)"
        raise ValueError(f"images must have the shape (N, {channels}, {high}, {wide}), they have {images.shape}{hint}")
    if images.dtype not in (np.uint8, np.float32):
        raise ValueError(
            "images must be uint8 pixels, or float32 already normalised by the model's mean and std, "
            f"they are {images.dtype}"
        )
    return np.ascontiguousarray(images)


def check_labels(labels: np.ndarray, count: int, graph: Graph) -> np.ndarray:
    """Labels of ``count`` images as int32; else ValueError with what was expected."""
    labels = np.asarray(labels)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be {count} integers, they are {labels.dtype} of shape {labels.shape}")
    if labels.min() < 0 or labels.max() >= graph.classes:
        raise ValueError(f"labels must lie in 0 .. {graph.classes - 1}, they reach {labels.min()} .. {labels.max()}")
    return labels.astype(np.int32)

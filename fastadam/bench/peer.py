"""PyTorch's side of a comparison, in its best setting. Nothing else imports PyTorch; import this late.

Eager, channels last, fused optimisers, ReLUs and additions in place: what ``torch.compile`` does not beat on a CPU. On
a GPU float32 throughout, TF32 being switched off, and cuDNN's algorithms chosen by trying them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fastadam.errors import BenchError
from fastadam.graph import Graph, Node, Shape

VERSION = str(torch.__version__)

Batch = tuple[Any, Any]
"""Tensors: images (N, C, H, W) float32, labels (N,) int64."""

_OVERWRITABLE = ("conv", "linear", "bn", "add", "maxpool", "avgpool")
"""Operations whose backward pass does not look at their result."""


HOLD = 400_000
"""Cycles that a GPU waits for each action that the host launches, so that it need not wait for the host in between."""


class Place:
    """Where PyTorch computes in this process: "cpu" or "cuda:N", with so many CPU threads.

    tuned   whether the algorithms of a GPU are tried out first; that takes time in the first step of each shape

    BenchError, with the cure, if this PyTorch cannot compute there.
    """

    def __init__(self, device: str, threads: int, tuned: bool = True):
        torch.set_num_threads(threads)
        self.device = torch.device(device)
        self._on_gpu = self.device.type == "cuda"
        if self._on_gpu:
            _check_gpu(self.device.index or 0)
            torch.cuda.set_device(self.device)
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
            torch.backends.cudnn.benchmark = tuned

    def compute_something(self) -> None:
        """One small sum, for which PyTorch loads what it has not loaded yet."""
        torch.zeros(1, device=self.device).add_(torch.ones(1, device=self.device))
        self.synchronize()

    def synchronize(self) -> None:
        """Wait until everything asked for is done."""
        if self._on_gpu:
            torch.cuda.synchronize()

    def seconds(self, actions: Sequence[Callable[[], Any]]) -> list[float]:
        """Seconds of each of some actions, as ``Device.seconds``."""
        if not self._on_gpu:
            clock = [perf_counter()]
            for action in actions:
                action()
                clock.append(perf_counter())
            return [ended - begun for begun, ended in pairwise(clock)]
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(actions) + 1)]
        torch.cuda._sleep(HOLD * len(actions))
        marks[0].record()
        for action, mark in zip(actions, marks[1:], strict=True):
            action()
            mark.record()
        marks[-1].synchronize()
        return [begun.elapsed_time(ended) / 1e3 for begun, ended in pairwise(marks)]

    def memory_meter(self) -> Callable[[], int | None]:
        """As ``memory.meter_of``; of a GPU's memory what is given to tensors."""
        if not self._on_gpu:
            from fastadam.bench.memory import host_meter

            return host_meter()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return lambda: int(torch.cuda.max_memory_allocated() - before)


def _check_gpu(number: int) -> None:
    """BenchError unless this PyTorch computes on the GPU of that number."""
    if torch.version.cuda is None:
        found = f"PyTorch {VERSION} is built without CUDA"
    elif not torch.cuda.is_available():
        found = f"PyTorch {VERSION}, built for CUDA {torch.version.cuda}, finds no GPU it can use"
    elif number >= torch.cuda.device_count():
        found = f"PyTorch {VERSION} finds no GPU of that number, but {torch.cuda.device_count()}"
    else:
        return
    raise BenchError(
        f"--vs torch with --device cuda:{number} needs a PyTorch that computes there, and {found}; install a build for "
        "this driver (pytorch.org/get-started/locally shows the command), or leave --vs torch away"
    )


def overwritable(graph: Graph) -> set[str]:
    """Nodes whose value its only reader may overwrite."""
    readers = Counter(name for node in graph.nodes for name in node.inputs)
    return {node.name for node in graph.nodes if node.op in _OVERWRITABLE and readers[node.name] == 1}


class Network(nn.Module):
    """Any graph as a module on a device; ``state`` as ``Model.state_dict`` gives it."""

    def __init__(self, graph: Graph, state: Mapping[str, np.ndarray], device: str = "cpu"):
        super().__init__()
        self.graph, self._free = graph, overwritable(graph)
        # Modules by place, not by name: the names of a graph have dots and are free, those of modules are not.
        self.layers = nn.ModuleList(_layer(node, [graph.shapes[name] for name in node.inputs]) for node in graph.nodes)
        own: dict[str, dict[str, Any]] = {node.name: {} for node in graph.nodes}
        for name, array in state.items():
            owner, _, key = name.rpartition(".")
            own[owner][key] = torch.tensor(array)
        for node, layer in zip(graph.nodes, self.layers, strict=True):
            layer.load_state_dict(own[node.name])
        self.to(device=device, memory_format=memory_format(graph))

    def forward(self, x: Any) -> Any:
        """Logits (N, classes) of images (N, C, H, W)."""
        values: dict[str, Any] = {}
        for node, layer in zip(self.graph.nodes, self.layers, strict=True):
            read = [values[name] for name in node.inputs]
            values[node.name] = self._value(node, layer, read) if read else x
        return values[self.graph.output]

    def _value(self, node: Node, layer: Any, read: list[Any]) -> Any:
        if node.op == "relu":
            return functional.relu(read[0], inplace=node.inputs[0] in self._free)
        if node.op == "add":
            a, b = read
            if node.inputs[0] in self._free:
                return a.add_(b)
            return b.add_(a) if node.inputs[1] in self._free else a + b
        return layer(read[0])

    def gradients(self) -> dict[str, np.ndarray]:
        """{name of the parameter in the graph: its gradient}."""
        return {
            f"{node.name}.{key}": parameter.grad.cpu().numpy()
            for node, layer in zip(self.graph.nodes, self.layers, strict=True)
            for key, parameter in layer.named_parameters()
        }


def memory_format(graph: Graph) -> Any:
    """Channels last where there are images inside; without, a flattened image would only be copied."""
    images = any(node.op in ("conv", "maxpool", "avgpool") for node in graph.nodes)
    return torch.channels_last if images else torch.contiguous_format


def tensors(images: np.ndarray, labels: np.ndarray, layout: Any, device: str = "cpu") -> Batch:
    """Tensors of images (N, C, H, W) float32 and labels (N,), on a device."""
    x = torch.tensor(images, device=device).contiguous(memory_format=layout)
    return x, torch.tensor(labels, dtype=torch.int64, device=device)


class _Flat(nn.Linear):
    """A linear layer that flattens an image, in the order C, H, W, first."""

    def forward(self, x: Any) -> Any:
        return super().forward(x.flatten(1))


class _Mean(nn.Module):
    """The mean over all pixels."""

    def forward(self, x: Any) -> Any:
        return x.mean((2, 3))


class _DropSample(nn.Module):
    """Drops a whole sample's value with probability p."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Any) -> Any:
        mask = functional.dropout(x.new_ones((len(x), *[1] * (x.ndim - 1))), self.p, self.training)
        return x * mask


def _layer(node: Node, shapes: list[Shape]) -> Any:
    """The module of one node, which reads values of these shapes (H, W, C) or (C,)."""
    attrs = node.attrs
    match node.op:
        case "conv":
            size, out = attrs["kernel"], attrs["out"]
            return nn.Conv2d(shapes[0][2], out, size, attrs["stride"], attrs["pad"], bias=attrs["bias"])
        case "linear":
            return _Flat(int(np.prod(shapes[0])), attrs["out"], bias=attrs["bias"])
        case "bn":
            return nn.BatchNorm2d(shapes[0][2]) if len(shapes[0]) == 3 else nn.BatchNorm1d(shapes[0][0])
        case "maxpool":
            return nn.MaxPool2d(2)
        case "avgpool":
            return _Mean()
        case "dropout":
            return _DropSample(attrs["p"]) if attrs.get("per") == "sample" else nn.Dropout(attrs["p"])
    return nn.Identity()  # input, relu, add: done in ``Network``


# Training -------------------------------------------------------------------------------------------------


class Training:
    """A network on a device, its optimiser, and steps; ``state`` as ``Model.state_dict`` gives it.

    optimizer   "adam", "adamw" or "sgd"; ``settings`` are those of the class of that name in ``fastadam.optim``
    Weight decay spares what has one dimension: biases, and the parameters of norms, as a ``fastadam.Trainer`` does.
    """

    def __init__(
        self,
        graph: Graph,
        state: Mapping[str, np.ndarray],
        optimizer: str = "adam",
        device: str = "cpu",
        **settings: float | bool,
    ):
        self.network = Network(graph, state, device).train()
        parameters = list(self.network.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ]
        self.optimizer = make_optimizer([group for group in groups if group["params"]], optimizer, **settings)

    def step(self, batch: Batch, lr: float | None = None) -> float:
        """One step, at the rate ``lr`` if given; its loss."""
        if lr is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.network(batch[0]), batch[1])
        loss.backward()
        self.optimizer.step()
        return float(loss.item())

    def accuracy(self, batches: Iterable[Batch]) -> float:
        """Share of images classified right, with running statistics."""
        self.network.eval()
        right = seen = 0
        with torch.no_grad():
            for x, labels in batches:
                right += int((self.network(x).argmax(1) == labels).sum())
                seen += len(labels)
        self.network.train()
        return right / seen

    def snapshot(self) -> dict[str, Any]:
        """A copy of all parameters and running statistics, for ``restore``."""
        return {name: tensor.clone() for name, tensor in self.network.state_dict().items()}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Take a snapshot back."""
        self.network.load_state_dict(snapshot)


FUSED = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
"""PyTorch's optimisers that have a fused update, by our names; the recipes have no others."""


def make_optimizer(parameters: Any, name: str, **settings: float | bool) -> Any:
    """PyTorch's optimiser of that name, fused; settings by the names fastadam has for them."""
    given: dict[str, Any] = dict(settings)
    if name != "sgd":
        given["betas"] = (given.pop("beta1", 0.9), given.pop("beta2", 0.999))
    return FUSED[name](parameters, fused=True, **given)


class Pictures:
    """Images and labels, resident on a device as uint8; batches are normalised when they are asked for."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, mean: np.ndarray, std: np.ndarray, device: str = "cpu"):
        self._device = device
        self._images = torch.tensor(np.ascontiguousarray(images.transpose(0, 2, 3, 1)), device=device)  # channels last
        self._labels = torch.tensor(labels, dtype=torch.int64, device=device)
        self._mean, self._rstd = (torch.tensor(a, device=device) for a in (255 * mean, 1 / (255 * std)))

    def batch(self, index: np.ndarray) -> Batch:
        """The images and labels ``index``."""
        at = torch.tensor(index, device=self._device)
        x = self._images[at].float().sub_(self._mean).mul_(self._rstd)
        return x.permute(0, 3, 1, 2), self._labels[at]

    def batches(self, index: np.ndarray, size: int) -> Iterable[Batch]:
        """Those of ``index``, so many at a time."""
        return (self.batch(index[start : start + size]) for start in range(0, len(index), size))


# Parts of a step ------------------------------------------------------------------------------------------


class Update:
    """The fused Adam on copies of ``arrays`` on a device, with the same gradients in every step."""

    def __init__(
        self, arrays: Iterable[np.ndarray], gradients: Iterable[np.ndarray], device: str = "cpu", **settings: float
    ):
        self._parameters = [nn.Parameter(torch.tensor(array, device=device)) for array in arrays]
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = torch.tensor(gradient, device=device)
        self._optimizer = make_optimizer(self._parameters, "adam", **settings)

    def step(self) -> None:
        """One update of all arrays."""
        self._optimizer.step()

    def arrays(self) -> list[np.ndarray]:
        """The arrays as they are now."""
        return [parameter.detach().cpu().numpy() for parameter in self._parameters]


def passes(node: Node, shape: Shape, batch: int, needs_dx: bool, device: str = "cpu") -> dict[str, Callable[[], Any]]:
    """{"forward": ..., "backward": ...} of one layer on random images of ``shape`` (H, W, C) or (C,)."""
    layer = _layer(node, [shape]).to(device)
    order = (2, 0, 1) if len(shape) == 3 else (0,)
    x = torch.randn(batch, *[shape[i] for i in order], device=device)
    if len(shape) == 3:
        x = x.contiguous(memory_format=torch.channels_last)
        layer = layer.to(memory_format=torch.channels_last)
    x.requires_grad_(needs_dx)
    y = layer(x)
    wanted, dy = [*[x] * needs_dx, *layer.parameters()], torch.randn_like(y)
    found: dict[str, Callable[[], Any]] = {"forward": lambda: layer(x)}
    if wanted:
        found["backward"] = lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True)
    return found

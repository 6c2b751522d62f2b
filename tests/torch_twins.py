"""The networks again, in PyTorch, for tests and comparisons that have it."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from fastadam.graph import Graph

torch.set_num_threads(1)  # two pools of spinning threads would fight for the cores

Tensors = Mapping[str, np.ndarray]


def mlp() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            flat=nn.Flatten(), fc1=nn.Linear(3072, 512), relu1=nn.ReLU(), fc2=nn.Linear(512, 512), relu2=nn.ReLU(),
            fc=nn.Linear(512, 10),
        )
    )  # fmt: skip


def cnn() -> nn.Module:
    layers: dict[str, nn.Module] = {}
    for i, (c, out) in enumerate(((3, 32), (32, 32), (32, 64), (64, 64)), 1):
        layers |= {f"conv{i}": nn.Conv2d(c, out, 3, padding=1), f"relu{i}": nn.ReLU()}
        if i % 2 == 0:
            layers[f"pool{i // 2}"] = nn.MaxPool2d(2)
    layers |= {"flat": nn.Flatten(), "fc1": nn.Linear(4096, 256), "relu5": nn.ReLU(), "fc": nn.Linear(256, 10)}
    return nn.Sequential(OrderedDict(layers))


def vgg() -> nn.Module:
    layers: dict[str, nn.Module] = {}
    for i, (c, out) in enumerate(((3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256)), 1):
        layers |= {f"conv{i}": nn.Conv2d(c, out, 3, padding=1, bias=False), f"bn{i}": nn.BatchNorm2d(out)}
        layers[f"relu{i}"] = nn.ReLU()
        if i % 2 == 0:
            layers[f"pool{i // 2}"] = nn.MaxPool2d(2)
    return nn.Sequential(OrderedDict(layers | {"flat": nn.Flatten(), "fc": nn.Linear(4096, 10)}))


class Block(nn.Module):
    """A residual block with torchvision's names; ``convs`` are (out, kernel, stride)."""

    def __init__(self, c: int, convs: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        self.count, start, out, stride = len(convs), c, convs[-1][0], max(s for _, _, s in convs)
        for i, (width, kernel, step) in enumerate(convs, 1):
            self.add_module(f"conv{i}", nn.Conv2d(c, width, kernel, step, kernel // 2, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(width))
            c = width
        self.downsample = None
        if stride > 1 or start != out:
            self.downsample = nn.Sequential(nn.Conv2d(start, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = y.relu() if i < self.count else y
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
    """A residual net for small images with torchvision's names; ``stages`` are blocks of each stage."""

    def __init__(self, width: int, stages: Sequence[int], bottleneck: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.stages, c = len(stages), width
        for i, count in enumerate(stages):
            blocks, out = [], width << i
            for block in range(count):
                stride = 2 if i and not block else 1
                convs = (
                    [(out, 1, 1), (out, 3, stride), (4 * out, 1, 1)] if bottleneck else [(out, 3, stride), (out, 3, 1)]
                )
                blocks.append(Block(c, convs))
                c = convs[-1][0]
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(c, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        for i in range(1, self.stages + 1):
            x = getattr(self, f"layer{i}")(x)
        return self.fc(x.mean((2, 3)))


TWINS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn,
    "vgg": vgg,
    **{f"resnet{6 * n + 2}": partial(ResNet, 16, (n, n, n), False) for n in (3, 5, 7, 9)},
    "resnet50": partial(ResNet, 64, (3, 4, 6, 3), True),
}


def twin(name: str, state: Tensors, dtype: Any = torch.float32) -> nn.Module:
    """The PyTorch module of a model in training mode, with its parameters; every name and shape must fit."""
    module = TWINS[name]().to(dtype)
    module.load_state_dict({key: torch.tensor(value, dtype=dtype) for key, value in state.items()})
    return module


def run_graph(
    graph: Graph, tensors: Mapping[str, torch.Tensor], images: torch.Tensor, training: bool = True
) -> torch.Tensor:
    """The logits of any graph without dropout, a PyTorch function for each node; ``tensors`` by public name."""
    values: dict[str, torch.Tensor] = {}
    for node in graph.nodes:
        x = [values[name] for name in node.inputs]
        own = {key: tensors.get(f"{node.name}.{key}") for key in ("weight", "bias", "running_mean", "running_var")}
        if node.op == "input":
            y = images
        elif node.op == "conv":
            y = F.conv2d(x[0], own["weight"], own["bias"], node.attrs["stride"], node.attrs["pad"])
        elif node.op == "linear":
            y = F.linear(x[0].flatten(1), own["weight"], own["bias"])
        elif node.op == "bn":
            running = None if training else own["running_mean"], None if training else own["running_var"]
            y = F.batch_norm(x[0], *running, own["weight"], own["bias"], training)
        elif node.op == "add":
            y = x[0] + x[1]
        else:
            functions = {"relu": F.relu, "maxpool": lambda x: F.max_pool2d(x, 2), "avgpool": lambda x: x.mean((2, 3))}
            y = functions[node.op](x[0])
        values[node.name] = y
    return values[graph.output]


def blur_convolutions(module: nn.Module, error: float, seed: int) -> nn.Module:
    """From now on each convolution's result is off at random, by ``error`` of its root mean square."""
    generator = torch.Generator().manual_seed(seed)

    def blur(_: nn.Module, __: Any, y: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(y.shape, generator=generator, dtype=y.dtype)
        return y + error * y.detach().square().mean().sqrt() * noise

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(blur)
    return module


def train_steps(
    module: nn.Module, optimizer: Any, batches: list[tuple[np.ndarray, np.ndarray]], dtype: Any
) -> list[float]:
    """Losses of one step on each batch."""
    losses = []
    for images, labels in batches:
        optimizer.zero_grad()
        output = module(torch.tensor(images, dtype=dtype))
        loss = nn.functional.cross_entropy(output, torch.tensor(labels, dtype=torch.int64))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses

"""The networks again, in PyTorch, for tests and comparisons that have it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

torch.set_num_threads(1)  # two pools of spinning threads would fight for the cores

Tensors = Mapping[str, np.ndarray]


def twin(name: str, state: Tensors, dtype: Any = torch.float32) -> nn.Module:
    """The PyTorch module of a model, with its parameters."""
    if name == "mlp":
        layers = {"flat": nn.Flatten(), "fc1": nn.Linear(3072, 512), "relu1": nn.ReLU()}
        layers |= {"fc2": nn.Linear(512, 512), "relu2": nn.ReLU(), "fc": nn.Linear(512, 10)}
    else:
        layers = {}
        for i, (c, out) in enumerate(((3, 32), (32, 32), (32, 64), (64, 64)), 1):
            layers |= {f"conv{i}": nn.Conv2d(c, out, 3, padding=1), f"relu{i}": nn.ReLU()}
            if i % 2 == 0:
                layers[f"pool{i // 2}"] = nn.MaxPool2d(2)
        layers |= {
            "flat": nn.Flatten(),
            "fc1": nn.Linear(4096, 256),
            "relu5": nn.ReLU(),
            "fc": nn.Linear(256, 10),
        }
    module = nn.Sequential()
    for key, layer in layers.items():
        module.add_module(key, layer)
    module = module.to(dtype)
    module.load_state_dict({key: torch.tensor(value, dtype=dtype) for key, value in state.items()})
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

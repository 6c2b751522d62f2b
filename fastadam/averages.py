"""Weights that are validated, tested and saved as best in place of those that are trained: an average of them."""

from typing import ClassVar

from fastadam.arena import Arena
from fastadam.device import Device
from fastadam.model import Model
from fastadam.schedule import ema_decay


class Average:
    """An average of a model's weights, and running statistics of its own.

    name             what checkpoints call it; its tensors there are ``name/...``
    weights, state   arenas, the model's own at first
    """

    name: ClassVar[str]

    def __init__(self, model: Model, device: Device):
        self.model, self.device = model, device
        self.weights, self.state = Arena(model.graph.trained()), Arena(model.graph.state())
        self.begin()

    @property
    def arenas(self) -> dict[str, Arena]:
        """By the names that plans and engines have for them."""
        return {"AVERAGE": self.weights, "AVERAGE.STATE": self.state}

    def begin(self) -> None:
        """Before the first step it is the model as it is."""
        self.weights.flat[:] = self.model.parameters.flat
        self.state.flat[:] = self.model.state.flat

    def share(self, t: int) -> float:
        """Of the new weights in what every update does to the average, at step ``t`` = 1, 2, ..."""
        return 0.0


class Ema(Average):
    """An exponential moving average: part of every update, by a share of the new weights.

    decay   what it keeps of itself at a step, at the most
    """

    name = "ema"

    def __init__(self, model: Model, device: Device, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"ema must be above 0 and below 1, it is {decay}")
        super().__init__(model, device)
        self.decay = decay

    def share(self, t: int) -> float:
        return 1 - ema_decay(self.decay, t)

"""Weights that are validated, tested and saved as best in place of those that are trained: an average of them."""

from typing import ClassVar

import numpy as np

from fastadam.arena import Arena
from fastadam.checks import whole
from fastadam.device import Device
from fastadam.model import Model
from fastadam.optim import ScheduleFree
from fastadam.schedule import ema_decay

LOOKAHEAD_SHARE = 0.5
"""How far Lookahead's slow weights follow the fast ones: the alpha that its paper recommends."""


class Average:
    """An average of a model's weights, and running statistics of its own.

    name             what checkpoints call it; its tensors there are ``name/...``
    weights, state   arenas, the model's own at first
    epochs           of those of a course, how many ends it is an average of, if that is what it is
    """

    name: ClassVar[str]
    epochs = 0

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

    @property
    def ready(self) -> bool:
        """Whether there is an average yet: before, the model itself is validated."""
        return True

    def settle(self) -> None:
        """Bring the weights up to the last step, if not every step does: before they are read."""

    def after_step(self, t: int) -> None:
        """Step ``t`` = 1, 2, ... is taken."""

    def end_epoch(self, epoch: int) -> None:
        """Epoch 1, 2, ... of a course is trained; may be said again, if its end was interrupted."""
        self.settle()


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


class Extrapolated(Average):
    """The averaged weights x of schedule-free training, found where they are asked for: on the line through y and z.

    z           arena of what the rule keeps beside the parameters, its y
    optimizer   tells where x lies on the line, 0 being y and 1 being z
    """

    name = "schedulefree"

    def __init__(self, model: Model, device: Device, z: Arena, optimizer: ScheduleFree):
        self._z, self._optimizer = z, optimizer
        super().__init__(model, device)

    def settle(self) -> None:
        with self.device.running():
            x, y, z = (arena.on(self.device).flat for arena in (self.weights, self.model.parameters, self._z))
            self.device.ops.interpolate(x, y, z, self._optimizer.to_average)


class Swa(Average):
    """Stochastic weight averaging (Izmailov et al. 2018, Algorithm 1): the mean of the weights at the ends of epochs.

    first   epoch of a course that is the first to count; before its end there is no average
    """

    name = "swa"

    def __init__(self, model: Model, device: Device, first: int):
        super().__init__(model, device)
        self.first = whole("swa", first, 1)

    @property
    def ready(self) -> bool:
        return self.epochs > 0

    def end_epoch(self, epoch: int) -> None:
        if epoch - self.first + 1 <= self.epochs:  # not yet, or done before
            return
        self.epochs += 1
        if self.epochs == 1:
            self.weights.flat[:] = self.model.parameters.flat
            return
        with self.device.running():
            share = self.device.to_device(np.array([1 / self.epochs], np.float32))
            mean, p = (arena.on(self.device).flat for arena in (self.weights, self.model.parameters))
            self.device.ops.ema_update(mean, p, share)


class Lookahead(Average):
    """Lookahead (Zhang et al. 2019, Algorithm 1): slow weights, which the trained ones start from every k steps.

    Before that the slow weights go half the way to where these steps have led. The optimiser's moments stay.

    k   steps between
    """

    name = "lookahead"

    def __init__(self, model: Model, device: Device, k: int):
        super().__init__(model, device)
        self.k = whole("lookahead", k, 2)

    def after_step(self, t: int) -> None:
        if t % self.k == 0:
            with self.device.running():
                p, slow = (arena.on(self.device).flat for arena in (self.model.parameters, self.weights))
                self.device.ops.lookahead_update(p, slow, LOOKAHEAD_SHARE)


KINDS: tuple[type[Average], ...] = (Ema, Extrapolated, Swa, Lookahead)

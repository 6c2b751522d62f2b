"""What the optimisers share: parameters, settings, and the numbers a rule needs of one step."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from fastadam.device import get_device
from fastadam.kernels import rules
from fastadam.optim.checks import not_negative, positive


class Optimizer(ABC):
    """``t`` counts the steps taken; ``moments`` {"m": {name: array}, ...} is what the rule keeps.

    params         dict of float32 C-contiguous arrays of any shape, () included, updated in place by ``step``;
                   None for the settings of a Trainer
    lr             learning rate
    weight_decay   pull of the parameters towards zero; ``decoupled`` says whether it acts on them alone, times lr,
                   or is an L2 penalty that goes through the gradient
    """

    name: ClassVar[str]
    default_lr: ClassVar[float]
    default_weight_decay: ClassVar[float] = 0.0
    decoupled: bool = False

    def __init__(
        self,
        params: Mapping[str, np.ndarray] | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
    ):
        self.lr = positive("lr", self.default_lr if lr is None else lr)
        self.weight_decay = not_negative(
            "weight_decay", self.default_weight_decay if weight_decay is None else weight_decay
        )
        self.t = 0
        self.params = dict(params or {})
        for name, p in self.params.items():
            _check_array(f"parameter {name!r}", p)
            if not p.flags.writeable:
                raise ValueError(f"parameter {name!r} is read-only; it is updated in place, so pass a copy")
        self._moments: dict[str, dict[str, np.ndarray]] | None = None

    @property
    def rule(self) -> str:
        """The rule in ``fastadam.kernels.rules`` that these settings ask for."""
        return self.name

    @property
    def moment_names(self) -> tuple[str, ...]:
        """What the rule keeps of every parameter between steps."""
        return rules.MOMENTS[self.rule]

    @property
    def moments(self) -> dict[str, dict[str, np.ndarray]]:
        """What is kept, by its name and the parameter's."""
        if self._moments is None:
            self._moments = {
                moment: {name: np.zeros_like(p) for name, p in self.params.items()} for moment in self.moment_names
            }
        return self._moments

    def settings(self) -> dict[str, float | bool]:
        """The hyperparameters by name, as the class takes them."""
        return {"lr": self.lr, "weight_decay": self.weight_decay}

    @abstractmethod
    def numbers(self, t: int, lr: float) -> dict[str, float]:
        """The rule's own numbers of step ``t`` at the rate ``lr``, by the names of ``rules.Hyper``."""

    def hyper(self, t: int, lr: float | None = None) -> np.ndarray:
        """The float32 numbers of step ``t`` = 1, 2, ... in the order of ``fastadam.kernels.rules.Hyper``.

        ``lr``, from a schedule, stands in for the optimiser's own.
        """
        lr = self.lr if lr is None else lr
        decay = {"decay": lr * self.weight_decay} if self.decoupled else {"weight_decay": self.weight_decay}
        return np.array(rules.Hyper(lr=lr, **(decay | self.numbers(t, lr))), np.float32)

    def groups(self, t: int, lr: float | None = None) -> np.ndarray:
        """``hyper`` for parameters that decay, and for those that do not: (2, fields) float32."""
        h = np.stack([self.hyper(t, lr)] * 2)
        h[1, [rules.WEIGHT_DECAY, rules.DECAY]] = 0
        return h

    def step(self, grads: Mapping[str, np.ndarray]) -> None:
        """One update of all parameters by ``grads``, which has their names, shapes and dtype.

        Raises ValueError, naming the array, before anything is changed.
        """
        missing, unknown = (
            sorted(self.params.keys() - grads.keys()),
            sorted(grads.keys() - self.params.keys()),
        )
        if missing or unknown:
            raise ValueError(f"gradients do not match the parameters: missing {missing}, unknown {unknown}")
        for name, p in self.params.items():
            _check_array(f"gradient {name!r}", grads[name])
            if grads[name].shape != p.shape:
                raise ValueError(f"gradient {name!r} has shape {grads[name].shape}, its parameter has {p.shape}")
        device = get_device("cpu")
        update = getattr(device.ops, f"{self.rule}_update")
        self.t += 1
        h = self.hyper(self.t)[None]
        with device.running():
            for name, p in self.params.items():
                moments = (self.moments[moment][name].reshape(-1) for moment in self.moment_names)
                whole = np.array([[0, p.size, 0]])
                update(p.reshape(-1), *moments, grads[name].reshape(-1), h, whole)

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value:g}" for key, value in self.settings().items())
        return f"{type(self).__name__}({settings})"


def _check_array(what: str, array: Any) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        found = getattr(array, "dtype", type(array).__name__)
        raise ValueError(f"{what} must be a float32 array, it is {found}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{what} must be C-contiguous; pass numpy.ascontiguousarray of it")

"""The optimisers: hyperparameters, their checks, and the numbers a rule needs of one step.

    opt = fastadam.optim.Adam({"w": w}, lr=1e-3)
    opt.step({"w": dw})                       # updates w in place

Arguments mean what they mean in PyTorch. The formulas, with their papers, are in ``fastadam.kernels.rules``.
The same classes, made without parameters, are the settings of a ``fastadam.Trainer``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from fastadam.device import get_device
from fastadam.kernels import rules


class Optimizer(ABC):
    """What the optimisers share. ``t`` counts the steps taken; ``moments`` {"m": {name: array}, ...}.

    params   dict of float32 C-contiguous arrays of any shape, () included, updated in place by ``step``;
             None for the settings of a Trainer
    """

    name: ClassVar[str]
    default_lr: ClassVar[float]
    default_weight_decay: ClassVar[float] = 0.0

    def __init__(self, params: Mapping[str, np.ndarray] | None, lr: float | None, weight_decay: float | None):
        self.lr = _positive("lr", self.default_lr if lr is None else lr)
        self.weight_decay = _not_negative(
            "weight_decay", self.default_weight_decay if weight_decay is None else weight_decay
        )
        self.t = 0
        self.params = dict(params or {})
        for name, p in self.params.items():
            _check_array(f"parameter {name!r}", p)
            if not p.flags.writeable:
                raise ValueError(f"parameter {name!r} is read-only; it is updated in place, so pass a copy")
        self.moments = {
            moment: {name: np.zeros_like(p) for name, p in self.params.items()} for moment in self.moment_names
        }

    @property
    def moment_names(self) -> tuple[str, ...]:
        """What the rule keeps of every parameter between steps."""
        return rules.MOMENTS[self.name]

    def settings(self) -> dict[str, float | bool]:
        """The hyperparameters by name."""
        return {"lr": self.lr, "weight_decay": self.weight_decay}

    @abstractmethod
    def hyper(self, t: int, lr: float | None = None) -> np.ndarray:
        """The float32 numbers of step ``t`` = 1, 2, ... in the order of ``fastadam.kernels.rules.Hyper``.

        ``lr``, from a schedule, stands in for the optimiser's own.
        """

    def groups(self, t: int, lr: float | None = None) -> np.ndarray:
        """``hyper`` for parameters that decay, and for those that do not: (2, fields) float32."""
        h = np.stack([self.hyper(t, lr)] * 2)
        h[1, rules.WEIGHT_DECAY] = 0
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
        update = getattr(device.ops, f"{self.name}_update")
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


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, Algorithm 1); weight decay is L2, added to the gradient."""

    name = "adam"
    default_lr = 1e-3

    def __init__(
        self,
        params: Mapping[str, np.ndarray] | None = None,
        lr: float | None = None,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float | None = None,
    ):
        super().__init__(params, lr, weight_decay)
        self.beta1, self.beta2 = _fraction("beta1", beta1), _fraction("beta2", beta2)
        self.eps = _positive("eps", eps)

    def settings(self) -> dict[str, float | bool]:
        return {**super().settings(), "beta1": self.beta1, "beta2": self.beta2, "eps": self.eps}

    def hyper(self, t: int, lr: float | None = None) -> np.ndarray:
        return _hyper(
            lr=self.lr if lr is None else lr,
            beta1=self.beta1,
            one_minus_beta1=1 - self.beta1,
            beta2=self.beta2,
            one_minus_beta2=1 - self.beta2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            m_correction=1 / (1 - self.beta1**t),
            v_correction=1 / (1 - self.beta2**t),
        )


class AdamW(Adam):
    """AdamW (Loshchilov & Hutter 2019, Algorithm 2): the decay acts on the weights, times lr, not on the gradient."""

    name = "adamw"
    default_weight_decay = 1e-2


class SGD(Optimizer):
    """SGD with momentum (Sutskever et al. 2013), optionally Nesterov's; weight decay is L2.

    The momentum buffer begins as the first gradient, whatever the dampening.
    """

    name = "sgd"
    default_lr = 1e-1

    def __init__(
        self,
        params: Mapping[str, np.ndarray] | None = None,
        lr: float | None = None,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float | None = None,
    ):
        super().__init__(params, lr, weight_decay)
        self.momentum = _not_negative("momentum", momentum)
        self.dampening, self.nesterov = _finite("dampening", dampening), bool(nesterov)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("nesterov needs a momentum above 0 and no dampening")

    def settings(self) -> dict[str, float | bool]:
        own = {"momentum": self.momentum, "dampening": self.dampening, "nesterov": self.nesterov}
        return {**super().settings(), **own}

    def hyper(self, t: int, lr: float | None = None) -> np.ndarray:
        damped = t > 1 and self.momentum > 0
        return _hyper(
            lr=self.lr if lr is None else lr,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            one_minus_dampening=1 - self.dampening if damped else 1,
            nesterov=float(self.nesterov),
        )


OPTIMIZERS: dict[str, type[Optimizer]] = {c.name: c for c in (Adam, AdamW, SGD)}
"""Optimisers by the name the command line gives them."""


def _hyper(**numbers: float) -> np.ndarray:
    fields = dict.fromkeys(rules.Hyper._fields, 0.0) | {"grad_scale": 1.0} | numbers
    return np.array(rules.Hyper(**fields), np.float32)


def _check_array(what: str, array: Any) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        found = getattr(array, "dtype", type(array).__name__)
        raise ValueError(f"{what} must be a float32 array, it is {found}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{what} must be C-contiguous; pass numpy.ascontiguousarray of it")


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, it is {value}")
    return float(value)


def _positive(name: str, value: float) -> float:
    if not np.float32(_finite(name, value)) > 0:
        raise ValueError(f"{name} must be above 0, in float32 too, it is {value}")
    return float(value)


def _not_negative(name: str, value: float) -> float:
    if not _finite(name, value) >= 0:
        raise ValueError(f"{name} must be 0 or more, it is {value}")
    return float(value)


def _fraction(name: str, value: float) -> float:
    if not 0 <= _finite(name, value) < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, it is {value}")
    return float(value)

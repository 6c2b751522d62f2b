"""Optimisers that give every tensor a rate of its own, by norms of the whole of it: for large batches."""

import numpy as np

from fastadam.checks import not_negative, positive
from fastadam.kernels import rules
from fastadam.optim.adam import Moments
from fastadam.optim.base import Optimizer
from fastadam.optim.groups import Params


class Layerwise(Optimizer):
    """What scales the rate of a tensor by its trust ratio.

    In a Trainer what does not decay is not scaled either: biases and the parameters of norms, unless its ``decay`` is
    "all". Of parameters by name all are scaled, those of a group without decay too; what is not to be belongs to
    another optimiser.
    """

    def decay_rows(self, t: int, lr: float | None = None) -> np.ndarray:
        h = super().decay_rows(t, lr)
        h[1, rules.TRUST] = 0
        return h


class LAMB(Layerwise, Moments):
    """LAMB (You et al. 2020, Algorithm 2): Adam, each tensor's step as long as lr times its norm.

    The decay is added to Adam's step before its norm is taken. As in its authors' code, the paper's phi is the
    identity, a tensor whose norm is zero moves by lr times its step, and what does not decay in a Trainer, biases and
    the parameters of norms, is not scaled; eps and the decay, 0.01, are theirs too.
    """

    name = "lamb"
    default_lr = 2e-3
    default_eps = 1e-6
    default_weight_decay = 1e-2

    def numbers(self, t: int, lr: float) -> dict[str, float]:
        return super().numbers(t, lr) | {"trust": 1.0}


class LARS(Layerwise):
    """LARS (You, Gitman & Ginsburg 2017, Algorithm 1): SGD with momentum, each tensor at a local rate.

    That is trust_coefficient * |p| / (|g| + weight_decay * |p|), 1 where a norm is zero; lr is inside the momentum
    buffer. What does not decay in a Trainer, biases and the parameters of norms, is plain SGD with momentum: it moves
    by lr itself, so that a net whose biases bear no large rate wants a larger trust_coefficient instead. weight_decay
    is the default of its authors' code.

    momentum            kept share of the buffer
    trust_coefficient   how far a tensor moves at lr 1, as a share of its norm
    """

    name = "lars"
    default_lr = 0.1
    default_weight_decay = 1e-4

    def __init__(
        self,
        params: Params | None = None,
        lr: float | None = None,
        momentum: float = 0.9,
        weight_decay: float | None = None,
        trust_coefficient: float = 1e-3,
    ):
        self.momentum = not_negative("momentum", momentum)
        self.trust_coefficient = positive("trust_coefficient", trust_coefficient)
        super().__init__(params, lr, weight_decay)

    def settings(self) -> dict[str, float | bool]:
        own = {"momentum": self.momentum, "trust_coefficient": self.trust_coefficient}
        return {**super().settings(), **own}

    def numbers(self, t: int, lr: float) -> dict[str, float]:
        return {"momentum": self.momentum, "trust": self.trust_coefficient}

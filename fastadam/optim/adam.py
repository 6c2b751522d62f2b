"""Adam, and the variants of it that PyTorch has too: same defaults, same meanings."""

import math

from fastadam.checks import fraction, not_negative, positive
from fastadam.optim.base import Optimizer
from fastadam.optim.groups import Params


class Moments(Optimizer):
    """What has averages of the gradient and of its square, decayed by beta1 and beta2, and an eps beside the root."""

    default_beta1 = 0.9
    default_beta2 = 0.999
    default_eps = 1e-8

    def __init__(
        self,
        params: Params | None = None,
        lr: float | None = None,
        beta1: float | None = None,
        beta2: float | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
    ):
        self.beta1 = fraction("beta1", self.default_beta1 if beta1 is None else beta1)
        self.beta2 = fraction("beta2", self.default_beta2 if beta2 is None else beta2)
        self.eps = positive("eps", self.default_eps if eps is None else eps)
        super().__init__(params, lr, weight_decay)

    def settings(self) -> dict[str, float | bool]:
        return {**super().settings(), "beta1": self.beta1, "beta2": self.beta2, "eps": self.eps}

    def numbers(self, t: int, lr: float) -> dict[str, float]:
        return {
            "beta1": self.beta1,
            "one_minus_beta1": 1 - self.beta1,
            "beta2": self.beta2,
            "one_minus_beta2": 1 - self.beta2,
            "eps": self.eps,
            "m_correction": 1 / (1 - self.beta1**t),
            "v_correction": 1 / (1 - self.beta2**t),
        }


class Adam(Moments):
    """Adam (Kingma & Ba 2015, Algorithm 1); weight decay is L2, added to the gradient.

    amsgrad   divide by the largest average of squares so far (Reddi et al. 2018, Algorithm 2)
    """

    name = "adam"
    default_lr = 1e-3

    def __init__(
        self,
        params: Params | None = None,
        lr: float | None = None,
        beta1: float | None = None,
        beta2: float | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        amsgrad: bool = False,
    ):
        self.amsgrad = bool(amsgrad)
        super().__init__(params, lr, beta1, beta2, eps, weight_decay)

    @property
    def rule(self) -> str:
        return "amsgrad" if self.amsgrad else self.name

    def settings(self) -> dict[str, float | bool]:
        return {**super().settings(), "amsgrad": self.amsgrad}


class AdamW(Adam):
    """AdamW (Loshchilov & Hutter 2019, Algorithm 2): the decay acts on the weights, times lr, not on the gradient."""

    name = "adamw"
    default_weight_decay = 1e-2
    decoupled = True


class Adamax(Moments):
    """Adamax (Kingma & Ba 2015, Algorithm 2): the largest decayed gradient divides; weight decay is L2."""

    name = "adamax"
    default_lr = 2e-3


class Decoupling(Moments):
    """What takes either kind of weight decay: L2 unless ``decoupled_weight_decay`` is true."""

    def __init__(
        self,
        params: Params | None = None,
        lr: float | None = None,
        beta1: float | None = None,
        beta2: float | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        decoupled_weight_decay: bool = False,
    ):
        self.decoupled = bool(decoupled_weight_decay)
        super().__init__(params, lr, beta1, beta2, eps, weight_decay)

    def settings(self) -> dict[str, float | bool]:
        return {**super().settings(), "decoupled_weight_decay": self.decoupled}


class NAdam(Decoupling):
    """NAdam (Dozat 2016, Algorithm 2): Adam with Nesterov's momentum.

    momentum_decay   of the momentum's schedule, beta1 * (1 - 0.96**(t * momentum_decay) / 2)
    """

    name = "nadam"
    default_lr = 2e-3

    def __init__(
        self,
        params: Params | None = None,
        lr: float | None = None,
        beta1: float | None = None,
        beta2: float | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
    ):
        self.momentum_decay = not_negative("momentum_decay", momentum_decay)
        self._product = 0, 1.0  # of the momenta of the first so many steps
        super().__init__(params, lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay)

    def settings(self) -> dict[str, float | bool]:
        return {**super().settings(), "momentum_decay": self.momentum_decay}

    def _momentum(self, t: int) -> float:
        return self.beta1 * (1 - 0.5 * 0.96 ** (t * self.momentum_decay))

    def numbers(self, t: int, lr: float) -> dict[str, float]:
        done, product = self._product if self._product[0] <= t else (0, 1.0)
        for step in range(done + 1, t + 1):
            product *= self._momentum(step)
        self._product = t, product
        this, following = self._momentum(t), self._momentum(t + 1)
        return super().numbers(t, lr) | {
            "m_correction": following / (1 - product * following),
            "g_correction": (1 - this) / (1 - product),
        }


class RAdam(Decoupling):
    """RAdam (Liu et al. 2020, Algorithm 2): the adaptive rate is rectified, and left out while its variance is none."""

    name = "radam"
    default_lr = 1e-3

    def numbers(self, t: int, lr: float) -> dict[str, float]:
        numbers, power = super().numbers(t, lr), self.beta2**t
        longest = 2 / (1 - self.beta2) - 1
        length = longest - 2 * t * power / (1 - power)
        if length <= 5:  # the paper says 4, its authors' code and PyTorch 5
            return numbers | {"unrectified": 1.0}
        squared = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        return numbers | {"rectification": math.sqrt(squared * (1 - power))}

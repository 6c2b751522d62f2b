"""Later variants of Adam, as their papers have them."""

from fastadam.checks import fraction, positive
from fastadam.optim.adam import Decoupling, Moments
from fastadam.optim.base import Optimizer
from fastadam.optim.groups import Params


class AdaBelief(Decoupling):
    """AdaBelief (Zhuang et al. 2020, Algorithm 2): small steps where the gradient strays from its mean.

    As in the paper eps is added to the moment in every step, so it adds up and counts for more than Adam's.
    """

    name = "adabelief"
    default_lr = 1e-3


class AdaBound(Decoupling):
    """AdaBound (Luo et al. 2019, Algorithm 2): Adam at first, SGD with momentum at last.

    final_lr   the rate of SGD that the bounds close in on, for the lr it was made with, and scaled along with it
    gamma      how fast they do
    """

    name = "adabound"
    default_lr = 1e-3

    def __init__(
        self,
        params: Params | None = None,
        lr: float | None = None,
        beta1: float | None = None,
        beta2: float | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        final_lr: float = 0.1,
        gamma: float = 1e-3,
        decoupled_weight_decay: bool = False,
    ):
        self.final_lr, self.gamma = positive("final_lr", final_lr), positive("gamma", gamma)
        super().__init__(params, lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay)

    def settings(self) -> dict[str, float | bool]:
        return {**super().settings(), "final_lr": self.final_lr, "gamma": self.gamma}

    def numbers(self, t: int, lr: float) -> dict[str, float]:
        final = self.final_lr * lr / self.initial_lr
        return super().numbers(t, lr) | {
            "lower": final * (1 - 1 / (self.gamma * t + 1)),
            "upper": final * (1 + 1 / (self.gamma * t)),
        }


class Padam(Decoupling):
    """Padam (Chen et al. 2018, Algorithm 1): between Adam (partial 1/2) and SGD with momentum (towards 0).

    partial   the power of the average of squares that divides: a multiple of 1/16, up to 1/2
    """

    name = "padam"
    default_lr = 1e-1

    def __init__(
        self,
        params: Params | None = None,
        lr: float | None = None,
        beta1: float | None = None,
        beta2: float | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        partial: float = 0.125,
        decoupled_weight_decay: bool = False,
    ):
        if partial * 16 not in range(1, 9):
            raise ValueError(f"partial must be a multiple of 1/16 from 1/16 to 1/2, it is {partial}")
        self.partial = float(partial)
        super().__init__(params, lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay)

    def settings(self) -> dict[str, float | bool]:
        return {**super().settings(), "partial": self.partial}

    def numbers(self, t: int, lr: float) -> dict[str, float]:
        return super().numbers(t, lr) | {"eighths": 16 * self.partial}


class Adan(Moments):
    """Adan (Xie et al. 2022, Algorithm 1): momentum of gradients and of their differences.

    beta1, beta2, beta3   kept shares of the averages of gradients, of differences, and of squares
    weight_decay          proximal: the parameters are divided by 1 + lr * weight_decay
    """

    name = "adan"
    default_lr = 1e-3
    default_beta1, default_beta2, default_beta3 = 0.98, 0.92, 0.99
    decoupled = True

    def __init__(
        self,
        params: Params | None = None,
        lr: float | None = None,
        beta1: float | None = None,
        beta2: float | None = None,
        beta3: float | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
    ):
        self.beta3 = fraction("beta3", self.default_beta3 if beta3 is None else beta3)
        super().__init__(params, lr, beta1, beta2, eps, weight_decay)

    def settings(self) -> dict[str, float | bool]:
        return {**super().settings(), "beta3": self.beta3}

    def numbers(self, t: int, lr: float) -> dict[str, float]:
        return super().numbers(t, lr) | {
            "beta3": self.beta3,
            "one_minus_beta3": 1 - self.beta3,
            "n_correction": 1 / (1 - self.beta3**t),
            "decay": 1 - 1 / (1 + lr * self.weight_decay),
            "later": float(t > 1),
        }


class Lion(Optimizer):
    """Lion (Chen et al. 2023, Algorithm 2): every parameter moves by lr, the sign of an average decides where to.

    beta1, beta2   kept shares of the average that decides, and of the one that goes on to the next step
    """

    name = "lion"
    default_lr = 1e-4
    default_beta1, default_beta2 = 0.9, 0.99
    decoupled = True

    def __init__(
        self,
        params: Params | None = None,
        lr: float | None = None,
        beta1: float | None = None,
        beta2: float | None = None,
        weight_decay: float | None = None,
    ):
        self.beta1 = fraction("beta1", self.default_beta1 if beta1 is None else beta1)
        self.beta2 = fraction("beta2", self.default_beta2 if beta2 is None else beta2)
        super().__init__(params, lr, weight_decay)

    def settings(self) -> dict[str, float | bool]:
        return {**super().settings(), "beta1": self.beta1, "beta2": self.beta2}

    def numbers(self, t: int, lr: float) -> dict[str, float]:
        return {
            "beta1": self.beta1,
            "one_minus_beta1": 1 - self.beta1,
            "beta2": self.beta2,
            "one_minus_beta2": 1 - self.beta2,
        }

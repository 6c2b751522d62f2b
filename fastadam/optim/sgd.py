"""Stochastic gradient descent."""

from fastadam.checks import finite, not_negative
from fastadam.optim.base import Optimizer
from fastadam.optim.groups import Params


class SGD(Optimizer):
    """SGD with momentum (Sutskever et al. 2013), optionally Nesterov's; weight decay is L2.

    The momentum buffer begins as the first gradient, whatever the dampening. Without momentum it is the last one, which
    a momentum that is set later begins with; PyTorch's begins with the gradient after.
    """

    name = "sgd"
    default_lr = 1e-1

    def __init__(
        self,
        params: Params | None = None,
        lr: float | None = None,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float | None = None,
        nesterov: bool = False,
    ):
        self.momentum = not_negative("momentum", momentum)
        self.dampening, self.nesterov = finite("dampening", dampening), bool(nesterov)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("nesterov needs a momentum above 0 and no dampening")
        super().__init__(params, lr, weight_decay)

    def settings(self) -> dict[str, float | bool]:
        own = {"momentum": self.momentum, "dampening": self.dampening, "nesterov": self.nesterov}
        return {**super().settings(), **own}

    def numbers(self, t: int, lr: float) -> dict[str, float]:
        return {
            "momentum": self.momentum,
            "one_minus_dampening": 1 - self.dampening if t > 1 and self.momentum > 0 else 1,
            "nesterov": float(self.nesterov),
        }

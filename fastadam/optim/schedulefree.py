"""Schedule-free AdamW: an average of the weights stands in for a schedule of the rate."""

import numpy as np

from fastadam.checks import positive, whole
from fastadam.device import get_device
from fastadam.optim.adam import Moments
from fastadam.optim.groups import Params


class ScheduleFree(Moments):
    """Schedule-free AdamW (Defazio et al. 2024, Algorithm 1, as in their AdamWScheduleFree with its defaults).

    The parameters are the paper's y, where gradients are to be taken. What is to be evaluated and kept are the
    averaged weights x: ``averaged()``. Batch norms need running statistics of their own for these.

    beta1          share of x in y, above 0: x is found from y and z, so that another one between steps means another x
    weight_decay   decoupled: acts on y, times lr
    warmup_steps   the rate rises to lr in so many steps, and stays; weights count by the square of their rate
    """

    name = "schedulefree"
    default_lr = 2.5e-3

    def __init__(
        self,
        params: Params | None = None,
        lr: float | None = None,
        beta1: float | None = None,
        beta2: float | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        warmup_steps: int = 0,
    ):
        self.warmup_steps = whole("warmup_steps", warmup_steps, 0)
        if beta1 is not None:
            positive("beta1", beta1)
        super().__init__(params, lr, beta1, beta2, eps, weight_decay)

    def settings(self) -> dict[str, float | bool]:
        return {**super().settings(), "warmup_steps": self.warmup_steps}

    @property
    def to_average(self) -> float:
        """Where x lies on the line from y to z: 1 - 1 / beta1, before its beginning."""
        return _to_average(self.beta1)

    def averaged(self) -> dict[str, np.ndarray]:
        """The averaged weights x, new arrays: equal to the parameters before the first step."""
        averaged = {name: np.empty_like(p) for name, p in self.params.items()}
        device = get_device("cpu")
        with device.running():
            for group in self.param_groups:
                share = _to_average(group["beta1"])
                for name, y in group["params"].items():
                    x, z = averaged[name], self.moments["z"][name]
                    device.ops.interpolate(x.reshape(-1), y.reshape(-1), z.reshape(-1), share)
        return averaged

    def own_rate(self, t: int, lr: float) -> float:
        return lr * min(1.0, t / max(1, self.warmup_steps))

    def numbers(self, t: int, lr: float) -> dict[str, float]:
        return super().numbers(t, lr) | {"average": self._share(t)}

    def _share(self, t: int) -> float:
        """c_t: the weight lr_t**2 of the step in the sum of all so far.

        In closed form, so that a step knows it without those before: with W steps of warm-up the weights are
        1, 4, ..., W**2 over W**2, then 1 (the paper's section 3 on warm-up; weight_lr_power 2, r 0 of its code).
        """
        W = max(1, self.warmup_steps)
        if t <= W:
            return 6 * t / ((t + 1) * (2 * t + 1))
        return 1 / ((W + 1) * (2 * W + 1) / (6 * W) + t - W)


def _to_average(beta1: float) -> float:
    return 1 - 1 / beta1

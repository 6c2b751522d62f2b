"""AdamW by moments of two bytes."""

from fastadam.checks import whole
from fastadam.draws import keys
from fastadam.optim.adam import Moments
from fastadam.optim.groups import Params


class AdamWBF16(Moments):
    """AdamW (Loshchilov & Hutter 2019, Algorithm 2) by moments kept in bfloat16: 4 bytes a parameter in place of 8.

    They are rounded at random, so that they are right on average: to the nearest, v would stall (see
    ``fastadam.kernels.cpu.bfloat16``). ``moments`` are uint16 arrays; ``fastadam.bfloat16.widened`` makes float32
    of them.

    seed   of the rounding: the bits of a step are a function of (seed, step, element)
    """

    name = "adamw_bf16"
    default_lr = 1e-3
    default_weight_decay = 1e-2
    decoupled = True

    def __init__(
        self,
        params: Params | None = None,
        lr: float | None = None,
        beta1: float | None = None,
        beta2: float | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        seed: int = 0,
    ):
        self.seed = whole("seed", seed)
        super().__init__(params, lr, beta1, beta2, eps, weight_decay)

    def settings(self) -> dict[str, float | bool]:
        return {**super().settings(), "seed": self.seed}

    def numbers(self, t: int, lr: float) -> dict[str, float]:
        draw = int(keys(self.seed, t)[0]) >> 40  # 24 bits, as many as a float32 holds
        return super().numbers(t, lr) | {"draw": draw}

"""Muon, with AdamW for what is no matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastadam.checks import finite, fraction, positive, whole
from fastadam.kernels import MUON_RATES
from fastadam.optim.adam import AdamW
from fastadam.optim.base import Optimizer
from fastadam.optim.groups import Params

COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Jordan et al. 2024: steep at zero. Five iterations bring singular values to between 0.68 and 1.21, if they are no
less than 0.002 of the norm."""

MOST_STEPS = 99


class Muon(Optimizer):
    """Muon (Jordan et al. 2024): the momentum of a matrix, orthogonalised by Newton-Schulz iterations.

    Arguments and defaults are those of ``torch.optim.Muon``; iterations are in float32, PyTorch's in bfloat16. All
    else is updated by AdamW, so that one optimiser does for a network:

    In a Trainer Muon has the weights of hidden linear layers and convolutions. The first layer, the last, biases and
    norms are AdamW's, as the authors advise. With arrays by name Muon has those of two dimensions or more: (O, I)
    matrices, and (O, I, KH, KW) filters as (O, I * KH * KW). Give another optimiser those of the first and last layer.

    lr                of the matrices; what changes it later, a schedule say, changes adamw_lr in the same proportion.
                      PyTorch's default; the authors begin with 0.02
    weight_decay      of all that decays: decoupled, times lr of matrices and times adamw_lr of the others
    momentum          kept share of the average of gradients
    nesterov          whether the average is taken once more with the same gradient before it is orthogonalised
    ns_coefficients   a, b, c: an iteration is X (a I + b A + c A A), A = X.T X
    eps               least norm that the average is divided by before the iterations
    ns_steps          iterations, 1 to 99
    adjust_lr_fn      how lr depends on a matrix's shape: "original", sqrt(max(1, O / I)), the default, or
                      "match_rms_adamw" (Liu et al. 2025, section 2.2), 0.2 * sqrt(max(O, I)), with which rate and decay
                      that are good for AdamW will do
    adamw_lr, beta1, beta2, adamw_eps   of AdamW
    """

    name = "muon"
    default_lr = 1e-3
    default_weight_decay = 0.1
    decoupled = True

    def __init__(
        self,
        params: Params | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: Sequence[float] = COEFFICIENTS,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        adamw_lr: float | None = None,
        beta1: float | None = None,
        beta2: float | None = None,
        adamw_eps: float | None = None,
    ):
        self.momentum, self.nesterov = fraction("momentum", momentum), bool(nesterov)
        self.ns_coefficients = tuple(finite("ns_coefficients", value) for value in ns_coefficients)
        if len(self.ns_coefficients) != 3:
            raise ValueError(f"ns_coefficients must be three numbers, it is {ns_coefficients}")
        self.eps, self.ns_steps = positive("eps", eps), whole("ns_steps", ns_steps, 1, MOST_STEPS)
        self.adjust_lr_fn = MUON_RATES[0] if adjust_lr_fn is None else adjust_lr_fn
        if self.adjust_lr_fn not in MUON_RATES:
            raise ValueError(f"adjust_lr_fn must be one of {', '.join(MUON_RATES)}, it is {adjust_lr_fn!r}")
        rest = AdamW(None, positive("adamw_lr", 1e-3 if adamw_lr is None else adamw_lr), beta1, beta2)
        self.adamw_lr, self.beta1, self.beta2 = rest.lr, rest.beta1, rest.beta2
        self.adamw_eps = positive("adamw_eps", rest.eps if adamw_eps is None else adamw_eps)
        super().__init__(params, lr, weight_decay)

    def settings(self) -> dict[str, Any]:
        own = "momentum", "nesterov", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn"
        rest = "adamw_lr", "beta1", "beta2", "adamw_eps"
        chosen = {name: getattr(self, name) for name in (*own, *rest)}
        return {**super().settings(), **chosen, "ns_coefficients": tuple(self.ns_coefficients)}

    @property
    def moment_names(self) -> tuple[str, ...]:
        """The average of gradients of every parameter, and that of their squares of those that AdamW has."""
        return ("m", "v")

    def rule_of(self, p: np.ndarray) -> str:
        return self.rule if p.ndim >= 2 and p.size else "adamw"

    @property
    def constants(self) -> tuple[tuple[str, Any], ...]:
        a, b, c = self.ns_coefficients
        named = {"adjust_lr_fn": self.adjust_lr_fn, "a": a, "b": b, "c": c, "eps": self.eps, "steps": self.ns_steps}
        return tuple(named.items())

    def numbers(self, t: int, lr: float) -> dict[str, float]:
        adamw_lr = self.adamw_lr * lr / self.initial_lr
        rest = AdamW(None, self.adamw_lr, self.beta1, self.beta2, self.adamw_eps).numbers(t, adamw_lr)
        return rest | {
            "lr": adamw_lr,
            "decay": adamw_lr * self.weight_decay,
            "matrix_lr": lr,
            "matrix_decay": lr * self.weight_decay,
            "momentum": self.momentum,
            "one_minus_dampening": 1 - self.momentum,
            "nesterov": float(self.nesterov),
        }

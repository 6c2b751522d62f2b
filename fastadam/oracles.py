"""The optimisers once more, in float64 and straight from the papers, to hold the real ones against.

    p = ORACLES["adam"](p, g, kept, t, settings)

``kept`` is a dict that a parameter's moments stay in between steps, ``t`` = 1, 2, ... the step, ``settings``
what ``Optimizer.settings`` gives. Nothing of ``fastadam.kernels`` is used. Written to be read beside the paper, in its
letters and order, not to be fast; where PyTorch or the authors' own code departs from the paper and is followed,
the docstring says so.

Weight decay that a paper does not have is L2, ``g + weight_decay * p``, or, with ``decoupled_weight_decay``, a factor
``1 - lr * weight_decay`` on p before the step, as PyTorch has both.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray
Settings = Mapping[str, Any]
Oracle = Callable[[Array, Array, dict[str, Array], int, Settings], Array]


def _average(kept: dict[str, Array], name: str, beta: float, new: Array) -> Array:
    """The exponential moving average of what is called ``name``, which begins at zero."""
    kept[name] = beta * kept.get(name, np.zeros_like(new)) + (1 - beta) * new
    return kept[name]


def _decayed(p: Array, g: Array, s: Settings) -> tuple[Array, Array]:
    """Parameter and gradient after weight decay of either kind."""
    if s["decoupled_weight_decay"]:
        return p - s["lr"] * s["weight_decay"] * p, g
    return p, g + s["weight_decay"] * p


# Adam, and what PyTorch has of its kin -----------------------------------------------------------------------


def adam(p: Array, g: Array, kept: dict[str, Array], t: int, s: Settings) -> Array:
    """Kingma & Ba 2015, Algorithm 1; weight decay is added to the gradient."""
    return p - s["lr"] * _adam_step(g + s["weight_decay"] * p, kept, t, s)


def adamw(p: Array, g: Array, kept: dict[str, Array], t: int, s: Settings) -> Array:
    """Loshchilov & Hutter 2019, Algorithm 2, line 12, where the decay too is multiplied by the rate."""
    return p - s["lr"] * (_adam_step(g, kept, t, s) + s["weight_decay"] * p)


def _adam_step(g: Array, kept: dict[str, Array], t: int, s: Settings) -> Array:
    """Adam's step; with ``amsgrad`` by Reddi, Kale & Kumar 2018, Algorithm 2, the largest v so far.

    That algorithm has neither bias corrections nor eps; PyTorch keeps Adam's, and corrects the largest v by step t.
    """
    m = _average(kept, "m", s["beta1"], g)
    v = _average(kept, "v", s["beta2"], g**2)
    if s["amsgrad"]:
        v = kept["v_max"] = np.maximum(kept.get("v_max", v), v)
    m_hat, v_hat = m / (1 - s["beta1"] ** t), v / (1 - s["beta2"] ** t)
    return m_hat / (np.sqrt(v_hat) + s["eps"])


def adamax(p: Array, g: Array, kept: dict[str, Array], t: int, s: Settings) -> Array:
    """Kingma & Ba 2015, Algorithm 2; PyTorch adds eps to the size of g, the paper has none."""
    g = g + s["weight_decay"] * p
    m = _average(kept, "m", s["beta1"], g)
    kept["u"] = np.maximum(s["beta2"] * kept.get("u", np.zeros_like(g)), np.abs(g) + s["eps"])
    return p - s["lr"] / (1 - s["beta1"] ** t) * m / kept["u"]


def nadam(p: Array, g: Array, kept: dict[str, Array], t: int, s: Settings) -> Array:
    """Dozat 2016, Algorithm 2, with the schedule of mu that its section 2 ends on; 0.004 is the paper's 1 / 250.

    As in PyTorch the average m decays by beta1, not by the scheduled mu.
    """
    p, g = _decayed(p, g, s)
    mu = s["beta1"] * (1 - 0.5 * 0.96 ** (s["momentum_decay"] * np.arange(1, t + 2)))  # of the steps 1 to t + 1
    m = _average(kept, "m", s["beta1"], g)
    n = _average(kept, "n", s["beta2"], g**2)
    g_hat, m_hat = g / (1 - mu[:-1].prod()), m / (1 - mu.prod())
    n_hat = n / (1 - s["beta2"] ** t)
    m_bar = (1 - mu[-2]) * g_hat + mu[-1] * m_hat
    return p - s["lr"] * m_bar / (np.sqrt(n_hat) + s["eps"])


def radam(p: Array, g: Array, kept: dict[str, Array], t: int, s: Settings) -> Array:
    """Liu et al. 2020, Algorithm 2; as in PyTorch rho must exceed 5, not 4, and eps is added to the root of v."""
    p, g = _decayed(p, g, s)
    v = _average(kept, "v", s["beta2"], g**2)
    m = _average(kept, "m", s["beta1"], g)
    m_hat = m / (1 - s["beta1"] ** t)
    rho_inf = 2 / (1 - s["beta2"]) - 1
    rho = rho_inf - 2 * t * s["beta2"] ** t / (1 - s["beta2"] ** t)
    if rho <= 5:
        return p - s["lr"] * m_hat
    ell = np.sqrt(1 - s["beta2"] ** t) / (np.sqrt(v) + s["eps"])
    r = np.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    return p - s["lr"] * r * m_hat * ell


# Later variants ----------------------------------------------------------------------------------------------


def adabelief(p: Array, g: Array, kept: dict[str, Array], t: int, s: Settings) -> Array:
    """Zhuang et al. 2020, Algorithm 2: eps is added to s, where it adds up over the steps, and to the root."""
    p, g = _decayed(p, g, s)
    m = _average(kept, "m", s["beta1"], g)
    kept["s"] = _average(kept, "s", s["beta2"], (g - m) ** 2) + s["eps"]
    m_hat, s_hat = m / (1 - s["beta1"] ** t), kept["s"] / (1 - s["beta2"] ** t)
    return p - s["lr"] * m_hat / (np.sqrt(s_hat) + s["eps"])


def adabound(p: Array, g: Array, kept: dict[str, Array], t: int, s: Settings) -> Array:
    """Luo et al. 2019, Algorithm 2: the rate of each parameter is clipped between bounds that close in on final_lr.

    As in the authors' code the rate has Adam's bias corrections and an eps, is not divided by sqrt(t), and the bounds
    have ``gamma`` for the paper's 1 - beta2. Its eps stands beside the corrected root, as Adam's; theirs beside the
    raw one.
    """
    p, g = _decayed(p, g, s)
    m = _average(kept, "m", s["beta1"], g)
    v_hat = _average(kept, "v", s["beta2"], g**2) / (1 - s["beta2"] ** t)
    lower = s["final_lr"] - s["final_lr"] / (s["gamma"] * t + 1)
    upper = s["final_lr"] + s["final_lr"] / (s["gamma"] * t)
    eta = np.clip(s["lr"] / (1 - s["beta1"] ** t) / (np.sqrt(v_hat) + s["eps"]), lower, upper)
    return p - eta * m


def padam(p: Array, g: Array, kept: dict[str, Array], t: int, s: Settings) -> Array:
    """Chen et al. 2018, Algorithm 1: AMSGrad with v to the power ``partial``, the paper's p.

    The paper has neither bias corrections nor eps; both are Adam's here, so that 1/2 is AMSGrad as PyTorch has it. The
    authors' code corrects v by the same root for every power.
    """
    p, g = _decayed(p, g, s)
    m_hat = _average(kept, "m", s["beta1"], g) / (1 - s["beta1"] ** t)
    v = _average(kept, "v", s["beta2"], g**2)
    kept["v_max"] = np.maximum(kept.get("v_max", v), v)
    root = np.sqrt(kept["v_max"] / (1 - s["beta2"] ** t)) + s["eps"]
    return p - s["lr"] * m_hat / root ** (2 * s["partial"])


def adan(p: Array, g: Array, kept: dict[str, Array], t: int, s: Settings) -> Array:
    """Xie et al. 2022, Algorithm 1, whose betas are one minus ours.

    As in the authors' code the averages begin at zero and are corrected for it, where the paper begins them with the
    first gradient, and eps is added to the root.
    """
    b1, b2, b3 = (1 - s[name] for name in ("beta1", "beta2", "beta3"))
    change = g - kept.get("g", g)
    kept["g"] = g
    m = _average(kept, "m", 1 - b1, g)
    v = _average(kept, "v", 1 - b2, change)
    n = _average(kept, "n", 1 - b3, (g + (1 - b2) * change) ** 2)
    m_hat, v_hat, n_hat = (x / (1 - (1 - b) ** t) for x, b in ((m, b1), (v, b2), (n, b3)))
    eta = s["lr"] / (np.sqrt(n_hat) + s["eps"])
    return (p - eta * (m_hat + (1 - b2) * v_hat)) / (1 + s["weight_decay"] * s["lr"])


def lion(p: Array, g: Array, kept: dict[str, Array], t: int, s: Settings) -> Array:
    """Chen et al. 2023, Algorithm 2. ``kept["c"]`` is what the sign was taken of: near zero, rounding decides it."""
    kept["c"] = s["beta1"] * kept.get("m", np.zeros_like(g)) + (1 - s["beta1"]) * g
    _average(kept, "m", s["beta2"], g)
    return p - s["lr"] * (np.sign(kept["c"]) + s["weight_decay"] * p)


# Without a second moment -------------------------------------------------------------------------------------


def sgd(p: Array, g: Array, kept: dict[str, Array], t: int, s: Settings) -> Array:
    """Sutskever et al. 2013, equations 1 to 4, with the rate outside the velocity, as PyTorch documents it.

    The velocity begins as the first gradient; without momentum there is neither velocity nor dampening.
    """
    g = g + s["weight_decay"] * p
    if not s["momentum"]:
        return p - s["lr"] * g
    kept["m"] = g if t == 1 else s["momentum"] * kept["m"] + (1 - s["dampening"]) * g
    return p - s["lr"] * (g + s["momentum"] * kept["m"] if s["nesterov"] else kept["m"])


def schedulefree(p: Array, g: Array, kept: dict[str, Array], t: int, s: Settings) -> Array:
    """Defazio et al. 2024, Algorithm 1 for AdamW: y, where the gradient was taken, x and z, each by its formula."""
    x, z = kept.get("x", p), kept.get("z", p)
    rate = s["lr"] * min(1, t / max(1, s["warmup_steps"]))
    kept["v"] = s["beta2"] * kept.get("v", 0 * g) + (1 - s["beta2"]) * g**2
    step = g / (np.sqrt(kept["v"] / (1 - s["beta2"] ** t)) + s["eps"])
    kept["z"] = z - rate * step - rate * s["weight_decay"] * p
    kept["weights"] = kept.get("weights", np.zeros(())) + rate**2
    c = rate**2 / kept["weights"]
    kept["x"] = (1 - c) * x + c * kept["z"]
    return (1 - s["beta1"]) * kept["z"] + s["beta1"] * kept["x"]


def adamw_bf16(p: Array, g: Array, kept: dict[str, Array], t: int, s: Settings) -> Array:
    """AdamW by moments that are not rounded: rounded at random they are right on average, and a little off."""
    return adamw(p, g, kept, t, {**s, "amsgrad": False})


# Rates by tensor: p is the whole of one ----------------------------------------------------------------------


def lamb(p: Array, g: Array, kept: dict[str, Array], t: int, s: Settings) -> Array:
    """You et al. 2020, Algorithm 2, phi being the identity, and the ratio 1 where a norm is zero.

    As in the authors' code, what is spared the decay is spared the ratio: with ``trust`` 0 in the settings it is 1.
    """
    m = _average(kept, "m", s["beta1"], g)
    v = _average(kept, "v", s["beta2"], g**2)
    m_hat, v_hat = m / (1 - s["beta1"] ** t), v / (1 - s["beta2"] ** t)
    step = m_hat / (np.sqrt(v_hat) + s["eps"]) + s["weight_decay"] * p
    p_norm, step_norm = np.linalg.norm(p), np.linalg.norm(step)
    ratio = p_norm / step_norm if s.get("trust", 1) and p_norm > 0 and step_norm > 0 else 1
    return p - s["lr"] * ratio * step


def lars(p: Array, g: Array, kept: dict[str, Array], t: int, s: Settings) -> Array:
    """You, Gitman & Ginsburg 2017, Algorithm 1, the local rate 1 where a norm is zero, or with ``trust`` 0."""
    p_norm, g_norm = np.linalg.norm(p), np.linalg.norm(g)
    local = 1.0
    if s.get("trust", 1) and p_norm > 0 and g_norm > 0:
        local = float(s["trust_coefficient"] * p_norm / (g_norm + s["weight_decay"] * p_norm))
    velocity = s["momentum"] * kept.get("v", np.zeros_like(g)) + s["lr"] * local * (g + s["weight_decay"] * p)
    kept["v"] = velocity
    return p - velocity


# Matrices ------------------------------------------------------------------------------------------------------


def muon(p: Array, g: Array, kept: dict[str, Array], t: int, s: Settings) -> Array:
    """Jordan et al. 2024 for a matrix, filters as (O, I * KH * KW), AdamW for what is none, or not ``hidden``.

    Momentum, decay and rates are PyTorch's: an average of gradients, ``adjust_lr_fn``, and a decay without that.
    """
    if p.ndim < 2 or p.size == 0 or not s.get("hidden", True):
        return adamw(p, g, kept, t, {**s, "lr": s["adamw_lr"], "eps": s["adamw_eps"], "amsgrad": False})
    mu, (a, b, c) = s["momentum"], s["ns_coefficients"]
    kept["m"] = mu * kept.get("m", 0 * g) + (1 - mu) * g
    x = mu * kept["m"] + (1 - mu) * g if s["nesterov"] else kept["m"]
    x = x.reshape(len(x), -1)
    rows, columns = x.shape
    x = x / max(np.linalg.norm(x), s["eps"])
    for _ in range(s["ns_steps"]):
        A = x @ x.T
        x = a * x + b * A @ x + c * A @ A @ x
    size = max(1, rows / columns) ** 0.5 if s["adjust_lr_fn"] == "original" else 0.2 * max(rows, columns) ** 0.5
    return p - s["lr"] * (size * x.reshape(p.shape) + s["weight_decay"] * p)


ORACLES: dict[str, Oracle] = {
    oracle.__name__: oracle
    for oracle in (
        adam, adamw, sgd, adamax, nadam, radam, adabelief, adabound, padam, adan, lion, lamb, lars, schedulefree,
        adamw_bf16, muon,
    )
}  # fmt: skip
"""By the name the optimiser has in ``fastadam.optim.OPTIMIZERS``."""

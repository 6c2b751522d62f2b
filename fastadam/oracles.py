"""The optimisers once more, in float64 and straight from the papers, to hold the real ones against.

    p = ORACLES["adam"](p, g, kept, t, settings)

``kept`` is a dict that a parameter's moments stay in between steps, ``t`` = 1, 2, ... the step, ``settings``
what ``Optimizer.settings`` gives. Nothing of ``fastadam.kernels`` is used.
"""

from collections.abc import Callable, Mapping

import numpy as np

Array = np.ndarray
Settings = Mapping[str, float]
Oracle = Callable[[Array, Array, dict[str, Array], int, Settings], Array]


def adam(p: Array, g: Array, kept: dict[str, Array], t: int, s: Settings) -> Array:
    """Kingma & Ba 2015, Algorithm 1; weight decay is added to the gradient."""
    return p - s["lr"] * _adaptive_step(g + s["weight_decay"] * p, kept, t, s)


def adamw(p: Array, g: Array, kept: dict[str, Array], t: int, s: Settings) -> Array:
    """Loshchilov & Hutter 2019, Algorithm 2, line 12, where the decay too is multiplied by the rate."""
    return p - s["lr"] * (_adaptive_step(g, kept, t, s) + s["weight_decay"] * p)


def _adaptive_step(g: Array, kept: dict[str, Array], t: int, s: Settings) -> Array:
    kept["m"] = s["beta1"] * kept.get("m", 0 * g) + (1 - s["beta1"]) * g
    kept["v"] = s["beta2"] * kept.get("v", 0 * g) + (1 - s["beta2"]) * g**2
    m_hat, v_hat = kept["m"] / (1 - s["beta1"] ** t), kept["v"] / (1 - s["beta2"] ** t)
    return m_hat / (np.sqrt(v_hat) + s["eps"])


def sgd(p: Array, g: Array, kept: dict[str, Array], t: int, s: Settings) -> Array:
    """Sutskever et al. 2013, equations 1 to 4, with the rate outside the velocity, as PyTorch documents it."""
    g = g + s["weight_decay"] * p
    kept["m"] = g if t == 1 else s["momentum"] * kept["m"] + (1 - s["dampening"]) * g
    return p - s["lr"] * (g + s["momentum"] * kept["m"] if s["nesterov"] else kept["m"])


ORACLES: dict[str, Oracle] = {"adam": adam, "adamw": adamw, "sgd": sgd}
"""By the name the optimiser has in ``fastadam.optim.OPTIMIZERS``."""

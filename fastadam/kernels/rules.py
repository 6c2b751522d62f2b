"""The update rules, a page of mathematics: one scalar function a rule, compiled once for each device.

A rule maps one parameter, its moments and its gradient to their new values. It knows no array, no loop
and no device; the kernels in ``cpu/optim.py`` wrap it. All numbers are float32: constants that would be
float64 in the host language, such as ``1 - beta1``, come in through ``Hyper``.
"""

import math
from typing import NamedTuple


class Hyper(NamedTuple):
    """What a rule needs of one step; the order is that of the float32 array ``h`` the kernels take.

    m_correction, v_correction   1 / (1 - beta1**t) and 1 / (1 - beta2**t) for the step t = 1, 2, ...
    one_minus_dampening          1 at t = 1, so that the first momentum buffer is the gradient itself
    nesterov                     1 or 0
    grad_scale                   factor on every gradient: 1, or what clipping by norm asks for
    """

    lr: float
    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    eps: float
    weight_decay: float
    m_correction: float
    v_correction: float
    momentum: float
    one_minus_dampening: float
    nesterov: float
    grad_scale: float


MOMENTS = {"adam": ("m", "v"), "adamw": ("m", "v"), "sgd": ("m",)}
"""The rules, and what each keeps of every parameter between steps."""

WEIGHT_DECAY, GRAD_SCALE = (Hyper._fields.index(name) for name in ("weight_decay", "grad_scale"))


def adam(p, m, v, g, h):
    """Adam: Kingma & Ba 2015, Algorithm 1; weight decay is L2, added to the gradient, as PyTorch does.

    The bias corrections divide the moments; eps is added outside the root.
    """
    g = g * h.grad_scale + h.weight_decay * p
    m = h.beta1 * m + h.one_minus_beta1 * g
    v = h.beta2 * v + h.one_minus_beta2 * (g * g)
    step = m * h.m_correction / (math.sqrt(v * h.v_correction) + h.eps)
    return p - h.lr * step, m, v


def adamw(p, m, v, g, h):
    """AdamW: Loshchilov & Hutter 2019, Algorithm 2; the decay is multiplied by lr, as PyTorch does."""
    g = g * h.grad_scale
    p = p - h.lr * h.weight_decay * p
    m = h.beta1 * m + h.one_minus_beta1 * g
    v = h.beta2 * v + h.one_minus_beta2 * (g * g)
    step = m * h.m_correction / (math.sqrt(v * h.v_correction) + h.eps)
    return p - h.lr * step, m, v


def sgd(p, m, g, h):
    """SGD with momentum: Sutskever et al. 2013, with lr outside the buffer, as PyTorch does; L2 decay.

    Nesterov's look-ahead is their equation 3.4 in the form of Bengio et al. 2013, equation 7: g + momentum * m.
    """
    g = g * h.grad_scale + h.weight_decay * p
    m = h.momentum * m + h.one_minus_dampening * g
    step = m + h.nesterov * (g + h.momentum * m - m)
    return p - h.lr * step, m

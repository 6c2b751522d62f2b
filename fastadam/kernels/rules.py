"""The update rules, a few lines of mathematics each: one scalar function a rule, compiled once for each device.

A rule maps one parameter, what is kept of it and its gradient to their new values. It knows no array, no loop and no
device; the kernels wrap it. All numbers have the parameters' precision: what would be float64 in the host language,
such as ``1 - beta1``, comes in through ``Hyper``.

Most rules begin alike. ``grad_scale`` is what clipping asks for. ``weight_decay`` is the L2 penalty, which goes into
the gradient and so into the moments (LAMB and schedule-free AdamW add it to their step); ``decay`` is decoupled
(Loshchilov & Hutter 2019): it pulls on the parameter and on nothing else. An optimiser has one of them at the most; the
other is zero.

Comparisons are written so that a NaN goes through: a diverged run must be seen.
"""

import math
from typing import NamedTuple

from numpy import float32

ZERO, ONE, TWO, FOUR, EIGHT = float32(0), float32(1), float32(2), float32(4), float32(8)
LEAST_NORM = float32(1e-3)


class Hyper(NamedTuple):
    """What a rule needs of one step t = 1, 2, ...; the order is that of the array ``h`` the kernels take.

    decay                        decoupled weight decay times lr
    m_correction, v_correction   1 / (1 - beta1**t) and 1 / (1 - beta2**t), if the rule says nothing else
    n_correction                 1 / (1 - beta3**t)
    later                        0 at t = 1, then 1
    one_minus_dampening          1 at t = 1, so that SGD's first momentum buffer is the gradient itself
    nesterov                     1 or 0
    average                      share of a new point in an average of all points
    draw                         a whole number below 2**24, the step's own, that stochastic rounding draws from
    trust                        coefficient of the trust ratio; 0 leaves a tensor's rate as it is
    matrix_lr, matrix_decay      of matrices, where lr and decay are those of the other parameters
    grad_scale                   factor on every gradient: 1, or what clipping by norm asks for
    The others are of the rules that name them.
    """

    lr: float = 0.0
    beta1: float = 0.0
    one_minus_beta1: float = 0.0
    beta2: float = 0.0
    one_minus_beta2: float = 0.0
    beta3: float = 0.0
    one_minus_beta3: float = 0.0
    eps: float = 0.0
    weight_decay: float = 0.0
    decay: float = 0.0
    m_correction: float = 0.0
    v_correction: float = 0.0
    n_correction: float = 0.0
    g_correction: float = 0.0
    rectification: float = 0.0
    unrectified: float = 0.0
    lower: float = 0.0
    upper: float = 0.0
    eighths: float = 0.0
    later: float = 0.0
    momentum: float = 0.0
    one_minus_dampening: float = 0.0
    nesterov: float = 0.0
    average: float = 0.0
    draw: float = 0.0
    trust: float = 0.0
    matrix_lr: float = 0.0
    matrix_decay: float = 0.0
    grad_scale: float = 1.0


MOMENTS = {
    "adam": ("m", "v"),
    "adamw": ("m", "v"),
    "amsgrad": ("m", "v", "v_max"),
    "adamax": ("m", "u"),
    "nadam": ("m", "v"),
    "radam": ("m", "v"),
    "adabelief": ("m", "s"),
    "adabound": ("m", "v"),
    "padam": ("m", "v", "v_max"),
    "adan": ("m", "d", "n", "past"),
    "lion": ("m",),
    "sgd": ("m",),
    "schedulefree": ("z", "v"),
    "adamw_bf16": ("m", "v"),
    "lamb": ("m", "v"),
    "lars": ("m",),
    "muon": ("m",),
}
"""The rules, and what each keeps of every parameter between steps; zero at first, but for what follows."""

BEGIN_AS_PARAMETERS = {"schedulefree": ("z",)}
"""What is a copy of the parameters before the first step, by rule."""

MOMENT_DTYPES = {"adamw_bf16": "uint16"}
"""What moments are stored as, where that is not float32: uint16 for bfloat16, the upper half of a float32."""

LAYERWISE = ("lamb", "lars")
"""The rules that need norms of whole tensors, and so more than one pass."""

FLOAT32_ONLY = (*MOMENT_DTYPES, *LAYERWISE, "muon")
"""Rules for parameters of float32 alone."""

WEIGHT_DECAY, DECAY, GRAD_SCALE = (Hyper._fields.index(name) for name in ("weight_decay", "decay", "grad_scale"))
TRUST = Hyper._fields.index("trust")


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
    p = p - h.decay * p
    m = h.beta1 * m + h.one_minus_beta1 * g
    v = h.beta2 * v + h.one_minus_beta2 * (g * g)
    step = m * h.m_correction / (math.sqrt(v * h.v_correction) + h.eps)
    return p - h.lr * step, m, v


def amsgrad(p, m, v, v_max, g, h):
    """AMSGrad: Reddi, Kale & Kumar 2018, Algorithm 2, with Adam's bias corrections, as PyTorch has it.

    The largest v so far is what divides, before its correction.
    """
    g = g * h.grad_scale + h.weight_decay * p
    p = p - h.decay * p
    m = h.beta1 * m + h.one_minus_beta1 * g
    v = h.beta2 * v + h.one_minus_beta2 * (g * g)
    v_max = v_max if v <= v_max else v
    step = m * h.m_correction / (math.sqrt(v_max * h.v_correction) + h.eps)
    return p - h.lr * step, m, v, v_max


def adamax(p, m, u, g, h):
    """Adamax: Kingma & Ba 2015, Algorithm 2; eps is added to the gradient's size, as PyTorch does."""
    g = g * h.grad_scale + h.weight_decay * p
    p = p - h.decay * p
    m = h.beta1 * m + h.one_minus_beta1 * g
    size, u = abs(g) + h.eps, h.beta2 * u
    u = u if size <= u else size
    return p - h.lr * (m * h.m_correction / u), m, u


def nadam(p, m, v, g, h):
    """NAdam: Dozat 2016, Algorithm 2, with the momentum schedule of its section 2, as PyTorch has it.

    With mu the momentum of a step and Mu the product of all so far: m_correction is mu' / (1 - Mu'), the dash being
    the next step, and g_correction (1 - mu) / (1 - Mu).
    """
    g = g * h.grad_scale + h.weight_decay * p
    p = p - h.decay * p
    m = h.beta1 * m + h.one_minus_beta1 * g
    v = h.beta2 * v + h.one_minus_beta2 * (g * g)
    step = (m * h.m_correction + g * h.g_correction) / (math.sqrt(v * h.v_correction) + h.eps)
    return p - h.lr * step, m, v


def radam(p, m, v, g, h):
    """RAdam: Liu et al. 2020, Algorithm 2; eps is added to the root of the raw v, as PyTorch does.

    rectification is r_t * sqrt(1 - beta2**t); where the variance cannot be had it is zero, and unrectified one.
    """
    g = g * h.grad_scale + h.weight_decay * p
    p = p - h.decay * p
    m = h.beta1 * m + h.one_minus_beta1 * g
    v = h.beta2 * v + h.one_minus_beta2 * (g * g)
    step = m * h.m_correction * (h.rectification / (math.sqrt(v) + h.eps) + h.unrectified)
    return p - h.lr * step, m, v


def adabelief(p, m, s, g, h):
    """AdaBelief: Zhuang et al. 2020, Algorithm 2: what divides is how far gradients stray from their mean."""
    g = g * h.grad_scale + h.weight_decay * p
    p = p - h.decay * p
    m = h.beta1 * m + h.one_minus_beta1 * g
    s = h.beta2 * s + h.one_minus_beta2 * ((g - m) * (g - m)) + h.eps
    step = m * h.m_correction / (math.sqrt(s * h.v_correction) + h.eps)
    return p - h.lr * step, m, s


def adabound(p, m, v, g, h):
    """AdaBound: Luo et al. 2019, Algorithm 2: Adam's rate of each parameter kept between two bounds that meet.

    With Adam's bias corrections in place of the paper's rate lr / sqrt(t), as its authors' code has it; eps is beside
    the corrected root, as Adam's, where theirs is beside the raw one. lower and upper are the bounds of the rate.
    """
    g = g * h.grad_scale + h.weight_decay * p
    p = p - h.decay * p
    m = h.beta1 * m + h.one_minus_beta1 * g
    v = h.beta2 * v + h.one_minus_beta2 * (g * g)
    rate = h.lr * h.m_correction / (math.sqrt(v * h.v_correction) + h.eps)
    rate = h.lower if rate < h.lower else rate
    rate = h.upper if rate > h.upper else rate
    return p - rate * m, m, v


def padam(p, m, v, v_max, g, h):
    """Padam: Chen et al. 2018, Algorithm 1: AMSGrad divided by a smaller power of v, with Adam's bias corrections.

    They are of v, before the power, so that 1/2 is AMSGrad; its authors' code corrects by the root for every power.
    eighths is sixteen times the paper's p: the power of sqrt(v) + eps, put together from its square roots.
    """
    g = g * h.grad_scale + h.weight_decay * p
    p = p - h.decay * p
    m = h.beta1 * m + h.one_minus_beta1 * g
    v = h.beta2 * v + h.one_minus_beta2 * (g * g)
    v_max = v_max if v <= v_max else v
    whole = math.sqrt(v_max * h.v_correction) + h.eps
    half = math.sqrt(whole)
    quarter = math.sqrt(half)
    rest = h.eighths
    power = whole if rest >= EIGHT else ONE
    rest = rest - EIGHT if rest >= EIGHT else rest
    power = power * half if rest >= FOUR else power
    rest = rest - FOUR if rest >= FOUR else rest
    power = power * quarter if rest >= TWO else power
    rest = rest - TWO if rest >= TWO else rest
    power = power * math.sqrt(quarter) if rest >= ONE else power
    return p - h.lr * (m * h.m_correction / power), m, v, v_max


def adan(p, m, d, n, past, g, h):
    """Adan: Xie et al. 2022, Algorithm 1, with betas as shares that are kept (one minus the paper's).

    Bias corrections as in its authors' code, v_correction being that of d. decay is 1 - 1 / (1 + lr * weight decay),
    the last line of the algorithm; past is the gradient of the step before.
    """
    g = g * h.grad_scale + h.weight_decay * p
    change = h.later * (g - past)
    m = h.beta1 * m + h.one_minus_beta1 * g
    d = h.beta2 * d + h.one_minus_beta2 * change
    ahead = g + h.beta2 * change
    n = h.beta3 * n + h.one_minus_beta3 * (ahead * ahead)
    step = (m * h.m_correction + h.beta2 * (d * h.v_correction)) / (math.sqrt(n * h.n_correction) + h.eps)
    p = p - h.lr * step
    return p - h.decay * p, m, d, n, g


def lion(p, m, g, h):
    """Lion: Chen et al. 2023, Algorithm 2: the sign of an average decides."""
    g = g * h.grad_scale + h.weight_decay * p
    p = p - h.decay * p
    u = h.beta1 * m + h.one_minus_beta1 * g
    m = h.beta2 * m + h.one_minus_beta2 * g
    step = math.copysign(h.lr, u) if abs(u) > ZERO else u
    return p - step, m


def sgd(p, m, g, h):
    """SGD with momentum: Sutskever et al. 2013, with lr outside the buffer, as PyTorch does; L2 decay.

    Nesterov's look-ahead is their equations 3 and 4 in the form of Bengio et al. 2013, equation 7: g + momentum * m.
    """
    g = g * h.grad_scale + h.weight_decay * p
    m = h.momentum * m + h.one_minus_dampening * g
    step = m + h.nesterov * (g + h.momentum * m - m)
    return p - h.lr * step, m


def schedulefree(p, z, v, g, h):
    """Schedule-free AdamW: Defazio et al. 2024, Algorithm 1, with the step and decay of their AdamWScheduleFree.

    p is the paper's y = (1 - beta1) * z + beta1 * x, where gradients are taken. x, the average of all z, is left
    implicit: with average = c and x' = (1 - c) * x + c * z', y moves towards z by c, and by its share of the step.
    """
    g = g * h.grad_scale
    v = h.beta2 * v + h.one_minus_beta2 * (g * g)
    step = g / (math.sqrt(v * h.v_correction) + h.eps) + h.weight_decay * p
    p = p + h.average * (z - p) - h.lr * (h.one_minus_beta1 + h.beta1 * h.average) * step
    return p, z - h.lr * step, v


# Rates by tensor ----------------------------------------------------------------------------------------------


def lamb_moments(m, v, g, h):
    """The moments of LAMB: those of Adam; weight decay does not go through them."""
    g = g * h.grad_scale
    m = h.beta1 * m + h.one_minus_beta1 * g
    v = h.beta2 * v + h.one_minus_beta2 * (g * g)
    return m, v


def lamb_step(p, m, v, h):
    """What LAMB takes the norm of: Adam's step, bias corrections included, and the decay beside it."""
    return m * h.m_correction / (math.sqrt(v * h.v_correction) + h.eps) + h.weight_decay * p


def lamb_trust(p_norm, step_norm, h):
    """LAMB's trust ratio of a tensor, from the norms of its parameters and of their ``lamb_step``.

    With the identity for the paper's phi, and 1 where a norm is zero, as its authors' code has it.
    """
    spared = p_norm <= ZERO or step_norm <= ZERO or h.trust <= ZERO
    return ONE if spared else h.trust * p_norm / step_norm


def lamb(p, step, trust, h):
    """LAMB: You et al. 2020, Algorithm 2; ``step`` is the ``lamb_step`` of the new moments, ``trust`` the tensor's."""
    return p - h.lr * trust * step


def lars_trust(p_norm, g_norm, h):
    """LARS' local rate of a tensor, from the norms of its parameters and of their gradient before ``grad_scale``.

    You, Gitman & Ginsburg 2017, equation 6; 1 where a norm is zero, as its authors' code has it.
    """
    spared = p_norm <= ZERO or g_norm <= ZERO or h.trust <= ZERO
    return ONE if spared else h.trust * p_norm / (g_norm * h.grad_scale + h.weight_decay * p_norm)


def lars(p, m, g, trust, h):
    """LARS: You, Gitman & Ginsburg 2017, Algorithm 1, ``trust`` being the local rate; lr is inside the momentum."""
    g = g * h.grad_scale + h.weight_decay * p
    m = h.momentum * m + h.lr * trust * g
    return p - m, m


# Gradients by unit --------------------------------------------------------------------------------------------


def unit_factor(g_norm, p_norm, clip):
    """Adaptive gradient clipping: Brock et al. 2021, equation 3: what to multiply the gradient of a unit by.

    A unit's gradient is to be no longer than ``clip`` times its parameters, and these count as 0.001 long at the least.
    """
    most = clip * (LEAST_NORM if p_norm < LEAST_NORM else p_norm)
    return ONE if g_norm <= most else most / g_norm


# Muon, whose matrices are orthogonalised between two formulas ------------------------------------------------


def muon_average(m, g, h):
    """Muon: Jordan et al. 2024; returns the new m and what of it is orthogonalised.

    The momentum is an average, as in the authors' code and PyTorch: the dampening is the momentum. Nesterov's is that
    average taken once more, of the same gradient. Only the direction counts: the length is normalised away.
    """
    g = g * h.grad_scale
    m = h.momentum * m + h.one_minus_dampening * g
    return m, m + h.nesterov * (h.momentum * m + h.one_minus_dampening * g - m)


def muon_step(p, o, rate, h):
    """Along the orthogonalised o; ``rate`` is that of ``muon_rate``, which the decay goes without, as in PyTorch.

    That there is a decay is from Liu et al. 2025, section 2.2.
    """
    return p - h.matrix_decay * p - h.matrix_lr * rate * o


def muon_rate(rows, columns, adjust):
    """What the rate is multiplied by for a matrix (rows, columns), outputs by inputs.

    original          sqrt(max(1, rows / columns)): Jordan et al. 2024, for outputs that change alike
    match_rms_adamw   0.2 * sqrt(max(rows, columns)): Liu et al. 2025, section 2.2, for steps of AdamW's size
    """
    if adjust == "original":
        return math.sqrt(max(1.0, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))

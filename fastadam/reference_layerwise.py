"""The part of ``fastadam.reference`` with sums over whole tensors, LAMB and LARS tile by tile, or over their units."""

from collections.abc import Iterator

import numpy as np

from fastadam.kernels.rules import Hyper

Array = np.ndarray


def tile_squares(squares: Array, p: Array, g: Array, tiles: Array) -> None:
    """Sums of squares of p and of g over each tile."""
    for tile, (start, end, *_) in enumerate(tiles):
        squares[:, tile] = (p[start:end] ** 2).sum(), (g[start:end] ** 2).sum()


def tensor_norms(norms: Array, squares: Array, tiles: Array) -> None:
    """The roots of the sums over the tiles of each tensor."""
    for tensor in range(len(norms)):
        norms[tensor] = np.sqrt(squares[:, tiles[:, 3] == tensor].sum(1))


def _lamb_step(p: Array, m: Array, v: Array, s: Hyper) -> Array:
    return m * s.m_correction / (np.sqrt(v * s.v_correction) + s.eps) + s.weight_decay * p


def lamb_moments(m: Array, v: Array, squares: Array, p: Array, g: Array, h: Array, tiles: Array) -> None:
    """You et al. 2020, Algorithm 2: Adam's moments, and squares of p and of its step with the decay."""
    for tile, (start, end, group, _) in enumerate(tiles):
        at, s = slice(start, end), Hyper(*h[group])
        m[at] = s.beta1 * m[at] + s.one_minus_beta1 * s.grad_scale * g[at]
        v[at] = s.beta2 * v[at] + s.one_minus_beta2 * (s.grad_scale * g[at]) ** 2
        squares[:, tile] = (p[at] ** 2).sum(), (_lamb_step(p[at], m[at], v[at], s) ** 2).sum()


def lamb_update(p: Array, m: Array, v: Array, norms: Array, h: Array, tiles: Array) -> None:
    """The last line of the same: the step by the ratio of the norms, where neither is zero nor the ratio off."""
    for start, end, group, tensor in tiles:
        at, s, (of_p, of_step) = slice(start, end), Hyper(*h[group]), norms[tensor]
        ratio = 1 if of_p == 0 or of_step == 0 or s.trust == 0 else s.trust * of_p / of_step
        p[at] -= s.lr * ratio * _lamb_step(p[at], m[at], v[at], s)


def lars_update(p: Array, m: Array, g: Array, norms: Array, h: Array, tiles: Array) -> None:
    """You, Gitman and Ginsburg 2017, Algorithm 1, the local rate 1 where a norm is zero or the ratio off."""
    for start, end, group, tensor in tiles:
        at, s, (of_p, of_g) = slice(start, end), Hyper(*h[group]), norms[tensor]
        rate = s.trust * of_p / (s.grad_scale * of_g + s.weight_decay * of_p) if of_p * of_g * s.trust != 0 else 1
        m[at] = s.momentum * m[at] + s.lr * rate * (s.grad_scale * g[at] + s.weight_decay * p[at])
        p[at] -= m[at]


def _elements(units: Array) -> Iterator[tuple[int, int, Array]]:
    """(row of units, unit within it, its elements)."""
    for row, (start, across, along, count, length) in enumerate(units):
        for unit in range(count):
            yield row, unit, start + unit * across + along * np.arange(length)


def clip_units(g: Array, factors: Array, p: Array, units: Array, clip: float) -> None:
    """Brock et al. 2021, equation 3, with their eps of 0.001 for the norm of parameters."""
    factors[...] = 1
    for row, unit, at in _elements(units):
        largest, norm = clip * np.maximum(np.linalg.norm(p[at]), 1e-3), np.linalg.norm(g[at])
        if not norm <= largest:
            factors[row, unit] = largest / norm
            g[at] *= largest / norm


def centre_units(g: Array, means: Array, units: Array) -> None:
    """Yong et al. 2020, equation 1."""
    means[...] = 0
    for row, unit, at in _elements(units):
        means[row, unit] = g[at].mean()
        g[at] -= means[row, unit]

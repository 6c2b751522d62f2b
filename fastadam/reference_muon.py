"""The part of ``fastadam.reference`` that has Muon: each iteration as it stands in the paper."""

import numpy as np

from fastadam.kernels.rules import Hyper

Array = np.ndarray


def muon_update(
    p: Array, m: Array, g: Array, h: Array, row: int, rate: float, a: float, b: float, c: float, eps: float, steps: int
) -> None:  # fmt: skip
    """Jordan et al. 2024, with the decay of Liu et al. 2025; p of any rank is the matrix of its last axis' columns."""
    s = Hyper(*h[row])
    m[...] = s.momentum * m + s.one_minus_dampening * s.grad_scale * g
    ahead = s.momentum * m + s.one_minus_dampening * s.grad_scale * g
    x = (ahead if s.nesterov else m).reshape(-1, p.shape[-1])
    x = x / np.maximum(np.linalg.norm(x), eps)
    for _ in range(steps):
        A = x @ x.T if len(x) <= len(x.T) else x.T @ x
        polynomial = a * np.eye(len(A)) + b * A + c * A @ A
        x = polynomial @ x if len(x) <= len(x.T) else x @ polynomial
    p[...] = p - s.matrix_decay * p - s.matrix_lr * rate * x.reshape(p.shape)

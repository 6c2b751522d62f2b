"""The passes beside an update that averages of weights and SAM take, in plain NumPy: part of ``fastadam.reference``."""

import numpy as np

Array = np.ndarray


def interpolate(y: Array, a: Array, b: Array, share: float) -> None:
    """(1 - share) * a + share * b."""
    y[...] = (1 - share) * a + share * b


def lookahead_update(p: Array, slow: Array, share: float) -> None:
    """Zhang et al. 2019, Algorithm 1: phi = phi + alpha * (theta - phi), then theta = phi."""
    slow[...] = (1 - share) * slow + share * p
    p[...] = slow


def sam_ascent(q: Array, p: Array, g: Array, part: Array, rho: float) -> None:
    """Foret et al. 2021, equation 2: p + rho * g / |g|."""
    q[...] = p + rho * g / (np.sqrt(part.sum()) + 1e-12)

"""The passes that averages of weights take beside an update, in plain NumPy: a part of ``fastadam.reference``."""

import numpy as np

Array = np.ndarray


def interpolate(y: Array, a: Array, b: Array, share: float) -> None:
    """(1 - share) * a + share * b."""
    y[...] = (1 - share) * a + share * b


def lookahead_update(p: Array, slow: Array, share: float) -> None:
    """Zhang et al. 2019, Algorithm 1: phi = phi + alpha * (theta - phi), then theta = phi."""
    slow[...] = (1 - share) * slow + share * p
    p[...] = slow

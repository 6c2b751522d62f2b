"""Settings that must stand before numba is imported, and what every test file may use."""

import os

os.environ.setdefault("NUMBA_NUM_THREADS", "4")  # some tests compare the bits of up to four threads

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded, the same for every test."""
    return np.random.default_rng(0)

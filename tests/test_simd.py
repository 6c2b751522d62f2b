"""The vector type: its operations are those of NumPy, number by number, NaN and signs of zero included."""

import numpy as np
import pytest

from fastadam.device import get_device

get_device("cpu")
from fastadam.kernels.cpu.jit import serial  # noqa: E402
from fastadam.kernels.cpu.simd import (  # noqa: E402
    WIDTH,
    cut,
    load,
    prefetch,
    put,
    splat,
    store,
    vector_width,
    where_beaten,
    zeros,
)

ODD = np.array([0.0, -0.0, 1.5, -1.5, np.nan, np.inf, -np.inf, 3e38], np.float32)


@serial
def _arithmetic(out, x, y, s):
    a, b = load(x, 0), load(y, 0)
    store(out, 0, a + b)
    store(out, WIDTH, a - b)
    store(out, 2 * WIDTH, a * b)
    store(out, 3 * WIDTH, a * s)
    store(out, 4 * WIDTH, splat(s) - a)
    store(out, 5 * WIDTH, zeros())


@serial
def _choices(out, x, y):
    a, b = load(x, 0), load(y, 0)
    store(out, 0, cut(a, b))
    store(out, WIDTH, where_beaten(a, b, a, b))


@serial
def _streamed(out, at, x):
    prefetch(x, 0)
    put(out, at, load(x, 0), True)


@pytest.mark.parametrize("seed", range(20))
def test_arithmetic(seed):
    rng = np.random.default_rng(seed)
    x, y = (rng.choice(ODD, WIDTH).astype(np.float32) for _ in range(2))
    s, out = np.float32(0.7), np.empty(6 * WIDTH, np.float32)
    with np.errstate(all="ignore"):
        want = np.concatenate([x + y, x - y, x * y, x * s, s - x, np.zeros(WIDTH, np.float32)])
    _arithmetic(out, x, y, s)
    np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("seed", range(20))
def test_choices(seed):
    """ReLU's mask cuts nothing where there is a NaN; the maximum keeps the first of equals and lets a NaN win."""
    rng = np.random.default_rng(seed)
    x, y = (rng.choice(ODD, WIDTH).astype(np.float32) for _ in range(2))
    out = np.empty(2 * WIDTH, np.float32)
    _choices(out, x, y)
    np.testing.assert_array_equal(out[:WIDTH], np.where(y <= 0, np.float32(0), x))
    np.testing.assert_array_equal(out[WIDTH:], np.where((x > y) | np.isnan(x), x, y))


@pytest.mark.parametrize("at", [0, 1, 5, 16])
def test_a_store_past_the_caches_may_be_unaligned(at):
    x, out = np.arange(WIDTH, dtype=np.float32), get_device("cpu").to_device(np.zeros(64, np.float32))
    _streamed(out, at, x)
    np.testing.assert_array_equal(out[at : at + WIDTH], x)
    assert not out[:at].any()
    assert not out[at + WIDTH :].any()


def test_width_follows_the_instruction_sets():
    assert vector_width({"avx512f", "avx2", "fma"}) == 16
    assert vector_width({"avx2", "fma"}) == 8
    assert vector_width({"avx"}) == vector_width({"neon"}) == vector_width(set()) == 4

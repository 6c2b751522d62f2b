"""The reference ops that no interpreter covers: randomness, the batch, lanes, clipping."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastadam import reference
from fastadam.kernels.rules import GRAD_SCALE, Hyper
from fastadam.reference import mix

FIELDS = len(Hyper._fields)
MASK = (1 << 64) - 1


def mix_exact(z: int) -> int:
    """splitmix64 in whole numbers."""
    z = (z + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def draw_exact(seed: int, epoch: int, sample: int, salt: int) -> int:
    return mix_exact(mix_exact(mix_exact(mix_exact(seed & MASK) ^ epoch) ^ sample) ^ salt)


def test_mix_is_splitmix64():
    """The published first outputs for the state 0."""
    states = np.array([0, 0x9E3779B97F4A7C15], np.uint64)
    assert [int(v) for v in mix(states)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


@given(st.integers(0, MASK))
def test_mix_wraps(z):
    assert int(mix(np.array([z], np.uint64))[0]) == mix_exact(z)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_factor(per_sample, p):
    """The rule written out, for a few samples in any order; about p of many are dropped."""
    key, index = np.array([-5, 3]), np.array([7, 0, 7, 1 << 40])
    factor = reference.dropout_factor(key, index, (4, 2, 3, 5), p, 9, per_sample)
    factor = np.broadcast_to(factor, (4, 2, 3, 5)).reshape(4, 30)
    for n, sample in enumerate(index):
        for e in range(30):
            z = draw_exact(-5, 3, int(sample), 9) ^ (0 if per_sample else e)
            kept = (mix_exact(z) >> 40) / 2**24 >= p
            assert factor[n, e] == (1 / (1 - p) if kept else 0)
    assert (factor[0] == factor[2]).all()
    many = reference.dropout_factor(key, np.arange(4000), (4000, 1), p, 9, per_sample)
    assert abs((many == 0).mean() - p) < 0.03


@given(
    st.integers(-(1 << 63), (1 << 63) - 1), st.integers(0, 500), st.integers(1, 6), st.integers(1, 6),
    st.booleans(), st.integers(0, 4), st.integers(0, 8),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_batch_prepare_pixel_by_pixel(seed, epoch, H, W, flip, crop, cutout):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 2, H, W), dtype=np.uint8)
    index, mean, rstd = np.array([4, 0, 4]), np.array([0.3, 0.5]), np.array([4.0, 5.0])
    y = np.full((3, H, W, 2), np.nan)
    reference.batch_prepare(y, images, index, np.array([seed, epoch]), mean, rstd, flip, crop, cutout)
    for n, sample in enumerate(index):
        coin, down, right, centre_h, centre_w = (draw_exact(seed, epoch, int(sample), j) for j in range(5))
        mirrored = flip and coin >> 63
        dy, dx = (down >> 32) % (2 * crop + 1), (right >> 32) % (2 * crop + 1)
        top, left = (centre_h >> 32) % H - cutout // 2, (centre_w >> 32) % W - cutout // 2
        for h in range(H):
            for w in range(W):
                row, column = h + dy - crop, (W - 1 - w if mirrored else w) + dx - crop
                inside = 0 <= row < H and 0 <= column < W
                for c in range(2):
                    want = ((images[sample, c, row, column] if inside else 0) / 255 - mean[c]) * rstd[c]
                    if top <= h < top + cutout and left <= w < left + cutout:
                        want = 0.0
                    assert np.isclose(y[n, h, w, c], want, rtol=1e-12)


def test_augmentation_varies_with_epoch_and_sample():
    images = np.arange(64, dtype=np.uint8).reshape(1, 1, 8, 8).repeat(40, 0)
    one, zero = np.ones(1), np.zeros(1)

    def batch(seed, epoch):
        y = np.empty((40, 8, 8, 1))
        reference.batch_prepare(y, images, np.arange(40), np.array([seed, epoch]), zero, one, True, 2, 0)
        return y

    first = batch(1, 0)
    assert (first == batch(1, 0)).all()
    assert (first != batch(1, 1)).any()
    assert (first != batch(2, 0)).any()
    distinct = {image.tobytes() for image in first}
    assert 15 < len(distinct) <= 50  # of 2 x 5 x 5 ways to mirror and shift
    mirrored = first[:, 3, 3, 0] > first[:, 3, 4, 0]
    assert 8 < mirrored.sum() < 32


@given(st.integers(0, 50), st.integers(1, 9))
def test_shares_are_contiguous_and_even(count, lanes):
    shares = [range(count)[share] for share in reference.shares(count, lanes)]
    assert [i for share in shares for i in share] == list(range(count))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("lanes", [1, 3, 7])
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_moments_joined_over_lanes_are_mean_and_variance(lanes, mean):
    """Far from zero too, where a sum of squares minus a squared mean would have no digits left in float32."""
    rng = np.random.default_rng(0)
    x = (mean + rng.standard_normal((7, 4, 3, 5))).astype(np.float32)
    moments = np.empty((lanes, 3, 5), np.float32)
    reference.lane_moments(moments, x)
    scale, shift, got_mean, rstd = (np.empty(5) for _ in range(4))
    running_mean, running_var = np.full(5, 2.0), np.full(5, 3.0)
    gamma, beta, bias, step = np.full(5, 1.5), np.full(5, 0.5), np.full(5, 10.0), np.array([1.0, 0.25])
    reference.bn_finalize(
        scale, shift, got_mean, rstd, running_mean, running_var, moments, gamma, beta, bias, step, 7, 12, 1e-5
    )
    rows = x.reshape(-1, 5).astype(np.float64)
    rounding = 1e-5 if not mean else 2e-4  # of x itself, 1e4 away from zero
    np.testing.assert_allclose(got_mean, rows.mean(0), rtol=1e-7, atol=1e-6)
    np.testing.assert_allclose(rstd, 1 / np.sqrt(rows.var(0) + 1e-5), rtol=rounding)
    np.testing.assert_allclose(scale, 1.5 * rstd)
    np.testing.assert_allclose(shift, 0.5 - got_mean * scale, rtol=1e-6)
    np.testing.assert_allclose(running_mean, 0.75 * 2 + 0.25 * (rows.mean(0) + 10), rtol=1e-6)
    np.testing.assert_allclose(running_var, 0.75 * 3 + 0.25 * rows.var(0, ddof=1), rtol=rounding)


def test_sum_lanes_takes_the_first_numbers_of_each_lane():
    part = np.arange(24.0).reshape(4, 2, 3)
    y = np.empty(3)
    reference.sum_lanes(y, part)
    assert y.tolist() == part[:, 0].sum(0).tolist()
    whole = np.empty((2, 3))
    reference.sum_lanes(whole, part)
    assert whole.tolist() == part.sum(0).tolist()


def test_sum_lanes_adds_in_float64():
    part = np.array([[1e8], [1.0], [-1e8], [1.0]], np.float32)
    y = np.empty(1, np.float32)
    reference.sum_lanes(y, part)
    assert y[0] == 2


@pytest.mark.parametrize(("max_norm", "factor"), [(2.5, 0.5), (5.0, 1.0), (100.0, 1.0)])
def test_clip_factor(max_norm, factor):
    """A gradient of norm 5."""
    h, part = np.array([Hyper(*range(FIELDS))] * 2, np.float64), np.empty((64, 2))
    reference.norm_lanes(part, np.array([3.0, 0.0, 4.0], np.float32))
    reference.clip_factor(h, part, max_norm)
    for row in h:
        assert np.isclose(row[GRAD_SCALE], factor, rtol=1e-6)
        assert np.delete(row, GRAD_SCALE).tolist() == [*range(FIELDS - 1)]


def test_clip_factor_shows_a_norm_that_is_not_finite():
    h, part = np.ones((1, FIELDS)), np.array([[np.nan, 0]])
    reference.clip_factor(h, part, 1.0)
    assert np.isnan(h[0, GRAD_SCALE])


@pytest.mark.parametrize("act", range(8))
@pytest.mark.parametrize("base", [False, True])
def test_tail_of_every_backward(act, base):
    """join_backward is the tail alone: mask, base and sums as the contract says, number by number."""
    rng = np.random.default_rng(act)
    x, d, before, of = rng.standard_normal((4, 3, 2, 2, 5))
    scale, shift, centre = rng.standard_normal((3, 5))
    x, d, before, of = (a.reshape(3, 4, 5) for a in (x, d, before, of))
    none, no_base = np.zeros(0), before if base else np.zeros((0, 0, 0))
    dx, sums = np.full((3, 4, 5), np.nan), np.full((2, 2, 5), np.nan)
    reference.join_backward(dx, sums, d, d[:0], none, none, none, x, scale, shift, no_base, of, centre, act, 0)
    for n, p, c in np.ndindex(dx.shape):
        value = x[n, p, c] * scale[c] + shift[c] if act & 1 else x[n, p, c]
        mask = 0 if act & 2 and value <= 0 else 1
        had = before[n, p, c] if base else 0
        want = mask * (had + d[n, p, c]) if act & 4 else had + mask * d[n, p, c]
        assert np.isclose(dx[n, p, c], want, rtol=1e-12)
    for lane, rows in enumerate((slice(0, 1), slice(1, 3))):
        np.testing.assert_allclose(sums[lane, 0], dx[rows].sum((0, 1)))
        np.testing.assert_allclose(sums[lane, 1], (dx[rows] * (of[rows] - centre)).sum((0, 1)))


def test_first_of_equal_maxima_gets_the_gradient_and_nan_is_one():
    x = np.array([[1.0, 1.0], [1.0, 0.0]]).reshape(1, 2, 2, 1)
    dx, none = np.full(x.shape, np.nan), np.zeros(0)
    image, dy = np.zeros((0, 0, 0, 0)), np.full((1, 1, 1, 1), 7.0)
    sums = np.zeros((0, 0, 0))
    reference.maxpool_backward(dx, sums, dy, x, none, none, image, image, none, 0)
    assert dx.ravel().tolist() == [7, 0, 0, 0]
    x[0, 1, 0, 0] = np.nan
    reference.maxpool_backward(dx, sums, dy, x, none, none, image, image, none, 2)
    assert dx.ravel().tolist() == [0, 0, 7, 0]

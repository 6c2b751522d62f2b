"""CPU kernels against the float64 reference, and what all promise: bounds, bits, NaN, one compilation."""

import inspect
from collections.abc import Callable

import numba
import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher

from fastadam import reference, trial
from fastadam.case import Case
from fastadam.cases import CASES
from fastadam.kernels import OPS, cpu
from fastadam.kernels.cpu import im2col, linear, muon, parallel, pool, winograd, winograd_deep
from fastadam.kernels.rules import MOMENTS
from fastadam.trial import Guarded, expect

one_case_each = pytest.mark.parametrize("op", OPS)


def cases_of(op: str) -> list[Case]:
    return [case for case in CASES if case.op == op]


def call(case: Case, change: Callable[[dict[str, np.ndarray]], None] = lambda ins: None) -> dict[str, np.ndarray]:
    """The outs of a case, after checking that nothing else was written."""
    return trial.call(case, cpu, change)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_reference_and_writes_nothing_else(case):
    got, want = call(case), expect(case)
    for name, array in got.items():
        np.testing.assert_allclose(array, want[name], case.rtol, case.atol(name), err_msg=name)


@pytest.mark.parametrize(
    ("family", "modules"),
    [
        ("conv2d", (im2col, winograd, winograd_deep)),
        ("linear", (linear,)),
        ("maxpool_backward", (pool,)),
        ("muon", (muon,)),
    ],
)
def test_a_workspace_is_as_large_as_it_must_be(family, modules, monkeypatch):
    """Every case again, in a workspace of exactly the floats asked for, full of NaN and within guards."""
    made: list[Guarded] = []

    def reserve(floats: int) -> np.ndarray:
        made.append(Guarded(np.full(floats, np.nan, np.float32)))
        return made[-1].array

    for module in modules:
        monkeypatch.setattr(module, "reserve", reserve)
    for case in CASES:
        if case.op.startswith(family):
            test_matches_the_reference_and_writes_nothing_else(case)
            assert made.pop().guards_hold, case


@one_case_each
def test_signature_is_that_of_the_reference_and_of_the_cases(op):
    parameters = list(inspect.signature(getattr(cpu, op)).parameters)
    assert parameters == list(inspect.signature(getattr(reference, op)).parameters)
    assert cases_of(op), "an op without a case"
    for case in cases_of(op):
        assert parameters == [*case.outs, *case.ins, *case.scalars]


def test_no_case_without_an_op():
    assert {case.op for case in CASES} == set(OPS) == set(cpu.__all__)


@one_case_each
def test_same_bits_for_any_number_of_threads(op):
    before = numba.get_num_threads()
    if numba.config.NUMBA_NUM_THREADS < 4:
        pytest.skip("needs NUMBA_NUM_THREADS of 4 or more")
    try:
        for case in cases_of(op):
            bits = []
            for threads in (1, 2, 3, 4):
                numba.set_num_threads(threads)
                bits.append([out.tobytes() for out in call(case).values()])
            assert bits[0] == bits[1] == bits[2] == bits[3], case
    finally:
        numba.set_num_threads(before)


SEEN = {  # the input whose NaN has to reach an out: what a diverged run would bring
    "batch_load": "images", "conv2d_forward": "x", "linear_forward": "x", "maxpool_forward": "x",
    "avgpool_forward": "x", "affine_forward": "x", "add_forward": "b", "dropout_forward": "x",
    "lane_moments": "x", "lane_sums": "dz", "bn_finalize": "moments", "bn_inference": "running_var",
    "bn_backward_finalize": "sums", "sum_lanes": "part", "softmax_loss": "x", "conv2d_backward": "dz",
    "linear_backward": "dz", "avgpool_backward": "dy", "join_backward": "dz", "norm_lanes": "g",
    "ema_update": "p", "accumulate": "x", **{f"{rule}_update": "g" for rule in MOMENTS},
    "tile_squares": "g", "tensor_norms": "squares", "lamb_moments": "g", "lamb_update": "m", "lars_update": "g",
    "clip_units": "p",
}  # fmt: skip


@pytest.mark.parametrize("op", SEEN)
def test_nan_in_nan_out(op):
    """A NaN is neither cut by ReLU nor masked away, and stays where it belongs.

    A convolution that works by tiles spreads it to pixels beside it, never to another sample or lane.
    """
    seen, by_tiles = 0, op.startswith("conv2d")
    for case in cases_of(op):
        for name, array in case.make()[1].items():
            if array.dtype != np.float32 or name not in (SEEN[op], "x", "base", "dz"):
                continue
            places = np.random.default_rng(1).integers(0, max(array.size, 1), 2)

            def plant(ins, name=name, places=places):
                ins[name].reshape(-1)[places[: ins[name].size]] = np.nan

            got, want = call(case, plant), expect(case, plant)
            for out, values in got.items():
                there, expected = np.isnan(values), np.isnan(want[out])
                if by_tiles:
                    assert there[expected].all(), f"{case}, NaN in {name}: {out}"
                    assert there.any(axis=tuple(range(1, there.ndim))).sum() <= len(places), (
                        f"{case}, NaN in {name}: {out}"
                    )
                else:
                    np.testing.assert_array_equal(there, expected, f"{case}, NaN in {name}: {out}")
            seen += name == SEEN[op] and any(np.isnan(values).any() for values in got.values())
    assert seen


def test_maxpool_gives_a_nan_window_its_gradient():
    x = np.zeros((1, 2, 4, 1), np.float32)
    x[0, 1, 0] = np.nan  # the first window
    x[0, 0, 3] = 1
    none, no_tensor = np.zeros(0, np.float32), np.zeros((0, 0, 0, 0), np.float32)
    y, dx = np.zeros((1, 1, 2, 1), np.float32), np.zeros_like(x)
    cpu.maxpool_forward(y, x, none, none, 2)
    np.testing.assert_array_equal(y.ravel(), [np.nan, 1])
    dy = np.array([5, 6], np.float32).reshape(y.shape)
    cpu.maxpool_backward(dx, np.zeros((0, 0, 0), np.float32), dy, x, none, none, no_tensor, no_tensor, none, 2)
    np.testing.assert_array_equal(dx[0, :, :, 0], [[0, 0, 0, 6], [5, 0, 0, 0]])


@pytest.mark.parametrize(("mean", "deviation"), [(10, 1), (1000, 1), (0, 1e-3), (1e-3, 30)])
def test_batch_statistics_where_sums_cancel(rng, mean, deviation):
    """Sums of squares about zero would lose the variance at large means; the lanes' pivots keep it."""
    N, C, lanes = 37, 5, 8
    x = (mean + deviation * rng.standard_normal((N, 4, 4, C))).astype(np.float32)
    moments = np.empty((lanes, 3, C), np.float32)
    cpu.lane_moments(moments, x)
    scale, shift, batch_mean, rstd, running_mean, running_var = np.zeros((6, C), np.float32)
    ones, none, step = np.ones(C, np.float32), np.zeros(0, np.float32), np.array([1, 1], np.float32)
    arrays = scale, shift, batch_mean, rstd, running_mean, running_var
    cpu.bn_finalize(*arrays, moments, ones, ones * 0, none, step, N, 16, 0.0)
    rows = x.reshape(-1, C).astype(np.float64)
    np.testing.assert_allclose(batch_mean, rows.mean(0), rtol=1e-6, atol=1e-6 * deviation)
    np.testing.assert_allclose(rstd, 1 / rows.std(0), rtol=3e-6)
    np.testing.assert_allclose(running_var, rows.var(0, ddof=1), rtol=6e-6)
    normalised = np.empty_like(x)
    cpu.affine_forward(normalised, x, scale, shift, 1)
    rounding = 2e-7 * (1 + abs(mean) / deviation)  # of x and of the shift, in deviations
    np.testing.assert_allclose(normalised.reshape(-1, C).mean(0), 0, atol=2 * rounding + 1e-6)
    np.testing.assert_allclose(normalised.reshape(-1, C).std(0), 1, rtol=1e-5)


def test_a_constant_channel_has_variance_zero():
    """But for the first pixel, a channel may be constant: its variance must not come out negative."""
    x = np.full((8, 4, 4, 1), 1.1, np.float32)
    x[0, 0, 0] = 1e4
    for data in (x, np.full_like(x, 3e5)):
        moments, none = np.empty((1, 3, 1), np.float32), np.zeros(0, np.float32)
        cpu.lane_moments(moments, data)
        outs = [np.zeros(1, np.float32) for _ in range(6)]
        ones = np.ones(1, np.float32)
        cpu.bn_finalize(*outs, moments, ones, ones, none, np.array([1, 0.1], np.float32), 8, 16, 1e-5)
        assert all(np.isfinite(out).all() for out in outs)


def test_momentum_zero_leaves_the_running_statistics_alone():
    outs = [np.zeros(2, np.float32) for _ in range(4)] + [np.array([np.nan, -0.0], np.float32) for _ in range(2)]
    before = outs[4].tobytes()
    ones, none = np.ones(2, np.float32), np.zeros(0, np.float32)
    moments = np.array([[[np.nan, 1], [1, 1], [3, 3]]], np.float32)
    cpu.bn_finalize(*outs, moments, ones, ones, none, np.array([1, 0], np.float32), 3, 1, 1e-5)
    assert outs[4].tobytes() == outs[5].tobytes() == before


@pytest.mark.parametrize("per_sample", [False, True])
def test_dropout_depends_on_the_sample_and_not_on_its_place(rng, per_sample):
    """Samples are dropped alike in another order and batch; in another epoch or layer they are not."""
    x, none = np.ones((64, 3, 3, 7), np.float32), np.zeros(0, np.float32)
    index = rng.permutation(1000)[:64]

    def masks(index, epoch=3, salt=5):
        y, key = np.empty_like(x[: len(index)]), np.array([11, epoch])
        cpu.dropout_forward(y, x[: len(index)], none, none, key, index, 0, 0.4, salt, per_sample)
        return y

    order = rng.permutation(64)[:20]
    np.testing.assert_array_equal(masks(index[order]), masks(index)[order])
    for other in (masks(index, epoch=4), masks(index, salt=6), masks(index + 1000)):
        assert (other != masks(index)).any()
    many = masks(np.arange(64))
    assert set(np.unique(many)) == {np.float32(0), np.float32(1 / 0.6)}
    draws = 64 if per_sample else many.size
    assert abs((many > 0).mean() - 0.6) < 4 * np.sqrt(0.24 / draws)
    if per_sample:
        assert (many == many[:, :1, :1, :1]).all()


def test_dropout_backward_drops_what_forward_dropped(rng):
    x, none, no_tensor = (
        rng.standard_normal((9, 10)).astype(np.float32),
        *(np.zeros(s, np.float32) for s in (0, (0, 0))),
    )
    key, index = np.array([1, 2]), np.arange(9)
    y, dx = np.empty_like(x), np.empty_like(x)
    cpu.dropout_forward(y, x, none, none, key, index, 0, 0.5, 0, False)
    no_sums = np.zeros((0, 0, 0), np.float32)
    cpu.dropout_backward(
        dx, no_sums, np.ones_like(x), x, none, none, key, index, no_tensor, no_tensor, none, 0, 0.5, 0, False
    )
    np.testing.assert_array_equal(y, x * dx)


def compiled() -> dict[str, int]:
    """For how many kinds of arguments each leaf of a parallel loop, and each op that is jitted itself, is compiled."""
    counts = {op: len(f.signatures) for op in OPS if isinstance(f := getattr(cpu, op), Dispatcher)}
    for leaf, _ in parallel._addresses:
        if leaf.__module__ == "fastadam.kernels.cpu.tables":  # these serve float32 and float64
            continue
        name = f"{leaf.__module__}.{leaf.__name__}"
        counts[name] = counts.get(name, 0) + 1
    return counts


def test_one_compilation_serves_every_case():
    """Absent arrays, ranks and options of a call never ask for another specialisation."""
    for case in CASES:
        call(case)
    counts = compiled()
    assert len(counts) > 20
    assert set(counts.values()) == {1}, {name: n for name, n in counts.items() if n != 1}

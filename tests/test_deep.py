"""Backward of 3 x 3 convolutions point by point: what they compute lane by lane, for any groups and any threads."""

import numpy as np
import pytest

from fastadam import models
from fastadam.device import CpuDevice
from fastadam.kernels.cpu import winograd, winograd_deep
from fastadam.kernels.cpu.choose import filter_lanes, is_deep
from fastadam.kernels.cpu.parallel import parallel
from fastadam.kernels.cpu.points import POINTS
from fastadam.kernels.cpu.workspace import odd_lines
from fastadam.plan import Plan

Arrays = dict[str, np.ndarray]


def gradients(module, x_shape, outputs, pad, lanes, dw_lanes, *, act=3, gact=1, dx=True) -> Arrays:
    """dx, sums and dw of one backward pass over arrays drawn from a fixed seed."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    samples, high, wide, channels = x_shape
    out = samples, high + 2 * pad - 2, wide + 2 * pad - 2, outputs
    w, x, base = draw(3, 3, channels, outputs), draw(*x_shape), draw(*x_shape)
    scale, shift, centre = draw(channels), draw(channels), draw(channels)
    pending = draw(*out), draw(*out), draw(outputs), draw(outputs), draw(outputs)
    found = {
        "dx": np.full(x_shape if dx else (0,) * 4, np.nan, np.float32),
        "sums": np.full((lanes, 2, channels) if dx and lanes else (0,) * 3, np.nan, np.float32),
        "dw": np.full((dw_lanes, 3, 3, channels, outputs), np.nan, np.float32),
    }
    module.backward(*found.values(), *pending, w, x, scale, shift, base, x, centre, act, gact, pad)
    return found


@pytest.mark.parametrize(
    ("shape", "outputs", "pad", "lanes", "options"),
    [
        ((7, 8, 8, 16), 32, 1, 7, {}),
        ((9, 5, 7, 32), 16, 1, 3, {"act": 7}),
        ((9, 6, 3, 16), 16, 2, 4, {"gact": 0}),
        ((5, 9, 8, 48), 16, 0, 1, {"act": 2}),
        ((70, 2, 3, 16), 16, 1, 0, {"act": 1}),
        ((6, 4, 4, 16), 48, 1, 0, {"dx": False}),
        ((1, 4, 4, 144), 160, 1, 1, {}),
        ((80, 8, 8, 32), 144, 1, 8, {}),  # several tasks of tiles, and of runs, a point
    ],
)
@pytest.mark.parametrize("group_tiles", [1, 24, 512])
def test_equals_lanes(monkeypatch, shape, outputs, pad, lanes, options, group_tiles):
    monkeypatch.setattr(winograd_deep, "GROUP_TILES", group_tiles)
    ours = gradients(winograd_deep, shape, outputs, pad, lanes, 1, **options)
    theirs = gradients(winograd, shape, outputs, pad, lanes, lanes or min(shape[0], 4), **options)
    np.testing.assert_array_equal(ours["dx"], theirs["dx"])
    np.testing.assert_array_equal(ours["sums"], theirs["sums"])
    total = theirs["dw"].sum(0, dtype=np.float64)
    np.testing.assert_allclose(ours["dw"][0], total, atol=2e-6 * np.abs(total).max())


def test_same_bits_for_any_threads(monkeypatch):
    monkeypatch.setattr(winograd_deep, "GROUP_TILES", 24)
    found = []
    for threads in (1, 2):
        with CpuDevice(threads).running():
            found.append(gradients(winograd_deep, (9, 5, 7, 32), 48, 1, 9, 1))
    for name, array in found[0].items():
        np.testing.assert_array_equal(array, found[1][name], err_msg=name)


def test_a_task_writes_what_is_its_own():
    """The first of two tasks of tiles leaves those of the second alone, however high a micro-kernel's tile is."""
    c = oc = 16
    count = winograd_deep.ROWS + 5
    v = POINTS * c * oc, odd_lines(c), winograd.point_step(count, 1, c)
    d = v[0] + POINTS * v[2], odd_lines(oc), winograd.point_step(count, 1, oc)
    work = np.full(d[0] + POINTS * d[2], 7, np.float32)
    parallel(winograd_deep._input_rows, 1, work, count, c, oc, *v, *d)
    rows = work[v[0] : v[0] + count * v[1]].reshape(count, v[1])
    assert (rows[: winograd_deep.ROWS, :c] != 7).all()
    assert (rows[winograd_deep.ROWS :] == 7).all()


@pytest.mark.parametrize("dx", [True, False])
@pytest.mark.parametrize(
    ("shape", "outputs", "pad"), [((32, 8, 8, 144), 144, 2), ((26, 5, 7, 128), 32, 3), ((40, 20, 20, 16), 128, 1)]
)
def test_lanes_of_many_blocks_have_the_filters_gradient(shape, outputs, pad, dx):
    """Blocks that end within a sample, with and without a gradient of the input: the sums of both ways agree."""
    lanes = gradients(winograd, shape, outputs, pad, 3, 3, dx=dx)["dw"].sum(0, dtype=np.float64)
    whole = gradients(winograd_deep, shape, outputs, pad, 3, 1, dx=dx)["dw"][0]
    np.testing.assert_allclose(whole, lanes, atol=4e-6 * np.abs(lanes).max())


def test_nan_reaches_every_gradient_it_must():
    """A NaN in the gradient of one output reaches dx around it, and the filters of its channel."""
    dz = np.zeros((3, 4, 4, 16), np.float32)
    dz[1, 2, 2, 5] = np.nan
    none, one = np.empty(0, np.float32), np.ones((3, 4, 4, 16), np.float32)
    dx, dw, w = np.empty_like(one), np.empty((1, 3, 3, 16, 16), np.float32), np.ones((3, 3, 16, 16), np.float32)
    absent = np.empty((0,) * 4, np.float32)
    winograd_deep.backward(
        dx, np.empty((0,) * 3, np.float32), dw, dz, absent, none, none, none, w, one, none, none, absent, absent, none,
        0, 0, 1,
    )  # fmt: skip
    assert np.isnan(dx[1, 2, 2]).all()
    assert not np.isnan(dx[[0, 2]]).any()
    assert np.isnan(dw[..., 5]).all()
    assert not np.isnan(dw[..., :5]).any()


def test_vggs_last_convolutions_have_one_lane():
    """Their gradients go where the update reads them; the others are added up from lanes."""
    plan = Plan(models.graph_of("vgg"), 128, filter_lanes=filter_lanes)
    names = {call.outs[2].name for call in plan.calls if call.op == "conv2d_backward"}
    assert names == {f"conv{i}.weight.lanes" for i in (1, 2, 3, 4)} | {"conv5.weight", "conv6.weight"}
    assert is_deep((3, 3), 1, (8, 8), 128, 256)
    assert not is_deep((3, 3), 2, (8, 8), 128, 256)

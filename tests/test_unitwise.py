"""What is done to gradients unit by unit: adaptive clipping and centralisation, alone and in a Trainer."""

from typing import Any

import numpy as np
import pytest
from graphs import draw_arrays, mlp
from plans import bind, make_arenas
from small import norm_model, small_data, small_model
from test_plan import check_plan

from fastadam import models, optim
from fastadam.arena import segment_table, unit_rows
from fastadam.graph import Graph, Node
from fastadam.kernels import UNITS
from fastadam.model import Model
from fastadam.plan import Plan
from fastadam.planner import output_layers
from fastadam.program import run_checked
from fastadam.trainer import Trainer

LAST = ("fc.weight", "fc.bias")


def by_unit(array: np.ndarray) -> np.ndarray:
    """An array in kernel layout as (units, elements), in float64."""
    array = array.astype(np.float64)
    if array.ndim == 4:
        return array.reshape(-1, array.shape[-1]).T
    return array.reshape(len(array) if array.ndim == 2 else 1, -1)


def test_units_are_columns_of_filters_and_rows_of_weights():
    """Every element once; the array that is not chosen is not there."""
    shapes = {"f": (3, 3, 2, UNITS + 5), "spared": (4,), "w": (2 * UNITS, 7), "b": (33,), "none": (0,), "one": (1, 1)}
    segments, count = segment_table(shapes)
    places = np.arange(count)
    found: dict[str, list[np.ndarray]] = {name: [] for name in shapes}
    for start, across, along, units, length in unit_rows(shapes, lambda name: name != "spared"):
        assert 1 <= units <= UNITS
        assert 1 in (across, along)
        (name,) = (name for a, b, name in segments if a <= start < b)
        found[name] += [start + u * across + along * np.arange(length) for u in range(units)]
    for start, end, name in segments:
        if name in ("spared", "none"):
            assert found[name] == []
        else:
            want = by_unit(places[start:end].reshape(shapes[name]))
            np.testing.assert_array_equal(found[name], want, name)


def test_layers_that_make_the_output():
    assert output_layers(models.graph_of("resnet20")) == {"fc"}
    assert output_layers(models.graph_of("mlp")) == {"fc"}


def step_of(
    model: Model, **settings: Any
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(gradients as they are, as they were used, how parameters moved) of one step of plain SGD at a rate of 1."""
    images, labels = small_data(12)
    model.set_normalization((0.4,) * 3, (0.2,) * 3)
    before = {name: p.astype(np.float64) for name, p in model.parameters.views.items()}
    raw = Trainer(model, optim.SGD(lr=1e-30), **{k: v for k, v in settings.items() if k == "accumulate"})
    raw.step(images, labels)
    trainer = Trainer(model, optim.SGD(lr=1.0), **settings)
    trainer.step(images, labels)
    moved = {name: before[name] - p for name, p in model.parameters.views.items()}
    return raw._gradients["GRAD"].views, trainer._gradients["GRAD"].views, moved


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip", [0.01, 0.3, 1e6])
def test_no_unit_moves_further_than_its_share(clip, accumulate):
    """Brock et al. 2021, equation 3, unit by unit; the last layer is left alone, and zeros count as 0.001 long."""
    model = norm_model()
    params = {name: p.copy() for name, p in model.parameters.views.items()}
    raw, used, moved = step_of(model, clip_agc=clip, accumulate=accumulate)
    clipped = 0
    for name, p in params.items():
        g, own = by_unit(raw[name]), by_unit(p)
        norms = np.linalg.norm(g, axis=1)
        largest = clip * np.maximum(np.linalg.norm(own, axis=1), 1e-3)
        factor = np.where(norms > largest, largest / np.maximum(norms, 1e-30), 1)
        factor = np.ones_like(factor) if name in LAST else factor
        clipped += int((factor < 1).sum())
        np.testing.assert_allclose(by_unit(used[name]), factor[:, None] * g, rtol=2e-5, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(moved[name], used[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert (clipped > 2) == (clip < 1)


def test_centred_gradients_have_no_mean():
    """Weights alone, the last layer's too."""
    raw, used, _ = step_of(norm_model(), centralize=True)
    for name, g in used.items():
        before, after = by_unit(raw[name]), by_unit(g)
        if g.ndim == 1:
            np.testing.assert_array_equal(after, before)
        else:
            np.testing.assert_allclose(after, before - before.mean(1, keepdims=True), atol=1e-7, err_msg=name)
            assert np.abs(before.mean(1)).max() > 1e-5


def test_means_first_then_units_then_the_whole():
    clipped = {"centralize": True, "clip_agc": 0.05, "clip_norm": 1e-3}
    plan = Plan(models.graph_of("resnet20"), 4, update="sgd", **clipped)
    check_plan(plan)
    assert [call.op for call in plan.calls[-5:]] == [
        "centre_units", "clip_units", "norm_lanes", "clip_factor", "sgd_update"
    ]  # fmt: skip
    _, used, moved = step_of(norm_model(), **clipped)
    norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in used.values()))
    assert norm > 1e-3
    for name, g in used.items():
        np.testing.assert_allclose(moved[name], g * (1e-3 / norm), rtol=1e-2, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("rule", ["adamw", "lamb"])
def test_calls_keep_to_their_memory(rule):
    graph = mlp()
    params, state, x, labels = draw_arrays(graph, 3)
    arenas = make_arenas(graph, params, state)
    plan = Plan(graph, 3, source="float32", update=rule, centralize=True, clip_agc=0.01)
    program = bind(plan, arenas, x, labels)
    program.inputs["h"][...] = optim.OPTIMIZERS[rule](None).decay_rows(1)
    run_checked(program)


def test_a_net_of_one_layer_has_nothing_to_clip():
    nodes = [Node("input", "x", (), {"shape": (4, 4, 1)}), Node("linear", "fc", ("x",), {"out": 3, "bias": True})]
    plan = Plan(Graph(nodes), 2, update="sgd", clip_agc=0.01, centralize=True)
    assert [call.op for call in plan.calls[-2:]] == ["centre_units", "sgd_update"]


def test_any_number_of_threads_gives_the_same_bits():
    states = []
    for threads in (1, 2, 3):
        model = small_model(3)
        settings: dict[str, Any] = {"centralize": True, "clip_agc": 0.02, "clip_norm": 0.5, "accumulate": 2}
        list(
            Trainer(model, "lamb", batch_size=32, threads=threads, **settings).fit(
                small_data(140), epochs=2, val_size=9
            )
        )
        states.append(model.parameters.flat.tobytes())
    assert states[0] == states[1] == states[2]


def test_a_nan_goes_through():
    model, (images, labels) = norm_model(), small_data(8)
    model.parameters.views["c1.weight"][0, 0, 0, 2] = np.nan
    Trainer(model, optim.SGD(lr=1.0), clip_agc=0.01, centralize=True).step(images, labels)
    assert np.isnan(model.parameters.views["c1.weight"][..., 2]).all()


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_a_share_that_makes_no_sense(clip):
    with pytest.raises(ValueError, match="clip_agc"):
        Trainer(small_model(), clip_agc=clip)
    with pytest.raises(ValueError, match="clip_agc"):
        Plan(mlp(), 2, update="sgd", clip_agc=clip)


@pytest.mark.parametrize("settings", [{"clip_agc": 0.1}, {"centralize": True}])
def test_gradients_alone_are_not_changed(settings):
    with pytest.raises(ValueError, match="update"):
        Plan(mlp(), 2, **settings)

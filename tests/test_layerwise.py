"""LAMB and LARS: a rate for every tensor, by its norms. Against the papers' formulas, alone and in a Trainer."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from graphs import draw_arrays, mlp
from plans import bind, make_arenas
from small import course, norm_model, small_data, small_model
from test_plan import check_plan

from fastadam import models
from fastadam.arena import Arena, segment_table, tile_rows
from fastadam.kernels import TILE, cpu
from fastadam.kernels.updates import UPDATES, between
from fastadam.optim import LAMB, LARS, OPTIMIZERS
from fastadam.optim.base import Optimizer
from fastadam.oracles import ORACLES
from fastadam.plan import Plan
from fastadam.planner import tensor_tiles
from fastadam.program import run_checked
from fastadam.trainer import Trainer

RULES = ("lamb", "lars")
OWN = {"lamb": {"eps": 0.01}, "lars": {"momentum": 0.5}}
each_rule = pytest.mark.parametrize("rule", RULES)


def make(rule: str, **settings: Any) -> Optimizer:
    """With a rate and a decay to be seen; and an eps, without which rounding decides steps where a gradient is 0."""
    return OPTIMIZERS[rule](None, **{"lr": 0.1, "weight_decay": 0.1, **OWN[rule], **settings})


# Tiles ------------------------------------------------------------------------------------------------------


def test_tiles_cut_every_tensor_and_leave_out_the_gaps():
    shapes = {"a": (3,), "b": (), "none": (0, 4), "c": (2 * TILE + 5,), "d": (TILE,)}
    rows = tile_rows(shapes, lambda name: int(name in "bd"))
    segments, _ = segment_table(shapes)
    for tensor, (start, end, name) in enumerate(segments):
        own = [row for row in rows if row[3] == tensor]
        assert [i for a, b, *_ in own for i in range(a, b)] == list(range(start, end)), name
        assert {group for _, _, group, _ in own} <= {int(name in "bd")}
    assert max(b - a for a, b, *_ in rows) == TILE
    assert [b - a for a, b, *_ in rows] == [3, 1, TILE, TILE, 5, TILE]


def test_norms_of_tensors_are_those_of_numpy(rng):
    shapes = {"a": (7,), "none": (0,), "b": (3 * TILE + 1,), "c": (50, 3)}
    segments, count = segment_table(shapes)
    tiles = np.array(tile_rows(shapes, lambda name: 0))
    p, g = rng.standard_normal((2, count)).astype(np.float32)
    squares, norms = np.full((2, len(tiles)), np.nan, np.float32), np.full((4, 2), np.nan, np.float32)
    cpu.tile_squares(squares, p, g, tiles)
    cpu.tensor_norms(norms, squares, tiles)
    for (start, end, _), found in zip(segments, norms, strict=True):
        want = [np.linalg.norm(x[start:end].astype(np.float64)) for x in (p, g)]
        np.testing.assert_allclose(found, want, rtol=2e-7)


# Arrays by name ---------------------------------------------------------------------------------------------


def test_lamb_moves_a_tensor_by_a_share_of_its_norm(rng):
    """Whatever the sizes of gradients; a tensor of zeros moves by the rate times Adam's step, of length 1 at first."""
    params = {"a": rng.standard_normal((30, 20)), "b": 100 * rng.standard_normal(7), "zero": np.zeros(4)}
    params = {name: p.astype(np.float32) for name, p in params.items()}
    before = {name: p.copy() for name, p in params.items()}
    grads = {name: np.full(p.shape, 1e-3 if name == "a" else 5, np.float32) for name, p in params.items()}
    LAMB(params, lr=0.01, eps=1e-30).step(grads)
    for name in ("a", "b"):
        moved = np.linalg.norm(params[name] - before[name])
        assert moved == pytest.approx(0.01 * np.linalg.norm(before[name]), rel=1e-5)
    np.testing.assert_allclose(params["zero"], -0.01, rtol=1e-5)


def test_lars_moves_a_tensor_by_the_trust_coefficient(rng):
    params = {"a": rng.standard_normal((30, 20)).astype(np.float32), "zero": np.zeros(4, np.float32)}
    before, grads = params["a"].copy(), {name: np.full_like(p, 7.0) for name, p in params.items()}
    optimizer = LARS(params, lr=2.0, weight_decay=0.0)
    optimizer.step(grads)
    moved = np.linalg.norm(params["a"] - before)
    assert moved == pytest.approx(2 * 0.001 * np.linalg.norm(before), rel=1e-5)
    np.testing.assert_allclose(params["zero"], -14.0, rtol=1e-6)  # as plain SGD
    assert list(optimizer.moments) == ["m"]


@each_rule
def test_no_gradient_at_first_is_no_division_by_zero(rule):
    params = {"p": np.ones(5, np.float32), "none": np.zeros((0, 3), np.float32), "number": np.array(2, np.float32)}
    optimizer = OPTIMIZERS[rule](params, weight_decay=0.0)
    optimizer.step({name: np.zeros_like(p) for name, p in params.items()})
    assert params["p"].tolist() == [1] * 5
    assert params["number"] == 2


@each_rule
def test_a_nan_goes_through(rule):
    params = {"p": np.ones(2 * TILE, np.float32), "other": np.ones(3, np.float32)}
    grads = {name: np.ones_like(p) for name, p in params.items()}
    grads["p"][TILE + 3] = np.nan
    OPTIMIZERS[rule](params).step(grads)
    assert np.isnan(params["p"]).all(), "the norm is the whole tensor's"
    assert np.isfinite(params["other"]).all()


@pytest.mark.parametrize(("wrong", "told"), [({"momentum": -1}, "momentum"), ({"trust_coefficient": 0}, "trust_coef")])
def test_settings_that_make_no_sense(wrong, told):
    with pytest.raises(ValueError, match=told):
        LARS(**wrong)


@each_rule
def test_bits_are_those_of_the_arena_kernels(rule):
    """Arrays of every size side by side in one arena, as training has them, and arrays by name."""
    rng = np.random.default_rng(0)
    shapes = {"scalar": (), "vector": (7,), "none": (0, 3), "filter": (3, 3, 16, 16), "large": (3 * TILE + 17,)}
    optimizer = OPTIMIZERS[rule](None, lr=0.1, weight_decay=0.1)
    p, g = Arena(shapes), Arena(shapes)
    kept = {moment: Arena(shapes) for moment in optimizer.moment_names}
    p.load({name: np.array(rng.standard_normal(shape), np.float32) for name, shape in shapes.items()})
    params = {name: view.copy() for name, view in p.views.items()}
    own = OPTIMIZERS[rule](params, **optimizer.settings())
    tiles = np.array(tile_rows(shapes, lambda name: 0))
    arrays = {"p": p.flat, "g": g.flat, "tiles": tiles, **{key: arena.flat for key, arena in kept.items()}}
    arrays |= {key: np.empty(shape, np.float32) for key, shape in between(len(tiles), len(shapes)).items()}
    for t in (1, 2, 3):
        g.load({name: np.array(rng.standard_normal(shape), np.float32) for name, shape in shapes.items()})
        arrays["h"] = optimizer.hyper(t)[None]
        for op, outs, ins in UPDATES[rule]:
            getattr(cpu, op)(*(arrays[key] for key in outs + ins))
        own.step(g.views)
    for name, array in params.items():
        assert array.tobytes() == p.views[name].tobytes(), name
        for key, arena in kept.items():
            assert own.moments[key][name].tobytes() == arena.views[name].tobytes(), (key, name)


# In a trainer -----------------------------------------------------------------------------------------------


@each_rule
def test_calls_of_an_update(rule):
    plan = Plan(models.graph_of("resnet20"), 4, update=rule, clip_norm=1.0)
    check_plan(plan)
    assert [call.op for call in plan.calls[-5:-3]] == ["norm_lanes", "clip_factor"]
    assert [call.op for call in plan.calls[-3:]] == {
        "lamb": ["lamb_moments", "tensor_norms", "lamb_update"],
        "lars": ["tile_squares", "tensor_norms", "lars_update"],
    }[rule]
    count = plan.arena_bytes["PARAM"] // 4
    flats = [[slot for slot in call.outs + call.ins if slot.kind == "FLAT"] for call in plan.calls[-3:]]
    assert [len(found) for found in flats] == {"lamb": [4, 0, 3], "lars": [2, 0, 3]}[rule]
    assert all(slot.shape == (count,) for found in flats for slot in found)


@each_rule
def test_calls_keep_to_their_memory(rule):
    graph = mlp()
    params, state, x, labels = draw_arrays(graph, 3)
    arenas = make_arenas(graph, params, state)
    program = bind(Plan(graph, 3, source="float32", update=rule, clip_norm=1.0), arenas, x, labels)
    program.inputs["h"][...] = make(rule).decay_rows(1)
    run_checked(program)
    assert all((arenas["PARAM"].views[name] != before).any() for name, before in params.items())


@pytest.mark.parametrize("decay", ["weights", "all"])
def test_groups_and_tensors(decay):
    """A row of h by decay, a norm by name."""
    graph = models.graph_of("resnet20")
    rows = tensor_tiles(graph, decay)
    kinds = {param.name: param.kind for param in graph.params}
    names = list(graph.trained())
    assert Counter(tensor for *_, tensor in rows).keys() == set(range(len(names)))
    for _, _, group, tensor in rows:
        assert group == (decay == "weights" and kinds[names[tensor]] == "vector")


@each_rule
@pytest.mark.parametrize("decay", ["weights", "all"])
def test_a_trainers_step_is_the_papers(rule, decay):
    """Its gradients, as clipped, through the formulas; what does not decay is not scaled either."""
    model, (images, labels) = norm_model(), small_data(12)
    trainer = Trainer(model, make(rule), decay=decay, clip_norm=0.05)
    kept: dict[str, dict[str, np.ndarray]] = {name: {} for name in model.parameters.views}
    weights = {param.name for param in model.graph.params if param.kind != "vector"}
    want = {name: p.astype(np.float64) for name, p in model.parameters.views.items()}
    for t in (1, 2, 3):
        trainer.step(images, labels)
        gradients = trainer._gradients["GRAD"].views
        norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in gradients.values()))
        assert norm > 0.05
        for name, g in gradients.items():
            own = trainer.optimizer.settings()
            if decay == "weights" and name not in weights:
                own |= {"weight_decay": 0, "trust": 0}
            scaled = g.astype(np.float64) * 0.05 / (norm + 1e-6)
            want[name] = ORACLES[rule](want[name], scaled, kept[name], t, own)
    for name, p in model.parameters.views.items():
        np.testing.assert_allclose(p, want[name], rtol=1e-5, atol=1e-6, err_msg=name)


@each_rule
def test_other_tensors_make_no_difference(rule):
    """Two tensors that trade places, or a third between them, leave each its own norm."""
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(size).astype(np.float32) for size in (10, TILE + 77, 33))
    ends = []
    for names in ("ab", "bca"):
        params = {name: {"a": a, "b": b, "c": c}[name].copy() for name in names}
        optimizer = OPTIMIZERS[rule](params, lr=0.1)
        for _ in range(3):
            optimizer.step({name: 0.5 * p + 1 for name, p in params.items()})
        ends.append((params["a"].tobytes(), params["b"].tobytes()))
    assert ends[0] == ends[1]


@each_rule
def test_any_number_of_threads_gives_the_same_bits(rule):
    states = []
    for threads in (1, 2, 3):
        model = small_model(3)
        trainer = Trainer(model, make(rule), batch_size=32, clip_norm=1.0, accumulate=2, threads=threads)
        list(trainer.fit(small_data(140), epochs=2, val_size=10))
        states.append([model.parameters.flat.tobytes(), *(m.flat.tobytes() for m in trainer.moments.values())])
    assert states[0] == states[1] == states[2]


@each_rule
def test_it_learns(rule):
    model = norm_model()
    optimizer = make(rule, lr={"lamb": 0.02, "lars": 5.0}[rule], weight_decay=None)
    records = list(Trainer(model, optimizer, batch_size=32).fit(small_data(800), epochs=4, val_size=80))
    assert records[-1].val_accuracy > 0.95
    gaps = np.ones(model.parameters.flat.size, bool)
    for start, end, _ in model.parameters.segments:
        gaps[start:end] = False
    assert not model.parameters.flat[gaps].any()


@each_rule
def test_going_on_gives_the_bits_of_running_through(rule):
    whole = course(norm_model(), optimizer=make(rule), lr=None)
    while not whole.done:
        while not whole.epoch_done:
            whole.step()
        whole.end_epoch()
    cut = course(norm_model(), optimizer=make(rule), lr=None)
    for _ in range(3):
        cut.step()
    model = norm_model()
    model.load_state_dict(cut.trainer.model.state_dict())
    again = course(model, optimizer=make(rule), lr=None)
    again.restore(cut.tensors(), cut.metadata())
    while not again.done:
        while not again.epoch_done:
            again.step()
        again.end_epoch()
    assert again.trainer.model.parameters.flat.tobytes() == whole.trainer.model.parameters.flat.tobytes()
    for name, tensor in whole.tensors().items():
        assert again.tensors()[name].tobytes() == tensor.tobytes(), name

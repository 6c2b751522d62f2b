"""Muon: PyTorch's and the paper's steps, in a dict of arrays and in a Trainer."""

import numba
import numpy as np
import pytest
from graphs import chain
from small import course, small_data, small_model

from fastadam import models, optim
from fastadam.config import TrainConfig
from fastadam.device import get_device
from fastadam.errors import ConfigError
from fastadam.job import Job
from fastadam.kernels import cpu, rules
from fastadam.matrices import hidden_matrices
from fastadam.oracles import ORACLES
from fastadam.plan import Plan
from fastadam.trainer import Trainer

SHAPES = {"wide": (40, 90), "tall": (90, 40), "square": (70, 70), "row": (1, 33), "column": (33, 1)}


def draw(rng, shapes):
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def step_of(gradient, **settings):
    """How one step moves a matrix, over the rate; nothing decays."""
    p = np.zeros(gradient.shape, np.float32)
    optim.Muon({"w": p}, lr=1.0, weight_decay=0.0, **settings).step({"w": gradient})
    return -p


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.0},
        {"lr": 0.1, "momentum": 0.5, "nesterov": False, "weight_decay": 0.5},
        {"ns_coefficients": (2.0, -1.5, 0.5), "ns_steps": 8, "eps": 50.0},
    ],
)
@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_steps_are_pytorchs(rng, settings, precision, monkeypatch):
    """Of PyTorch in float64, but for our rounding; and in its own bfloat16, but for that."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    if precision == "float64":
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    ours = {name: p / 1000 for name, p in draw(rng, SHAPES).items()}  # of the steps' size
    theirs = {name: torch.tensor(p.astype(np.float64), requires_grad=True) for name, p in ours.items()}
    start = {name: p.copy() for name, p in ours.items()}
    optimizer, twin = optim.Muon(ours, **settings), torch.optim.Muon(theirs.values(), **settings)
    for _ in range(5):
        gradients = draw(rng, SHAPES)
        optimizer.step(gradients)
        for name, g in gradients.items():
            theirs[name].grad = torch.tensor(g.astype(np.float64))
        twin.step()
    for name, tensor in theirs.items():
        want = tensor.detach().numpy()
        error = np.linalg.norm(ours[name] - want) / np.linalg.norm(want - start[name])
        assert error < (5e-6 if precision == "float64" else 2e-2), name  # 8 bits, in five iterations


def test_filters_are_matrices_of_their_outputs(rng):
    filters = draw(rng, {"w": (24, 5, 3, 3)})
    matrix = {"w": filters["w"].reshape(24, -1).copy()}
    g = draw(rng, {"w": (24, 5, 3, 3)})
    optim.Muon(filters, lr=0.1).step(g)
    optim.Muon(matrix, lr=0.1).step({"w": g["w"].reshape(24, -1)})
    np.testing.assert_array_equal(filters["w"].reshape(24, -1), matrix["w"])


def test_all_else_is_adamws(rng):
    shapes = {"bias": (7,), "scale": (), "w": (5, 6), "empty": (0, 3)}
    settings = {"beta1": 0.8, "beta2": 0.9, "weight_decay": 0.3}
    a, b = (draw(np.random.default_rng(0), shapes) for _ in range(2))
    muon = optim.Muon(a, adamw_lr=0.02, adamw_eps=1e-3, **settings)
    adamw = optim.AdamW(b, lr=0.02, eps=1e-3, **settings)
    for _ in range(3):
        g = draw(rng, shapes)
        muon.step(g)
        adamw.step(g)
    for name in ("bias", "scale"):
        np.testing.assert_array_equal(a[name], b[name])
    assert (a["w"] != b["w"]).all()
    assert muon.moments["m"].keys() == shapes.keys()
    assert muon.moments["v"].keys() == {"bias", "scale", "empty"}


@pytest.mark.parametrize("shape", [(64, 64), (30, 200), (200, 30)])
def test_singular_values_come_near_one(rng, shape):
    """Of a gradient whose own lie between 1 and 0.01: Jordan et al. 2024, what their coefficients are for."""
    u, _, vt = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    g = (u * np.geomspace(1, 0.01, min(shape))) @ vt
    o = step_of(g.astype(np.float32)) / max(1, shape[0] / shape[1]) ** 0.5
    values = np.linalg.svd(o, compute_uv=False)
    assert 0.68 < values.min() < values.max() < 1.21
    np.testing.assert_allclose(u.T @ o @ vt.T, np.diag(np.diag(u.T @ o @ vt.T)), atol=1e-4)  # no vector is turned


@pytest.mark.parametrize(
    "spectrum",
    [np.geomspace(1, 1e-4, 60), np.r_[1, np.full(59, 1e-3)], np.r_[1, 0.5, np.zeros(58)], np.full(60, 1e-20)],
    ids=["steep", "spiked", "deficient", "tiny"],
)
def test_hard_spectra_are_as_exact_as_easy_ones(rng, spectrum):
    u, _, vt = np.linalg.svd(rng.standard_normal((130, 60)), full_matrices=False)
    g = ((u * spectrum) @ vt).astype(np.float32)
    settings = {**optim.Muon(adjust_lr_fn="original").settings(), "lr": 1.0, "weight_decay": 0.0}
    want = -ORACLES["muon"](np.zeros(g.shape), g.astype(np.float64), {}, 1, settings)
    np.testing.assert_allclose(step_of(g), want, atol=2e-5)


def test_without_a_gradient_only_the_decay_moves():
    p = np.full((20, 30), 2.0, np.float32)
    optim.Muon({"w": p}, lr=0.5, weight_decay=0.1).step({"w": np.zeros_like(p)})
    np.testing.assert_allclose(p, 2 * (1 - 0.5 * 0.1), rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_gradient_that_is_no_number_or_too_large_to_square_is_seen(rng, value):
    p, g = draw(rng, {"w": (70, 50), "other": (9, 9)}), draw(rng, {"w": (70, 50), "other": (9, 9)})
    g["w"][13, 7] = value
    optim.Muon(p).step(g)
    assert np.isnan(p["w"]).all()
    assert np.isfinite(p["other"]).all()


def test_a_large_matrix_has_the_same_bits_on_any_number_of_threads(rng):
    """One of many blocks, whose products several threads share; so are those of the smallest cases by one."""
    if numba.config.NUMBA_NUM_THREADS < 3:
        pytest.skip("needs NUMBA_NUM_THREADS of 3 or more")
    h = np.array([rules.Hyper(matrix_lr=1.0, momentum=0.9, one_minus_dampening=0.1, nesterov=1.0)], np.float32)
    for shape in ((3, 3, 50, 210), (260, 700)):
        start = [rng.standard_normal(shape).astype(np.float32) for _ in range(3)]
        found = []
        for threads in (1, 2, 3):
            p, m, g = (a.copy() for a in start)
            with get_device("cpu", threads).running():
                cpu.muon_update(p, m, g, h, 0, 1.0, *optim.Muon().ns_coefficients, 1e-7, 5)
            found.append(p.tobytes() + m.tobytes())
        assert found[0] == found[1] == found[2]
        x = (0.19 * g + 0.81 * start[1]).reshape(-1, shape[-1]).astype(np.float64)
        want = start[0] - _orthogonal(x).reshape(shape)
        np.testing.assert_allclose(p, want, atol=1e-5)


def _orthogonal(x):
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    s /= np.linalg.norm(s)
    for _ in range(5):
        a, b, c = optim.Muon().ns_coefficients
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ vt


# In a Trainer -----------------------------------------------------------------------------------------------


def test_a_plan_has_a_call_for_each_hidden_matrix():
    """The first layer, the classifier, biases and norms are AdamW's, in one call."""
    graph = models.graph_of("vgg")
    optimizer = optim.Muon(adjust_lr_fn="match_rms_adamw")
    plan = Plan(graph, 2, update="muon", constants=optimizer.constants, clip_norm=1.0)
    calls = [call for call in plan.calls if call.op.endswith("_update")]
    assert [c.outs[0].name for c in calls] == [*(f"conv{i}.weight" for i in range(2, 7)), "PARAM"]
    assert [c.op for c in calls] == ["muon_update"] * 5 + ["adamw_update"]
    assert plan.matrices == tuple(f"conv{i}.weight" for i in range(2, 7))
    assert calls[3].scalars["rate"] == 0.2 * (9 * 128) ** 0.5
    assert calls[0].flops == 5 * (4 * 64**2 * 576 + 2 * 64**3)
    covered = sum(end - start for start, end, _ in plan.groups)
    trained = {name: int(np.prod(shape)) for name, shape in graph.trained().items()}
    assert covered == sum(-(-size // 16) * 16 for name, size in trained.items() if name not in plan.matrices)
    assert not Plan(graph, 2, update="adamw").matrices


def test_what_is_hidden():
    """Layers that read the input past anything but weights, and those that make the output, are not."""
    conv, linear = {"out": 4, "kernel": 3, "stride": 1, "pad": 1, "bias": False}, {"out": 5, "bias": True}
    graph = chain(
        ("n", "bn"), ("a", "conv", conv), ("s", "conv", {**conv, "kernel": 1, "pad": 0}), ("t", "add", "s", "a"),
        ("r", "relu"), ("g", "avgpool"), ("h", "linear", linear), ("o", "dropout", {"p": 0.1}),
    )  # fmt: skip
    assert [param.name for param in hidden_matrices(graph)] == ["s.weight", "h.weight"]
    assert [p.name for p in hidden_matrices(models.graph_of("mlp"))] == ["fc2.weight"]
    assert len(hidden_matrices(models.graph_of("resnet20"))) == 20
    with pytest.raises(ConfigError, match="hidden layers"):
        hidden_matrices(chain(("g", "avgpool"), ("h", "linear", linear), ("r", "relu")))


def test_a_trainer_steps_as_the_optimiser_does(rng):
    """On the public layout of what it has of the matrices, once the gradients are known."""
    model, (images, labels) = small_model(), small_data(12)
    hidden = {param.name for param in hidden_matrices(model.graph)}
    optimizer = optim.Muon(lr=0.1, weight_decay=0.2, adamw_lr=0.01)
    before, (_, gradients) = model.state_dict(), model.loss_and_gradients(images, labels)
    Trainer(model, optimizer, decay="all").step(images, labels)
    after = model.state_dict()
    ours = {name: before[name].copy() for name in hidden}
    optim.Muon(ours, lr=0.1, weight_decay=0.2).step({name: gradients[name] for name in hidden})
    rest = {name: p.copy() for name, p in before.items() if name not in hidden}
    optim.AdamW(rest, lr=0.01, weight_decay=0.2).step({name: gradients[name] for name in rest})
    assert 0 < len(hidden) < len(before)
    for name, p in (ours | rest).items():
        np.testing.assert_allclose(after[name], p, atol=3e-4 if name in hidden else 1e-5, err_msg=name)


@pytest.mark.parametrize("settings", [{}, {"clip_norm": 0.5, "ema": 0.9, "accumulate": 2, "batch_size": 12}])
def test_resuming_equals_running_on(settings):
    whole, cut = (course(small_model(), optimizer="muon", lr=0.02, **settings) for _ in range(2))
    for _ in range(4):
        whole.step()
    for _ in range(2):
        cut.step()
    resumed = course(small_model(9), optimizer="muon", lr=0.02, **settings)
    resumed.trainer.model.load_state_dict(cut.trainer.model.state_dict())
    resumed.restore(cut.tensors(), cut.metadata())
    for _ in range(2):
        resumed.step()
    for name, tensor in whole.trainer.model.state_dict().items():
        np.testing.assert_array_equal(resumed.trainer.model.state_dict()[name], tensor)


def test_a_small_net_learns():
    model = small_model()
    records = list(Trainer(model, optim.Muon(lr=0.02), batch_size=32).fit(small_data(800), epochs=3, val_size=80))
    assert records[-1].val_accuracy > 0.95


def test_a_schedule_scales_both_rates():
    optimizer = optim.Muon(lr=0.04, adamw_lr=0.003, weight_decay=0.5)
    decaying, spared = (rules.Hyper(*row) for row in optimizer.decay_rows(3, 0.02))
    np.testing.assert_allclose([decaying.lr, decaying.decay], [0.0015, 0.00075], rtol=1e-6)
    np.testing.assert_allclose([decaying.matrix_lr, decaying.matrix_decay], [0.02, 0.01], rtol=1e-6)
    np.testing.assert_allclose([spared.lr, spared.decay], [0.0015, 0], rtol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"momentum": 1.0}, {"eps": 0.0}, {"ns_steps": 0}, {"ns_steps": 100}, {"ns_steps": 2.5}, {"ns_steps": True},
        {"beta1": 1.0},
        {"ns_coefficients": (1, 2)}, {"ns_coefficients": (1, 2, np.nan)}, {"adjust_lr_fn": "none"}, {"lr": 0.0},
    ],
)  # fmt: skip
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        optim.Muon(**wrong)


def test_numbers_of_numpys_are_numbers(rng):
    g = draw(rng, {"w": (9, 5)})["w"]
    np.testing.assert_array_equal(step_of(g, ns_steps=np.int64(3)), step_of(g, ns_steps=3))


def test_a_matrix_has_the_constants_by_their_names(rng, monkeypatch):
    """In whatever order an optimiser tells them."""
    g, told = draw(rng, {"w": (9, 5)})["w"], optim.Muon.constants.fget
    want = step_of(g, ns_coefficients=(3.0, -2.0, 0.5), eps=1e-3)
    monkeypatch.setattr(optim.Muon, "constants", property(lambda self: told(self)[::-1]))
    np.testing.assert_array_equal(step_of(g, ns_coefficients=(3.0, -2.0, 0.5), eps=1e-3), want)


def test_a_gradient_that_does_not_fit_changes_nothing(rng):
    p = draw(rng, {"w": (3, 4), "b": (3,)})
    before = {name: a.copy() for name, a in p.items()}
    optimizer = optim.Muon(p)
    with pytest.raises(ValueError, match="gradient 'b'"):
        optimizer.step({"w": p["w"], "b": np.zeros(4, np.float32)})
    assert optimizer.t == 0
    assert all((p[name] == a).all() for name, a in before.items())


@pytest.mark.parametrize(("given", "want"), [({}, True), ({"nesterov": False}, False), ({"nesterov": True}, True)])
def test_nesterovs_momentum_is_a_choice(given, want, tmp_path):
    config = TrainConfig(optimizer="muon", data="synthetic", model="mlp", steps=1, limit_train=200, **given)
    job = Job(config)
    assert job.fit().trainer.optimizer.nesterov == job.config.nesterov == want

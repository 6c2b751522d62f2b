"""fastadam beside PyTorch: the same weights, batches and settings give the same gradients and losses."""

import numpy as np
import pytest

from fastadam import models, optim
from fastadam.trainer import Trainer

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
from torch_twins import train_steps, twin  # noqa: E402

MODELS = ("mlp", "cnn")
# eps is 1e-4: with the default, Adam's first steps are lr times the sign of a gradient however small, and
# rounding alone decides the sign of those that should be zero, here as in PyTorch.
OPTIMIZERS = {
    "adam": (
        optim.Adam(lr=1e-3, eps=1e-4, weight_decay=1e-3),
        lambda p: torch.optim.Adam(p, 1e-3, eps=1e-4, weight_decay=1e-3),
    ),
    "adamw": (optim.AdamW(lr=1e-3, eps=1e-4), lambda p: torch.optim.AdamW(p, 1e-3, eps=1e-4)),
    "sgd": (
        optim.SGD(lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-3),
        lambda p: torch.optim.SGD(p, 0.02, momentum=0.9, nesterov=True, weight_decay=1e-3),
    ),
}


def batches(count: int, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(7)
    return [
        (rng.standard_normal((size, 3, 32, 32)).astype(np.float32), rng.integers(0, 10, size)) for _ in range(count)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_as_good_as_pytorchs(name):
    """Against PyTorch in float64, no gradient is more than 10 times as wrong as PyTorch's float32 one."""
    model = models.build(name, seed=3)
    ((images, labels),) = batches(1, 37)
    loss, gradients = model.loss_and_gradients(images, labels)
    exact = {}
    for dtype in (torch.float64, torch.float32):
        module = twin(name, model.state_dict(), dtype)
        target = torch.nn.functional.cross_entropy(module(torch.tensor(images, dtype=dtype)), torch.tensor(labels))
        target.backward()
        exact[dtype] = {key: p.grad.numpy() for key, p in module.named_parameters()}
        if dtype == torch.float64:
            assert loss == pytest.approx(target.item(), rel=1e-6)
    assert list(gradients) == list(exact[torch.float64])
    for key, want in exact[torch.float64].items():
        error, torch_error = (
            np.linalg.norm(g[key] - want) / np.linalg.norm(want) for g in (gradients, exact[torch.float32])
        )
        assert error < max(10 * torch_error, 1e-7), (key, error, torch_error)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_twenty_losses_follow_pytorchs(name, rule):
    """Our losses drift from exact arithmetic as far as rounding makes any float32 run drift, no further.

    How far that is, PyTorch's float32 run tells, and an exact one whose first weights are off by a rounding:
    a near tie in a ReLU or a pool sends any of them away by 1e-5 or more, at any step. So of three starts our
    middle one is compared with their farthest.
    """
    ours, theirs = OPTIMIZERS[rule]
    drift: dict[str, list[float]] = {"fastadam": [], "PyTorch": [], "rounded": []}
    rng = np.random.default_rng(0)
    for seed in range(3):
        model, data = models.build(name, seed=seed), batches(2, 8) * 10
        start = model.state_dict()
        rounded = {k: w * (1 + 2.0**-24 * rng.choice((-1, 1), w.shape)) for k, w in start.items()}
        trainer = Trainer(model, optim.OPTIMIZERS[rule](None, **ours.settings()))
        losses = {"fastadam": [trainer.step(images, labels) for images, labels in data]}
        for key, weights, dtype in (
            ("PyTorch", start, torch.float32),
            ("rounded", rounded, torch.float64),
            ("exact", start, torch.float64),
        ):
            module = twin(name, weights, dtype)
            losses[key] = train_steps(module, theirs(module.parameters()), data, dtype)
        assert losses["exact"][-1] < losses["exact"][0] - 0.1, "these steps must train"
        assert losses["fastadam"][0] == pytest.approx(losses["exact"][0], rel=1e-6)
        for key in drift:
            drift[key].append(float(np.abs(np.subtract(losses[key], losses["exact"])).max()))
    told = {key: " ".join(f"{value:.1e}" for value in values) for key, values in drift.items()}
    print(f"{name} {rule}: largest difference in 20 losses, three starts", told)
    assert np.median(drift["fastadam"]) < 10 * max(drift["PyTorch"] + drift["rounded"]) + 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_checkpoints_open_in_pytorch(name, tmp_path):
    from safetensors.torch import load_file

    model = models.build(name, seed=5)
    model.save(tmp_path / "model.safetensors")
    state = load_file(tmp_path / "model.safetensors")
    module = twin(name, {key: value.numpy() for key, value in state.items()})
    ((images, _),) = batches(1, 9)
    with torch.no_grad():
        want = module(torch.tensor(images)).softmax(1).numpy()
    np.testing.assert_allclose(model.predict_proba(images), want, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("adam", {}),
        ("adam", {"weight_decay": 0.1, "beta1": 0.5, "eps": 1e-3}),
        ("adamw", {"lr": 0.1, "beta2": 0.9}),
        ("sgd", {"lr": 0.5}),
        ("sgd", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
        ("sgd", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ],
    ids=str,
)
def test_optimisers_equal_pytorchs(name, settings):
    """Fifty steps on arrays of every rank."""
    rng = np.random.default_rng(0)
    shapes = {"scalar": (), "vector": (7,), "matrix": (5, 3), "filter": (4, 3, 3, 3), "large": (20_011,)}
    params = {key: np.array(rng.standard_normal(shape), np.float32) for key, shape in shapes.items()}
    tensors = {key: torch.tensor(p.astype(np.float64), requires_grad=True) for key, p in params.items()}
    optimizer = optim.OPTIMIZERS[name](params, **settings)
    make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
    betas = {} if name == "sgd" else {"betas": (settings.get("beta1", 0.9), settings.get("beta2", 0.999))}
    others = {key: value for key, value in settings.items() if key not in ("beta1", "beta2")}
    reference = make(tensors.values(), **({"lr": optimizer.lr} | others | betas))
    for _ in range(50):
        grads = {key: np.array(rng.standard_normal(shape), np.float32) for key, shape in shapes.items()}
        for key, tensor in tensors.items():
            tensor.grad = torch.tensor(grads[key].astype(np.float64))
        optimizer.step(grads)
        reference.step()
    for key, p in params.items():
        np.testing.assert_allclose(p, tensors[key].detach().numpy(), rtol=2e-5, atol=2e-6)  # 50 float32 roundings

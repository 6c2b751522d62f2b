"""fastadam beside PyTorch: the same weights, batches and settings give the same gradients and losses."""

import time

import numpy as np
import pytest

from fastadam import models, optim
from fastadam.device import get_device
from fastadam.kernels import cpu
from fastadam.kernels.cpu.choose import filter_lanes
from fastadam.trainer import Trainer

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
from torch_twins import TWINS, blur_convolutions, train_steps, twin  # noqa: E402

MODELS = ("mlp", "cnn", "vgg", "resnet20")
LONG = ("vgg", "resnet20")
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
CONVOLUTION_ERROR = 1.2e-6
"""Root mean square of what Winograd's F(4 x 4, 3 x 3) is off, as a share of the result's."""
SLOW_SGD = (  # at the rate above, vgg's losses jump so far on the way that any two runs part
    optim.SGD(lr=0.001, momentum=0.9, nesterov=True, weight_decay=1e-3),
    lambda p: torch.optim.SGD(p, 0.001, momentum=0.9, nesterov=True, weight_decay=1e-3),
)


def batches(count: int, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(7)
    return [
        (rng.standard_normal((size, 3, 32, 32)).astype(np.float32), rng.integers(0, 10, size)) for _ in range(count)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_as_good_as_pytorchs(name):
    """Against PyTorch in float64, no gradient is more than 10 times as wrong as PyTorch's float32 one.

    A near tie in a ReLU or a pool that rounding turns moves a gradient by 1e-3 or more, here as there. So
    batches are small, to have few ties, and of sixteen the quarter with the smallest errors is judged.
    """
    model = models.build(name, seed=3)
    errors: dict[str, dict[str, list[float]]] = {"fastadam": {}, "PyTorch": {}}
    for images, labels in batches(16, 1 if name in LONG else 2):
        loss, gradients = model.loss_and_gradients(images, labels)
        found = {}
        for dtype in (torch.float64, torch.float32):
            module = twin(name, model.state_dict(), dtype)
            target = torch.nn.functional.cross_entropy(module(torch.tensor(images, dtype=dtype)), torch.tensor(labels))
            target.backward()
            found[dtype] = {key: p.grad.numpy() for key, p in module.named_parameters()}
            if dtype == torch.float64:
                assert loss == pytest.approx(target.item(), rel=1e-5)
        assert list(gradients) == list(found[torch.float64])
        for key, want in found[torch.float64].items():
            for side, got in (("fastadam", gradients[key]), ("PyTorch", found[torch.float32][key])):
                errors[side].setdefault(key, []).append(np.linalg.norm(got - want) / np.linalg.norm(want))
    ours, theirs = ({key: np.quantile(e, 0.25) for key, e in side.items()} for side in errors.values())
    worst = max(ours, key=lambda key: ours[key] / theirs[key])
    print(f"{name}: worst gradient, {worst}: error {ours[worst]:.1e}, PyTorch's {theirs[worst]:.1e}")
    for key in ours:
        assert ours[key] < max(10 * theirs[key], 1e-7), (key, ours[key], theirs[key])


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in MODELS])
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_twenty_losses_follow_pytorchs(name, rule):
    """Our losses drift from exact arithmetic as far as rounding makes any float32 run drift, no further.

    A near tie in a ReLU or a pool sends any run away by 1e-5 or more, at any step. How far that is, PyTorch's
    float32 run tells, and an exact one whose convolutions are as coarse as Winograd's (CONVOLUTION_ERROR). So of
    three starts our middle one is compared with their farthest.
    """
    ours, theirs = SLOW_SGD if (name, rule) == ("vgg", "sgd") else OPTIMIZERS[rule]
    drift: dict[str, list[float]] = {"fastadam": [], "PyTorch": [], "coarse": []}
    for seed in range(3):
        model, data = models.build(name, seed=seed), batches(2, 8) * 10
        start = model.state_dict()
        trainer = Trainer(model, optim.OPTIMIZERS[rule](None, **ours.settings()), decay="all")
        losses = {"fastadam": [trainer.step(images, labels) for images, labels in data]}
        for key, dtype in (("PyTorch", torch.float32), ("coarse", torch.float64), ("exact", torch.float64)):
            module = twin(name, start, dtype)
            if key == "coarse":
                blur_convolutions(module, CONVOLUTION_ERROR, seed)
            losses[key] = train_steps(module, theirs(module.parameters()), data, dtype)
        assert losses["exact"][-1] < losses["exact"][0] - 0.1, "these steps must train"
        assert losses["fastadam"][0] == pytest.approx(losses["exact"][0], rel=1e-6)
        for key in drift:
            drift[key].append(float(np.abs(np.subtract(losses[key], losses["exact"])).max()))
    told = {key: " ".join(f"{value:.1e}" for value in values) for key, values in drift.items()}
    print(f"{name} {rule}: largest difference in 20 losses, three starts", told)
    assert np.median(drift["fastadam"]) < 10 * max(drift["PyTorch"] + drift["coarse"]) + 1e-6


@pytest.mark.slow
def test_three_steps_of_resnet50_follow_pytorchs():
    """Losses and gradients of the large net, and what the steps did to the running statistics."""
    images, labels = batches(1, 8)[0]
    model = models.build("resnet50", seed=2)
    start = model.state_dict()
    _, gradients = model.loss_and_gradients(images, labels)
    trainer = Trainer(model, optim.Adam(lr=1e-3, eps=1e-4))
    begun, losses = time.perf_counter(), {}
    losses["fastadam"] = [trainer.step(images, labels) for _ in range(3)]
    print(f"resnet50: {3 * len(images) / (time.perf_counter() - begun):.1f} images/s")
    first, modules = {}, {}
    for key, dtype in (("PyTorch", torch.float32), ("coarse", torch.float64), ("exact", torch.float64)):
        modules[key] = module = twin("resnet50", start, dtype)
        if key == "coarse":
            blur_convolutions(module, CONVOLUTION_ERROR, 0)
        optimizer = torch.optim.Adam(module.parameters(), 1e-3, eps=1e-4)
        losses[key] = train_steps(module, optimizer, [(images, labels)], dtype)
        first[key] = {name: p.grad.numpy().copy() for name, p in module.named_parameters()}
        losses[key] += train_steps(module, optimizer, [(images, labels)] * 2, dtype)
    worst = ("", 0.0)
    for name, want in first["exact"].items():
        error, *others = (
            np.linalg.norm(g[name] - want) / np.linalg.norm(want)
            for g in (gradients, first["PyTorch"], first["coarse"])
        )
        assert error < max(10 * max(others), 1e-7), (name, error, others)
        worst = max(worst, (name, error / max(others)), key=lambda pair: pair[1])
    print("resnet50: worst gradient", *worst, "times as wrong as PyTorch's or a coarse exact one")
    drift, *others = (np.abs(np.subtract(losses[key], losses["exact"])) for key in ("fastadam", "PyTorch", "coarse"))
    print("resnet50 adam: difference in 3 losses", drift, "PyTorch in float32, coarse", *others)
    assert drift[0] < 1e-5 * losses["exact"][0]
    assert drift.max() < 10 * np.max(others) + 1e-6
    got, exact, theirs = (
        state["bn1.running_var"]
        for state in (
            model.state_dict(),
            *({k: v.numpy() for k, v in modules[key].state_dict().items()} for key in ("exact", "PyTorch")),
        )
    )  # fmt: skip
    assert np.abs(got - exact).max() < 10 * np.abs(theirs - exact).max() + 1e-6


PASSES = {  # (C, OC, H, kernel, stride): Winograd's, im2col's, a linear layer as a convolution over one pixel
    "3 to 64 at 32 x 32": (3, 64, 32, 3, 1),
    "64 to 64 at 32 x 32": (64, 64, 32, 3, 1),
    "128 to 128 at 16 x 16": (128, 128, 16, 3, 1),
    "256 to 256 at 8 x 8": (256, 256, 8, 3, 1),
    "64 to 128 at 16 x 16, stride 2": (64, 128, 16, 3, 2),
    "64 to 256 at 16 x 16, 1 x 1": (64, 256, 16, 1, 1),
    "linear, 3072 to 512": (3072, 512, 1, 1, 1),
}


@pytest.mark.parametrize("name", PASSES)
def test_each_pass_is_as_exact_as_pytorchs(name):
    """Forward and both gradients against float64: relative errors of at most ten times PyTorch's float32 ones."""
    C, OC, H, kernel, stride = PASSES[name]
    rng, pad = np.random.default_rng(0), kernel // 2
    x = rng.standard_normal((8, C, H, H)).astype(np.float32)
    w = (rng.standard_normal((OC, C, kernel, kernel)) / np.sqrt(C * kernel**2)).astype(np.float32)
    found = {}
    for dtype in (torch.float64, torch.float32):
        inputs = [torch.tensor(a, dtype=dtype).requires_grad_() for a in (x, w)]
        y = torch.nn.functional.conv2d(*inputs, stride=stride, padding=pad)
        if dtype == torch.float64:
            dy = rng.standard_normal(y.shape).astype(np.float32)
        y.backward(torch.tensor(dy, dtype=dtype))
        found[dtype] = [y.detach().numpy(), *(a.grad.numpy() for a in inputs)]
    got = _our_passes(x, w, dy, stride, pad)
    triples = zip(got, found[torch.float32], found[torch.float64], strict=True)
    for what, (ours, theirs, exact) in zip(("forward", "dx", "dw"), triples, strict=True):
        error, torch_error = (np.linalg.norm(a - exact) / np.linalg.norm(exact) for a in (ours, theirs))
        print(f"{name:32} {what:8} {error:.1e}  PyTorch {torch_error:.1e}")
        assert error < 10 * torch_error, what


def _our_passes(
    x: np.ndarray, w: np.ndarray, dy: np.ndarray, stride: int, pad: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y, dx and dw in PyTorch's layouts, by the ops themselves."""
    no_vector, no_sums, no_tensor = (np.zeros((0,) * rank, np.float32) for rank in (1, 3, 4))
    linear = x.shape[2:] == (1, 1)
    x, dy = (np.ascontiguousarray(a.transpose(0, 2, 3, 1)) for a in (x, dy))
    y, dx = np.empty_like(dy), np.empty_like(x)
    tail = (x, no_vector, no_vector, no_tensor, no_tensor, no_vector)
    with get_device("cpu").running():
        if linear:
            w, dw = w[:, :, 0, 0].copy(), np.empty(w.shape[:2], np.float32)
            y, dy = (a.reshape(a.shape[0], -1) for a in (y, dy))
            cpu.linear_forward(y, no_sums, x, no_vector, no_vector, w, 0)
            absent = np.zeros((0, 0), np.float32)
            cpu.linear_backward(dx, no_sums, dw, dy, absent, no_vector, no_vector, no_vector, w, *tail, 0, 0)
            return y[..., None, None], dx.transpose(0, 3, 1, 2), dw[..., None, None]
        w = np.ascontiguousarray(w.transpose(2, 3, 1, 0))
        lanes = np.empty((max(1, filter_lanes(len(x), dy.shape[1:3], w.shape, stride)), *w.shape), np.float32)
        cpu.conv2d_forward(y, no_sums, x, no_vector, no_vector, w, 0, stride, pad)
        gradient = (dy, no_tensor, no_vector, no_vector, no_vector)
        cpu.conv2d_backward(dx, no_sums, lanes, *gradient, w, *tail, 0, 0, stride, pad)
    dw = lanes.sum(0, dtype=np.float64)
    return y.transpose(0, 3, 1, 2), dx.transpose(0, 3, 1, 2), dw.transpose(3, 2, 0, 1)


@pytest.mark.parametrize("name", TWINS)
def test_checkpoints_open_in_pytorch(name, tmp_path):
    """Every tensor has its place there, and the logits are the same."""
    from safetensors.torch import load_file

    model = models.build(name, seed=5)
    rng = np.random.default_rng(5)
    state = model.state_dict()
    for key, array in state.items():
        if key.endswith("running_mean"):
            state[key] = rng.normal(0, 0.1, array.shape)
        elif key.endswith("running_var") or ("bn" in key and key.endswith("weight")):
            state[key] = rng.uniform(0.5, 1.5, array.shape)
    model.load_state_dict(state)
    model.save(tmp_path / "model.safetensors")
    stored = load_file(tmp_path / "model.safetensors")
    module = twin(name, {key: value.numpy() for key, value in stored.items()}).eval()
    images = batches(1, 9)[0][0]
    with torch.no_grad():
        want = module(torch.tensor(images)).numpy()
    np.testing.assert_allclose(model.logits(images), want, atol=2e-5 * np.abs(want).max())
    assert [key for key in module.state_dict() if not key.endswith("num_batches_tracked")] == list(state)

"""AdamW by moments in bfloat16: rounded at random, right on average, half the bytes, and as good at training."""

import json

import numpy as np
import pytest
from small import course, norm_model, resumes, small_data, small_model

from fastadam import checkpoint, data, reference, training
from fastadam.bfloat16 import cut, widened
from fastadam.budget import COPIES
from fastadam.config import TrainConfig
from fastadam.errors import DivergedError
from fastadam.fit import Fit
from fastadam.optim import AdamW, AdamWBF16
from fastadam.trainer import Trainer

N = 100_000


def nearest(x: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16, ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    return widened(((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16))


def after_a_step(g: float, *, v: float = 0.0, n: int = N, **settings: float) -> tuple[np.ndarray, np.ndarray]:
    """m and v of ``n`` equal parameters after their first step."""
    optimizer = AdamWBF16({"p": np.zeros(n, np.float32)}, **settings)
    optimizer.moments["v"]["p"][:] = cut(v)
    optimizer.step({"p": np.full(n, g, np.float32)})
    return tuple(widened(optimizer.moments[name]["p"]) for name in ("m", "v"))


def test_conversions():
    x = np.array([0, -0.0, 1, -1.5, 3e38, 1e-40, np.inf, -np.inf], np.float32)
    np.testing.assert_array_equal(cut(widened(cut(x))), cut(x))
    np.testing.assert_array_equal(widened(cut(x))[[0, 1, 2, 3, 6, 7]], x[[0, 1, 2, 3, 6, 7]])
    assert cut(np.float32(1 + 2**-8)) == cut(np.float32(1)) == 0x3F80


@pytest.mark.parametrize(("g", "v"), [(1.3, 0.0), (-0.017, 0.0), (3e-5, 0.731), (1.1, 2.9)])
def test_every_number_is_one_of_two_neighbours_and_right_on_average(g, v):
    m, v = after_a_step(g, v=(old := v)), old
    for got, want in zip(m, (0.1 * g, 0.999 * float(widened(cut(v))) + 0.001 * g * g), strict=True):
        low, high = np.unique(np.abs(got))
        assert low < abs(want) < high
        assert high == widened(cut(low) + np.uint16(1))
        up = (abs(want) - low) / (high - low)
        assert abs((np.abs(got) == high).mean() - up) < 5 * np.sqrt(up * (1 - up) / N) + 1e-3
        assert np.sign(got[0]) == np.sign(want)


def test_both_moments_draw_apart_and_elements_too():
    m, v = after_a_step(1.3)
    up_m, up_v = m == m.max(), v == v.max()
    for a, b in ((up_m, up_v), (up_m[1:], up_m[:-1]), (up_v[1:], up_v[:-1]), (up_m[7:], up_v[:-7])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(N)


def test_a_long_average_decays_where_the_nearest_would_stall():
    """v forgets a thousandth of itself a step: less than half of bfloat16's last place, and the nearest stays put."""
    optimizer = AdamWBF16({"p": np.zeros(4000, np.float32)}, lr=1e-6)
    optimizer.moments["v"]["p"][:] = cut(1.7)
    v = start = np.float32(1.7 - 1.7 % 2**-7)
    for _ in range(1000):
        optimizer.step({"p": np.zeros(4000, np.float32)})
        v = nearest(np.float32(0.999) * v)
    assert v == start, "rounded to the nearest it never moves"
    decayed = widened(optimizer.moments["v"]["p"])
    assert decayed.mean() == pytest.approx(start * 0.999**1000, rel=0.01)
    assert decayed.std() < 0.2 * decayed.mean()


def test_steps_are_those_of_the_reference(rng):
    """The same bits but where the last place of a float32, which is rounded otherwise there, decides."""
    params = {"p": rng.standard_normal(30_001).astype(np.float32)}
    optimizer = AdamWBF16(params, lr=0.01, weight_decay=0.1, seed=7)
    p, m, v = params["p"].copy(), *np.zeros((2, 30_001), np.uint16)
    for t in range(1, 6):
        g = rng.standard_normal(30_001).astype(np.float32)
        optimizer.step({"p": g})
        reference.adamw_bf16_update(p, m, v, g, optimizer.hyper(t)[None], np.array([[0, g.size, 0]]))
        np.testing.assert_allclose(params["p"], p, rtol=1e-3, atol=1e-3)
        for got, want in ((optimizer.moments["m"]["p"], m), (optimizer.moments["v"]["p"], v)):
            assert (got == want).mean() > 0.999
            assert np.abs(widened(got) - widened(want)).max() <= 0.02 * np.abs(widened(want)).max()


def test_seed_and_step_decide_the_bits():
    def bits(seed: int, steps: int) -> bytes:
        optimizer = AdamWBF16({"p": np.zeros(1000, np.float32)}, seed=seed)
        for _ in range(steps):
            optimizer.step({"p": np.full(1000, 0.3, np.float32)})
        return optimizer.moments["m"]["p"].tobytes()

    assert bits(1, 3) == bits(1, 3)
    assert bits(1, 3) != bits(2, 3)
    draws = [AdamWBF16(seed=s).numbers(t, 0.1)["draw"] for s in range(20) for t in range(1, 50)]
    assert len(set(draws)) > 0.99 * len(draws)
    assert all(0 <= draw < 2**24 and draw == np.float32(draw) for draw in draws)
    models = [small_model() for _ in range(2)]
    for model, seed in zip(models, (0, 5), strict=True):
        trainer = Trainer(model, "adamw_bf16", seed=seed)
        assert trainer.optimizer.seed == seed


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so_and_is_not_kept(bad):
    m, v = after_a_step(bad, n=100)
    assert not np.isfinite(m).any()
    assert not np.isfinite(v).any()
    sign = np.array([0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)  # whose bits would overflow
    optimizer = AdamWBF16({"p": np.zeros(2, np.float32)})
    optimizer.step({"p": sign})
    assert np.isnan(widened(optimizer.moments["v"]["p"])).all()
    fit = course(small_model(), optimizer="adamw_bf16")
    fit.step()
    fit.trainer.moments["V"].flat[3] = cut(np.float32(bad))
    with pytest.raises(DivergedError, match="V are not finite"):
        fit.check_finite()


# Training ---------------------------------------------------------------------------------------------------


def bfloat(**settings: object) -> Fit:
    given = {"batch_size": 8, "accumulate": 3, "augment": ("flip", "crop"), "clip_norm": 0.5, "ema": 0.9, "seed": 7}
    return course(norm_model(dropout=0.3), optimizer="adamw_bf16", **given | settings)


def bits(fit: Fit) -> dict[str, tuple[str, bytes]]:
    tensors = fit.trainer.model.state_dict() | fit.tensors()
    return {name: (str(tensor.dtype), tensor.tobytes()) for name, tensor in tensors.items()}


def run(fit: Fit, steps: int = 99) -> Fit:
    while not fit.done and fit.cursor.step < steps:
        fit.step()
        if fit.epoch_done:
            fit.end_epoch()
    return fit


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_course_gone_on_with_has_the_same_bits(stop):
    whole, cut_off, fit = run(bfloat()), run(bfloat(), stop), bfloat()
    fit.trainer.model.load_state_dict(cut_off.trainer.model.state_dict())
    fit.restore(cut_off.tensors(), json.loads(json.dumps(cut_off.metadata())))
    assert bits(run(fit)) == bits(whole)
    assert bits(whole)["optimizer/m/fc.weight"][0] == "uint16"
    assert bits(run(bfloat(threads=1))) == bits(run(bfloat(threads=2)))
    with pytest.raises(ValueError, match="expected uint16, found float32"):
        fit.restore({name: tensor.astype(np.float32) for name, tensor in cut_off.tensors().items()}, cut_off.metadata())


def test_a_run_counts_and_keeps_two_bytes(tmp_path, monkeypatch):
    data.write_binary(tmp_path / "data", data.synthetic.generate(train=130, test=40, seed=1))
    settings = {"data": str(tmp_path / "data"), "model": "resnet20", "epochs": 2, "batch_size": 32, "val_size": 34}
    config, plain = (TrainConfig.from_dict({**settings, "optimizer": name}) for name in ("adamw_bf16", "adamw"))
    plan, other = training.describe_plan(config), training.describe_plan(plain)
    saved = other.step.arena_bytes["PARAM"]
    assert other.total_bytes - plan.total_bytes == (1 + COPIES) * saved
    assert plan.step.arena_bytes["M"] == plan.step.arena_bytes["V"] == saved // 2
    assert sum(row.arena_bytes for row in plan.layers) == sum(plan.step.arena_bytes.values())
    assert plan.layers[-1].total_bytes == plan.needed_bytes >= plan.layers[-2].total_bytes
    assert other.step.calls[-1].bytes - plan.step.calls[-1].bytes == saved
    training.run_training(config, out=tmp_path / "run")
    last = checkpoint.load(tmp_path / "run" / "last.safetensors")
    assert last.tensors["optimizer/v/fc.weight"].dtype == np.uint16
    assert np.isfinite(widened(last.tensors["optimizer/v/fc.weight"])).all()
    resumes(config, tmp_path, monkeypatch)


def test_it_trains_as_well_as_adamw():
    """The mean of three seeds; with the moments' last places gone the losses are not the same, but as low."""
    losses: dict[type, list[float]] = {AdamW: [], AdamWBF16: []}
    images, labels = small_data(400)
    for kind, found in losses.items():
        for seed in range(3):
            trainer = Trainer(small_model(seed), kind(lr=3e-3), batch_size=32, seed=seed)
            *_, last = trainer.fit((images, labels), epochs=6, val_size=100)
            found.append(last.val_loss)
            assert last.val_accuracy > 0.97
    assert np.mean(losses[AdamWBF16]) < 1.3 * np.mean(losses[AdamW]) + 0.01

"""Optimisers and the arrays they are given: steps, going on, nonsense."""

import itertools
import math

import numpy as np
import pytest
from optimisers import RULES, walk

from fastadam import optim
from fastadam.kernels.rules import LAYERWISE
from fastadam.optim import OPTIMIZERS

# Arrays, steps, and going on ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "chosen"), [rule for rule in RULES if rule[0] not in (*LAYERWISE, "adamw_bf16")], ids=str
)
def test_split_or_joined_makes_no_difference(name, chosen, rng):
    """Elements are independent: any shapes, in any order, give the bits that one flat array gives.

    But for a rule that draws at random: what it draws is a function of an element's place in its array.
    """
    start = rng.standard_normal(20_011).astype(np.float32)
    gradients = rng.standard_normal((5, 20_011)).astype(np.float32)
    flat, _ = walk(name, start, gradients, chosen)
    cuts = [0, 1, 1, 8, 263, 16_384, 16_391, 20_011]
    parts = {str(i): start[a:b].copy() for i, (a, b) in enumerate(itertools.pairwise(cuts))}
    optimizer = OPTIMIZERS[name](parts, **chosen)
    for g in gradients:
        grads = {str(i): g[a:b] for i, (a, b) in enumerate(itertools.pairwise(cuts))}
        optimizer.step(dict(reversed(grads.items())))
    assert np.array_equal(np.concatenate(list(parts.values())), flat)
    if name == "muon":
        return  # of matrices they are not
    shape = 4, 5, 10, 100
    shaped, _ = walk(name, start[:20_000].reshape(shape), gradients[:, :20_000].reshape(-1, *shape), chosen)
    assert np.array_equal(shaped.reshape(-1), flat[:20_000])


@pytest.mark.parametrize(("name", "chosen"), RULES, ids=str)
def test_going_on_from_what_was_kept_gives_the_same_bits(name, chosen, rng):
    """Parameters, moments and t are the whole state: an optimiser made anew from them goes on as the first would."""
    start, gradients = rng.standard_normal(40), rng.standard_normal((20, 40)).astype(np.float32)
    want, _ = walk(name, start, gradients, chosen)
    half, first = walk(name, start, gradients[:9], chosen)
    p = half.copy()
    second = OPTIMIZERS[name]({"p": p}, **first.settings())
    for moment, arrays in first.moments.items():
        second.moments[moment]["p"][...] = arrays["p"]
    second.t = first.t
    for g in gradients[9:]:
        second.step({"p": g})
    assert np.array_equal(p, want)


@pytest.mark.parametrize(("name", "chosen"), RULES, ids=str)
def test_settings_make_the_same_optimiser(name, chosen):
    one = OPTIMIZERS[name](None, **chosen)
    other = OPTIMIZERS[name](None, **one.settings())
    assert other.settings() == one.settings()
    assert other.rule == one.rule
    assert repr(other) == repr(one)
    assert f"lr={one.lr:g}" in repr(one)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_share_nothing(name, rng):
    start, gradients = rng.standard_normal(40), rng.standard_normal((6, 40)).astype(np.float32)
    want, _ = walk(name, start, gradients)
    p, q = (start.astype(np.float32) for _ in range(2))
    one, other = OPTIMIZERS[name]({"p": p}), OPTIMIZERS[name]({"p": q})
    for g in gradients:
        one.step({"p": g})
        other.step({"p": -g})
    assert np.array_equal(p, want)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_are_left_alone_and_not_kept(name, rng):
    """Written over after a step, as by the next backward pass, a gradient has no more to do with it."""
    start, gradients = rng.standard_normal(40), rng.standard_normal((6, 40)).astype(np.float32)
    want, _ = walk(name, start, gradients)
    p, buffer = start.astype(np.float32), np.empty(40, np.float32)
    optimizer = OPTIMIZERS[name]({"p": p})
    for g in gradients:
        buffer[...] = g
        optimizer.step({"p": buffer})
        assert np.array_equal(buffer, g)
    assert np.array_equal(p, want)


# Nonsense ----------------------------------------------------------------------------------------------------

NONSENSE: dict[str, tuple[float, ...]] = {
    "lr": (0.0, -1.0, math.nan, math.inf),
    "beta1": (1.0, -0.1, 1.5, math.nan),
    "beta2": (1.0, -0.1, 1.5, math.nan),
    "beta3": (1.0, -0.1, 1.5, math.nan),
    "eps": (0.0, -1e-8, 1e-60, math.nan, math.inf),
    "weight_decay": (-0.1, math.nan, math.inf),
    "momentum": (-0.1, math.nan, math.inf),
    "dampening": (math.nan, math.inf),
    "momentum_decay": (-0.1, math.nan),
    "final_lr": (0.0, -0.1, math.nan),
    "gamma": (0.0, -0.1, math.nan),
    "partial": (0.0, 0.1, 0.5625, -0.125, math.nan),
    "trust_coefficient": (0.0, -0.1, math.nan, math.inf),
    "warmup_steps": (-1, 2.5, math.nan, math.inf),
    "seed": (0.5, math.nan, math.inf),
    "ns_coefficients": (),
    "ns_steps": (0, -1, 2.5, 100),
    "adjust_lr_fn": ("none",),
    "adamw_lr": (0.0, -1.0, math.nan, math.inf),
    "adamw_eps": (0.0, -1e-8, 1e-60, math.nan, math.inf),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_hyperparameters_that_make_no_sense_are_refused_by_name(name):
    for setting, default in OPTIMIZERS[name]().settings().items():
        if isinstance(default, bool):
            continue
        for value in NONSENSE[setting]:
            with pytest.raises(ValueError, match=rf"^{setting} must be .*{value}"):
                OPTIMIZERS[name](None, **{setting: value})
    with pytest.raises(TypeError, match="learning_rate"):
        OPTIMIZERS[name](None, learning_rate=0.1)


def test_nesterov_without_what_it_needs_is_refused():
    for chosen in ({}, {"momentum": 0.9, "dampening": 0.1}):
        with pytest.raises(ValueError, match="nesterov needs a momentum above 0 and no dampening"):
            optim.SGD(nesterov=True, **chosen)


def test_arrays_that_do_not_fit_are_refused_before_anything_changes(rng):
    p, b = rng.standard_normal((3, 4)).astype(np.float32), np.ones(4, np.float32)
    optimizer = optim.Adam({"w": p, "b": b})
    good = {"w": np.ones((3, 4), np.float32), "b": np.ones(4, np.float32)}
    optimizer.step(good)
    before = p.copy(), b.copy(), optimizer.moments["m"]["w"].copy()
    for bad, words in (
        ({"w": good["w"]}, r"missing \['b'\], unknown \[\]"),
        ({**good, "c": good["b"]}, r"missing \[\], unknown \['c'\]"),
        ({**good, "b": np.ones(5, np.float32)}, r"gradient 'b' has shape \(5,\), its parameter has \(4,\)"),
        ({**good, "w": np.ones((4, 3), np.float32)}, r"gradient 'w' has shape \(4, 3\)"),
        ({**good, "b": np.ones(4, np.float16)}, "gradient 'b' must be .*float32.*float16"),
        ({**good, "b": np.ones(4, int)}, "gradient 'b' must be .*float32.*int64"),
        ({**good, "b": [1, 1, 1, 1]}, "gradient 'b' must be .*array.*list"),
        ({**good, "w": np.ones((4, 3), np.float32).T}, "gradient 'w' must be C-contiguous"),
    ):
        with pytest.raises(ValueError, match=words):
            optimizer.step(bad)
        assert optimizer.t == 1
        for a, unchanged in zip((p, b, optimizer.moments["m"]["w"]), before, strict=True):
            assert np.array_equal(a, unchanged)


def test_parameters_that_cannot_be_updated_are_refused():
    frozen = np.ones(3, np.float32)
    frozen.flags.writeable = False
    for bad, words in (
        (np.ones(3, np.float16), "parameter 'w' must be .*float32.*float16"),
        (np.ones((3, 4), np.float32)[:, ::2], "parameter 'w' must be C-contiguous"),
        (frozen, "parameter 'w' is read-only"),
        ([1.0], "parameter 'w' must be .*array.*list"),
    ):
        with pytest.raises(ValueError, match=words):
            optim.Adam({"w": bad})

"""The optimisers by what is known of each rule."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optimisers import COMBINATIONS, RULES, ULP, kept_of, walk

from fastadam import optim
from fastadam.kernels.rules import LAYERWISE, MOMENTS, Hyper
from fastadam.optim import OPTIMIZERS

# First steps and bias corrections ----------------------------------------------------------------------------

LR = 0.01


def _sign(g: float) -> float:
    """Adam's first step of a gradient: both corrections undo what the averages begin with."""
    return g / (abs(g) + 1e-8)


FIRST_STEPS = {
    "adam": _sign,
    "adamw": _sign,
    "sgd": lambda g: g,
    "adamax": _sign,
    # Of mu_t and its product, at t = 1 and 2: the gradient with its whole share, and a tenth of it once more.
    "nadam": lambda g: _sign(g) * (1 + _mu(2) * 0.1 / (1 - _mu(1) * _mu(2))),
    "radam": lambda g: g,  # not adapted yet
    "adabelief": lambda g: g / (math.sqrt(0.81 * g * g + 1e-8 / 1e-3) + 1e-8),  # g - m = 0.9 g
    "adabound": lambda g: 0.1 * g / LR * min(max(10 * LR / (abs(g) + 1e-8), 0.1 / 1001), 100.1),
    "padam": lambda g: g / (abs(g) + 1e-8) ** 0.25,
    "adan": _sign,
    "lion": lambda g: math.copysign(1, g),
    "lamb": lambda g: g / (abs(g) + 1e-6),  # of a zero, whose norm scales nothing
    "lars": lambda g: g,
    "schedulefree": _sign,  # the average of one is z itself
    "adamw_bf16": _sign,  # whose moments are rounded after the step
    "muon": lambda g: 0.1 * _sign(g),  # AdamW has its own rate
}
"""What the first step of a gradient is, in units of lr, with defaults."""


def _mu(t: int) -> float:
    return 0.9 * (1 - 0.5 * 0.96 ** (t * 4e-3))


@pytest.mark.parametrize("name", OPTIMIZERS)
@given(size=st.floats(-15, 15).map(lambda power: 10.0**power), sign=st.sampled_from([-1, 1]))
@settings(max_examples=40, deadline=None)
def test_first_step(name, size, sign):
    """Bias corrections left out, multiplied instead of divided, or of another t: nothing would fit."""
    g = float(np.float32(sign * size))
    p, _ = walk(name, 0.0, [g], {"lr": LR, "weight_decay": 0.0})
    np.testing.assert_allclose(p, -LR * FIRST_STEPS[name](g), rtol=3e-6)


@pytest.mark.parametrize("name", ["adam", "adamw", "adamax", "adan", "lion"])
def test_first_step_is_lr_whatever_the_gradients_size(name):
    sizes = np.logspace(-5, 15, 41) * np.resize([1, -1], 41)
    p, _ = walk(name, np.zeros(41), [sizes], {"lr": LR})
    np.testing.assert_allclose(p, -LR * np.sign(sizes), rtol=1.1e-3)  # eps is a thousandth of the least


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("adam", {}),
        ("adam", {"amsgrad": True}),
        ("adamw", {"weight_decay": 0.1}),
        ("adamax", {}),
        ("nadam", {}),
        ("adabelief", {}),
        ("padam", {"partial": 1 / 2}),
        ("adan", {"weight_decay": 0.1}),
        ("lion", {"weight_decay": 0.1}),
    ],
    ids=str,
)
@pytest.mark.parametrize("power", [-20, -1, 7, 20])
def test_the_scale_of_gradients_does_not_matter(name, chosen, power, rng):
    """A power of two changes no digit: with an eps of next to nothing not a bit of the parameters differs."""
    start, gradients = rng.standard_normal(100), rng.standard_normal((20, 100))
    eps = {} if name == "lion" else {"eps": 1e-30}
    plain, scaled = (walk(name, start, gradients * scale, {**chosen, **eps})[0] for scale in (1.0, 2.0**power))
    assert np.array_equal(plain, scaled)


def test_without_corrections_steps_would_be_wrong_for_long():
    """A steady gradient: every step of Adam is lr, at first as later. Uncorrected, the tenth would be six times it."""
    p, optimizer = walk("adam", 0.0, [], {"lr": LR})
    optimizer = optim.Adam({"p": p}, lr=LR)
    for t in range(1, 2001):
        before = p.copy()
        optimizer.step({"p": np.array(3.0, np.float32)})
        np.testing.assert_allclose(before - p, LR, rtol=3e-6 + ULP * t)  # p grows to 20, and so does its rounding
    m, v = (moments["p"] for moments in optimizer.moments.values())
    np.testing.assert_allclose((m, v), (3.0, 9 * (1 - 0.999**2000)), rtol=1e-4)


# Weight decay ------------------------------------------------------------------------------------------------

DECOUPLED = [("adamw", {}), ("adan", {}), ("lion", {}), ("adamw_bf16", {}), ("muon", {"adamw_lr": 0.1})] + [
    (name, {"decoupled_weight_decay": True}) for name in ("nadam", "radam", "adabelief", "adabound", "padam")
]
OF_ITS_OWN = [("lamb", {}), ("lars", {}), ("schedulefree", {})]
"""It goes into norms (``test_layerwise.py``), or into an average of what it decays (``test_schedulefree.py``)."""
L2 = [(name, {}) for name in OPTIMIZERS if name != "muon" and (name, {}) not in DECOUPLED + OF_ITS_OWN] + [
    ("adam", {"amsgrad": True}),
    ("sgd", {"momentum": 0.9}),
]


def test_every_optimiser_decays():
    assert {name for name, _ in DECOUPLED + OF_ITS_OWN + L2} == OPTIMIZERS.keys()


@pytest.mark.parametrize(("name", "chosen"), [*DECOUPLED, ("adamw", {"amsgrad": True})], ids=str)
def test_decoupled_decay_does_not_go_through_the_moments(name, chosen, rng):
    start, gradients = rng.standard_normal(50), rng.standard_normal((12, 50))
    (p, with_decay), (q, without) = (
        walk(name, start, gradients, {**chosen, "lr": 0.1, "weight_decay": decay}) for decay in (0.3, 0.0)
    )
    assert not np.isclose(p, q).any()
    for a, b in zip(kept_of(with_decay).values(), kept_of(without).values(), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize(("name", "chosen"), DECOUPLED, ids=str)
def test_decoupled_decay_is_a_factor_for_each_step(name, chosen):
    """1 - lr * decay; Adan's is proximal, a division by 1 + lr * decay."""
    p, _ = walk(name, 1.0, np.zeros(5), {**chosen, "lr": 0.1, "weight_decay": 0.3})
    np.testing.assert_allclose(p, 1.03**-5 if name == "adan" else 0.97**5, rtol=1e-6)


@pytest.mark.parametrize(("name", "chosen"), L2, ids=str)
def test_l2_decay_is_part_of_the_gradient(name, chosen, rng):
    """The moments are those of gradients that had ``decay * p`` added by hand."""
    decay, p = 0.3, rng.standard_normal(50).astype(np.float32)
    q = p.copy()
    one = OPTIMIZERS[name]({"p": p}, **{**chosen, "lr": 0.1, "weight_decay": decay})
    other = OPTIMIZERS[name]({"p": q}, **{**chosen, "lr": 0.1})
    for g in rng.standard_normal((12, 50)).astype(np.float32):
        other.step({"p": g + np.float32(decay) * q})
        one.step({"p": g})
    np.testing.assert_allclose(p, q, atol=1e-4)  # early steps are as sensitive as a sign
    for a, b in zip(kept_of(one).values(), kept_of(other).values(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_adamws_decay_is_not_adams():
    """A hundred times the gradient: Adam's step, decay and all, is lr; AdamW's decay is what it was."""
    for name, gradients in (("adam", 0.0), ("adamw", 0.03)):
        steps = [1 - walk(name, 1.0, [g], {"lr": 0.1, "weight_decay": 0.3})[0] for g in (1.0, 100.0)]
        np.testing.assert_allclose(steps, 0.1 + gradients, rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_a_gradient_nothing_moves(name, rng):
    start = rng.standard_normal(50).astype(np.float32)
    p, optimizer = walk(name, start, np.zeros((20, 50)), {"weight_decay": 0.0})
    assert np.array_equal(p, start)
    assert optimizer.t == 20


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_alone_shrinks(name):
    p, _ = walk(name, [2.0, -2.0], np.zeros((20, 2)), {"weight_decay": 0.1, "lr": 1e-2})
    assert p[0] == -p[1]
    assert 0 < p[0] < 2


# What is known of each ---------------------------------------------------------------------------------------


def test_amsgrads_divisor_never_falls(rng):
    """Gradients shrink a thousandfold: v follows, its largest value stays, and so steps are smaller than Adam's."""
    gradients = rng.standard_normal((300, 40)) * np.logspace(0, -3, 300)[:, None]
    p, q = (np.zeros(40, np.float32) for _ in range(2))
    optimizer, adam = optim.Adam({"p": p}, beta2=0.9, amsgrad=True), optim.Adam({"p": q}, beta2=0.9)
    before = np.zeros(40, np.float32)
    for t, g in enumerate(gradients.astype(np.float32)):
        last, last_of_adam = p.copy(), q.copy()
        optimizer.step({"p": g})
        adam.step({"p": g})
        v, v_max = (optimizer.moments[moment]["p"] for moment in ("v", "v_max"))
        assert (v_max == np.maximum(before, v)).all()
        before = v_max.copy()
        if t > 100:
            assert np.abs(p - last).max() < np.abs(q - last_of_adam).max() / 2
    assert (v < v_max / 100).all()


def test_amsgrad_is_adam_while_v_rises(rng):
    gradients = np.cumsum(np.abs(rng.standard_normal((20, 40))), axis=0)
    plain, ams = (walk("adam", np.zeros(40), gradients, {"amsgrad": flag})[0] for flag in (False, True))
    np.testing.assert_allclose(ams, plain, rtol=1e-6)


@pytest.mark.parametrize("gamma", [1e-3, 0.1])
def test_adabounds_steps_stay_within_their_bounds(gamma, rng):
    """Of gradients of many sizes; each step divided by the momentum is the rate."""
    p = np.zeros(200, np.float32)
    optimizer = optim.AdaBound({"p": p}, lr=1e-2, gamma=gamma)
    scales, reached = 10.0 ** rng.uniform(-4, 4, 200), [False, False]
    for t in range(1, 200):
        before = p.astype(np.float64)
        p[...] = 0  # so that no digit of the step is lost
        optimizer.step({"p": (scales * rng.standard_normal(200)).astype(np.float32)})
        rate = -p / optimizer.moments["m"]["p"].astype(np.float64)
        lower, upper = 0.1 * (1 - 1 / (gamma * t + 1)), 0.1 * (1 + 1 / (gamma * t))
        assert (rate > lower * (1 - 1e-6)).all()
        assert (rate < upper * (1 + 1e-6)).all()
        reached = [reached[0] or (rate < lower * 1.0001).any(), reached[1] or (rate > upper * 0.9999).any()]
        p += before.astype(np.float32)
    assert all(reached), "both bounds must have been in the way"


def test_adabound_ends_as_sgd_with_momentum(rng):
    """When the bounds have met: SGD's velocity sums gradients where ours averages them, hence its rate."""
    start, gradients = rng.standard_normal(50), rng.standard_normal((30, 50))
    bound, _ = walk("adabound", start, gradients, {"final_lr": 0.1}, t=10**10)
    sgd, _ = walk("sgd", start, gradients, {"lr": 0.1 * (1 - 0.9), "momentum": 0.9})
    np.testing.assert_allclose(bound, sgd, rtol=1e-5, atol=1e-6)


def test_adabounds_bounds_follow_a_schedule():
    optimizer = optim.AdaBound(lr=1e-3, final_lr=0.1)
    names = [Hyper._fields.index(name) for name in ("lr", "lower", "upper")]
    np.testing.assert_allclose(optimizer.hyper(7, lr=1e-4)[names], optimizer.hyper(7)[names] / 10, rtol=1e-6)


@pytest.mark.parametrize("name", ["adabound", "muon"])
def test_all_rates_follow_the_one_that_is_set(name):
    """By hand as by a schedule; they go together with the rate that the optimiser was made with."""
    optimizer = OPTIMIZERS[name](lr=0.04)
    want = optimizer.hyper(7, lr=0.01)
    optimizer.lr = 0.01
    assert optimizer.initial_lr == 0.04
    np.testing.assert_array_equal(optimizer.hyper(7), want)
    np.testing.assert_array_equal(optimizer.hyper(7, lr=0.01), want)


def test_padam_with_a_half_is_amsgrad(rng):
    start, gradients = rng.standard_normal(50), rng.standard_normal((30, 50))
    shared = {"lr": 0.01, "beta2": 0.9, "weight_decay": 0.1}
    padam, _ = walk("padam", start, gradients, {**shared, "partial": 1 / 2})
    amsgrad, _ = walk("adam", start, gradients, {**shared, "amsgrad": True})
    np.testing.assert_allclose(padam, amsgrad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sixteenths", range(1, 9))
def test_padams_power(sixteenths):
    """The first step is g over the power of its square: put together from square roots, it is that power."""
    sizes = np.logspace(-4, 8, 49)
    p, _ = walk("padam", np.zeros(49), [sizes], {"lr": 1.0, "partial": sixteenths / 16, "eps": 1e-12})
    np.testing.assert_allclose(-p, sizes ** (1 - sixteenths / 8), rtol=1e-6)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30), st.floats(1e-5, 1))
@settings(max_examples=40, deadline=None)
def test_lions_step_is_lr_or_nothing(gradients, lr):
    """Nothing only where there has been no gradient: the sign of a fading average is a sign."""
    p = np.zeros(1, np.float32)
    optimizer = optim.Lion({"p": p}, lr=lr)
    optimizer.step({"p": np.zeros(1, np.float32)})
    assert p[0] == 0
    for g in gradients:
        p[...] = 0
        optimizer.step({"p": np.array([g], np.float32)})
        assert abs(p[0]) in (np.float32(lr), 0)
    faded, _ = walk("lion", 0.0, [1e-3, *np.zeros(50)], {"lr": 2.0**-7})
    assert faded == -51 * 2.0**-7


def test_lions_sign_is_of_one_average_and_what_is_kept_another():
    """After a gradient of 1: beta1 of the kept average and the rest of the next gradient decide."""
    for g, turns in ((-0.08, False), (-0.1, True)):  # 0.9 * 0.01 - 0.1 * 0.09 = 0
        _, optimizer = walk("lion", 0.0, [1.0])
        before = optimizer.params["p"].copy()
        optimizer.step({"p": np.array(g, np.float32)})
        assert (optimizer.params["p"] > before) == turns
        np.testing.assert_allclose(kept_of(optimizer)["m"], 0.99 * 0.01 + 0.01 * g, rtol=1e-5)


def test_radams_first_five_steps_are_not_adapted(rng):
    """They are momentum alone, corrected; from the sixth on the divisor is there."""
    p, m = np.zeros(50, np.float32), np.zeros(50)
    optimizer = optim.RAdam({"p": p}, lr=1.0)
    for t, g in enumerate(rng.standard_normal((8, 50)).astype(np.float32), 1):
        p[...] = 0
        optimizer.step({"p": g})
        m = 0.9 * m + 0.1 * g
        plain = np.allclose(-p, m / (1 - 0.9**t), rtol=1e-4, atol=1e-5)
        assert plain == (t <= 5)


def test_radam_becomes_adam(rng):
    """The rectification rises to 1."""
    factor, both = Hyper._fields.index("rectification"), [optim.RAdam().hyper(t) for t in (6, 60, 600, 10**6)]
    found = [h[factor] for h in both]
    assert found == sorted(found)
    assert found[0] < 0.1
    assert found[-1] == pytest.approx(1, rel=1e-6)
    start, gradients = rng.standard_normal(50), rng.standard_normal((30, 50))
    late, adam = (walk(name, start, gradients, {"lr": 0.01}, t=10**6)[0] for name in ("radam", "adam"))
    np.testing.assert_allclose(late, adam, rtol=1e-5, atol=1e-6)


def test_radam_with_a_short_memory_is_never_adapted():
    for beta2 in (0.0, 0.5, 2 / 3):
        assert {optim.RAdam(beta2=beta2).numbers(t, 1.0)["unrectified"] for t in range(1, 100)} == {1.0}


@given(st.lists(st.integers(1, 400), min_size=1, max_size=12), st.floats(0, 0.5))
@settings(max_examples=40, deadline=None)
def test_nadams_product_is_right_in_any_order(order, momentum_decay):
    """Asked for any step at any time, as after resuming, the numbers are those of the step alone."""
    optimizer = optim.NAdam(momentum_decay=momentum_decay)
    for t in order:
        mu = [0.9 * (1 - 0.5 * 0.96 ** (i * momentum_decay)) for i in range(1, t + 2)]
        found = optimizer.numbers(t, 1.0)
        assert found["m_correction"] == pytest.approx(mu[t] / (1 - math.prod(mu)), rel=1e-12)
        assert found["g_correction"] == pytest.approx((1 - mu[t - 1]) / (1 - math.prod(mu[:-1])), rel=1e-12)


@pytest.mark.parametrize("case", COMBINATIONS, ids=str)
def test_numbers_depend_on_the_step_alone(case):
    optimizer = OPTIMIZERS[case.name](None, **case.chosen)
    for t in (5, 1, 6, 5, 1000, 2):
        assert np.array_equal(optimizer.hyper(t), OPTIMIZERS[case.name](None, **case.chosen).hyper(t))


def test_adans_first_gradient_is_no_difference(rng):
    """At t = 1 there is no gradient before: the average of differences stays zero, and then takes its share."""
    first, second = rng.standard_normal((2, 50)).astype(np.float32)
    _, optimizer = walk("adan", np.zeros(50), [first])
    kept = kept_of(optimizer)
    assert not kept["d"].any()
    assert np.array_equal(kept["past"], first)
    optimizer.step({"p": second})
    np.testing.assert_allclose(kept["d"], 0.08 * (second - first), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        kept["n"], 0.99 * 0.01 * first**2 + 0.01 * (second + 0.92 * (second - first)) ** 2, rtol=1e-4, atol=1e-7
    )


def test_adamaxs_divisor_is_the_largest_gradient_with_its_age():
    _, optimizer = walk("adamax", 0.0, [8.0, 0.1, 0.1], {"beta2": 0.5, "eps": 1e-12})
    np.testing.assert_allclose(kept_of(optimizer)["u"], 2.0, rtol=1e-6)
    optimizer.step({"p": np.array(5.0, np.float32)})
    np.testing.assert_allclose(kept_of(optimizer)["u"], 5.0, rtol=1e-6)


def test_adabelief_believes_a_steady_gradient():
    """Adam's steps of a steady gradient are lr; AdaBelief's are far longer, and as long as Adam's if it turns."""
    (adam, belief), (adam_turning, belief_turning) = (
        [abs(float(walk(name, 0.0, gradients, {"lr": 0.01})[0])) for name in ("adam", "adabelief")]
        for gradients in (np.ones(50), np.resize([1.0, -1.0], 50))
    )
    assert adam == pytest.approx(50 * 0.01, rel=1e-4)
    assert belief > 2 * adam
    assert belief_turning == pytest.approx(adam_turning, rel=0.2)


def test_nesterov_looks_ahead():
    """A steady gradient: the velocities are 1, 1.9, 2.71; with Nesterov's each is one further."""
    plain, ahead = (
        walk("sgd", 0.0, np.ones(2), {"lr": 1.0, "momentum": 0.9, "nesterov": flag})[0] for flag in (False, True)
    )
    np.testing.assert_allclose((-plain, -ahead), (1 + 1.9, 1.9 + 2.71), rtol=1e-6)


# Numbers at the edge -----------------------------------------------------------------------------------------


def test_every_rule_is_in_that_list():
    assert {OPTIMIZERS[name](**chosen).rule for name, chosen in RULES} == MOMENTS.keys()


@pytest.mark.parametrize("case", COMBINATIONS, ids=str)
def test_zero_stays_zero(case):
    """The gaps between arrays are zero with gradients of zero, and stay so, whatever the settings."""
    p, optimizer = walk(case.name, np.zeros(70), np.zeros((50, 70)), case.chosen)
    assert not p.any()
    assert all(np.isfinite(a).all() for a in kept_of(optimizer).values())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("name", "chosen"), RULES, ids=str)
def test_a_gradient_that_is_not_finite_is_seen(name, chosen, bad, rng):
    """NaN makes the parameter NaN, for good; infinity shows there or in what is kept. The others go on as they do.

    But for those whose rate comes from the norm of all.
    """
    start, gradients = rng.standard_normal(40), rng.standard_normal((9, 40))
    spoilt = gradients.copy()
    spoilt[4, 17] = bad
    (p, optimizer), (q, _) = (walk(name, start, g, chosen) for g in (spoilt, gradients))
    if np.isnan(bad):
        assert np.isnan(p[17])
    assert not all(np.isfinite(a[17]) for a in (p, *kept_of(optimizer).values()))
    others = np.arange(40) != 17
    if name not in LAYERWISE:
        assert np.array_equal(p[others], q[others])
    elif np.isnan(bad):
        assert np.isnan(p).all()


@pytest.mark.parametrize(("name", "chosen"), RULES, ids=str)
def test_a_parameter_that_is_not_a_number_stays_so(name, chosen):
    p, _ = walk(name, [1.0, np.nan], np.ones((3, 2)), chosen)
    assert np.isnan(p).tolist() == [name in LAYERWISE, True]


@pytest.mark.parametrize("size", [1e-30, 1e-18, 1e-8, 1e8, 1e18])
@pytest.mark.parametrize(("name", "chosen"), RULES, ids=str)
def test_very_large_and_very_small_gradients(name, chosen, size, rng):
    """All stays finite, squares that underflow too; and who divides by the size takes no step far longer than lr."""
    gradients = size * rng.standard_normal((20, 40))
    p, optimizer = walk(name, np.zeros(40), gradients, {"lr": 1e-3, **chosen})
    assert np.isfinite(p).all()
    assert all(np.isfinite(a).all() for a in kept_of(optimizer).values())
    if name in ("adam", "adamw", "adamax", "nadam", "adan", "lion"):
        assert np.abs(p).max() < 20 * 1e-3 * 4


@pytest.mark.parametrize(("name", "chosen"), RULES, ids=str)
def test_squares_that_overflow_are_seen(name, chosen):
    """1e25 squared is no float32: the average of squares is infinite, which is visible, and the parameter no NaN."""
    p, optimizer = walk(name, [1.0], np.full((3, 1), 1e25), chosen)
    kept = kept_of(optimizer)
    assert not np.isnan(p).any()
    for moment in kept.keys() & {"v", "v_max", "s", "n"}:
        assert np.isinf(kept[moment]).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_of_squares_are_never_negative(name, rng):
    _, optimizer = walk(name, np.zeros(200), rng.standard_normal((50, 200)) * 10.0 ** rng.integers(-6, 6, 200))
    for moment in kept_of(optimizer).keys() & {"v", "v_max", "u", "s", "n"}:
        assert (kept_of(optimizer)[moment] >= 0).all()

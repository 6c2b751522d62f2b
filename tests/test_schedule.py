"""Learning rates by step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastadam.errors import ConfigError
from fastadam.schedule import SCHEDULES, Schedule, ema_decay, milestone_steps


@given(st.sampled_from(SCHEDULES), st.integers(1, 500), st.integers(0, 600), st.floats(1e-6, 10))
def test_rates_stay_between_zero_and_the_peak(kind, total, warmup, lr):
    schedule = Schedule(kind, lr, total, warmup, milestone_steps((0.3, 0.6, 2), total, 7))
    rates = [schedule(step) for step in range(total)]
    assert all(0 <= rate <= lr * (1 + 1e-12) for rate in rates)


def test_warmup_rises_linearly_then_the_schedule_begins():
    schedule = Schedule("constant", 1.0, 10, 4)
    assert [schedule(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_milestones_are_fractions_of_the_run_or_epochs():
    assert milestone_steps((0.25, 0.5, 1, 2.5), 400, 10) == (100, 200, 10, 25)
    for wrong in ((0,), (0.5, 0.5), (0.5, 0.2), (-1, 1)):
        with pytest.raises(ConfigError, match="above 0 and rise"):
            milestone_steps(wrong, 100, 10)


def test_the_average_trusts_little_at_first():
    """The rule of TensorFlow's ExponentialMovingAverage with num_updates."""
    assert [ema_decay(0.99, t) for t in (1, 2, 10)] == pytest.approx([2 / 11, 3 / 12, 11 / 20])
    assert ema_decay(0.99, 10_000) == 0.99


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ConfigError, match="linear"):
        Schedule("linear", 1.0, 10)


def test_cosine_and_onecycle_are_pytorchs():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    total = 50
    for kind, make in (
        ("cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=total)),
        ("onecycle", lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=total)),
        ("step", lambda o: torch.optim.lr_scheduler.MultiStepLR(o, milestones=[10, 35, 36], gamma=0.3)),
    ):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        reference, rates = make(optimizer), []
        for _ in range(total):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            reference.step()
        ours = Schedule(kind, 0.3, total, 0, milestone_steps((0.2, 35, 36), total, 1), 0.3)
        assert [ours(step) for step in range(total)] == pytest.approx(rates, rel=1e-9, abs=1e-12)

"""The examples run as their first lines say, and come to what they promise."""

import importlib
import inspect
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from fastadam.data import synthetic, write_binary

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def example(monkeypatch):
    """An example as a module, by its name; those that others import are found beside it, as when it is run."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


def run(name: str, monkeypatch, *arguments: str) -> None:
    """An example as a program."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def test_train_arrays(example):
    assert example("train_arrays").main(1) > 0.2  # chance is 0.1


# ------------------------------------------------------------------------------------------ own_loop


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_own_loop_learns_from_files(optimizer, tmp_path, monkeypatch, capsys):
    write_binary(tmp_path, synthetic.generate(train=1500, test=400))
    run("own_loop", monkeypatch, "--optimizer", optimizer, "--epochs", "4", "--data", str(tmp_path))
    printed = capsys.readouterr().out
    losses, accuracies = zip(*re.findall(r"loss ([\d.]+)  test accuracy ([\d.]+)%", printed), strict=True)
    assert len(losses) == 4
    assert float(losses[-1]) < 0.75 * float(losses[0])
    assert float(accuracies[-1]) > 20  # chance is 10


@pytest.mark.slow
def test_own_loop_ends_where_it_says(example):
    assert example("own_loop").main() > 0.65


# -------------------------------------------------------------------------------------- adam_by_hand

PLANTED = {
    "m uncorrected": [("m / (1 - beta1**t)", "m")],
    "v uncorrected": [("v / (1 - beta2**t)", "v")],
    "correction multiplied": [("/ (1 - beta", "* (1 - beta")],
    "eps in the root": [("(np.sqrt(v_hat) + eps)", "np.sqrt(v_hat + eps)")],
    "eps uncorrected": [("lr * m_hat", "lr * np.sqrt(1 - beta2**t) * m_hat"), ("np.sqrt(v_hat)", "np.sqrt(v)")],
    "no root": [("np.sqrt(v_hat)", "v_hat")],
    "betas swapped": [("m = beta1", "beta1, beta2 = beta2, beta1\n    m = beta1")],
    "t from 0": [("**t", "**(t - 1)")],
    "L2 decay": [("p = p - lr * weight_decay * p", "g = g + weight_decay * p")],
    "decay without lr": [("lr * weight_decay", "weight_decay")],
    "decay late": [("p = p - lr * weight_decay * p", ""), ("return p", "return p - lr * weight_decay * p")],
}
"""What somebody would have to write in the ten lines, to make each of the mistakes."""


def mistaken(adam, *mistakes):
    """The ten lines with these changes in their text."""
    text = inspect.getsource(adam)
    for mistake in mistakes:
        for old, new in PLANTED[mistake]:
            assert old in text
            text = text.replace(old, new)
    scope = {"np": np}
    exec(text, scope)
    return scope["adam"]


def test_check_names_every_mistake(example):
    by_hand = example("adam_by_hand")
    assert PLANTED.keys() == by_hand.MISTAKES.keys()
    for name, means in by_hand.MISTAKES.items():
        assert by_hand.check(mistaken(by_hand.adam, name)) == f"{name}: {means}"


def test_check_names_two_mistakes(example):
    by_hand = example("adam_by_hand")
    for pair in (("m uncorrected", "v uncorrected"), ("eps in the root", "L2 decay"), ("no root", "betas swapped")):
        found = by_hand.check(mistaken(by_hand.adam, *pair))
        assert [part.split(":")[0] for part in found.split("; ") if part.split(":")[0] in PLANTED] == list(pair)


def test_check_says_what_it_does_not_know(example):
    by_hand = example("adam_by_hand")

    def stops(p, g, m, v, t, **settings):
        return (p, m, v) if t > 4 else by_hand.adam(p, g, m, v, t, **settings)

    assert by_hand.check(stops).startswith("wrong from step 5 on")


def test_check_passes_what_is_right(example):
    by_hand = example("adam_by_hand")

    def single(p, g, m, v, t, **settings):
        return by_hand.adam(*(a.astype(np.float32) for a in (p, g, m, v)), t, **settings)

    def in_place(p, g, m, v, t, **settings):
        p[:], m[:], v[:] = by_hand.adam(p, g, m, v, t, **settings)

    def without_decay(p, g, m, v, t, lr, beta1, beta2, eps):
        return by_hand.adam(p, g, m, v, t, lr, beta1, beta2, eps)

    for update in (by_hand.adam, by_hand.kernel, single, in_place):
        assert by_hand.check(update) == "right"
    assert by_hand.check(without_decay, weight_decay=0) == "right"


@pytest.mark.parametrize(("name", "says"), [("AdamW", "right"), ("Adam", "L2 decay")])
def test_check_of_an_optimiser_that_keeps_its_moments(name, says, example):
    torch = pytest.importorskip("torch", reason="PyTorch's optimisers are checked where it is installed")
    kept = {}

    def update(p, g, m, v, t, lr, beta1, beta2, eps, weight_decay):
        if t == 1:
            kept["p"] = torch.nn.Parameter(torch.tensor(p))
            kept["opt"] = getattr(torch.optim, name)([kept["p"]], lr, (beta1, beta2), eps, weight_decay)
        kept["p"].grad = torch.tensor(g)
        kept["opt"].step()
        return kept["p"].detach().numpy().copy(), m, v

    assert example("adam_by_hand").check(update).startswith(says)


def test_adam_by_hand(example, tmp_path, capsys):
    """The hand's and the kernels' Adam agree, and mistakes cost what the example says they do."""
    by_hand = example("adam_by_hand")
    for name, weight_decay in (("adam", 0.0), ("adamw", 0.01)):
        assert by_hand.beside_the_class(name, weight_decay) < 1e-6
    picture = tmp_path / "costs.png"
    costs = by_hand.main(str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert all(f"│ {name} " in printed for name in PLANTED)

    right, rate = costs["none"], by_hand.RATES.index(by_hand.LR)
    assert not right.off(right).any()
    assert right.losses[rate] < 1.4  # chance is 2.3
    chance = 0.1  # three standard deviations between seeds
    assert right.losses[rate] < right.losses.min() + chance, "what mistakes cost is told at a rate that suits none"
    assert abs(right.small - right.losses[rate]) < chance
    for name in ("v uncorrected", "correction multiplied", "no root", "betas swapped", "L2 decay", "decay without lr"):
        assert costs[name].losses[rate] > right.losses[rate] + chance, name
        assert np.nanmin(costs[name].losses) > right.losses.min(), name
    assert costs["neither corrected"].losses[rate] > right.losses[rate] + chance
    assert costs["eps in the root"].small > right.small + chance
    assert np.isnan(costs["t from 0"].losses).all()
    for name in ("eps uncorrected", "decay late"):
        assert costs[name].off(right)[9] < 0.01, name
        assert abs(costs[name].losses[rate] - right.losses[rate]) < chance, name


def test_adam_by_hand_without_matplotlib(example, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    example("adam_by_hand").draw({}, "never.png")
    assert "pip install 'fastadam[examples]'" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------ cartpole


@pytest.fixture
def cartpole(example):
    pytest.importorskip("gymnasium", reason="CartPole is gymnasium's; pip install 'fastadam[examples]'")
    return example("cartpole")


def scores(cartpole, iterations: int, threads: int) -> list[tuple[float, float]]:
    rng = np.random.default_rng(0)
    policy = cartpole.Policy(rng, cartpole.get_device("cpu", threads))
    return list(cartpole.learn(policy, rng, iterations, seed=0))


def test_cartpole_learns(cartpole):
    returns = [score for score, _ in scores(cartpole, 8, threads=1)]
    assert returns[0] < 40  # a pole that is pushed at random falls after some twenty steps
    assert returns[-1] > 100


def test_cartpole_repeats_itself(cartpole):
    """Bit for bit, whatever the number of threads."""
    assert scores(cartpole, 3, threads=1) == scores(cartpole, 3, threads=2)


def test_cartpoles_gradients_are_those_of_its_logits(cartpole, rng):
    policy = cartpole.Policy(rng, cartpole.get_device("cpu", 1))
    policy.params["b1"][:] = rng.standard_normal(cartpole.HIDDEN)
    x, dz = rng.standard_normal((37, 4)).astype(np.float32), rng.standard_normal((37, 2)).astype(np.float32)
    w1, b1, w2, b2 = (policy.params[name].astype(np.float64) for name in ("w1", "b1", "w2", "b2"))
    h = np.maximum(x @ w1.T + b1, 0)
    np.testing.assert_allclose(policy.logits(x), h @ w2.T + b2, rtol=1e-4, atol=1e-5)
    dh = dz @ w2 * (h > 0)
    want = {"w1": dh.T @ x, "b1": dh.sum(0), "w2": dz.T @ h, "b2": dz.sum(0)}
    for name, got in policy.gradients(dz).items():
        np.testing.assert_allclose(got, want[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cartpole_is_solved(cartpole, seed):
    assert cartpole.main(seed) >= 475


def test_cartpole_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(SystemExit, match=r"pip install 'fastadam\[examples\]'"):
        run("cartpole", monkeypatch)


# ------------------------------------------------------------------------------------ what is said of them


def test_every_example_is_told_of():
    readme = (EXAMPLES / "README.md").read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if path.name not in readme] == []


def test_the_readmes_mistake_is_found(example, capsys):
    example("adam_by_hand")
    (snippet,) = re.findall(r"```python\n(.*?)```", (EXAMPLES / "README.md").read_text(), re.DOTALL)
    exec(snippet, {})
    assert capsys.readouterr().out.strip() == snippet.strip().splitlines()[-1].split("# ")[1]

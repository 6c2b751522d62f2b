"""Adam in ten lines of NumPy, beside the kernels; the common mistakes, what each costs, and a check for your own.

python examples/adam_by_hand.py [--plot adam_by_hand.png]

    from adam_by_hand import check  # in this folder
    print(check(mine))              # mine(p, g, m, v, t, lr, beta1, beta2, eps, weight_decay) -> p, m, v
"""

import argparse
from collections.abc import Callable, Collection
from itertools import combinations
from typing import NamedTuple

import numpy as np
from own_loop import initial, loss_and_gradients
from rich.console import Console
from rich.table import Table

import fastadam
from fastadam.device import get_device
from fastadam.kernels.rules import Hyper

Array = np.ndarray
Update = Callable[..., tuple[Array, Array, Array]]


def adam(p, g, m, v, t, lr, beta1, beta2, eps, weight_decay=0.0):
    """Adam: Kingma & Ba 2015, Algorithm 1. With weight decay AdamW: Loshchilov & Hutter 2019, Algorithm 2.

    p parameter, g gradient; m, v zeros at first; t = 1 in the first step. The decay is times lr, as in PyTorch.
    """
    p = p - lr * weight_decay * p  # decoupled: on the parameter and on nothing else
    m = beta1 * m + (1 - beta1) * g  # average of gradients
    v = beta2 * v + (1 - beta2) * g**2  # average of their squares
    m_hat = m / (1 - beta1**t)  # both began at 0: what is missing is divided out (section 3 of the paper)
    v_hat = v / (1 - beta2**t)
    p = p - lr * m_hat / (np.sqrt(v_hat) + eps)  # eps beside the root
    return p, m, v


MISTAKES = {
    "m uncorrected": "m is not divided by 1 - beta1**t: the first steps are short",
    "v uncorrected": "v is not divided by 1 - beta2**t: the first steps are far too long",
    "correction multiplied": "m and v are multiplied by 1 - beta**t where they should be divided",
    "eps in the root": "sqrt(v_hat + eps) for sqrt(v_hat) + eps: gradients below sqrt(eps) hardly count",
    "eps uncorrected": "eps is added to the root before v is corrected: another eps, else right; the shorter form "
    "that the paper's section 2 ends with",
    "no root": "v_hat divides, not its root: the smaller a gradient, the longer the step",
    "betas swapped": "beta1 is used for v and beta2 for m",
    "t from 0": "the first step has t = 0: 1 - beta**0 is 0, and 0 / 0 no number",
    "L2 decay": "weight_decay * p is added to the gradient: Adam's decay (L2, PyTorch's Adam), not AdamW's",
    "decay without lr": "weight_decay is not multiplied by lr",
    "decay late": "p decays after the step, not before: lr**2 * weight_decay apart, harmless",
}


def wrong(mistakes: Collection[str]) -> Update:
    """``adam`` with some of MISTAKES; without any it is ``adam``."""

    def update(p, g, m, v, t, lr, beta1, beta2, eps, weight_decay=0.0):
        if "t from 0" in mistakes:
            t = t - 1
        if "betas swapped" in mistakes:
            beta1, beta2 = beta2, beta1
        decay = weight_decay if "decay without lr" in mistakes else lr * weight_decay
        if "L2 decay" in mistakes:
            g = g + weight_decay * p
            decay = 0
        if "decay late" not in mistakes:
            p = p - decay * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        c1 = 1 if "m uncorrected" in mistakes else 1 - beta1**t
        c2 = 1 if "v uncorrected" in mistakes else 1 - beta2**t
        m_hat, v_hat = (m * c1, v * c2) if "correction multiplied" in mistakes else (m / c1, v / c2)
        if "no root" in mistakes:
            below = v_hat + eps
        elif "eps in the root" in mistakes:
            below = np.sqrt(v_hat + eps)
        elif "eps uncorrected" in mistakes:
            below = np.sqrt(v_hat) + eps / np.sqrt(c2)
        else:
            below = np.sqrt(v_hat) + eps
        p = p - lr * m_hat / below
        return p - decay * p if "decay late" in mistakes else p, m, v

    return update


# ------------------------------------------------------------------------------------------- is mine right?


def check(update: Update, weight_decay: float = 0.3) -> str:
    """Which one or two of MISTAKES somebody's own update makes, or that it is right.

    update         called by name, as ``adam`` is, with arrays (6,) float64; returns p, m, v, or changes them in place
                   and returns None. An optimiser that keeps m, v and t itself can be wrapped: p alone is looked at
    weight_decay   0 for an update that knows none: it is then not passed
    """
    settings = {"lr": 0.05, "beta1": 0.7, "beta2": 0.9, "eps": 0.01}  # unusual, so that each of them shows
    if weight_decay:
        settings["weight_decay"] = weight_decay
    found = _path(update, settings)
    for count in range(3):
        for mistakes in combinations(MISTAKES, count):
            # float32 comes within 1e-6 of float64; any two that differ at all do so by 3e-3.
            if np.allclose(found, _path(wrong(mistakes), settings), rtol=1e-5, atol=1e-5, equal_nan=True):
                return "right" if not mistakes else "; ".join(f"{name}: {MISTAKES[name]}" for name in mistakes)
    off = np.abs(found - _path(adam, settings)).max(1)
    step = int(np.argmax(~(off < 1e-5))) + 1
    return f"wrong from step {step} on, in a way not known here; are lr, beta1, beta2 and eps used as they are passed?"


def _path(update: Update, settings: dict[str, float]) -> Array:
    """The parameters after each of some steps (12, 6), by gradients of six sizes from 0.001 to 10."""
    rng = np.random.default_rng(0)
    p, m, v, path = rng.standard_normal(6), np.zeros(6), np.zeros(6), []
    with np.errstate(all="ignore"):  # some mistakes divide by zero
        for t in range(1, 13):
            g = rng.standard_normal(6) * np.logspace(-3, 1, 6)
            new = update(p=p, g=g, m=m, v=v, t=t, **settings)
            p, m, v = (p, m, v) if new is None else new
            path.append(np.array(p, np.float64))
    return np.array(path)


# ------------------------------------------------------------------------------------- beside the kernels


def kernel(p, g, m, v, t, lr, beta1, beta2, eps, weight_decay=0.0):
    """The same step by the CPU kernel of fastadam, float32: AdamW's, which is Adam's where nothing decays."""
    p, g, m, v = (np.array(a, np.float32) for a in (p, g, m, v))
    numbers = Hyper(
        lr=lr, beta1=beta1, one_minus_beta1=1 - beta1, beta2=beta2, one_minus_beta2=1 - beta2, eps=eps,
        decay=lr * weight_decay, m_correction=1 / (1 - beta1**t), v_correction=1 / (1 - beta2**t),
    )  # fmt: skip
    device = get_device("cpu", 1)
    with device.running():
        device.ops.adamw_update(p, m, v, g, np.array([numbers], np.float32), np.array([[0, p.size, 0]]))
    return p, m, v


def beside_the_class(name: str, weight_decay: float, steps: int = 100) -> float:
    """How far ``adam`` in float64 and an optimiser of fastadam are apart after some steps, as a share of p.

    A float32 is rounded by 6e-8 of itself at the most, once a step.
    """
    rng = np.random.default_rng(0)
    ours = {"p": rng.standard_normal(1000).astype(np.float32)}
    p = ours["p"].astype(np.float64)
    m, v, optimizer = 0 * p, 0 * p, fastadam.optim.OPTIMIZERS[name](ours, lr=1e-2)
    for t in range(1, steps + 1):
        g = rng.standard_normal(1000).astype(np.float32)
        optimizer.step({"p": g})
        p, m, v = adam(p, g.astype(np.float64), m, v, t, 1e-2, 0.9, 0.999, 1e-8, weight_decay)
    return float(np.linalg.norm(ours["p"] - p) / np.linalg.norm(p))


# ---------------------------------------------------------------------------------- what a mistake costs

LR, RATES = 3e-2, (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # LR suits the right one
STEPS, BATCH, PARTS = 300, 32, 50  # batches, and parts of the test, that NumPy does not share out among threads


class Cost(NamedTuple):
    """What training with an update came to; the losses are those of images that were not trained on."""

    path: Array  # parameters at the start and after every step, (STEPS + 1, n), at the rate LR
    losses: Array  # in the end, by rate
    small: float  # at LR, every gradient being a thousandth: Adam promises that this changes nothing (section 2.1)

    def off(self, right: "Cost") -> Array:
        """The distance from the right one's parameters after each step; 1 is as far as that has come itself."""
        moved = np.linalg.norm(right.path - right.path[0], axis=1)
        return np.linalg.norm(self.path - right.path, axis=1)[1:] / moved[1:]

    @property
    def best(self) -> int:
        """The rate that suits this update best, by its place among RATES."""
        return int(np.nan_to_num(self.losses, nan=np.inf).argmin())


class Problem:
    """Drawn images of ten classes, 16 by 16 and grey, and a network 256-24-10: the same start and batches for all."""

    def __init__(self) -> None:
        data = fastadam.data.synthetic.generate(6000, 2000)
        self.x, test_x = (
            images.reshape(-1, 3, 16, 2, 16, 2).mean((1, 3, 5)).reshape(-1, 256) / 64 - 2
            for images in (data.train_images, data.test_images)
        )
        self.labels = data.train_labels
        self.tests = list(zip(np.split(test_x, PARTS), np.split(data.test_labels, PARTS), strict=True))

    def cost(self, update: Update) -> Cost:
        """Of training with ``update``, once with every rate, and once with small gradients."""
        paths, losses = zip(*(self.train(update, rate) for rate in RATES), strict=True)
        return Cost(paths[RATES.index(LR)], np.array(losses), self.train(update, LR, scale=1e-3)[1])

    def train(self, update: Update, lr: float, scale: float = 1) -> tuple[Array, float]:
        """The path and the last loss. The rate falls to zero in a line; gradients are multiplied by ``scale``."""
        rng = np.random.default_rng(0)
        params = {name: p.astype(np.float64) for name, p in initial(rng, (256, 24, 10)).items()}
        m, v = ({name: 0 * p for name, p in params.items()} for _ in range(2))
        path = [np.concatenate([p.ravel() for p in params.values()])]
        with np.errstate(all="ignore"):  # some diverge
            for t in range(1, STEPS + 1):
                batch = rng.integers(0, len(self.x), BATCH)
                _, grads = loss_and_gradients(params, self.x[batch], self.labels[batch])
                now = lr * (1 - (t - 1) / STEPS)
                for name, p in params.items():
                    g = scale * grads[name]
                    params[name], m[name], v[name] = update(p, g, m[name], v[name], t, now, 0.9, 0.999, 1e-8, 0.01)
                path.append(np.concatenate([p.ravel() for p in params.values()]))
            return np.array(path), float(np.mean([loss_and_gradients(params, *part)[0] for part in self.tests]))


def table(costs: dict[str, Cost]) -> Table:
    """A row a mistake, the right one first."""
    steps = 1, 10, 100
    shown = Table("mistake", *(f"off at {t}" for t in steps), f"loss, lr {LR:g}", "small g", "best loss", "at lr")
    shown.caption = """off: distance from the right one's parameters after so many steps; 1 is as far as that has come
small g: the same loss, where every gradient is a thousandth
best loss: at the rate that suits the mistake; one run each, 0.05 more or less is chance"""
    for name, c in costs.items():
        off = c.off(costs["none"])
        losses = c.losses[RATES.index(LR)], c.small, c.losses[c.best]
        rate = f"{RATES[c.best]:g}" if np.isfinite(c.losses).any() else "none"
        shown.add_row(name, *(f"{off[t - 1]:.3g}" for t in steps), *(f"{x:.2f}" for x in losses), rate)
    return shown


def draw(costs: dict[str, Cost], path: str) -> None:
    """The same as a picture, if matplotlib is there."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: matplotlib is not installed; pip install 'fastadam[examples]'")
        return
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (name, c) in enumerate(costs.items(), -1):
        style = {"label": name, "color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--"}
        style |= {"color": "black", "linewidth": 3} if name == "none" else {}
        left.loglog(np.arange(1, STEPS + 1), c.off(costs["none"]), **style)
        right.semilogx(RATES, c.losses, **style)
    left.set(xlabel="step", ylabel="distance from the right one; 1: as far as that has come", ylim=(1e-4, 1e3))
    right.set(xlabel="learning rate", ylabel=f"loss after {STEPS} steps", ylim=(1, 2.5))
    figure.legend(*right.get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=120)
    print(f"drawn into {path}")


def main(plot: str = "adam_by_hand.png") -> dict[str, Cost]:
    """Everything, in turn; returns the costs by mistakes."""
    for name, weight_decay in (("adam", 0.0), ("adamw", 0.01)):
        print(f"adam() and fastadam's {name}, after 100 steps: {beside_the_class(name, weight_decay):.1e} apart")
    print(f"check(kernel): {check(kernel)}")
    problem = Problem()
    rows = {name: [name] for name in MISTAKES} | {"neither corrected": ["m uncorrected", "v uncorrected"]}
    costs = {"none": problem.cost(adam)} | {row: problem.cost(wrong(names)) for row, names in rows.items()}
    Console(width=110).print(table(costs))
    draw(costs, plot)
    return costs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", default="adam_by_hand.png", help="the picture's file")
    main(**vars(parser.parse_args()))

"""Balance a pole by a policy gradient: the network runs on fastadam's kernels, its weights move by fastadam's Adam.

python examples/cartpole.py [--seed 0] [--iterations 40] [--threads 1]      needs: pip install 'fastadam[examples]'

CartPole-v1 pays 1 for every step that the pole stands, 500 at the most; it counts as solved at a mean of 475.
"""

import argparse
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fastadam.device import Device, get_device
from fastadam.optim import Adam

try:
    import gymnasium
except ImportError:
    raise SystemExit("CartPole is gymnasium's, which is not installed; pip install 'fastadam[examples]'") from None

EPISODES = 32  # played side by side, in each iteration
GAMMA = 0.99  # what a reward is worth a step later
CLIP = 0.2  # how far a probability may move before an iteration leaves it alone: PPO's epsilon
PASSES, BATCHES = 4, 4  # over the steps of an iteration, each pass in so many updates
HIDDEN, LR = 64, 2e-3

PLAIN, RELU = 0, 3  # pending activations of the kernels: none; affine and ReLU, bits 1 and 2
FLAT, TABLE, LANES = (np.empty((0,) * rank, np.float32) for rank in (1, 2, 3))  # what an op is given for nothing


class Policy:
    """Four numbers in, a linear layer, a ReLU, a linear layer, a logit for each action out."""

    def __init__(self, rng: np.random.Generator, device: Device):
        self.device, self.ops = device, device.ops  # the module fastadam.kernels.cpu
        w1, w2 = rng.standard_normal((HIDDEN, 4)), rng.standard_normal((2, HIDDEN))
        arrays = {
            "w1": w1 * np.sqrt(2 / 4),  # He et al. 2015, equation 10
            "b1": np.zeros(HIDDEN),
            "w2": w2 * 0.01,  # both actions are about as likely at first
            "b2": np.zeros(2),
        }
        self.params = {name: array.astype(np.float32) for name, array in arrays.items()}
        self.ones = np.ones(HIDDEN, np.float32)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Of states (N, 4) float32: (N, 2). What ``gradients`` needs of them is kept."""
        p, ops = self.params, self.ops
        self.x, self.h, z = x, np.empty((len(x), HIDDEN), np.float32), np.empty((len(x), 2), np.float32)
        with self.device.running():
            ops.linear_forward(self.h, LANES, x, FLAT, FLAT, p["w1"], PLAIN)
            # h is x @ w1.T. Its bias and ReLU are pending: whoever reads h applies them.
            ops.linear_forward(z, LANES, self.h, self.ones, p["b1"], p["w2"], RELU)
        return z + p["b2"]

    def gradients(self, dz: np.ndarray) -> dict[str, np.ndarray]:
        """Of the parameters, from that of the logits (N, 2) of the last call."""
        p, ops = self.params, self.ops
        dw1, dw2, dh = np.empty_like(p["w1"]), np.empty_like(p["w2"]), np.empty_like(self.h)
        sums = np.empty((1, 2, HIDDEN), np.float32)  # of dh over the batch, which is the gradient of the pending bias
        none = FLAT, FLAT, FLAT  # a pending batch norm
        with self.device.running():
            ops.linear_backward(
                dh, sums, dw2, dz, TABLE, *none, p["w2"], self.h, self.ones, p["b1"], TABLE, TABLE, FLAT, RELU, 0
            )
            ops.linear_backward(
                TABLE, LANES, dw1, dh, TABLE, *none, p["w1"], self.x, FLAT, FLAT, TABLE, TABLE, FLAT, PLAIN, 0
            )
        return {"w1": dw1, "b1": sums[0, 0], "w2": dw2, "b2": dz.sum(0)}


class Played(NamedTuple):
    """Episodes of at most T steps side by side, N of them. ``alive`` (T, N): whether the pole stood so far."""

    states: np.ndarray  # (T, N, 4)
    actions: np.ndarray  # (T, N)
    alive: np.ndarray

    @property
    def score(self) -> float:
        """The mean return: rewards are 1 a step."""
        return float(self.alive.sum(0).mean())


def environments(count: int, seed: int) -> gymnasium.vector.VectorEnv:
    """So many carts at once, by gymnasium's own physics in NumPy."""
    carts = gymnasium.make_vec("CartPole-v1", num_envs=count, vectorization_mode="vector_entry_point")
    carts.reset(seed=seed)
    return carts


def play(carts: gymnasium.vector.VectorEnv, policy: Policy, rng: np.random.Generator | None) -> Played:
    """An episode of every cart. With ``rng`` actions are drawn by their probabilities, else the likelier is taken."""
    state, _ = carts.reset()
    alive, steps = np.ones(carts.num_envs, bool), []
    while alive.any():
        z = policy.logits(np.ascontiguousarray(state))
        if rng:
            z = z + rng.gumbel(size=z.shape)  # the largest is then a draw from softmax(z)
        action = z.argmax(1)
        steps.append((state, action, alive))
        state, _, fallen, out_of_time, _ = carts.step(action)
        alive = alive & ~(fallen | out_of_time)  # carts that are done begin anew, which no one looks at
    return Played(*map(np.array, zip(*steps, strict=True)))


def advantages(alive: np.ndarray) -> np.ndarray:
    """How much better than the other episodes each one went on after a step: (T, N).

    The return from there on, as in REINFORCE (Williams 1992), less a baseline, which takes away variance and no
    truth: the mean over all episodes at the same step. Times 1 - GAMMA, for numbers below 1; not divided by their
    deviation: once nearly all episodes are full, what is left is noise, and is better left small.
    """
    returns, after = np.empty(alive.shape), np.zeros(alive.shape[1])
    for t in reversed(range(len(alive))):
        returns[t] = after = alive[t] + GAMMA * after
    return (1 - GAMMA) * (returns - returns.mean(1, keepdims=True))


def log_softmax(z: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def improve(policy: Policy, adam: Adam, played: Played, rng: np.random.Generator) -> float:
    """Some passes of Adam over the steps that were played; returns the mean loss.

    With r the probability of an action over what it was when it was played, and A its advantage, the loss is
    -min(r A, clip(r, 1 - CLIP, 1 + CLIP) A): Schulman et al. 2017 (PPO), equation 7.
    """
    x, action = played.states[played.alive], played.actions[played.alive]
    advantage = advantages(played.alive)[played.alive]
    before = np.take_along_axis(log_softmax(policy.logits(x)), action[:, None], 1)[:, 0]
    losses = []
    for _ in range(PASSES):
        for batch in np.array_split(rng.permutation(len(x)), BATCHES):
            a, chosen = advantage[batch], np.eye(2)[action[batch]]
            log_p = log_softmax(policy.logits(x[batch]))
            r = np.exp((log_p * chosen).sum(1) - before[batch])
            free, clipped = r * a, np.clip(r, 1 - CLIP, 1 + CLIP) * a
            losses.append(-np.minimum(free, clipped).mean())
            # d(r A)/dz = r A (chosen - softmax(z)); there is none where the clipped one is the smaller.
            pull = np.where(free <= clipped, free, 0) / len(batch)
            dz = pull[:, None] * (np.exp(log_p) - chosen)
            adam.step(policy.gradients(dz.astype(np.float32)))
    return float(np.mean(losses))


def learn(policy: Policy, rng: np.random.Generator, iterations: int, seed: int) -> Iterator[tuple[float, float]]:
    """Mean return of the episodes of each iteration, and the loss."""
    carts, adam = environments(EPISODES, seed), Adam(policy.params, lr=LR)
    for _ in range(iterations):
        played = play(carts, policy, rng)
        yield played.score, improve(policy, adam, played, rng)


def main(seed: int = 0, iterations: int = 40, threads: int = 1) -> float:
    """Learn, then play 100 episodes, always taking the likelier action: their mean return."""
    start, rng = time.perf_counter(), np.random.default_rng(seed)
    policy = Policy(rng, get_device("cpu", threads))
    for iteration, (score, loss) in enumerate(learn(policy, rng, iterations, seed), 1):
        print(f"iteration {iteration:3}  mean return {score:5.1f}  loss {loss:8.5f}")
    final = play(environments(100, seed=seed + 1_000_000), policy, None).score
    print(f"100 episodes by the likelier action: mean return {final:.1f}, {'solved' if final >= 475 else 'not solved'}")
    print(f"{time.perf_counter() - start:.1f} s")
    return final


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("seed", 0), ("iterations", 40), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default: {value}")
    main(**vars(parser.parse_args()))

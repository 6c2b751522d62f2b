"""A training loop of your own in NumPy; from fastadam comes the optimiser, by its name.

python examples/own_loop.py [--optimizer adamw] [--lr LR] [--epochs 10] [--data FOLDER_OR_ARCHIVE]

A multilayer perceptron learns ten classes of drawn images, or CIFAR from its files. On the drawn ones AdamW ends above
65 % of the test images; chance is 10 %, and a linear model gets about 20 %.
"""

import argparse
from itertools import pairwise

import numpy as np

import fastadam

HIDDEN, BATCH = 256, 64


def initial(rng: np.random.Generator, sizes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Weights by He et al. 2015, equation 10, and biases of zero; float32, as the optimisers take them."""
    params = {}
    for layer, (inputs, outputs) in enumerate(pairwise(sizes), 1):
        w = rng.standard_normal((outputs, inputs)) * np.sqrt(2 / inputs)
        params |= {f"w{layer}": w.astype(np.float32), f"b{layer}": np.zeros(outputs, np.float32)}
    return params


def forward(p: dict[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hidden layer after its ReLU, and the logits, of rows x."""
    h = np.maximum(x @ p["w1"].T + p["b1"], 0)
    return h, h @ p["w2"].T + p["b2"]


def loss_and_gradients(
    p: dict[str, np.ndarray], x: np.ndarray, labels: np.ndarray
) -> tuple[float, dict[str, np.ndarray]]:
    """Mean cross-entropy of the softmax, and what every parameter does to it: the chain rule, last layer first."""
    h, z = forward(p, x)
    z -= z.max(1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    rows = np.arange(len(x))
    dz = np.exp(log_p)
    dz[rows, labels] -= 1
    dz /= len(x)
    dh = dz @ p["w2"] * (h > 0)
    grads = {"w1": dh.T @ x, "b1": dh.sum(0), "w2": dz.T @ h, "b2": dz.sum(0)}
    return float(-log_p[rows, labels].mean()), grads


def main(
    optimizer: str = "adamw", lr: float | None = None, epochs: int = 10, data: str = "synthetic", seed: int = 0
) -> float:
    """Train; returns the accuracy on the test images. ``lr`` None is what is usual for the optimizer."""
    images = fastadam.data.load(data)
    mean, std = fastadam.data.channel_statistics(images.train_images)
    x, test_x = (
        ((part / np.float32(255) - mean[:, None, None]) / std[:, None, None]).reshape(len(part), -1)
        for part in (images.train_images, images.test_images)
    )
    rng = np.random.default_rng(seed)
    params = initial(rng, (x.shape[1], HIDDEN, len(images.classes)))
    update = fastadam.optim.OPTIMIZERS[optimizer](params, lr=lr)
    print(update)
    for epoch in range(1, epochs + 1):
        losses = []
        for batch in np.array_split(rng.permutation(len(x)), max(1, len(x) // BATCH)):
            loss, grads = loss_and_gradients(params, x[batch], images.train_labels[batch])
            update.step(grads)  # params change in place
            losses.append(loss)
        tested = update.averaged() if optimizer == "schedulefree" else params
        accuracy = float((forward(tested, test_x)[1].argmax(1) == images.test_labels).mean())
        print(f"epoch {epoch:2}  loss {np.mean(losses):.4f}  test accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizer", choices=fastadam.optim.OPTIMIZERS, default="adamw")
    parser.add_argument("--lr", type=float, help="default: the optimizer's own")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--data", default="synthetic", help="a folder or archive of CIFAR-10 files")
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))

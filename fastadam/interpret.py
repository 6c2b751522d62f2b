"""A graph computed node by node in float64, with gradients: what every plan has to equal.

It knows nothing of plans, fusion or lanes; each node is the textbook formula, and gradients are added up
wherever a value is read twice. Arrays are NHWC, parameters in kernel layout.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from fastadam.graph import Graph, Node
from fastadam.reference import dropout_factor

Arrays = dict[str, np.ndarray]


class Interpretation(NamedTuple):
    """What a pass gives.

    ``loss`` is the sum over the batch times ``loss_scale``; ``logits`` (N, classes); ``gradients``
    {name: array} of the trained parameters, empty for inference; ``state`` {name: array}, the running
    statistics after it.
    """

    loss: float
    logits: np.ndarray
    gradients: Arrays
    state: Arrays


def interpret(
    graph: Graph,
    params: Mapping[str, np.ndarray],
    state: Mapping[str, np.ndarray],
    x: np.ndarray,
    labels: np.ndarray,
    *,
    training: bool = True,
    key: tuple[int, int] = (0, 0),
    index: np.ndarray | None = None,
    smoothing: float = 0.0,
    momentum: float = 0.1,
    eps: float = 1e-5,
    loss_scale: float | None = None,
    noise: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Interpretation:
    """Forward, loss and, if ``training``, backward.

    x (N, H, W, C) is the prepared batch, labels (N,) its classes, ``key`` seed and epoch, ``index`` (N,) the
    samples' numbers (0, 1, ... if not given), which dropout depends on. ``loss_scale`` is 1 / N if not given.
    ``noise`` is applied to every value and gradient: it shows how well the answer is determined at all.
    """
    run = _Run(graph, params, state, training, key, momentum, eps)
    run.index = np.arange(len(x)) if index is None else index
    noise = noise or (lambda array: array)
    for node in graph.nodes:
        inputs = [run.values[name] for name in node.inputs]
        value = x.astype(np.float64) if node.op == "input" else getattr(run, node.op)(node, *inputs)
        run.values[node.name] = noise(value)

    logits = run.values[graph.output]
    log_p = logits - logits.max(1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(1, keepdims=True))
    target = np.full(logits.shape, smoothing / logits.shape[1])
    target[np.arange(len(x)), labels] += 1 - smoothing
    scale = 1 / len(x) if loss_scale is None else loss_scale
    loss = float(-(target * log_p).sum() * scale)

    gradient = {graph.output: (np.exp(log_p) - target) * scale}
    for node in reversed(graph.nodes if training else ()):
        inputs = [run.values[name] for name in node.inputs]
        dy = gradient.pop(node.name)
        contributions = () if node.op == "input" else getattr(run, f"{node.op}_backward")(node, dy, *inputs)
        for name, dx in zip(node.inputs, contributions, strict=True):
            gradient[name] = gradient[name] + noise(dx) if name in gradient else noise(dx)
    return Interpretation(loss, logits, run.gradients, run.state)


class _Run:
    """One pass: a method for each operation, and one for its gradient (a tuple, one array for each input)."""

    def __init__(
        self, graph: Graph, params: Mapping[str, np.ndarray], state: Mapping[str, np.ndarray],
        training: bool, key: tuple[int, int], momentum: float, eps: float,
    ) -> None:  # fmt: skip
        self.graph, self.params, self.state = graph, params, dict(state)
        self.training, self.key, self.momentum, self.eps = training, np.array(key), momentum, eps
        self.index = np.arange(0)
        self.values: Arrays = {}
        self.gradients: Arrays = {}
        self.saved: dict[str, Any] = {}  # what a node's gradient wants of its forward

    def weights(self, node: Node) -> tuple[np.ndarray, np.ndarray | float]:
        """Weight, and bias or 0."""
        bias = self.params[f"{node.name}.bias"] if node.attrs["bias"] else 0.0
        return self.params[f"{node.name}.weight"], bias

    def bias_gradient(self, node: Node, dy: np.ndarray) -> None:
        if node.attrs["bias"]:
            self.gradients[f"{node.name}.bias"] = dy.reshape(-1, dy.shape[-1]).sum(0)

    def conv(self, node: Node, x: np.ndarray) -> np.ndarray:
        w, bias = self.weights(node)
        y = np.zeros((len(x), *self.graph.shapes[node.name])) + bias
        for kh, kw, tap in _taps(_padded(x, node), node, *y.shape[1:3]):
            y += tap @ w[kh, kw]
        return y

    def conv_backward(self, node: Node, dy: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
        w, _ = self.weights(node)
        x_padded, dw = _padded(x, node), np.zeros(w.shape)
        dx = np.zeros_like(x_padded)
        for kh, kw, tap in _taps(x_padded, node, *dy.shape[1:3]):
            dw[kh, kw] = np.einsum("nhwc,nhwo->co", tap, dy)
        for kh, kw, tap in _taps(dx, node, *dy.shape[1:3]):
            tap += dy @ w[kh, kw].T
        self.gradients[f"{node.name}.weight"] = dw
        self.bias_gradient(node, dy)
        pad, (_, H, W, _) = node.attrs["pad"], x.shape
        return (dx[:, pad : pad + H, pad : pad + W],)

    def linear(self, node: Node, x: np.ndarray) -> np.ndarray:
        w, bias = self.weights(node)
        return x.reshape(len(x), -1) @ w.T + bias

    def linear_backward(self, node: Node, dy: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
        w, _ = self.weights(node)
        self.gradients[f"{node.name}.weight"] = dy.T @ x.reshape(len(x), -1)
        self.bias_gradient(node, dy)
        return ((dy @ w).reshape(x.shape),)

    def bn(self, node: Node, x: np.ndarray) -> np.ndarray:
        """Ioffe and Szegedy 2015, Algorithm 1; the running variance is the unbiased one."""
        mean_name, var_name = f"{node.name}.running_mean", f"{node.name}.running_var"
        if self.training:
            axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
            mean, var = x.mean(axes), x.var(axes)
            for name, new in ((mean_name, mean), (var_name, var * count / max(count - 1, 1))):
                self.state[name] = (1 - self.momentum) * self.state[name] + self.momentum * new
        else:
            mean, var = self.state[mean_name], self.state[var_name]
        rstd = 1 / np.sqrt(var + self.eps)
        normal = (x - mean) * rstd
        self.saved[node.name] = rstd, normal
        return normal * self.params[f"{node.name}.weight"] + self.params[f"{node.name}.bias"]

    def bn_backward(self, node: Node, dy: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
        (rstd, normal), axes = self.saved[node.name], tuple(range(dy.ndim - 1))
        dgamma, dbeta = (dy * normal).sum(axes), dy.sum(axes)
        self.gradients[f"{node.name}.weight"], self.gradients[f"{node.name}.bias"] = dgamma, dbeta
        count = x.size // x.shape[-1]
        return (self.params[f"{node.name}.weight"] * rstd * (dy - dbeta / count - normal * dgamma / count),)

    def relu(self, node: Node, x: np.ndarray) -> np.ndarray:
        return np.where(x <= 0, 0, x)

    def relu_backward(self, node: Node, dy: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.where(x <= 0, 0, dy),)

    def maxpool(self, node: Node, x: np.ndarray) -> np.ndarray:
        return _windows(x).max(3)

    def maxpool_backward(self, node: Node, dy: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
        """The first of equals gets it all, as in PyTorch."""
        first = np.arange(4)[:, None] == _windows(x).argmax(3)[:, :, :, None]
        N, OH, OW, C = dy.shape
        spread = (first * dy[:, :, :, None]).reshape(N, OH, OW, 2, 2, C).transpose(0, 1, 3, 2, 4, 5)
        dx = np.zeros_like(x)
        dx[:, : 2 * OH, : 2 * OW] = spread.reshape(N, 2 * OH, 2 * OW, C)
        return (dx,)

    def avgpool(self, node: Node, x: np.ndarray) -> np.ndarray:
        return x.mean((1, 2))

    def avgpool_backward(self, node: Node, dy: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.broadcast_to(dy[:, None, None] / (x.shape[1] * x.shape[2]), x.shape),)

    def add(self, node: Node, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a + b

    def add_backward(self, node: Node, dy: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
        return dy, dy

    def dropout(self, node: Node, x: np.ndarray) -> np.ndarray:
        self.saved[node.name] = 1.0
        if self.training:
            salt, per_sample = self.graph.nodes.index(node), node.attrs.get("per") == "sample"
            self.saved[node.name] = dropout_factor(self.key, self.index, x.shape, node.attrs["p"], salt, per_sample)
        return x * self.saved[node.name]

    def dropout_backward(self, node: Node, dy: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (dy * self.saved[node.name],)


def _padded(x: np.ndarray, node: Node) -> np.ndarray:
    pad = node.attrs["pad"]
    return np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))


def _taps(x: np.ndarray, node: Node, OH: int, OW: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """For each filter tap, the view of padded ``x`` that it meets."""
    kernel, stride = node.attrs["kernel"], node.attrs["stride"]
    for kh in range(kernel):
        for kw in range(kernel):
            rows = slice(kh, kh + (OH - 1) * stride + 1, stride)
            yield kh, kw, x[:, rows, kw : kw + (OW - 1) * stride + 1 : stride]


def _windows(x: np.ndarray) -> np.ndarray:
    """(N, H // 2, W // 2, 4, C): the pixels of each 2x2 window in row-major order."""
    N, H, W, C = x.shape
    x = x[:, : H // 2 * 2, : W // 2 * 2].reshape(N, H // 2, 2, W // 2, 2, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(N, H // 2, W // 2, 4, C)

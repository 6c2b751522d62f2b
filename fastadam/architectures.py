"""The networks that have a name. Each builder gives a graph; ``fastadam.models.build`` gives it parameters.

Names of layers are PyTorch's, the ResNets' those of torchvision, so a state dict says where its arrays belong.
3x3 convolutions pad by 1. ``dropout`` is the probability of a dropout before the last linear layer (``mlp``: after
every hidden layer); 0 adds no node, and parameter names never depend on it.
"""

from collections.abc import Callable, Sequence
from functools import partial

from fastadam.graph import Graph, Node, Shape

CIFAR_SHAPE = (32, 32, 3)
"""Height, width, channels."""


class _Chain:
    """Nodes in a row, each reading the one before unless ``at`` names another."""

    def __init__(self, shape: Shape):
        self.nodes = [Node("input", "input", (), {"shape": tuple(shape)})]

    @property
    def last(self) -> str:
        """The name of the node added last."""
        return self.nodes[-1].name

    def add(self, op: str, name: str, at: str = "", **attrs: object) -> "_Chain":
        self.nodes.append(Node(op, name, (at or self.last,), attrs))
        return self

    def linear(self, name: str, out: int) -> "_Chain":
        return self.add("linear", name, out=out, bias=True)

    def conv(self, name: str, out: int, kernel: int = 3, stride: int = 1, bias: bool = False, at: str = "") -> "_Chain":
        return self.add("conv", name, at, out=out, kernel=kernel, stride=stride, pad=kernel // 2, bias=bias)

    def sum(self, name: str, a: str, b: str) -> "_Chain":
        self.nodes.append(Node("add", name, (a, b)))
        return self

    def dropout(self, name: str, p: float) -> "_Chain":
        return self.add("dropout", name, p=p) if p else self


def mlp(
    classes: int = 10, shape: Shape = CIFAR_SHAPE, dropout: float = 0.0, hidden: Sequence[int] = (512, 512)
) -> Graph:
    """A multilayer perceptron: ``fc1``, ``fc2``, ... with ReLU, then ``fc``."""
    chain = _Chain(shape)
    for i, width in enumerate(hidden, 1):
        chain.linear(f"fc{i}", width).add("relu", f"relu{i}").dropout(f"dropout{i}", dropout)
    return Graph(chain.linear("fc", classes).nodes)


def cnn(
    classes: int = 10, shape: Shape = CIFAR_SHAPE, dropout: float = 0.0, width: int = 32, hidden: int = 256
) -> Graph:
    """A small convolutional network: two 3x3 convolutions and a pool, twice, then ``fc1`` and ``fc``."""
    chain = _Chain(shape)
    for i, out in enumerate((width, width, 2 * width, 2 * width), 1):
        chain.conv(f"conv{i}", out, bias=True).add("relu", f"relu{i}")
        if i % 2 == 0:
            chain.add("maxpool", f"pool{i // 2}")
    chain.linear("fc1", hidden).add("relu", "relu5").dropout("dropout", dropout)
    return Graph(chain.linear("fc", classes).nodes)


def vgg(classes: int = 10, shape: Shape = CIFAR_SHAPE, dropout: float = 0.0, width: int = 64) -> Graph:
    """After Simonyan and Zisserman 2015, with batch norm: two 3x3 convolutions and a pool, three times, then ``fc``.

    Widths are ``width``, twice and four times that; layers ``conv1`` ``bn1`` ... ``conv6`` ``bn6``.
    """
    chain = _Chain(shape)
    for i in range(1, 7):
        chain.conv(f"conv{i}", width << (i - 1) // 2).add("bn", f"bn{i}").add("relu", f"relu{i}")
        if i % 2 == 0:
            chain.add("maxpool", f"pool{i // 2}")
    return Graph(chain.dropout("dropout", dropout).linear("fc", classes).nodes)


def _block(chain: _Chain, name: str, convs: Sequence[tuple[int, int, int]], change: bool) -> None:
    """A residual block at the end of the chain: convolutions (out, kernel, stride), each with batch norm, ReLU
    between them; the block's input is added, then ReLU (He et al. 2016, figure 2).

    With ``change``, shapes do: the input passes a 1x1 convolution and batch norm (option B of section 4.1).
    """
    shortcut = chain.last
    for i, (out, kernel, stride) in enumerate(convs, 1):
        chain.conv(f"{name}.conv{i}", out, kernel, stride).add("bn", f"{name}.bn{i}")
        if i < len(convs):
            chain.add("relu", f"{name}.relu{i}")
    end = chain.last
    if change:
        stride = max(stride for _, _, stride in convs)
        chain.conv(f"{name}.downsample.0", out, 1, stride, at=shortcut).add("bn", f"{name}.downsample.1")
        shortcut = chain.last
    chain.sum(f"{name}.add", end, shortcut).add("relu", f"{name}.relu{len(convs)}")


def resnet(
    classes: int = 10, shape: Shape = CIFAR_SHAPE, dropout: float = 0.0, *, depth: int = 20, width: int = 16
) -> Graph:
    """He et al. 2016, section 4.2, with their option B, for small images: 3x3 stem, three stages of (depth - 2) / 6
    blocks of two 3x3 convolutions, widths ``width``, twice and four times that, global average pool, ``fc``. The second
    and third stage begin with stride 2.
    """
    chain = _Chain(shape).conv("conv1", width).add("bn", "bn1").add("relu", "relu")
    for stage in range(3):
        for block in range((depth - 2) // 6):
            out, change = width << stage, stage > 0 and block == 0
            _block(chain, f"layer{stage + 1}.{block}", ((out, 3, 1 + change), (out, 3, 1)), change)
    return Graph(chain.add("avgpool", "avgpool").dropout("dropout", dropout).linear("fc", classes).nodes)


def resnet50(classes: int = 10, shape: Shape = CIFAR_SHAPE, dropout: float = 0.0, *, width: int = 64) -> Graph:
    """He et al. 2016, table 1, with a 3x3 stem and no first pool, as small images want: stages of 3, 4, 6 and 3
    bottlenecks (1x1, 3x3, 1x1 to four times the width), global average pool, ``fc``.

    The stride is in the 3x3 convolution, as torchvision has it.
    """
    chain = _Chain(shape).conv("conv1", width).add("bn", "bn1").add("relu", "relu")
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            out, stride = width << stage, 2 if stage and not block else 1
            _block(chain, f"layer{stage + 1}.{block}", ((out, 1, 1), (out, 3, stride), (4 * out, 1, 1)), block == 0)
    return Graph(chain.add("avgpool", "avgpool").dropout("dropout", dropout).linear("fc", classes).nodes)


MODELS: dict[str, Callable[..., Graph]] = {
    "mlp": mlp,
    "cnn": cnn,
    "vgg": vgg,
    **{f"resnet{depth}": partial(resnet, depth=depth) for depth in (20, 32, 44, 56)},
    "resnet50": resnet50,
}
"""Builders by name: ``MODELS[name](classes, shape, dropout)``."""

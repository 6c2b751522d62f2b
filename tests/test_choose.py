"""Which algorithm convolves: by a roofline of the layer's shape on a card of some balance."""

from types import SimpleNamespace

import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'fastadam[cuda13]'")

from fastadam.calls import Slot
from fastadam.cases import CONVOLUTIONS
from fastadam.kernels import cuda
from fastadam.kernels.cuda.choose import uses_winograd
from fastadam.kernels.cuda.driver import BALANCE, balance_of

VGG = ((32, 64, 64), (16, 64, 128), (16, 128, 128), (8, 128, 256), (8, 256, 256))
"""Rows of images, channels in and out."""

CARDS = {
    # capability, multiprocessors, clock and clock of memory (MHz), bits of its bus: operations a byte
    "H100": ((9, 0), 132, 1980, 2619, 5120, 20.0),
    "A100": ((8, 0), 108, 1410, 1215, 5120, 12.5),
    "T4": ((7, 5), 40, 1590, 5001, 256, 25.4),
    "RTX 3090": ((8, 6), 82, 1695, 9751, 384, 38.0),
    "RTX 4090": ((8, 9), 128, 2520, 10501, 384, 81.9),
}


def balance(name, faster=1.0):
    capability, multiprocessors, clock, memory_clock, width, _ = CARDS[name]
    device = SimpleNamespace(
        CLOCK_RATE=clock * 1000 * faster, MEMORY_CLOCK_RATE=memory_clock * 1000, GLOBAL_MEMORY_BUS_WIDTH=width
    )
    return balance_of(device, capability, multiprocessors)


def by_winograd(balance):
    return [uses_winograd((3, 3), 1, (size, size), c, oc, balance) for size, c, oc in VGG]


@pytest.mark.parametrize("name", CARDS)
def test_a_balance_is_that_of_the_card_to_a_step(name):
    assert 2**-0.25 <= balance(name) / CARDS[name][-1] <= 2**0.25


def test_copies_of_a_card_are_alike():
    assert len({balance("RTX 4090", faster) for faster in (0.98, 1, 1.04)}) == 1


def test_a_card_that_tells_nothing_is_taken_for_an_h100():
    silent = SimpleNamespace()
    without_clock = SimpleNamespace(CLOCK_RATE=0, MEMORY_CLOCK_RATE=0, GLOBAL_MEMORY_BUS_WIDTH=128)
    assert balance_of(silent, (8, 9), 128) == balance_of(without_clock, (8, 7), 16) == BALANCE == balance("H100")


def test_winograd_is_for_cards_whose_memory_keeps_up():
    assert by_winograd(balance("H100")) == by_winograd(balance("A100")) == [True] * 5
    assert by_winograd(balance("RTX 4090")) == [False] * 4 + [True]


def test_a_faster_memory_never_speaks_against_it():
    layers = [sum(by_winograd(2.0 ** (step / 2))) for step in range(16)]
    assert layers == sorted(layers, reverse=True)
    assert (layers[0], layers[-1]) == (len(VGG), 0)


def test_cases_have_both_algorithms():
    chosen = [
        uses_winograd((kernel, kernel), stride, (H + 2 * pad - 2, W + 2 * pad - 2), C, OC)
        for _, H, W, C, OC, kernel, stride, pad in CONVOLUTIONS
        if kernel == 3 and stride == 1
    ]
    assert chosen.count(True) >= 5
    assert chosen.count(False) >= 5


def test_ops_are_those_of_the_card():
    assert cuda.with_precision("float32", BALANCE) is cuda
    ops = cuda.with_precision("float32", balance("RTX 4090"))
    assert ops is cuda.with_precision("float32", balance("RTX 4090"))
    differ = {name for name, op in vars(ops).items() if op is not getattr(cuda, name)}
    assert differ == {"conv2d_forward", "conv2d_backward"}
    no, x, y, w = (Slot("", shape, "ACT") for shape in ((0,), (2, 32, 32, 64), (2, 32, 32, 64), (3, 3, 64, 64)))
    for its, kernels in ((cuda, ["to_points", "gemm", "output_from_points"]), (ops, ["implicit_forward"])):
        launches = list(its.conv2d_forward.launches(y, no, x, no, no, w, 0, 1, 1))
        assert [launch.kernel.py_func.__name__ for launch in launches] == kernels

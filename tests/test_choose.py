"""Which algorithm convolves: by a roofline of the layer's shape on a card of some balance."""

import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'fastadam[cuda13]'")

from fastadam.calls import Slot
from fastadam.cases import CONVOLUTIONS
from fastadam.kernels import cuda
from fastadam.kernels.cuda.choose import uses_winograd
from fastadam.kernels.cuda.driver import BALANCE, BALANCES, balance_of

VGG = ((32, 64, 64), (16, 64, 128), (16, 128, 128), (8, 128, 256), (8, 256, 256))
"""Rows of images, channels in and out."""


def by_winograd(balance):
    return [uses_winograd((3, 3), 1, (size, size), c, oc, balance) for size, c, oc in VGG]


def test_a_card_is_like_others_of_its_capability():
    assert balance_of((9, 0)) == BALANCE
    assert balance_of((8, 9)) > balance_of((8, 6)) > balance_of((8, 0))
    assert balance_of((8, 7)) == balance_of((8, 6))
    assert balance_of((99, 0)) == balance_of(max(BALANCES))
    assert balance_of((7, 0)) == BALANCE


def test_winograd_is_for_cards_whose_memory_keeps_up():
    assert by_winograd(balance_of((9, 0))) == by_winograd(balance_of((8, 0))) == [True] * 5
    assert by_winograd(balance_of((8, 9))) == [False] * 4 + [True]


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
    ops = cuda.with_precision("float32", balance_of((8, 9)))
    assert ops is cuda.with_precision("float32", balance_of((8, 9)))
    differ = {name for name, op in vars(ops).items() if op is not getattr(cuda, name)}
    assert differ == {"conv2d_forward", "conv2d_backward"}
    no, x, y, w = (Slot("", shape, "ACT") for shape in ((0,), (2, 32, 32, 64), (2, 32, 32, 64), (3, 3, 64, 64)))
    for its, kernels in ((cuda, ["to_points", "gemm", "output_from_points"]), (ops, ["implicit_forward"])):
        launches = list(its.conv2d_forward.launches(y, no, x, no, no, w, 0, 1, 1))
        assert [launch.kernel.py_func.__name__ for launch in launches] == kernels

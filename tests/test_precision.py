"""Ops with matrix products on tensor cores: which there are."""

import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'fastadam[cuda13]'")

from fastadam.kernels import OPS, PRODUCTS, cuda

REDUCED = ("tf32", "bf16")


def test_float32_is_the_package_itself():
    assert cuda.with_precision("float32") is cuda


@pytest.mark.parametrize("name", REDUCED)
def test_the_products_alone_differ(name):
    ops = cuda.with_precision(name)
    for op in OPS:
        assert (getattr(ops, op) is getattr(cuda, op)) == (op not in PRODUCTS)
    for op in PRODUCTS:
        assert getattr(ops, op).__name__ == op
        assert callable(getattr(ops, op).launches)
        assert callable(getattr(ops, op).bind)


def test_an_unknown_precision_is_told_which_there_are():
    with pytest.raises(ValueError, match=r"float32, tf32, bf16"):
        cuda.with_precision("fp8")

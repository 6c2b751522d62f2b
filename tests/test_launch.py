"""Launches of CUDA ops, as far as they go without a GPU: what binding says, and what is refused."""

import warnings

import numba
import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'fastadam[cuda13]'")

from fastadam.errors import OutOfMemoryError
from fastadam.kernels import cuda
from fastadam.kernels.cuda.launch import MOST, Scratch, needed


@pytest.mark.skipif(bool(numba.config.ENABLE_CUDASIM), reason="the simulator warns of nothing")
def test_small_grids_are_bound_without_a_warning():
    y = np.zeros(3, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (launch,) = cuda.fill.bind(y, 1.0)
    assert callable(launch)


def test_an_array_beyond_32_bit_indices_is_refused():
    class Huge:
        shape, size = (1 << 22, 1 << 10), MOST

    with pytest.raises(OutOfMemoryError, match="smaller batch size or net"):
        needed(cuda.affine_forward.launches(Huge, Huge, Huge, Huge, 0))


def test_scratch_of_an_op_lies_side_by_side():
    kernel, (first, second) = object(), (Scratch(3), Scratch(65))
    from fastadam.kernels.cuda.launch import ALIGN, Launch

    launches = [Launch(kernel, 1, (first, second)), Launch(kernel, 1, (second, 1.0))]
    assert needed(launches) == ALIGN + 2 * ALIGN

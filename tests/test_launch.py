"""Launches of CUDA ops, as far as they go without a GPU: what binding says, and what is refused."""

import warnings

import numba
import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'fastadam[cuda13]'")

from fastadam.errors import OutOfMemoryError
from fastadam.kernels import cuda
from fastadam.kernels.cuda.launch import ALIGN, MOST, Launch, Scratch, bound, needed


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

    with pytest.raises(OutOfMemoryError, match="smaller batch size, net or data set"):
        needed(cuda.affine_forward.launches(Huge, Huge, Huge, Huge, 0))


@pytest.mark.parametrize("grid", [1 << 31, (1, 65_536), (1, 1, 65_536)])
def test_a_grid_that_no_gpu_has_is_refused(grid):
    with pytest.raises(OutOfMemoryError, match=r"a grid of .* smaller batch size or net"):
        needed([Launch(object(), grid, ())])
    needed([Launch(object(), ((1 << 31) - 1, 65_535), ())])


def test_numbers_beyond_32_bits_are_no_arguments():
    for number in (1 << 32, np.int64(1 << 32), -1):
        with pytest.raises(OverflowError):
            bound([Launch(object(), 1, (number,))])


def test_scratch_of_an_op_lies_side_by_side():
    kernel, (first, second) = object(), (Scratch(3), Scratch(65))
    launches = [Launch(kernel, 1, (first, second)), Launch(kernel, 1, (second, 1.0))]
    assert needed(launches) == ALIGN + 2 * ALIGN

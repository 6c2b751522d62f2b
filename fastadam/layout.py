"""Kernel layout <-> public layout of one parameter.

Kernels want channels last; the public layout, in state dicts and files, is PyTorch's: convolutions
(OC, C, KH, KW), linear (O, I) with the columns of a flattened image in C, H, W order.
"""

import numpy as np

from fastadam.graph import Param, Shape


def public_shape(param: Param) -> Shape:
    """Shape of a parameter in the public layout."""
    if param.kind == "conv":
        KH, KW, C, OC = param.shape
        return (OC, C, KH, KW)
    return param.shape


def to_public(param: Param, array: np.ndarray) -> np.ndarray:
    """A parameter in the public layout: a C-contiguous copy of ``array``, which has ``param.shape``.

    Raises ``ValueError`` if it has another shape.
    """
    _check_shape(param, array, param.shape)
    if param.kind == "conv":
        return array.transpose(3, 2, 0, 1).copy()
    if len(param.source) == 3:
        return array.reshape(-1, *param.source).transpose(0, 3, 1, 2).reshape(param.shape).copy()
    return array.copy()


def to_kernel(param: Param, array: np.ndarray) -> np.ndarray:
    """A parameter in kernel layout: a C-contiguous copy of ``array``, which has ``public_shape(param)``.

    Raises ``ValueError`` if it has another shape.
    """
    _check_shape(param, array, public_shape(param))
    if param.kind == "conv":
        return array.transpose(2, 3, 1, 0).copy()
    if len(param.source) == 3:
        H, W, C = param.source
        return array.reshape(-1, C, H, W).transpose(0, 2, 3, 1).reshape(param.shape).copy()
    return array.copy()


def _check_shape(param: Param, array: np.ndarray, shape: Shape) -> None:
    if array.shape != shape:
        raise ValueError(f"{param.name}: expected shape {shape}, found {array.shape}")

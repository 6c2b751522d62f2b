"""The ops for a card and a precision: those with their matrix products on tensor cores, see ``mma.py``.

Operands are rounded to TF32 or bfloat16 when they are put into shared memory, after their pending activation or
gradient; sums, and all that is read or written, are float32. Convolutions are never by Winograd's algorithm here: its
transforms would make more of the roundings. See ``patches.py`` for what is faster than implicit GEMMs.
"""

import functools
from types import SimpleNamespace
from typing import Any

from fastadam.kernels import OPS, cuda
from fastadam.kernels.cuda import choose, implicit, implicit_weights, linear, patch_conv, patch_weights
from fastadam.kernels.cuda.conv import convolutions
from fastadam.kernels.cuda.driver import BALANCE
from fastadam.kernels.cuda.launch import op
from fastadam.kernels.cuda.mma import FLOAT32, PRECISIONS


def _twins(bf16: Any) -> dict[str, Any]:
    @op
    def conv2d_forward(y, moments, x, scale, shift, w, act, stride, pad):
        """As ``conv.conv2d_forward``."""
        _, H, W, C = x.shape
        if choose.uses_patches(w.shape[:2], stride, pad, H, W, C, y.shape[3]):
            yield from patch_conv.forward(y, moments, x, scale, shift, w, act, bf16)
        else:
            yield from implicit.forward(y, moments, x, scale, shift, w, act, stride, pad, bf16)

    @op
    def conv2d_backward(
        dx, sums, dw, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre, act, gact, stride, pad
    ):  # fmt: skip
        """As ``conv.conv2d_backward``."""
        operands, tail = (dz, raw, gscale, ga, gb), (x, scale, shift)
        (_, H, W, C), OC, window = x.shape, dz.shape[3], (w.shape[:2], stride, pad)
        if choose.uses_strips(*window, H, W, C, OC):
            yield from patch_weights.weights(dw, *operands, *tail, act, gact, bf16)
        else:
            yield from implicit_weights.weights(dw, *operands, *tail, act, gact, stride, pad, bf16)
        if dx.size and choose.uses_patches(*window, H, W, OC, C):
            yield from patch_conv.data(dx, sums, *operands, w, *tail, base, of, centre, act, gact, bf16)
        elif dx.size:
            yield from implicit.data(dx, sums, *operands, w, *tail, base, of, centre, act, gact, stride, pad, bf16)

    @op
    def linear_forward(y, moments, x, scale, shift, w, act):
        """As ``linear.linear_forward``."""
        yield from linear.forward(y, moments, x, scale, shift, w, act, bf16)

    @op
    def linear_backward(dx, sums, dw, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre, act, gact):
        """As ``linear.linear_backward``."""
        arrays = dx, sums, dw, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre
        yield from linear.backward(*arrays, act, gact, bf16)

    return {twin.__name__: twin for twin in (conv2d_forward, conv2d_backward, linear_forward, linear_backward)}


@functools.cache
def with_precision(name: str, balance: float = BALANCE) -> Any:
    """What has all ops as attributes, with matrix products in "float32", "tf32" or "bf16"; one object each.

    balance   of the card, see ``driver.Card``
    For "float32" and the usual balance that is the package itself. Those of tensor cores need compute capability 8.0,
    which whoever asks sees to.
    """
    if name not in PRECISIONS:
        raise ValueError(f"no precision {name!r}: there are {', '.join(PRECISIONS)}")
    if PRECISIONS[name] is not FLOAT32:
        twins = _twins(PRECISIONS[name])
    elif balance != BALANCE:
        twins = {twin.__name__: twin for twin in convolutions(balance)}
    else:
        return cuda
    return SimpleNamespace(**{same: getattr(cuda, same) for same in OPS} | twins)

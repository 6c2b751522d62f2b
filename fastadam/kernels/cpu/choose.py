"""Which algorithm computes a convolution: by its shape alone, never by threads or timing, so that bits do not vary.

| kernel | stride | channels in and out                  | output                     | algorithm                |
|--------|--------|--------------------------------------|----------------------------|--------------------------|
| 3 x 3  | 1      | multiples of 16, few enough of pairs | tiles of 4 x 4 mostly full | winograd                 |
|        |        | and 32,768 pairs or more             |                            | backward: winograd_deep  |
| other  |        |                                      |                            | im2col                   |

Winograd multiplies 36 times a tile where a direct product multiplies 9 times a pixel, a quarter for a full
tile; its transforms cost about a third of that quarter.
"""

from fastadam.kernels.cpu.gemm import PANEL
from fastadam.kernels.lanes import DEEP_PAIRS, lanes_of_samples

_TRANSFORMS = 1.5
"""Cost of a tile with its transforms, in units of its 36 multiplications a pair of channels."""

_MOST_PAIRS = 1 << 19
"""Pairs of channels: filters and their gradient are kept with 72 numbers a pair, 151 MB for so many."""


def uses_winograd(kernel: tuple[int, int], stride: int, out: tuple[int, int], c: int, oc: int) -> bool:
    """Whether a convolution of ``c`` to ``oc`` channels with an output of ``out`` pixels is done by Winograd's."""
    if kernel != (3, 3) or stride != 1 or c % PANEL or oc % PANEL or c * oc > _MOST_PAIRS:
        return False
    tiles = -(-out[0] // 4) * -(-out[1] // 4)
    return 36 * tiles * _TRANSFORMS < 9 * out[0] * out[1]


def is_deep(kernel: tuple[int, int], stride: int, out: tuple[int, int], c: int, oc: int) -> bool:
    """Whether the gradients of such a convolution are computed point by point, the filters' in one lane."""
    return c * oc >= DEEP_PAIRS and uses_winograd(kernel, stride, out, c, oc)


def filter_lanes(samples: int, out: tuple[int, ...], filters: tuple[int, ...], stride: int) -> int:
    """``lanes.FilterLanes`` of the CPU."""
    high, wide, c, oc = filters
    deep = is_deep((high, wide), stride, (out[0], out[1]), c, oc)
    return 0 if deep else lanes_of_samples(samples, out, filters, stride)

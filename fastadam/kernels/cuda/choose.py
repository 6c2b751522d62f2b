"""Which algorithm and which tiles compute a convolution: by its shape and the kind of card, so that bits do not vary.

| kernel | stride | channels in and out         | output                | algorithm |
|--------|--------|-----------------------------|-----------------------|-----------|
| 3 x 3  | 1      | multiples of 4, 16 at least | see ``winograd_pays`` | winograd  |
| 3 x 3  | 1      | 3 in, padding 1             | see ``is_of_images``  | images    |
| other  |        |                             |                       | implicit  |

On tensor cores 3 x 3 taps of stride 1 and padding 1 go by patches, where images are whole ones; all others implicitly.
"""

from fastadam.kernels.cuda.driver import BALANCE
from fastadam.kernels.cuda.launch import blocks_of
from fastadam.kernels.cuda.mma import FLOAT32

LEAST_CHANNELS = 16

PRODUCTS, MEMORY = 0.75, 0.85
"""What products get of a card's operations, and what is got of its memory's bytes."""

TILES = {(128, 64): 0.76, (64, 64): 0.73}
"""Pixels and channels of a block, and what part of a multiprocessor's instructions multiply."""

TENSOR_FORWARD = {(128, 128): 1.0, (128, 64): 0.8, (64, 64): 0.65}
TENSOR_DATA = {(64, 128): 1.0, (128, 64): 0.85, (64, 64): 0.75}
"""The same on tensor cores, forward and for dx, beside the first: there memory binds, and of a gradient two are read.

A tile of 128 x 128 would take more registers than there are for dx.
"""

PATCHES = {(128, 128): 1.0, (256, 64): 0.95, (128, 64): 0.8}
"""The same by patches, forward and for dx: there filters are the most that is read, by fewer blocks of more pixels."""

SMS = 132
"""Multiprocessors that the work is cut for, on any device: how sums are cut depends on shapes alone."""

BLOCKS = 6
"""Blocks of 64 threads, of 168 registers each, that a multiprocessor holds at once."""

WEIGHTS_ROWS = (64, 128)
"""Rows of tiles of dw."""

LEAST_STEPS = 16
"""Tiles that a block adds up at the least: fewer cost less than to write its sums and add them to others."""

STRIP_BLOCKS = 2
"""Blocks of ``patch_weights.py`` that a multiprocessor holds at once."""

LEAST_STRIPS = 4
"""Strips of pixels that such a block adds up at the least."""


def bounds(BM, BN):
    """Threads of a block for a tile, and blocks of a multiprocessor."""
    threads = BM * BN // 64
    return threads, max(2, BLOCKS * 64 // threads)


def uses_winograd(kernel, stride, out, c, oc, balance=BALANCE):
    """Whether a convolution of ``c`` to ``oc`` channels with an output of ``out`` pixels is done by Winograd's."""
    if tuple(kernel) != (3, 3) or stride != 1 or c % 4 or oc % 4 or min(c, oc) < LEAST_CHANNELS:
        return False
    return winograd_pays(out, c, oc, balance)


def winograd_pays(out, c, oc, balance):
    """Whether Winograd's is the faster of the two on a card of this balance, see ``driver.Card``.

    A roofline of the forward pass of a sample, in operations; a byte takes the time of ``balance`` of them. A direct
    product has 9 multiplications a pixel and is bound by them. Winograd's has 36 points a tile of 4 x 4 pixels, a
    quarter of that: their product reads V and writes M, of ``c`` and ``oc`` numbers a point, the transforms write V
    and read M, and that is much memory for few multiplications. Tiles of products have whole columns of 64 channels.
    """
    pixels, points = out[0] * out[1], 36 * blocks_of(out[0], 4) * blocks_of(out[1], 4)
    pairs, number = c * 64 * blocks_of(oc, 64), 4 * (c + oc) * balance / MEMORY
    direct = 2 * 9 * pixels * pairs / PRODUCTS
    product = max(2 * points * pairs / PRODUCTS, points * number)
    return product + (pixels + points) * number < direct


def _within(kernel, stride, pad):
    """Whether an output of 3 x 3 taps has the pixels of its image."""
    return tuple(kernel) == (3, 3) and stride == pad == 1


def uses_patches(kernel, stride, pad, H, W, c, n):
    """Whether tensor cores do it by patches, see ``patches.py``: ``n`` channels, sums over ``c``; images (H, W)."""
    return _within(kernel, stride, pad) and not (H % 8 or W % 8 or c % 8 or n % 4)


def uses_strips(kernel, stride, pad, H, W, c, oc):
    """Whether they do dw by strips, see ``patch_weights.py``."""
    return _within(kernel, stride, pad) and not (H % 4 or W % 8 or c % 4 or oc % 4) and c >= LEAST_CHANNELS


IMAGE_TILE = 128
"""Pixels of a block where an image is convolved."""

IMAGE_BLOCKS = 2
"""Blocks for dw of an image, of 128 threads, that a multiprocessor holds at once: of 255 registers each."""


def is_of_images(kernel, stride, pad, image, c, oc):
    """Whether a convolution of images of so many rows and columns has kernels of its own: whole rows make a tile."""
    H, W = image
    few = _within(kernel, stride, pad) and c == 3 and oc % 4 == 0
    return few and W % 4 == IMAGE_TILE // 2 % W == H * W % IMAGE_TILE == 0


def image_shares(blocks):
    """Into how many shares the sum over strips for dw of an image is split, for ``blocks`` blocks of each."""
    return max(1, SMS * IMAGE_BLOCKS // blocks)


def forward_tiles(bf16):
    """The tiles of a product forward in a precision of ``mma.py``, and how fast they are."""
    return TILES if bf16 is FLOAT32 else TENSOR_FORWARD


def data_tiles(bf16):
    """The same for dx."""
    return TILES if bf16 is FLOAT32 else TENSOR_DATA


def tile(lanes, rows, channels, speed):
    """The tile for lanes of so many rows: the least time of the multiprocessor that has the most blocks."""

    def time(size):
        blocks = lanes * blocks_of(rows, size[0]) * blocks_of(channels, size[1])
        return blocks_of(blocks, SMS) * size[0] * size[1] / speed[size]

    return min(speed, key=time)


def weights_rows(M, bf16):
    """Rows of the tiles of dw, of 64 columns: with 128 the gradient is read half as often."""
    return 128 if bf16 is not FLOAT32 and M > 256 else 64


def shares(blocks, steps):
    """Into how many shares a sum of ``steps`` tiles is split where ``blocks`` blocks would do one each.

    As many as multiprocessors hold at once: then none waits for a last one.
    """
    return max(1, min(SMS * BLOCKS // blocks, steps // LEAST_STEPS))


def strip_shares(blocks, strips):
    """The same for the blocks and strips of ``patch_weights.py``."""
    return max(1, min(SMS * STRIP_BLOCKS // blocks, strips // LEAST_STRIPS))

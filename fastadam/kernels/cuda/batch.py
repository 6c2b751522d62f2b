"""From stored images to a batch: normalised, NHWC, augmented by a pure function of (seed, epoch, sample)."""

import numpy as np
from numba import cuda, float32, uint32

from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.launch import Launch, blocks_of, op
from fastadam.kernels.cuda.ptx import ZERO, exact_product
from fastadam.kernels.cuda.random import mix, sample_stream

THREADS = 256

FLIP, CROP_Y, CROP_X, CUT_Y, CUT_X = map(np.uint64, range(5))
"""Which random number of a sample decides what."""

S32, S63, ONE64 = map(np.uint64, (32, 63, 1))
FULL = np.float32(255)


@device
def _draw(stream, which, count):
    """An integer in 0 .. count - 1 from the sample's stream."""
    return uint32(uint32(mix(stream ^ which) >> S32) % count)


@kernel(THREADS)
def _prepare(y, images, index, key, mean, rstd, flip, crop, cutout, size, H, W, C):
    """A thread makes one number of y; neighbours write side by side.

    Places are unsigned: what is left of or above an edge wraps round and is beyond the other one.
    """
    i = uint32(cuda.grid(1))
    if i >= size:
        return
    c, pixel = uint32(i % C), uint32(i // C)
    w, row = uint32(pixel % W), uint32(pixel // W)
    h, n = uint32(row % H), uint32(row // H)
    sample = index[n]
    stream = sample_stream(key, sample)
    down, right, cut = h, w, False
    if flip and mix(stream ^ FLIP) >> S63 == ONE64:
        right = uint32(W - uint32(1) - w)
    if crop:
        shifts = uint32(crop + crop + uint32(1))
        down = uint32(down + _draw(stream, CROP_Y, shifts) - crop)
        right = uint32(right + _draw(stream, CROP_X, shifts) - crop)
    if cutout:
        half = uint32(cutout >> uint32(1))
        below = uint32(h + half - _draw(stream, CUT_Y, H))
        cut = below < cutout and uint32(w + half - _draw(stream, CUT_X, W)) < cutout
    value = ZERO
    if not cut:
        if down < H and right < W:
            at = uint32(uint32(uint32(uint32(uint32(sample) * C + c) * H + down) * W) + right)
            value = float32(images[at])
        offset, _ = exact_product(-mean[c], rstd[c])  # rounded, so that the other product is fused, as on the CPU
        value = value * (rstd[c] / FULL) + offset
    y[i] = value


@op
def batch_prepare(y, images, index, key, mean, rstd, flip, crop, cutout):
    """A batch of stored images, normalised and augmented: y = (pixel / 255 - mean) * rstd.

    y (N, H, W, C)                 out
    images (T, C, H, W) uint8      in: all of the data set, planes as CIFAR's files have them
    index (N,) int64               in: which samples
    key (2,) int64                 in: seed and epoch; with the sample's number they decide every draw
    mean, rstd (C,)                in, in units of 0 .. 1; rstd is 1 / deviation
    flip                           1: mirrored left to right by the toss of a coin
    crop                           shifted by -crop .. crop pixels each way, black (0) beyond the edge
    cutout                         a square of that side, centred anywhere, set to 0 after normalisation
                                   (DeVries & Taylor 2017); 0 for none
    """
    _, H, W, C = y.shape
    arguments = y, images, index, key, mean, rstd, bool(flip), int(crop), int(cutout), y.size, H, W, C
    yield Launch(_prepare, blocks_of(y.size, THREADS), arguments)


@kernel(THREADS)
def _load(y, images, size, H, W, C):
    i = uint32(cuda.grid(1))
    if i < size:
        c, pixel = uint32(i % C), uint32(i // C)
        plane = uint32(H * W)
        y[i] = images[uint32(uint32(uint32(pixel // plane) * C + c) * plane + pixel % plane)]


@op
def batch_load(y, images):
    """y (N, H, W, C) = images (N, C, H, W) float32, already normalised: a change of layout."""
    _, H, W, C = y.shape
    yield Launch(_load, blocks_of(y.size, THREADS), (y, images, y.size, H, W, C))

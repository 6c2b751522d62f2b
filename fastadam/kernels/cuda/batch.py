"""From stored images to a batch: normalised, NHWC, augmented by a pure function of (seed, epoch, sample)."""

import numpy as np
from numba import cuda, float32, int64, uint32, uint64

from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.launch import Launch, blocks_of, op
from fastadam.kernels.cuda.ptx import ZERO
from fastadam.kernels.cuda.random import mix, sample_stream

THREADS = 256

FLIP, CROP_Y, CROP_X, CUT_Y, CUT_X = map(np.uint64, range(5))
"""Which random number of a sample decides what."""

S32, S63, ONE64 = map(np.uint64, (32, 63, 1))
FULL = np.float32(255)


@device
def _draw(stream, which, count):
    """An integer in 0 .. count - 1 from the sample's stream."""
    return int64((mix(stream ^ which) >> S32) % uint64(count))


@kernel(THREADS)
def _prepare(y, images, index, key, mean, rstd, flip, crop, cutout, size, H, W, C):
    """A thread makes one number of y; neighbours write side by side."""
    i = uint32(cuda.grid(1))
    if i >= size:
        return
    c, pixel = uint32(i % C), uint32(i // C)
    w, row = uint32(pixel % W), uint32(pixel // W)
    h, n = uint32(row % H), uint32(row // H)
    sample = index[n]
    stream = sample_stream(key, sample)
    down = int64(h) + _draw(stream, CROP_Y, uint32(uint32(2) * crop + uint32(1))) - int64(crop)
    right = _draw(stream, CROP_X, uint32(uint32(2) * crop + uint32(1))) - int64(crop)
    mirrored = flip != uint32(0) and mix(stream ^ FLIP) >> S63 == ONE64
    right += int64(uint32(W - uint32(1) - w)) if mirrored else int64(w)
    top = _draw(stream, CUT_Y, H) - int64(uint32(cutout >> uint32(1)))
    left = _draw(stream, CUT_X, W) - int64(uint32(cutout >> uint32(1)))
    value = ZERO
    if not (top <= int64(h) < top + int64(cutout) and left <= int64(w) < left + int64(cutout)):
        if 0 <= down < int64(H) and 0 <= right < int64(W):
            at = uint32(uint32(uint32(uint32(uint32(sample) * C + c) * H + uint32(down)) * W) + uint32(right))
            value = float32(images[at])
        value = value * (rstd[c] / FULL) + (-mean[c] * rstd[c])
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

"""From stored images to a batch: normalised, NHWC, augmented by a pure function of (seed, epoch, sample)."""

import numpy as np
from numba import uint64

from fastadam.kernels.cpu.jit import leaf
from fastadam.kernels.cpu.parallel import parallel
from fastadam.kernels.cpu.random import mix
from fastadam.kernels.cpu.transpose import transpose

FLIP, CROP_Y, CROP_X, CUT_Y, CUT_X = range(5)
"""Which random number of a sample decides what."""


@leaf
def _draw(stream, which, count):
    """An integer in 0 .. count - 1 from the sample's stream."""
    return np.int64((mix(stream ^ uint64(which)) >> uint64(32)) % uint64(count))


@leaf
def _prepare_sample(worker, n, y, images, index, key, mean, rstd, flip, crop, cutout):
    _, high, wide, channels = y.shape
    sample = index[n]
    stream = mix(mix(mix(uint64(key[0])) ^ uint64(key[1])) ^ uint64(sample))
    mirrored = flip and (mix(stream ^ uint64(FLIP)) >> uint64(63)) == uint64(1)
    down = _draw(stream, CROP_Y, 2 * crop + 1) - crop
    right = _draw(stream, CROP_X, 2 * crop + 1) - crop
    top = _draw(stream, CUT_Y, high) - cutout // 2
    left = _draw(stream, CUT_X, wide) - cutout // 2
    for c in range(channels):
        factor, offset = rstd[c] / np.float32(255), -mean[c] * rstd[c]
        for h in range(high):
            row = h + down
            for w in range(wide):
                column = (wide - 1 - w if mirrored else w) + right
                inside = 0 <= row < high and 0 <= column < wide
                pixel = np.float32(images[sample, c, row, column]) if inside else np.float32(0)
                cut = top <= h < top + cutout and left <= w < left + cutout
                y[n, h, w, c] = np.float32(0) if cut else pixel * factor + offset


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
    parallel(_prepare_sample, len(y), y, images, index, key, mean, rstd, int(flip), int(crop), int(cutout))


@leaf
def _load_sample(worker, n, y, x, pixels, channels):
    at = n * pixels * channels
    ys, xs = y[at : at + pixels * channels], x[at : at + pixels * channels]
    if channels == 3:  # the three planes at once: twice as fast
        red, green, blue = xs[:pixels], xs[pixels : 2 * pixels], xs[2 * pixels :]
        for p in range(red.size):
            ys[3 * p], ys[3 * p + 1], ys[3 * p + 2] = red[p], green[p], blue[p]
    else:
        transpose(ys, 0, channels, xs, 0, pixels, channels, pixels)


def batch_load(y, images):
    """y (N, H, W, C) = images (N, C, H, W) float32, already normalised: a change of layout."""
    samples, high, wide, channels = y.shape
    parallel(_load_sample, samples, y.reshape(-1), images.reshape(-1), high * wide, channels)

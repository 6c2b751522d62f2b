"""From stored images to a batch: normalised, NHWC, augmented by a pure function of (seed, epoch, sample)."""

import numpy as np
from numba import cuda, float32, uint32, uint64

from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.launch import Launch, blocks_of, op
from fastadam.kernels.cuda.ptx import ZERO, exact_product
from fastadam.kernels.cuda.random import mix, sample_stream

THREADS = 256

DRAWS = 5
FLIP, CROP_Y, CROP_X, CUT_Y, CUT_X = map(uint32, range(DRAWS))
"""Which random number of a sample decides what."""

GROUP = 4
"""Channels that a block puts in order at a time."""

STAGED = THREADS * (GROUP + 1)

S32, ONE, TOP = np.uint64(32), uint32(1), uint32(31)
FULL = np.float32(255)


@device
def _draw(stream, which, crop, H, W):
    """Whether a sample is mirrored, 0 or 1; its shifts, 0 .. 2 * crop; the pixel that its hole is about."""
    bits = uint32(mix(stream ^ uint64(which)) >> S32)
    if which == FLIP:
        return uint32(bits >> TOP)
    if which == CROP_Y or which == CROP_X:
        return uint32(bits % uint32(crop + crop + ONE))
    return uint32(bits % (H if which == CUT_Y else W))


@kernel(THREADS)
def _prepare(y, images, index, key, mean, rstd, flip, crop, cutout, tiles, H, W, C):
    """A block has pixels of one sample, a thread a pixel: planes are read row by row, and y is written in its order.

    Places are unsigned: what is left of or above an edge wraps round and is beyond the other one.
    """
    drawn = cuda.shared.array(DRAWS, uint32)
    staged = cuda.shared.array(STAGED, float32)
    t, block = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
    n, first, plane = uint32(block // tiles), uint32(uint32(block % tiles) * uint32(THREADS)), uint32(H * W)
    pixel, pixels = uint32(first + t), min(uint32(THREADS), uint32(plane - first))
    sample = index[n]
    if t < uint32(DRAWS):
        drawn[t] = _draw(sample_stream(key, sample), t, crop, H, W)
    cuda.syncthreads()
    h, w = uint32(pixel // W), uint32(pixel % W)
    down, right, cut = h, w, False
    if flip and drawn[FLIP]:
        right = uint32(W - ONE - w)
    if crop:
        down, right = uint32(down + drawn[CROP_Y] - crop), uint32(right + drawn[CROP_X] - crop)
    if cutout:
        half = uint32(cutout >> ONE)
        cut = uint32(h + half - drawn[CUT_Y]) < cutout and uint32(w + half - drawn[CUT_X]) < cutout
    there = t < pixels and down < H and right < W
    at, to = uint32(uint32(sample) * C * plane + down * W + right), uint32(uint32(n * plane + first) * C)
    c = uint32(0)
    while c < C:
        count = min(uint32(GROUP), uint32(C - c))
        pitch = uint32(count | ONE)  # odd: no bank conflicts
        for k in range(count):
            value = ZERO
            if not cut:
                if there:
                    value = float32(images[at])
                # the offset is rounded, so that the other product is fused, as on the CPU
                offset, _ = exact_product(-mean[c], rstd[c])
                value = value * (rstd[c] / FULL) + offset
            staged[uint32(t * pitch + k)] = value
            at, c = uint32(at + plane), uint32(c + ONE)
        cuda.syncthreads()
        j = t
        while j < uint32(pixels * count):
            p, k = uint32(j // count), uint32(j % count)
            y[uint32(to + p * C + k)] = staged[uint32(p * pitch + k)]
            j = uint32(j + uint32(THREADS))
        cuda.syncthreads()
        to = uint32(to + count)


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
    N, H, W, C = y.shape
    tiles = blocks_of(H * W, THREADS)
    arguments = y, images, index, key, mean, rstd, bool(flip), int(crop), int(cutout), tiles, H, W, C
    yield Launch(_prepare, N * tiles, arguments)


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

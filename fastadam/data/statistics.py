"""Mean and standard deviation of the pixels of each channel."""

import math

import numpy as np

_CHUNK = 1024  # images at a time: a few MB of working memory, whatever the data set


def channel_statistics(images: np.ndarray, index: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (of the population) of each channel, pixels counted from 0 to 1.

    images uint8 (N, C, H, W); ``index`` int (K,) restricts them to some, None takes all. Returns two
    float32 (C,). The sums are exact, in integers. A channel that never changes has deviation 0.
    ValueError if there are no images.
    """
    count = len(images) if index is None else len(index)
    if count == 0:
        raise ValueError("there are no images to take the statistics of")
    channels = images.shape[1]
    total, squares = [0] * channels, [0] * channels
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        chunk = images[part if index is None else index[part]].astype(np.uint16)
        for c, values in enumerate(chunk.sum(axis=(0, 2, 3), dtype=np.uint64).tolist()):
            total[c] += values
        chunk *= chunk  # 255**2 fits into 16 bits
        for c, values in enumerate(chunk.sum(axis=(0, 2, 3), dtype=np.uint64).tolist()):
            squares[c] += values
    pixels = count * images.shape[2] * images.shape[3]
    mean = [total[c] / pixels / 255 for c in range(channels)]
    deviation = [math.sqrt(pixels * squares[c] - total[c] ** 2) / pixels / 255 for c in range(channels)]
    return np.array(mean, np.float32), np.array(deviation, np.float32)

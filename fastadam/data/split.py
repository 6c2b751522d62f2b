"""Which images are for training and which for validation: seeded, and every class in proportion.

Each image has a random key that depends on the seed and its own number alone, and a class gives up the
images of its smallest keys. So the choice is the same on every machine, and a larger one contains a smaller
one of the same seed, but for a rounding to whole images of a class.
"""

import numpy as np

from fastadam.draws import keys
from fastadam.errors import DataError

_VALIDATION, _LIMIT = 0, 1  # so that the two choices are independent


def split(labels: np.ndarray, val_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the validation images: int64, ascending, without common members.

    labels int (N,); ``val_size`` images, exactly, go to validation, each class in proportion. DataError if
    that leaves none to train on, ValueError if it is negative.
    """
    if val_size < 0:
        raise ValueError(f"val_size must not be negative, got {val_size}")
    total = len(labels)
    if val_size >= total:
        raise DataError(
            f"a validation set of {val_size:,} images asked for, but the training set has {total:,} "
            f"and must keep some; choose a --val-size below {total:,}"
        )
    chosen = _choose(np.arange(total), labels, val_size, seed, _VALIDATION)
    mask = np.zeros(total, bool)
    mask[chosen] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def limit(index: np.ndarray, labels: np.ndarray, n: int, seed: int) -> np.ndarray:
    """``n`` of the images ``index`` (all, if there are fewer), each class in proportion: int64, ascending.

    index int (K,) into labels int (N,). ValueError if ``n`` is below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    index = np.sort(index.astype(np.int64))
    if n >= len(index):
        return index
    return _choose(index, labels, n, seed, _LIMIT)


def for_test(labels: np.ndarray, n: int | None) -> np.ndarray:
    """The images of a test set that are tested: all, or ``n`` of them, the same for every run: int64, ascending."""
    index = np.arange(len(labels))
    return index if n is None else limit(index, labels, n, 0)


def _choose(index: np.ndarray, labels: np.ndarray, n: int, seed: int, purpose: int) -> np.ndarray:
    """``n`` of ``index``, ascending: the smallest keys of each class, classes in proportion."""
    own = labels[index]
    order = keys(seed, purpose, index)
    chosen = []
    for label, count in zip(*_shares(own, n), strict=True):
        of = index[own == label]
        smallest = np.argsort(order[own == label], kind="stable")[:count]
        chosen.append(of[smallest])
    return np.sort(np.concatenate(chosen)) if chosen else index[:0]


def _shares(labels: np.ndarray, n: int) -> tuple[list[int], list[int]]:
    """The labels that occur and how many of each make up ``n``: largest remainders, the lower label first."""
    present, counts = np.unique(labels, return_counts=True)
    quota = counts.astype(np.int64) * n
    share, remainder = np.divmod(quota, max(len(labels), 1))
    left = n - int(share.sum())
    share[np.argsort(-remainder, kind="stable")[:left]] += 1
    return present.tolist(), share.tolist()

"""Images and labels in memory, and what every data set must look like."""

from dataclasses import dataclass

import numpy as np

IMAGE_SHAPE = (3, 32, 32)
"""Channels (red, green, blue), rows, columns."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test set of small colour pictures.

    name           "cifar10", "cifar100", "synthetic", or "images" for other classes
    train_images   uint8 (N, 3, 32, 32), C-contiguous       test_images   uint8 (M, 3, 32, 32)
    train_labels   int32 (N,), each below len(classes)      test_labels   int32 (M,)
    classes        the names of the labels, in order
    source         where it comes from, for messages: a path or "synthetic"
    notes          lines that whoever uses it should read

    ValueError if the arrays are not of these shapes and types or a label has no class.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    source: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            if images.dtype != np.uint8 or images.shape[1:] != IMAGE_SHAPE or not images.flags.c_contiguous:
                raise ValueError(
                    f"{part}_images must be C-contiguous uint8 (N, 3, 32, 32), not {images.dtype} {images.shape}"
                )
            if labels.dtype != np.int32 or labels.shape != images.shape[:1]:
                raise ValueError(f"{part}_labels must be int32 ({len(images)},), not {labels.dtype} {labels.shape}")
            if labels.size and not 0 <= labels.min() <= labels.max() < len(self.classes):
                raise ValueError(f"{part}_labels must lie in 0..{len(self.classes) - 1}")

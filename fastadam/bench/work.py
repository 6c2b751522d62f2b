"""The work that is timed: the plan of one training step by Adam, and batches for it."""

import math

import numpy as np

from fastadam.data import channel_statistics, synthetic
from fastadam.device import Device
from fastadam.engine import Feed, make_plan
from fastadam.errors import OutOfMemoryError
from fastadam.graph import Graph
from fastadam.kernels.lanes import FilterLanes, lanes_of_samples
from fastadam.plan import Plan
from fastadam.trainer import plan_settings, training_settings
from fastadam.units import human_bytes

BATCHES = 4
"""Batches that a side goes round: a network is not trained on one alone, and they cost little memory."""

MOST_IMAGES = 2_000
"""Different images at the most; larger batches repeat them."""

Batch = tuple[np.ndarray, np.ndarray]
"""Images (N, 3, 32, 32) float32, normalised, and labels (N,) int32."""


def batches(size: int, count: int = BATCHES) -> list[Batch]:
    """Batches of the generated set ``synthetic``: the same whoever asks."""
    images = min(MOST_IMAGES, size * count)
    data = synthetic.generate(train=images, test=1)
    mean, std = (x.reshape(3, 1, 1) for x in channel_statistics(data.train_images, np.arange(images)))
    made = []
    for start in range(0, size * count, size):
        index = np.arange(start, start + size) % images
        normal = (data.train_images[index] / np.float32(255) - mean) / std
        made.append((normal.astype(np.float32), data.train_labels[index]))
    return made


def training_plan(graph: Graph, batch: int, filter_lanes: FilterLanes = lanes_of_samples) -> Plan:
    """The plan of a ``Trainer``'s step by Adam on such a batch, for a device with these ``filter_lanes``."""
    feed = Feed(np.empty((0, 3, 32, 32), np.float32), np.empty(0, np.int32))
    settings = training_settings("adam", (), 0.0, None, "weights", None)
    settings = plan_settings({**settings, "augment": None}, None)
    return make_plan(graph, "train", batch, feed, filter_lanes=filter_lanes, **settings)


def check_memory(plan: Plan, device: Device) -> None:
    """OutOfMemoryError unless the plan fits into the memory that is free, with its batches."""
    data = BATCHES * plan.batch * 4 * math.prod(plan.graph.input_shape)
    needed = plan.memory + sum(plan.arena_bytes.values()) + device.workspace(plan.calls) + data
    free = device.available_memory()
    if needed > free:
        raise OutOfMemoryError(
            f"a step with batch size {plan.batch:,} needs {human_bytes(needed)} of memory and {human_bytes(free)} are "
            "free; use a smaller --batch-size"
        )

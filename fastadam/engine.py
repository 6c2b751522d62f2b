"""Programs of one graph on one device: planned once for each size of batch, sharing one block of memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastadam.arena import Arena, allocate
from fastadam.device import CpuDevice
from fastadam.errors import OutOfMemoryError
from fastadam.graph import Graph
from fastadam.plan import Plan
from fastadam.program import Program

MOST_PROGRAMS = 16
"""Kept at a time; a run has six, predictions of ever new sizes must not pile up."""


@dataclass(frozen=True, eq=False)
class Feed:
    """Images and labels a program reads: a resident uint8 data set, or room for one float32 batch.

    images   (T, C, H, W) uint8, or (N, C, H, W) float32, already normalised
    labels   (T,) int32
    """

    images: np.ndarray
    labels: np.ndarray

    @property
    def source(self) -> str:
        """What a plan calls such images."""
        return str(self.images.dtype)


class Engine:
    """Makes, keeps and hands out programs; they run one at a time, so they share the largest one's memory."""

    def __init__(self, graph: Graph, device: CpuDevice, arenas: Mapping[str, Arena], mean: Any, std: Any):
        self.graph, self.device, self.arenas = graph, device, dict(arenas)
        self.mean = mean
        self._constants = {
            "data.mean": device.to_device(np.asarray(mean, np.float32)),
            "data.rstd": device.to_device(1 / np.asarray(std, np.float32)),
        }
        self._block = allocate(0, np.uint8, device.empty)
        self._programs: dict[Any, Program] = {}

    def plan(self, mode: str, batch: int, feed: Feed, **settings: Any) -> Plan:
        """The plan that ``program`` binds."""
        count = len(feed.images) if feed.source == "uint8" else batch
        return Plan(self.graph, batch, mode, source=feed.source, image_count=count, **settings)

    def program(self, mode: str, batch: int, feed: Feed, **settings: Any) -> Program:
        """The program of a mode, a batch size and a feed, made at its first use."""
        key = (mode, batch, feed, *sorted(settings.items()))
        if key not in self._programs:
            plan = self.plan(mode, batch, feed, **settings)
            self.reserve(plan.memory)
            self.device.reserve(plan.calls)
            if len(self._programs) >= MOST_PROGRAMS:
                del self._programs[next(iter(self._programs))]
            inputs = {"images": feed.images, "labels": feed.labels, **self._constants}
            self._programs[key] = Program(plan, self.device.ops, self.arenas, memory=self._block, inputs=inputs)
        return self._programs[key]

    def reserve(self, memory: int) -> None:
        """Have a block of so many bytes; programs bound to a smaller one are made again when they are wanted."""
        if memory <= self._block.nbytes:
            return
        try:
            self._programs.clear()
            self._block = allocate(0, np.uint8, self.device.empty)
            self._block = allocate(memory, np.uint8, self.device.empty)
        except MemoryError as error:
            raise OutOfMemoryError(
                f"{memory:,} bytes of {self.device.name} memory were asked for and refused; use a smaller --batch-size"
            ) from error

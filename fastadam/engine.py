"""Programs of one graph on one device: planned once for each size of batch, sharing one block of memory."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastadam.arena import Arena, allocate
from fastadam.device import Device
from fastadam.errors import OutOfMemoryError
from fastadam.graph import Graph
from fastadam.plan import Plan
from fastadam.program import Program

MOST_PROGRAMS = 16
"""Kept at a time, and as many rooms; a run has eleven at most, but batches of ever new sizes must not pile up."""


@dataclass(frozen=True, eq=False)
class Feed:
    """Images and labels a program reads: a uint8 data set, resident on the device, or room for one batch.

    images   (T, C, H, W) uint8, or (N, C, H, W) float32, already normalised
    labels   (T,) int32
    """

    images: Any
    labels: Any

    @property
    def source(self) -> str:
        """What a plan calls such images."""
        return str(self.images.dtype)


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy and accuracy (a fraction) over some images."""

    loss: float
    accuracy: float


def make_plan(graph: Graph, mode: str, batch: int, feed: Feed, **settings: Any) -> Plan:
    """The plan of a batch of ``feed``; ``settings`` are those of ``Plan``."""
    count = len(feed.images) if feed.source == "uint8" else batch
    return Plan(graph, batch, mode, source=feed.source, image_count=count, **settings)


class Engine:
    """Makes, keeps and runs programs. They run one at a time, so they share the largest one's memory.

    arenas   by the names plans have for them; an "AVERAGE" of parameters has its running statistics in "AVERAGE.STATE"
    """

    def __init__(self, graph: Graph, device: Device, arenas: Mapping[str, Arena], mean: np.ndarray, std: np.ndarray):
        self.graph, self.device, self.arenas = graph, device, dict(arenas)
        self._normalization = _bytes(mean), _bytes(std)
        self._constants = {
            "data.mean": device.to_device(np.asarray(mean, np.float32)),
            "data.rstd": device.to_device(1 / np.asarray(std, np.float32)),
        }
        with device.running():
            self._block = allocate(0, np.uint8, device.empty)
        self._programs: dict[Any, Program] = {}
        self._rooms: dict[Any, Feed] = {}
        self._residents: dict[Feed, Feed] = {}

    def normalizes_by(self, mean: np.ndarray, std: np.ndarray) -> bool:
        """Whether it was made with these numbers."""
        return self._normalization == (_bytes(mean), _bytes(std))

    def room(self, images: np.ndarray, labels: np.ndarray | None = None) -> Feed:
        """A feed that holds a copy of one batch, in memory that is used again for the next of this shape."""
        key = images.shape, images.dtype
        if key not in self._rooms:
            _make_place(self._rooms)
            empty = self.device.empty
            with self._room_for(f"a batch of {len(images):,}", "a smaller batch size"):
                self._rooms[key] = Feed(empty(images.shape, images.dtype), empty((len(images),), np.int32))
        feed = self._rooms[key] = self._rooms.pop(key)
        self.device.write(feed.images, images)
        self.device.write(feed.labels, 0 if labels is None else labels)
        return feed

    def run(
        self, mode: str, feed: Feed, index: np.ndarray, *, key: tuple[int, int] = (0, 0), momentum: float = 0.0,
        total: int | None = None, hyper: np.ndarray | None = None, share: float = 0.0, averaged: bool = False,
        **settings: Any,
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """Run the program of a mode on the images ``index`` of a feed; returns copies of its outputs.

        key        seed and epoch, which decide augmentation and dropout
        momentum   of the running statistics; 0 leaves them as they are
        total      images of the whole step, the loss being divided by them; those of ``index`` if None
        hyper      the numbers of an update by group of parameters, for plans that have one
        share      of the new parameters in their average, for plans that follow them
        averaged   whether to compute with the averaged parameters and their own running statistics
        The loss is the mean over the batch, or its part of that over the whole step. One program runs at a
        time, whatever Python thread asks.
        """
        inputs = {"index": index, "step": (1 / (total or len(index)), momentum), "key": key, "share": share}
        if hyper is not None:
            inputs["h"] = hyper
        with self.device.running():
            program = self._program(mode, len(index), feed, averaged, settings)
            for arena in self.arenas.values():
                arena.on(self.device)
            for name in inputs.keys() & program.inputs.keys():
                program.inputs[name][...] = inputs[name]
            with contextlib.nullcontext() if program.has_run else self.device.first_run(program.plan.calls):
                program.run()
            return {name: self._read(array) for name, array in program.outputs.items()}

    def _read(self, array: Any) -> np.ndarray:
        out = np.empty(array.shape, array.dtype)
        self.device.read(array, out)
        return out

    def evaluate(
        self, feed: Feed, index: np.ndarray, batch_size: int, between: Callable[[], None] = lambda: None,
        averaged: bool = False,
    ) -> Evaluation:  # fmt: skip
        """Loss and accuracy over the images ``index`` of a feed; ``between`` is called before each batch."""
        loss = right = 0.0
        for start in range(0, len(index), batch_size):
            between()
            part = index[start : start + batch_size]
            batch_loss, batch_right = self.run("infer", feed, part, averaged=averaged)["loss"]
            loss, right = loss + float(batch_loss) * len(part), right + float(batch_right)
        return Evaluation(loss / len(index), right / len(index))

    def restate(
        self, feed: Feed, index: np.ndarray, batch_size: int, between: Callable[[], None] = lambda: None
    ) -> None:
        """Give the averaged parameters running statistics of their own, those over the images ``index`` of a feed.

        They become means over the batches of what a batch norm in training mode finds in each, a smaller one
        counting less; images are not augmented. Izmailov et al. 2018, section 3.2, who average weights too.
        """
        if not self.graph.state():
            return
        self.arenas["AVERAGE.STATE"].flat[:] = 0  # so that the same comes out whatever was there
        seen = 0
        for start in range(0, len(index), batch_size):
            between()
            part = index[start : start + batch_size]
            seen += len(part)
            self.run("stats", feed, part, momentum=len(part) / seen, averaged=True)

    def _program(self, mode: str, batch: int, feed: Feed, averaged: bool, settings: Mapping[str, Any]) -> Program:
        key = (mode, batch, feed, averaged, *sorted(settings.items()))
        if key not in self._programs:
            plan = make_plan(self.graph, mode, batch, feed, filter_lanes=self.device.filter_lanes, **settings)
            self.reserve(plan.memory)
            _make_place(self._programs)
            with self._room_for(f"a batch of {batch:,}", "a smaller batch size"):
                self.device.reserve(plan.calls)
                resident = self._resident(feed)
            inputs = {"images": resident.images, "labels": resident.labels, **self._constants}
            device = self.device
            with self._room_for("parameters and settings", "a smaller net"):
                arenas = {name: arena.on(device) for name, arena in self.arenas.items()}
                if averaged:
                    arenas |= {"PARAM": arenas["AVERAGE"], "STATE": arenas["AVERAGE.STATE"]}
                self._programs[key] = Program(
                    plan, device.ops, arenas, device.empty, device.write, memory=self._block, inputs=inputs
                )
        program = self._programs[key] = self._programs.pop(key)
        return program

    def _resident(self, feed: Feed) -> Feed:
        """The feed in the device's memory."""
        if self.device.is_host or not isinstance(feed.images, np.ndarray):
            return feed
        if feed not in self._residents:
            _make_place(self._residents)
            with self._room_for(f"a data set of {feed.images.nbytes:,} bytes", "a smaller one"):
                to_device = self.device.to_device
                self._residents[feed] = Feed(to_device(feed.images), to_device(feed.labels))
        resident = self._residents[feed] = self._residents.pop(feed)
        return resident

    @contextlib.contextmanager
    def _room_for(self, what: str, cure: str) -> Iterator[None]:
        """OutOfMemoryError, one line, where the device has no memory for it."""
        try:
            yield
        except MemoryError as error:
            raise OutOfMemoryError(f"{self.device.name} has no memory left for {what}; use {cure}") from error

    def reserve(self, memory: int) -> None:
        """Have a block of so many bytes; programs bound to a smaller one are made again when they are wanted."""
        if memory <= self._block.nbytes:
            return
        self._programs.clear()
        with self._room_for(f"{memory:,} bytes of activations", "a smaller batch size"), self.device.running():
            self._block = allocate(0, np.uint8, self.device.empty)
            self._block = allocate(memory, np.uint8, self.device.empty)


def _make_place(kept: dict[Any, Any]) -> None:
    """Drop the entry that was used longest ago, if there are many; a hit moves an entry to the end."""
    if len(kept) >= MOST_PROGRAMS:
        del kept[next(iter(kept))]


def _bytes(numbers: np.ndarray) -> bytes:
    return np.asarray(numbers, np.float32).tobytes()

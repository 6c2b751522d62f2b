"""Flat arenas of named views, and the two layouts of a parameter."""

import weakref

import numpy as np
import pytest
from graphs import MODELS, chain
from hypothesis import given
from hypothesis import strategies as st

from fastadam.arena import Arena, Segment, allocate, group_runs, segment_table
from fastadam.graph import Param
from fastadam.layout import public_shape, to_kernel, to_public

SHAPES = st.lists(st.lists(st.integers(0, 7), max_size=4).map(tuple), max_size=8).map(
    lambda shapes: {f"p{i}": shape for i, shape in enumerate(shapes)}
)


def test_segment_table():
    shapes = {"w": (3, 5), "b": (16,), "s": (), "v": (17,)}
    segments, count = segment_table(shapes)
    assert segments == (Segment(0, 15, "w"), Segment(16, 32, "b"), Segment(32, 33, "s"), Segment(48, 65, "v"))
    assert count == 80


def test_group_runs():
    """Neighbours of one group are one run, and every gap belongs to the run before it."""
    shapes = {"w": (3, 5), "b": (16,), "c": (), "v": (17,)}
    assert group_runs(shapes, lambda name: int(name in "bc")) == ((0, 16, 0), (16, 48, 1), (48, 80, 0))
    assert group_runs(shapes, lambda name: 1) == ((0, 80, 1),)
    assert group_runs({}, lambda name: 0) == ()


@given(SHAPES)
def test_runs_tile_the_arena(shapes):
    runs = group_runs(shapes, lambda name: int(name[1:]) // 2)
    ends = [0, *(end for _, end, _ in runs)]
    assert [start for start, _, _ in runs] == ends[:-1]
    assert ends[-1] == segment_table(shapes)[1]
    for start, end, name in segment_table(shapes)[0]:
        assert start == end or [group for a, b, group in runs if a <= start < b] == [int(name[1:]) // 2]


@given(SHAPES)
def test_views_tile_the_flat_array(shapes):
    """Each view is its segment of the flat array, starts on 64 bytes, and touches no other."""
    arena = Arena(shapes)
    assert arena.flat.dtype == np.float32
    assert not arena.flat.any()
    for i, (name, view) in enumerate(arena.views.items(), start=1):
        assert view.shape == shapes[name]
        assert not view.size or view.ctypes.data % 64 == 0
        view[...] = i
    covered = 0
    for i, (start, end, name) in enumerate(arena.segments, start=1):
        assert name == f"p{i - 1}"
        assert (arena.flat[start:end] == i).all()
        covered += end - start
    assert np.count_nonzero(arena.flat) == covered  # the gaps stayed zero


def test_load():
    arena = Arena({"w": (2, 3), "s": ()})
    arena.load({"w": np.arange(6.0).reshape(2, 3), "s": np.array(7.0)})
    assert arena.flat[:6].tolist() == [0, 1, 2, 3, 4, 5]
    assert arena.views["s"] == 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"w": np.zeros((2, 3))}, r"missing \['s'\]"),
        ({"w": np.zeros((2, 3)), "s": np.zeros(()), "t": np.zeros(1)}, r"unknown \['t'\]"),
        ({"w": np.zeros((3, 2)), "s": np.zeros(())}, r"w: expected shape \(2, 3\), found \(3, 2\)"),
    ],
)
def test_load_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        Arena({"w": (2, 3), "s": ()}).load(values)


def test_memory_comes_from_the_given_allocator():
    taken = []

    def empty(shape, dtype):
        taken.append(shape)
        return np.full(shape, 0xFF, dtype)

    assert not Arena({"w": (5,)}, empty).flat.any()  # zeroed, whatever the allocator left
    assert len(taken) == 1


@given(st.integers(1, 100), st.sampled_from([np.uint8, np.float32, np.float64, np.int64]), st.integers(0, 63))
def test_allocate_aligns_whatever_it_is_given(count, dtype, offset):
    def empty(shape, kind):
        return np.empty(shape[0] + 64, kind)[offset:][: shape[0]]

    array = allocate(count, dtype, empty)
    assert array.ctypes.data % 64 == 0
    assert array.shape == (count,)
    assert array.dtype == dtype


def test_public_convolution():
    """w (KH, KW, C, OC) is (OC, C, KH, KW) outside."""
    param = Param("c.weight", (2, 3, 4, 5), "conv")
    w = np.arange(120.0).reshape(param.shape)
    public = to_public(param, w)
    assert public.shape == public_shape(param) == (5, 4, 2, 3)
    assert public[4, 3, 1, 2] == w[1, 2, 3, 4]
    assert public[1, 2, 0, 1] == w[0, 1, 2, 1]


def test_public_linear_columns_are_channel_first():
    """The image a layer flattens is H, W, C inside and C, H, W outside."""
    param = Param("fc.weight", (2, 3 * 4 * 5), "linear", (3, 4, 5))
    image = np.arange(60.0).reshape(3, 4, 5)
    w = np.stack([image.reshape(-1), -image.reshape(-1)])
    public = to_public(param, w)
    assert (public[0] == image.transpose(2, 0, 1).reshape(-1)).all()
    assert (public[1] == -public[0]).all()


@pytest.mark.parametrize("name", MODELS)
def test_layouts_are_each_others_inverse(name):
    rng = np.random.default_rng(0)
    for param in MODELS[name]().params:
        public = rng.standard_normal(public_shape(param)).astype(np.float32)
        inside = to_kernel(param, public)
        assert inside.shape == param.shape
        assert inside.flags.c_contiguous
        back = to_public(param, inside)
        assert back.flags.c_contiguous
        assert back.dtype == np.float32
        assert (back == public).all()


def test_layouts_are_copies():
    for param in chain(("c", "conv", {"kernel": 1, "pad": 0, "out": 1})).params:
        w = np.ones(param.shape)
        to_public(param, w)[...] = 0
        public = np.ones(public_shape(param))
        to_kernel(param, public)[...] = 0
        assert w.all()
        assert public.all()


def test_layouts_refuse_a_wrong_shape():
    param = Param("c.weight", (2, 3, 4, 5), "conv")
    with pytest.raises(ValueError, match=r"c.weight: expected shape \(5, 4, 2, 3\), found \(2, 3, 4, 5\)"):
        to_kernel(param, np.zeros((2, 3, 4, 5)))
    with pytest.raises(ValueError, match=r"c.weight: expected shape \(2, 3, 4, 5\), found \(5,\)"):
        to_public(param, np.zeros(5))


class Elsewhere:
    """A device with memory of its own, which counts what is copied to it and back."""

    is_host = False

    def __init__(self, name):
        self.name, self.sent, self.fetched = name, 0, 0

    def empty(self, shape, dtype=np.float32):
        return np.full(shape, 0xFF, np.uint8).view(dtype)

    def write(self, array, value):
        self.sent += 1
        array[...] = value

    def read(self, array, out):
        self.fetched += 1
        out[...] = array


def test_numbers_are_where_they_were_asked_for_last():
    arena, gpu, other = Arena({"w": (2, 3), "b": (3,)}), Elsewhere("gpu"), Elsewhere("other")
    arena.views["b"][:] = 1
    placed = arena.on(gpu)
    assert placed.views["b"].tolist() == [1, 1, 1]
    assert placed.views["w"].shape == (2, 3)
    placed.views["b"][:] = 2
    assert arena.on(gpu) is placed
    assert (gpu.sent, gpu.fetched) == (1, 0)  # nothing moves while nobody else asks
    assert arena.on(other).views["b"].tolist() == [2, 2, 2]
    arena.on(other).views["b"][:] = 3
    assert arena.views["b"].tolist() == [3, 3, 3]
    assert arena.on(gpu).views["b"].tolist() == [3, 3, 3]
    placed.views["w"][:] = 5
    arena.load({"w": np.zeros((2, 3)), "b": np.full(3, 4)})
    assert arena.on(gpu).views["b"].tolist() == [4, 4, 4]
    assert arena.on(gpu).flat.sum() == 12


def test_memory_of_a_device_goes_with_the_arena():
    arena = Arena({"w": (2, 3)})
    gone = weakref.ref(arena.on(Elsewhere("gpu")).flat)
    assert gone() is not None
    del arena
    assert gone() is None


def test_the_host_itself_is_no_copy():
    arena, host = Arena({"w": (4,)}), Elsewhere("cpu")
    host.is_host = True
    arena.on(host).views["w"][:] = 7
    assert arena.flat[:4].tolist() == [7, 7, 7, 7]
    assert (host.sent, host.fetched) == (0, 0)

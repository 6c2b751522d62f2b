"""Tiles of lanes: how sums by lane of samples are gathered by blocks of threads.

A lane's rows (pixels) are cut into tiles of a fixed number of rows, the last one shorter; a block has one tile, and
so no tile spans two lanes. Each tile leaves its sums, and where a lane has several a second launch adds them in their
order: no atomics, the same bits in every run.
"""

from numba import cuda, float32, uint32

from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.launch import Launch, blocks_of
from fastadam.kernels.cuda.ptx import ZERO, ZERO4, add_each, load4, store4

THREADS = 128

COLUMNS, SLOTS = 8, 32
"""Numbers that a block of ``add_many_tiles`` adds up, 32 bytes of memory, and threads for each."""

MANY_THREADS = COLUMNS * SLOTS

MANY = 16
"""Tiles from which on several threads add them up."""

QUADS, QUAD_SLOTS = 32, 8
"""Four numbers each that a block of ``add_tile_quads`` adds up, and threads for each."""

QUAD_THREADS = QUADS * QUAD_SLOTS
QUAD_NUMBERS = 4 * QUAD_THREADS

LARGE = 1 << 15
"""Numbers from which on there are enough of fours."""


@device
def lane_start(lane, lanes, samples, pixels):
    """First row of a lane; ``lane`` up to ``lanes``. The product of lanes and samples has 32 bits."""
    return uint32(uint32(uint32(lane * samples) // lanes) * pixels)


def lanes_of_their_own(samples):
    """Lanes where nobody reads any: one a sample; of 65,536 and more, as many as ``lane_start`` can tell apart."""
    return min(samples, ((1 << 32) - 1) // samples)


@device
def tile_place(block, tiles, lanes, samples, pixels, rows):
    """First row of a block's tile and how many it has: ``rows``, fewer or none; blocks are in the order of tiles."""
    lane = uint32(block // tiles)
    at = uint32(lane_start(lane, lanes, samples, pixels) + uint32(block % tiles) * rows)
    end = lane_start(uint32(lane + uint32(1)), lanes, samples, pixels)
    left = uint32(end - at) if at < end else uint32(0)
    return at, (rows if left > rows else left)


def tiles_of(lanes, samples, pixels, rows):
    """Tiles of ``rows`` rows that the largest lane has."""
    return -(-(-(-samples // lanes) * pixels) // rows)


@kernel(THREADS)
def add_tiles(out, part, tiles, size, count):
    """out[l, i] = part[l, 0, i] + part[l, 1, i] + ...; ``size`` numbers a tile, ``count`` in all of out."""
    i = uint32(cuda.grid(1))
    if i < count:
        at = uint32(uint32(i // size) * uint32(tiles * size) + i % size)
        total = ZERO
        for _ in range(tiles):
            total += part[at]
            at = uint32(at + size)
        out[i] = total


@kernel(MANY_THREADS)
def add_many_tiles(out, part, tiles, size, count):
    """As ``add_tiles``: 32 threads share out the tiles of a number, for one would wait for memory too often."""
    shared = cuda.shared.array(MANY_THREADS, float32)
    t = uint32(cuda.threadIdx.x)
    slot = uint32(t // uint32(COLUMNS))
    i = uint32(uint32(cuda.blockIdx.x * COLUMNS) + t % uint32(COLUMNS))
    total = ZERO
    if i < count:
        at = uint32(uint32(i // size) * uint32(tiles * size) + uint32(i % size) + slot * size)
        while slot < tiles:
            total += part[at]
            at = uint32(at + uint32(SLOTS) * size)
            slot = uint32(slot + uint32(SLOTS))
    shared[t] = total
    cuda.syncthreads()
    if t < uint32(COLUMNS) and i < count:
        total = ZERO
        for _ in range(SLOTS):
            total += shared[t]
            t = uint32(t + uint32(COLUMNS))
        out[i] = total


@kernel(QUAD_THREADS)
def add_tile_quads(out, part, tiles, size, count):
    """As ``add_tiles``, four numbers a thread, and eight threads share out the tiles: memory is kept busy."""
    shared = cuda.shared.array(QUAD_NUMBERS, float32, alignment=16)
    t = uint32(cuda.threadIdx.x)
    slot = uint32(t // uint32(QUADS))
    i = uint32(uint32(cuda.blockIdx.x * QUADS + t % uint32(QUADS)) * uint32(4))
    total = ZERO4
    if i < count:
        at = uint32(uint32(i // size) * uint32(tiles * size) + uint32(i % size) + slot * size)
        while slot < tiles:
            total = add_each(total, load4(part, at))
            at = uint32(at + uint32(QUAD_SLOTS) * size)
            slot = uint32(slot + uint32(QUAD_SLOTS))
    store4(shared, uint32(t * uint32(4)), total)
    cuda.syncthreads()
    if t < uint32(QUADS) and i < count:
        at = uint32(t * uint32(4))
        for _ in range(QUAD_SLOTS - 1):
            at = uint32(at + uint32(4 * QUADS))
            total = add_each(total, load4(shared, at))
        store4(out, i, total)


@kernel(THREADS)
def join_moments(out, part, lanes, tiles, samples, pixels, rows, channels):
    """(L, T, 3, C) of tiles to (L, 3, C) of lanes, about the pivot of the first tile.

    A tile has moments about a pivot p of its own: with d = p - k, its sum about k is s + n d and its sum of squares
    q + (2 s + n d) d. All d are small where p and k are rows of one channel.
    """
    i = uint32(cuda.grid(1))
    lane, c = uint32(i // channels), uint32(i % channels)
    if lane < lanes:
        left = uint32(
            lane_start(uint32(lane + uint32(1)), lanes, samples, pixels) - lane_start(lane, lanes, samples, pixels)
        )
        at = uint32(uint32(lane * tiles * uint32(3)) * channels + c)
        pivot = part[at]
        first = second = ZERO
        for _ in range(tiles):
            n = rows if left > rows else left
            if n > uint32(0):
                s = part[uint32(at + channels)]
                d = part[at] - pivot
                nd = float32(n) * d
                first += s + nd
                second += part[uint32(at + uint32(2) * channels)] + (s + s + nd) * d
            left = uint32(left - n)
            at = uint32(at + uint32(3) * channels)
        to = uint32(uint32(lane * uint32(3)) * channels + c)
        out[to] = pivot
        out[uint32(to + channels)] = first
        out[uint32(to + uint32(2) * channels)] = second


def add_launch(out, part, lanes, tiles, size):
    """The launch that adds tiles up."""
    count = lanes * size
    if count >= LARGE and size % 4 == 0:
        kernel, each = add_tile_quads, 4 * QUADS
    else:
        kernel, each = (add_tiles, THREADS) if tiles < MANY else (add_many_tiles, COLUMNS)
    return Launch(kernel, blocks_of(count, each), (out, part, tiles, size, count))


def join_launch(moments, part, lanes, tiles, samples, pixels, rows, channels):
    """The launch that joins tiles' moments."""
    grid = blocks_of(lanes * channels, THREADS)
    return Launch(join_moments, grid, (moments, part, lanes, tiles, samples, pixels, rows, channels))

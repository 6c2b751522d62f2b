"""Rows of channels: what the ops share that touch each number once, and may sum it by channel.

A block has a tile of a lane's rows (see ``lanes.py``) and up to 64 channels: ``1 << quads`` threads stand side by
side, four channels each, and below them others that take the next rows. So neighbouring threads read neighbouring
16 bytes. Where channels are no multiple of 4 a thread reads its numbers one by one.
"""

from numba import cuda, uint32

from fastadam.kernels.cuda.jit import device
from fastadam.kernels.cuda.lanes import add_launch, tile_place, tiles_of
from fastadam.kernels.cuda.launch import Scratch, blocks_of
from fastadam.kernels.cuda.pending import cut4
from fastadam.kernels.cuda.ptx import ZERO, ZERO4, load4, store4

THREADS = 256
SUMS = 4 * THREADS
"""Floats of shared memory that ``block_sum`` takes."""

ROWS = 128
"""Rows of a tile."""

ONE, TWO, THREE, FOUR = uint32(1), uint32(2), uint32(3), uint32(4)


# Four channels ----------------------------------------------------------------------------------------------


@device
def take4(a, i, c, C):
    """a[i : i + 4], channels c .. c + 3 of C; zeros beyond the last. C % 4 == 0: one access."""
    if C & THREE == uint32(0):
        return load4(a, i)
    v1 = a[uint32(i + ONE)] if uint32(c + ONE) < C else ZERO
    v2 = a[uint32(i + TWO)] if uint32(c + TWO) < C else ZERO
    v3 = a[uint32(i + THREE)] if uint32(c + THREE) < C else ZERO
    return a[i], v1, v2, v3


@device
def give4(a, i, c, C, v):
    """a[i : i + 4] = v, channels c .. c + 3 of C, what there is of them."""
    if C & THREE == uint32(0):
        store4(a, i, v)
    else:
        a[i] = v[0]
        if uint32(c + ONE) < C:
            a[uint32(i + ONE)] = v[1]
        if uint32(c + TWO) < C:
            a[uint32(i + TWO)] = v[2]
        if uint32(c + THREE) < C:
            a[uint32(i + THREE)] = v[3]


@device
def scaled4(v, s, t):
    """v * s + t."""
    return v[0] * s[0] + t[0], v[1] * s[1] + t[1], v[2] * s[2] + t[2], v[3] * s[3] + t[3]


@device
def plus4(v, w):
    """v + w."""
    return v[0] + w[0], v[1] + w[1], v[2] + w[2], v[3] + w[3]


@device
def times4(v, factor):
    """v * factor."""
    return v[0] * factor, v[1] * factor, v[2] * factor, v[3] * factor


@device
def affine_of(scale, shift, c, C, act):
    """(scale, shift) of channels c .. c + 3: a thread keeps them over its rows, which would load them each time."""
    s = t = ZERO4
    if act & ONE:
        s, t = take4(scale, c, c, C), take4(shift, c, c, C)
    return s, t


@device
def pending4(a, i, c, C, affine, act):
    """P(a) at i, channels c .. c + 3, ``affine`` being theirs."""
    v = take4(a, i, c, C)
    if act & ONE:
        v = scaled4(v, affine[0], affine[1])
    if act & TWO:
        v = cut4(v, v)
    return v


@device
def finish_row4(dx, d, x, affine, base, i, c, C, act, has_base):
    """The tail of a backward at i, channels c .. c + 3: writes dx there and returns it."""
    v = ZERO4
    if act & TWO:
        v = take4(x, i, c, C)
        if act & ONE:
            v = scaled4(v, affine[0], affine[1])
    return finish_seen4(dx, d, v, base, i, c, C, act, has_base)


@device
def finish_seen4(dx, d, v, base, i, c, C, act, has_base):
    """The same where the ReLU's argument, or its value, is at hand: v."""
    b = take4(base, i, c, C) if has_base else ZERO4
    if act & FOUR:
        d = plus4(d, b)
    if act & TWO:
        d = cut4(d, v)
    if not act & FOUR:
        d = plus4(d, b)
    give4(dx, i, c, C, d)
    return d


@device
def add_products(q, d, of, middle, i, c, C):
    """q + d * (of - middle), ``middle`` being the centre of these channels."""
    o = take4(of, i, c, C)
    return (
        q[0] + d[0] * (o[0] - middle[0]), q[1] + d[1] * (o[1] - middle[1]),
        q[2] + d[2] * (o[2] - middle[2]), q[3] + d[3] * (o[3] - middle[3]),
    )  # fmt: skip


# Blocks -----------------------------------------------------------------------------------------------------


@device
def row_place(quads, tiles, lanes, samples, pixels):
    """(first row of the thread, rows left from there on, its first channel)."""
    t = uint32(cuda.threadIdx.x)
    first, rows = tile_place(uint32(cuda.blockIdx.x), tiles, lanes, samples, pixels, uint32(ROWS))
    slot = uint32(t >> quads)
    c = uint32((uint32(cuda.blockIdx.y << quads) + (t & uint32((ONE << quads) - ONE))) * FOUR)
    return uint32(first + slot), (uint32(rows - slot) if slot < rows else uint32(0)), c


@device
def block_sum(shared, s, quads):
    """The block's sum of ``s``, by channel and in the order of rows, in the first threads, a row of them.

    shared   ``SUMS`` floats
    """
    t = uint32(cuda.threadIdx.x)
    store4(shared, uint32(t * FOUR), s)
    cuda.syncthreads()
    if t < uint32(ONE << quads):
        s = ZERO4
        i, step = uint32(t * FOUR), uint32(FOUR << quads)
        for _ in range(uint32(uint32(THREADS) >> quads)):
            s = plus4(s, load4(shared, i))
            i = uint32(i + step)
    return s


@device
def put_sums(part, first, second, s, q, quads, c, C):
    """part[block, 0 and 1, C] from each thread's sums of its channels; first, second as ``block_sum`` needs them."""
    s, q = block_sum(first, s, quads), block_sum(second, q, quads)
    if uint32(cuda.threadIdx.x) < uint32(ONE << quads) and c < C:
        to = uint32(uint32(cuda.blockIdx.x) * TWO * C + c)
        give4(part, to, c, C, s)
        give4(part, uint32(to + C), c, C, q)


def width_of(channels):
    """log2 of the threads that stand side by side for so many channels: 16 at the most."""
    return min(4, (blocks_of(channels, 4) - 1).bit_length())


class Tiling:
    """The grid of an op over the rows of dx (N, ..., C) with lane sums (L, 2, C), if they are there.

    grid       blocks of tiles, and of channels
    part       where the sums of a tile go: ``sums`` itself where a lane has one tile
    scalars    quads, tiles, lanes, samples, pixels, channels: for ``row_place`` and ``put_sums``
    """

    def __init__(self, shape, sums, pixels):
        samples, *_, channels = shape
        has_sums = sums.size > 0
        lanes, quads = sums.shape[0] if has_sums else 1, width_of(channels)
        tiles = tiles_of(lanes, samples, pixels, ROWS)
        self.grid = lanes * tiles, blocks_of(channels, 4 << quads)
        self.scalars = quads, tiles, lanes, samples, pixels, channels
        self.part = Scratch(lanes * tiles * 2 * channels) if has_sums and tiles > 1 else sums
        self._join = (sums, self.part, lanes, tiles, 2 * channels) if self.part is not sums else None

    def joined(self):
        """The launch that adds up the tiles of lanes, if there is something to add."""
        if self._join is not None:
            yield add_launch(*self._join)


def pixels_of(x):
    """Pixels of a sample of x (N, ..., C)."""
    samples, *_, channels = x.shape
    return x.size // (samples * channels)

"""Convolution of images: 3 x 3, stride 1, padding 1, three channels. So few that a general product would pay for more.

    forward   y (pixels, OC) = windows of P(x) (pixels, 27) @ w (27, OC)
    dw        dw[lane] (27, OC) = windows of P(x) (pixels, 27)' @ d (pixels, OC), over the lane's pixels

A block's rows of the image lie in shared memory with what surrounds them, a strip, and a window is read from there as
three runs of nine numbers, which the next pixel's share: the matrix of windows exists nowhere. Forward the filters lie
beside the strip. For dw each number of d has one reader, and comes from memory straight into a register.

``choose.is_of_images`` says which shapes this is for: tiles of TILE pixels are rows, an even number, of one image.
"""

from numba import cuda, float32, uint32

from fastadam.kernels.cuda import choose
from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.lanes import add_launch, join_launch, lane_start, tile_place, tiles_of
from fastadam.kernels.cuda.launch import Launch, Scratch, blocks_of
from fastadam.kernels.cuda.pending import activated
from fastadam.kernels.cuda.ptx import ZERO, ZERO4, ZERO64, add_each, load4, load4_at, load_at, outer_add, store4
from fastadam.kernels.cuda.tiles import put_tile, put_tile_moments, thread_place

TAPS = 27

TILE, COLUMNS = choose.IMAGE_TILE, 64
"""Pixels and channels of a block forward; as many channels of dw."""

ROWS, THREADS = 8, 128
"""Rows of an image of a block for dw, half a warp each."""

STRIP, STRIP_ROWS = 1024, (ROWS + 2) * (3 * choose.IMAGE_TILE // 2 + 8)
"""Numbers of a strip: of a tile, with room for its sums, and of the longest ROWS rows."""

FILTERS, SUMS = TAPS * COLUMNS, ROWS // 2 * TAPS * COLUMNS

NOUGHT, ONE, TWO, THREE, FOUR, FIVE, EIGHT = map(uint32, (0, 1, 2, 3, 4, 5, 8))
LANES = uint32(31)

ZERO36 = (ZERO,) * 36


@device
def _strip(s, x, scale, shift, act, n, h, rows, warps, H, W):
    """Rows h - 1 .. h + rows of sample n, settled, into s, with zeros around the image.

    A row takes ``_pitch(W)`` numbers, the first pixel at the fourth: a warp copies a row, four numbers at a time.
    """
    t, fours = uint32(cuda.threadIdx.x), uint32(W * THREE >> TWO)
    row, thread = uint32(t >> FIVE), uint32(t & LANES)
    while row < uint32(rows + TWO):
        line, four, to = uint32(h + row - ONE), thread, uint32(row * _pitch(W) + thread * FOUR)
        first = uint32(uint32(n * H + line) * W * THREE - FOUR)
        while four < uint32(fours + TWO):
            v, k = ZERO4, uint32(four * FOUR)
            if line < H and uint32(four - ONE) < fours:
                v = load4(x, uint32(first + k))
                if act:
                    v0, v1 = _settled(v[0], scale, shift, k, 2, act), _settled(v[1], scale, shift, k, 0, act)
                    v = v0, v1, _settled(v[2], scale, shift, k, 1, act), _settled(v[3], scale, shift, k, 2, act)
            store4(s, to, v)
            four, to = uint32(four + uint32(32)), uint32(to + uint32(128))
        row = uint32(row + warps)


@device
def _settled(v, scale, shift, k, c, act):
    """A number of the strip at k, whose channel is ``(k + c) % 3``."""
    return activated(v, scale, shift, uint32(uint32(k + uint32(c)) % THREE), act)


@device
def _pitch(W):
    """Numbers of a row of a strip: three of zeros and one more before the pixels, four of zeros after them."""
    return uint32(W * THREE + EIGHT)


@device
def _windows4(s, i):
    """Twenty numbers of a strip's row: those of the windows of four pixels are the second to the last but one."""
    return load4_at(s, i, 0) + load4_at(s, i, 4) + load4_at(s, i, 8) + load4_at(s, i, 12) + load4_at(s, i, 16)


# Forward ----------------------------------------------------------------------------------------------------


@device
def _tap(acc, x, sw, i, at):
    """One number of each of eight windows times its row of the filters."""
    return outer_add(acc, x, load4_at(sw, i, at) + load4_at(sw, i, at + COLUMNS // 2))


@device
def _nine_taps(acc, sx, ix, ix2, sw, iw, at):
    """One row of eight windows times nine rows of the filters."""
    a, b = _windows4(sx, ix), _windows4(sx, ix2)
    acc = _tap(acc, a[1:11:3] + b[1:11:3], sw, iw, at)
    acc = _tap(acc, a[2:12:3] + b[2:12:3], sw, iw, at + COLUMNS)
    acc = _tap(acc, a[3:13:3] + b[3:13:3], sw, iw, at + 2 * COLUMNS)
    acc = _tap(acc, a[4:14:3] + b[4:14:3], sw, iw, at + 3 * COLUMNS)
    acc = _tap(acc, a[5:15:3] + b[5:15:3], sw, iw, at + 4 * COLUMNS)
    acc = _tap(acc, a[6:16:3] + b[6:16:3], sw, iw, at + 5 * COLUMNS)
    acc = _tap(acc, a[7:17:3] + b[7:17:3], sw, iw, at + 6 * COLUMNS)
    acc = _tap(acc, a[8:18:3] + b[8:18:3], sw, iw, at + 7 * COLUMNS)
    return _tap(acc, a[9:19:3] + b[9:19:3], sw, iw, at + 8 * COLUMNS)


@kernel(*choose.bounds(TILE, COLUMNS))
def images_forward(y, part, x, scale, shift, w, act, has_moments, lanes, tiles, half, N, H, W, OC):
    """A block computes TILE pixels and COLUMNS channels of y, laid out among threads as in ``tiles.py``.

    ``half``: rows of the image in half a tile.
    """
    sx = cuda.shared.array(STRIP, float32, alignment=16)
    sw = cuda.shared.array(FILTERS, float32, alignment=16)
    t, block, plane = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x), uint32(H * W)
    n0 = uint32(uint32(cuda.blockIdx.y) * uint32(COLUMNS))
    m0, rows = tile_place(block, tiles, lanes, N, plane, uint32(TILE))
    if rows > NOUGHT:
        pixel = uint32(m0 % plane)
        warps, pitch = uint32(TILE * COLUMNS // 64 // 32), _pitch(W)
        _strip(sx, x, scale, shift, act, uint32(m0 // plane), uint32(pixel // W), uint32(half + half), warps, H, W)
        n = uint32(n0 + (t & uint32(15)) * FOUR)
        to, at, there = uint32(t * FOUR), uint32(uint32(t >> FOUR) * OC + n), n < OC
        while to < uint32(FILTERS):
            v = ZERO4
            if there:
                v = load4(w, at)
            store4(sw, to, v)
            to, at = uint32(to + uint32(128) * warps), uint32(at + TWO * warps * OC)
        cuda.syncthreads()

        ty, tx = thread_place(t, ONE)
        ty = uint32(ty & uint32(TILE // 8 - 1))  # as it is: so no row is asked for whether the tile has it
        m, n = uint32(ty * FOUR), uint32(tx * FOUR)
        row = uint32(m * half >> uint32(6))  # m // W
        ix = uint32(row * pitch + uint32(m - row * W) * THREE)
        ix2 = uint32(ix + half * pitch)
        acc = _nine_taps(ZERO64, sx, ix, ix2, sw, n, 0)
        acc = _nine_taps(acc, sx, uint32(ix + pitch), uint32(ix2 + pitch), sw, n, 9 * COLUMNS)
        acc = _nine_taps(acc, sx, uint32(ix + pitch + pitch), uint32(ix2 + pitch + pitch), sw, n, 18 * COLUMNS)
        own = y[uint32(m0 * OC) :]
        put_tile(own, m, uint32(n0 + n), uint32(TILE // 2), uint32(COLUMNS // 2), uint32(TILE), OC, True, acc)
        if has_moments:
            at = uint32(block * THREE * OC)
            put_tile_moments(part, at, sx, sw, ty, tx, uint32(TILE), n0, OC, True, TILE, COLUMNS, acc)


def forward(y, moments, x, scale, shift, w, act):
    """Launches of ``conv2d_forward``."""
    N, H, W, OC = y.shape
    lanes = moments.shape[0] if moments.size else 1
    tiles = tiles_of(lanes, N, H * W, TILE)
    part = moments if tiles == 1 or not moments.size else Scratch(lanes * tiles * 3 * OC)
    arguments = y, part, x, scale, shift, w, act, moments.size > 0, lanes, tiles, TILE // 2 // W, N, H, W, OC
    yield Launch(images_forward, (lanes * tiles, blocks_of(OC, COLUMNS)), arguments)
    if part is not moments:
        yield join_launch(moments, part, lanes, tiles, N, H * W, TILE, OC)


# Gradient of the filters ------------------------------------------------------------------------------------


@device
def _gradient4(dz, raw, i, s, a, b, gact):
    """Four channels of a pixel's d, as it lies in memory: dz, and raw where the gradient is pending."""
    v = load4(dz, i)
    if gact:
        r = load4(raw, i)
        v = (
            s[0] * v[0] + (b[0] * r[0] + a[0]), s[1] * v[1] + (b[1] * r[1] + a[1]),
            s[2] * v[2] + (b[2] * r[2] + a[2]), s[3] * v[3] + (b[3] * r[3] + a[3]),
        )  # fmt: skip
    return v


@device
def _taps9(acc, s, i, d):
    """Nine taps by four channels: a row of the windows of four pixels times their d."""
    x = _windows4(s, i)
    acc = outer_add(acc, x[1:10], d[0:4])
    acc = outer_add(acc, x[4:13], d[4:8])
    acc = outer_add(acc, x[7:16], d[8:12])
    return outer_add(acc, x[10:19], d[12:16])


@device
def _give4(s, i, at, v, more):
    store4(s, uint32(i + uint32(at)), add_each(v, load4_at(s, i, at)) if more else v)


@device
def _give(s, i, v, more):
    """Nine taps by four channels into sums (TAPS, COLUMNS), with ``more`` onto what is there."""
    _give4(s, i, 0, v[0:4], more)
    _give4(s, i, COLUMNS, v[4:8], more)
    _give4(s, i, 2 * COLUMNS, v[8:12], more)
    _give4(s, i, 3 * COLUMNS, v[12:16], more)
    _give4(s, i, 4 * COLUMNS, v[16:20], more)
    _give4(s, i, 5 * COLUMNS, v[20:24], more)
    _give4(s, i, 6 * COLUMNS, v[24:28], more)
    _give4(s, i, 7 * COLUMNS, v[28:32], more)
    _give4(s, i, 8 * COLUMNS, v[32:36], more)


@kernel(THREADS, choose.IMAGE_BLOCKS)
def images_weights(dw, dz, raw, gscale, ga, gb, x, scale, shift, act, gact, lanes, shares, each, N, H, W, OC):
    """A block sums over ``each`` strips of ROWS rows, half a warp over a row of each: a thread has four channels.

    It keeps its 27 x 4 sums in registers, and loads the next pixels while it multiplies.
    """
    sx = cuda.shared.array(STRIP_ROWS, float32, alignment=16)
    sums = cuda.shared.array(SUMS, float32, alignment=16)
    t, z = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
    n0, pitch = uint32(uint32(cuda.blockIdx.y) * uint32(COLUMNS)), _pitch(W)
    line, column = uint32(t >> FOUR), uint32((t & uint32(15)) * FOUR)
    lane, share, strips = uint32(z // shares), uint32(z % shares), uint32(uint32(H + uint32(ROWS - 1)) // uint32(ROWS))
    # beyond the last channel a thread sums up for others' channels, and keeps it to itself
    c = min(uint32(n0 + column), uint32(OC - FOUR))
    s = a = b = ZERO4
    if gact:
        s, a, b = load4(gscale, c), load4(ga, c), load4(gb, c)
    strip, end = lane_start(lane, lanes, N, strips), lane_start(uint32(lane + ONE), lanes, N, strips)
    strip = uint32(strip + share * each)
    end = min(end, uint32(strip + each))
    top, middle, bottom = ZERO36, ZERO36, ZERO36
    while strip < end:
        n, h = uint32(strip // strips), uint32(uint32(strip % strips) * uint32(ROWS))
        cuda.syncthreads()
        _strip(sx, x, scale, shift, act, n, h, uint32(ROWS), uint32(THREADS // 32), H, W)
        cuda.syncthreads()
        h = uint32(h + line)
        if h < H:
            i = uint32(uint32(uint32(n * H + h) * W) * OC + c)
            k, stop = uint32(line * pitch), uint32(line * pitch + W * THREE)
            while k < stop:
                d = _gradient4(dz, raw, i, s, a, b, gact)
                d1 = _gradient4(dz, raw, uint32(i + OC), s, a, b, gact)
                d2 = _gradient4(dz, raw, uint32(i + OC * TWO), s, a, b, gact)
                d = d + d1 + d2 + _gradient4(dz, raw, uint32(i + OC * THREE), s, a, b, gact)
                top = _taps9(top, sx, k, d)
                middle = _taps9(middle, sx, uint32(k + pitch), d)
                bottom = _taps9(bottom, sx, uint32(k + pitch + pitch), d)
                i, k = uint32(i + OC * FOUR), uint32(k + uint32(12))
        strip = uint32(strip + ONE)

    i = uint32(uint32(line & uint32(ROWS // 2 - 1)) * uint32(TAPS * COLUMNS) + column)
    i2, i3 = uint32(i + uint32(9 * COLUMNS)), uint32(i + uint32(18 * COLUMNS))
    if line >= uint32(ROWS // 2):
        _give(sums, i, top, False)
        _give(sums, i2, middle, False)
        _give(sums, i3, bottom, False)
    cuda.syncthreads()
    if line < uint32(ROWS // 2):
        _give(sums, i, top, True)
        _give(sums, i2, middle, True)
        _give(sums, i3, bottom, True)
    cuda.syncthreads()
    k, c = uint32(t // uint32(COLUMNS)), uint32(t % uint32(COLUMNS))
    while k < uint32(TAPS):
        i = uint32(k * uint32(COLUMNS) + c)
        total = load_at(sums, i, 0) + load_at(sums, i, TAPS * COLUMNS)
        total += load_at(sums, i, 2 * TAPS * COLUMNS) + load_at(sums, i, 3 * TAPS * COLUMNS)
        if uint32(n0 + c) < OC:
            dw[uint32(uint32(z * uint32(TAPS) + k) * OC + n0 + c)] = total
        k = uint32(k + uint32(THREADS // COLUMNS))


def weights(dw, dz, raw, gscale, ga, gb, x, scale, shift, act, gact):
    """Launches for dw (L, 3, 3, 3, OC)."""
    (N, H, W, OC), lanes = dz.shape, dw.shape[0]
    columns, strips = blocks_of(OC, COLUMNS), blocks_of(N, lanes) * blocks_of(H, ROWS)
    each = blocks_of(strips, choose.image_shares(columns * lanes))
    shares = blocks_of(strips, each)
    out = Scratch(lanes * shares * TAPS * OC) if shares > 1 else dw
    tensors = out, dz, raw, gscale, ga, gb, x, scale, shift
    yield Launch(images_weights, (lanes * shares, columns), (*tensors, act, gact, lanes, shares, each, N, H, W, OC))
    if out is not dw:
        yield add_launch(dw, out, lanes, shares, TAPS * OC)

"""Convolutions of 3 x 3 taps on tensor cores: the gradient of the filters, a strip of pixels at a time.

    dw[lane] (3, 3, C, OC) = windows of P(x) (pixels, 9 C)' @ d (pixels, OC), over the lane's pixels

A block has all nine taps of 32 channels of x and 64 of d, so that a strip of 4 x 8 pixels is read once for all taps:
in shared memory lie, twice, the strip of d and x with its border,

    sx[row, column, channel]   6 x 10 pixels, pitch 40        sd[row, column, channel]   4 x 8 pixels, pitch 72

settled and rounded once. Both pitches free a load of a row's eight pixels, the eight steps of k of an instruction, of
bank conflicts: a tap is an offset, and nothing is transposed. Six warps have a row of taps each, 16 channels and all 64
columns.

The instructions are those of TF32 for bfloat16 too: there pixels that follow each other along k share a word, and
every other tap would want other pairs. Numbers rounded to bfloat16 have the same products in TF32.

A lane's strips are cut into shares where lanes and tiles alone are too few blocks; a second launch adds the shares.
"""

from numba import cuda, float32, uint32

from fastadam.kernels.cuda import choose
from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.lanes import add_launch, lane_start
from fastadam.kernels.cuda.launch import Launch, Scratch
from fastadam.kernels.cuda.mma import FLOAT32, PRECISIONS
from fastadam.kernels.cuda.ptx import ZERO, ZERO4, load4, load4_at, store4
from fastadam.kernels.cuda.tensor import load2_at, mma_plain, pack_bf16, to_tf32
from fastadam.kernels.cuda.windows import NOWHERE, look4, settled4

BC, BOC = 32, 64
"""Channels of x and of d that a block has."""

DOWN, ACROSS = 4, 8
"""Pixels of a strip."""
STRIP = DOWN * ACROSS
ALONG = ACROSS + 2
BORDERED = (DOWN + 2) * ALONG

THREADS = 192
THREADS_D = 128
"""Threads that stage d, a quad of each row; the others stage x, twice as many quads of half as many arrays."""
ZERO96 = (ZERO,) * (3 * 8 * 4)
"""Sums of a thread: fragments under three taps, of eight times eight columns."""

PX, PD = BC + 8, BOC + 8
SIZE_X, SIZE_D = 2 * BORDERED * PX, 2 * STRIP * PD

NOUGHT, ONE, TWO, THREE, FOUR, FIVE = (uint32(i) for i in range(6))


# Strips -----------------------------------------------------------------------------------------------------


@device
def _strip_place(strip, H, W):
    """(row of all samples' rows, row, column) of a strip's first pixel; a sample's are in the order of rows."""
    across = uint32(W // uint32(ACROSS))
    row = uint32(strip // across * uint32(DOWN))
    return row, uint32(row % H), uint32(strip % across * uint32(ACROSS))


@device
def _after(place, H, W):
    """The place of the next strip."""
    row, h, w = place
    w = uint32(w + uint32(ACROSS))
    if w == W:
        w, row, h = NOUGHT, uint32(row + uint32(DOWN)), uint32(h + uint32(DOWN))
        if h == H:
            h = NOUGHT
    return row, h, w


@device
def _x_pixel(number):
    """(row, column) in the bordered strip of what a thread stages of x: of rows 0 to 5, then of the last columns."""
    lane = uint32(uint32(uint32(cuda.threadIdx.x) - uint32(THREADS_D)) >> THREE)
    row, column = uint32(number), lane
    if number > DOWN + 1:
        row = uint32(uint32((number - DOWN - 2) * DOWN) + (lane >> ONE))
        column = uint32(uint32(ACROSS) + (lane & ONE))
    return row, column


@device
def _x_place(place, number, image):
    """Where that lies, or NOWHERE."""
    H, W, C, c = image
    row, column = _x_pixel(number)
    h, w = uint32(place[1] + row - ONE), uint32(place[2] + column - ONE)
    at = uint32(uint32(uint32(place[0] + row - ONE) * W + w) * C + c)
    return at if h < H and w < W and c < C and row < uint32(DOWN + 2) else NOWHERE


@device
def _look(arrays, place, row, image, gact):
    """The part of a strip that the thread stages under one of four rows: (places, four channels of each).

    ``arrays``: dz, raw, x. A thread has d and raw at one pixel, or x at two.
    """
    dz, raw, x = arrays
    v = r = ZERO4
    t = uint32(cuda.threadIdx.x)
    if t < uint32(THREADS_D):
        _, W, OC, oc = image
        at = uint32(uint32(uint32(place[0] + uint32(row)) * W + place[2] + (t >> FOUR)) * OC + oc)
        at = at2 = at if oc < OC else NOWHERE
        v = look4(dz, at, NOUGHT)
        if gact:
            r = look4(raw, at, NOUGHT)
    else:
        at, at2 = _x_place(place, 2 * row, image), _x_place(place, 2 * row + 1, image)
        v, r = look4(x, at, NOUGHT), look4(x, at2, NOUGHT)
    return at, at2, v, r


@device
def _stash_x(sx, first, number, at, v, affine, act, bf16):
    row, column = _x_pixel(number)
    if row < uint32(DOWN + 2):
        v = settled4(v, v, at != NOWHERE, affine[0], affine[1], affine[1], act, False)
        i = uint32(uint32(row * uint32(ALONG) + column) * uint32(PX) + (uint32(cuda.threadIdx.x) & uint32(7)) * FOUR)
        store4(sx, uint32(first + i), _rounded(v, bf16))


@device
def _stash(sx, sd, odd, row, part, affine, acts, bf16):
    """What ``_look`` returned, settled and rounded, to the tiles numbered ``odd``."""
    at, at2, v, r = part
    t = uint32(cuda.threadIdx.x)
    if t < uint32(THREADS_D):
        v = settled4(v, r, at != NOWHERE, affine[0], affine[1], affine[2], acts[1], True)
        i = uint32(odd * uint32(SIZE_D // 2) + (t >> FOUR) * uint32(PD) + (t & uint32(15)) * FOUR)
        store4(sd, uint32(i + uint32(row * ACROSS * PD)), _rounded(v, bf16))
    else:
        first = uint32(odd * uint32(SIZE_X // 2))
        _stash_x(sx, first, 2 * row, at, v, affine, acts[0], bf16)
        _stash_x(sx, first, 2 * row + 1, at2, r, affine, acts[0], bf16)


@device
def _rounded(v, bf16):
    if bf16:
        v = pack_bf16(ZERO, v[0]), pack_bf16(ZERO, v[1]), pack_bf16(ZERO, v[2]), pack_bf16(ZERO, v[3])
    else:
        v = to_tf32(v[0]), to_tf32(v[1]), to_tf32(v[2]), to_tf32(v[3])
    return v


# The product ------------------------------------------------------------------------------------------------


@device
def _multiply_row(acc, sx, sd, i, j, row):
    """acc + the eight pixels of a row of the strip, under three taps; i, j: where the thread begins in the tiles."""
    x, d = row * ALONG * PX, row * ACROSS * PD
    a = load2_at(sx, i, x) + load2_at(sx, i, x + 4 * PX)
    a = a + load2_at(sx, i, x + PX) + load2_at(sx, i, x + 5 * PX)
    a = a + load2_at(sx, i, x + 2 * PX) + load2_at(sx, i, x + 6 * PX)
    p, q = load4_at(sd, j, d), load4_at(sd, j, d + 4 * PD)
    r, s = load4_at(sd, j, d + BOC // 2), load4_at(sd, j, d + BOC // 2 + 4 * PD)
    b = p[0], q[0], p[1], q[1], p[2], q[2], p[3], q[3], r[0], s[0], r[1], s[1], r[2], s[2], r[3], s[3]
    return mma_plain(acc, a, b)


@device
def _put_row(dw, at, there, oc, OC, low, high):
    """Sixteen numbers of a row of dw from ``at`` on: columns oc .. oc + 7 and 32 on."""
    if there and oc < OC:
        store4(dw, uint32(at + oc), low[0:4])
    if there and uint32(oc + FOUR) < OC:
        store4(dw, uint32(at + oc + FOUR), low[4:8])
    oc = uint32(oc + uint32(BOC // 2))
    if there and oc < OC:
        store4(dw, uint32(at + oc), high[0:4])
    if there and uint32(oc + FOUR) < OC:
        store4(dw, uint32(at + oc + FOUR), high[4:8])


@device
def _put_tap(dw, at, there, oc, OC, v):
    """The thread's 2 x 16 of the sums under a tap, see ``_multiply_row`` for the columns."""
    low = v[0], v[4], v[8], v[12], v[1], v[5], v[9], v[13]
    _put_row(dw, at, there, oc, OC, low, (v[16], v[20], v[24], v[28], v[17], v[21], v[25], v[29]))
    low = v[2], v[6], v[10], v[14], v[3], v[7], v[11], v[15]
    at = uint32(at + OC)
    _put_row(dw, at, there, oc, OC, low, (v[18], v[22], v[26], v[30], v[19], v[23], v[27], v[31]))


def make_weights(bf16):
    """The kernel in a precision of ``mma.py``."""

    @kernel(THREADS, choose.STRIP_BLOCKS)
    def patches_weights(dw, dz, raw, gscale, ga, gb, x, scale, shift, act, gact, lanes, shares, N, H, W, C, OC):
        sx = cuda.shared.array(SIZE_X, float32, alignment=16)
        sd = cuda.shared.array(SIZE_D, float32, alignment=16)
        t, z = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.z)
        c0, oc0 = uint32(cuda.blockIdx.x * BC), uint32(cuda.blockIdx.y * BOC)
        strips = uint32(uint32(H // uint32(DOWN)) * uint32(W // uint32(ACROSS)))
        lane, share = uint32(z // shares), uint32(z % shares)
        strip, end = lane_start(lane, lanes, N, strips), lane_start(uint32(lane + ONE), lanes, N, strips)
        each = uint32(uint32(end - strip + shares - ONE) // shares)
        strip = uint32(strip + share * each)
        end = min(end, uint32(strip + each))

        # what the thread stages: channels of d or of x, and how they are settled
        p = q = b = ZERO4
        if t < uint32(THREADS_D):
            channels, c = OC, uint32(oc0 + (t & uint32(15)) * FOUR)
            if gact and c < OC:
                p, q, b = load4(gscale, c), load4(ga, c), load4(gb, c)
        else:
            channels, c = C, uint32(c0 + (t & uint32(7)) * FOUR)
            if act & ONE and c < C:
                p, q = load4(scale, c), load4(shift, c)
        arrays, image, affine, acts = (dz, raw, x), (H, W, channels, c), (p, q, b), (act, gact)

        # the thread's row of taps, rows of x: channels c and c + 1; columns of d, which are others in the sums
        lane, warp = uint32(t & uint32(31)), uint32(t >> FIVE)
        member, g = uint32(lane & THREE), uint32(lane >> TWO)
        kh, c = uint32(warp >> ONE), uint32((warp & ONE) * uint32(16) + g * TWO)
        i = uint32(uint32(kh * uint32(ALONG) + member) * uint32(PX) + c)
        j = uint32(member * uint32(PD) + g * FOUR)

        place, acc, odd = _strip_place(strip, H, W), ZERO96, NOUGHT
        if strip < end:
            _stash(sx, sd, odd, 0, _look(arrays, place, 0, image, gact), affine, acts, bf16)
            _stash(sx, sd, odd, 1, _look(arrays, place, 1, image, gact), affine, acts, bf16)
            _stash(sx, sd, odd, 2, _look(arrays, place, 2, image, gact), affine, acts, bf16)
            _stash(sx, sd, odd, 3, _look(arrays, place, 3, image, gact), affine, acts, bf16)
        cuda.syncthreads()
        while strip < end:
            strip = uint32(strip + ONE)
            more, even = strip < end, uint32(odd ^ ONE)
            ix, jd = uint32(odd * uint32(SIZE_X // 2) + i), uint32(odd * uint32(SIZE_D // 2) + j)
            place, part = _after(place, H, W), (NOWHERE, NOWHERE, ZERO4, ZERO4)
            # under each row a quarter of the next strip travels: registers are few
            if more:
                part = _look(arrays, place, 0, image, gact)
            acc = _multiply_row(acc, sx, sd, ix, jd, 0)
            if more:
                _stash(sx, sd, even, 0, part, affine, acts, bf16)
                part = _look(arrays, place, 1, image, gact)
            acc = _multiply_row(acc, sx, sd, ix, jd, 1)
            if more:
                _stash(sx, sd, even, 1, part, affine, acts, bf16)
                part = _look(arrays, place, 2, image, gact)
            acc = _multiply_row(acc, sx, sd, ix, jd, 2)
            if more:
                _stash(sx, sd, even, 2, part, affine, acts, bf16)
                part = _look(arrays, place, 3, image, gact)
            acc = _multiply_row(acc, sx, sd, ix, jd, 3)
            if more:
                _stash(sx, sd, even, 3, part, affine, acts, bf16)
            cuda.syncthreads()
            odd = even
        c, oc = uint32(c0 + c), uint32(oc0 + member * uint32(8))
        at, tap = uint32(uint32(uint32(z * THREE + kh) * THREE * C + c) * OC), uint32(C * OC)
        _put_tap(dw, at, c < C, oc, OC, acc[0:32])
        _put_tap(dw, uint32(at + tap), c < C, oc, OC, acc[32:64])
        _put_tap(dw, uint32(at + tap + tap), c < C, oc, OC, acc[64:96])

    return patches_weights


WEIGHTS = {bf16: make_weights(bf16) for bf16 in PRECISIONS.values() if bf16 is not FLOAT32}


def weights(dw, dz, raw, gscale, ga, gb, x, scale, shift, act, gact, bf16):
    """Launches for dw (L, 3, 3, C, OC)."""
    (N, H, W, C), OC, lanes = x.shape, dz.shape[3], dw.shape[0]
    grid = -(-C // BC), -(-OC // BOC)
    shares = choose.strip_shares(grid[0] * grid[1] * lanes, N * H * W // STRIP // lanes)
    out = Scratch(lanes * shares * 9 * C * OC) if shares > 1 else dw
    tensors = out, dz, raw, gscale, ga, gb, x, scale, shift
    yield Launch(WEIGHTS[bf16], (*grid, lanes * shares), (*tensors, act, gact, lanes, shares, N, H, W, C, OC))
    if out is not dw:
        yield add_launch(dw, out, lanes, shares, 9 * C * OC)

"""Convolutions of 3 x 3 taps on tensor cores: a patch of pixels with its border is read once, for all nine taps.

The matrix of windows (see ``windows.py``) has each pixel nine times. Here a warp has a patch of 8 x 8 pixels and its
block keeps their halos, 10 x 10 pixels each, in shared memory, eight channels at a time: a tap is an offset there.

    halos     sa[patch, row, column, channel], settled and rounded once; with bfloat16 two channels a word
    filters   sb[column tap], tiles as in ``mma.py``, those of a row of taps

Both lie twice: while a row of taps is multiplied, the next one's filters and a third of the next halos are loaded. A
thread has the 8 pixels of a column of its warp's patch, so that all its loads of a tap are at constant offsets, and
32 neighbouring pixels and channels are a load's 32 banks.

Images are whole patches here, the padding is one pixel, and channels are a multiple of 8, those of the result of 4.
"""

from numba import cuda, uint32

from fastadam.kernels.cuda.jit import device
from fastadam.kernels.cuda.mma import column_place, pitch_of, place_of, rows_of, starts_of, stash_column, stash_row
from fastadam.kernels.cuda.ptx import ZERO4, ZERO64, load4, load_at, store4
from fastadam.kernels.cuda.tensor import load2_at, mma_bf16, mma_tf32, pack_bf16, store2, to_tf32
from fastadam.kernels.cuda.windows import NOWHERE, look4, settled4

SIDE = 8
"""Pixels along a side of a patch."""
PATCH = SIDE * SIDE
ALONG = SIDE + 2
"""Pixels along a side of a halo."""
HALO = ALONG * ALONG
TAPS = 3
"""Along a side of a filter."""
DEEP = 8
"""Channels at a time."""

NOUGHT, ONE, TWO, THREE, FOUR, FIVE = (uint32(i) for i in range(6))
LANES = uint32(31)


def shared_sizes(BM, BN):
    """Words of shared memory for halos and for filters."""
    return 2 * BM // PATCH * HALO * DEEP, 2 * TAPS * DEEP * (BN + 4)


# Where patches lie ------------------------------------------------------------------------------------------


@device
def patch_corner(patch, H, W):
    """(sample, row, column) of the first pixel of a patch; those of a sample are in the order of rows."""
    across = uint32(W // uint32(SIDE))
    row = uint32(patch // across)
    down = uint32(H // uint32(SIDE))
    return uint32(row // down), uint32(uint32(row % down) * uint32(SIDE)), uint32(patch % across * uint32(SIDE))


@device
def halo_place(pixel, first, patches, image):
    """Where a pixel of the halos of ``patches`` patches from ``first`` on lies, or NOWHERE: in the padding."""
    H, W, C = image
    patch, pixel = uint32(pixel // uint32(HALO)), uint32(pixel % uint32(HALO))
    n, h, w = patch_corner(uint32(first + patch), H, W)
    h = uint32(h + uint32(pixel // uint32(ALONG)) - ONE)
    w = uint32(w + uint32(pixel % uint32(ALONG)) - ONE)
    return uint32(uint32(uint32(n * H + h) * W + w) * C) if patch < patches and h < H and w < W else NOWHERE


@device
def column_of(t, first, BN, bf16, H, W):
    """(patch of the block, the first of the eight pixels of it) that thread t has, one below the other."""
    ty, _ = place_of(t, BN, bf16)
    patch, g = uint32(ty // uint32(SIDE)), uint32(ty % uint32(SIDE))
    n, h, w = patch_corner(uint32(first + patch), H, W)
    return patch, uint32(uint32(n * H + h) * W + w + g)


# To shared memory -------------------------------------------------------------------------------------------


@device
def _look(source, at, c):
    """Four channels of a halo's pixel, and of ``raw`` where it is needed."""
    a, raw, _, _, _, act, back = source
    v = r = look4(a, at, c)
    if back and act:
        r = look4(raw, at, c)
    return v, r


@device
def _stash_halo(sa, to, quad, quads, v, r, there, c, source, bf16):
    """Four channels from c on, settled and rounded, to a quad of the halos at ``to``, if it is one of ``quads``."""
    _, _, scale, shift, gb, act, back = source
    quad = uint32(uint32(cuda.threadIdx.x) + uint32(quad))
    if quad < uint32(quads):
        s = h = b = ZERO4
        if back:
            if act:
                s, h, b = load4(scale, c), load4(shift, c), load4(gb, c)
        elif act & ONE:
            s, h = load4(scale, c), load4(shift, c)
        v = settled4(v, r, there, s, h, b, act, back)
        i = uint32(to + quad)
        if bf16:
            store2(sa, uint32(i * TWO), (pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])))
        else:
            store4(sa, uint32(i * FOUR), (to_tf32(v[0]), to_tf32(v[1]), to_tf32(v[2]), to_tf32(v[3])))


@device
def _look_filters(filters, row, c, BM, BN):
    """A quad of each tap's filters, of a row of taps from channel c on; with 256 pixels of every other tap's."""
    w, at, tap, along, there, _ = filters
    i = uint32(at + uint32(uint32(TAPS) * row) * tap + c * along)
    f0 = look4(w, i if there else NOWHERE, NOUGHT)
    if BM == 256:
        i = uint32(i + tap + tap)
        f1 = f2 = look4(w, i if there and _stages_last(BM, BN) else NOWHERE, NOUGHT)
    else:
        i = uint32(i + tap)
        f1 = look4(w, i if there else NOWHERE, NOUGHT)
        i = uint32(i + tap)
        f2 = look4(w, i if there else NOWHERE, NOUGHT)
    return f0, f1, f2


@device
def _stages_last(BM, BN):
    """Whether the thread stages some of the last of three taps, where twice as many threads as quads have two."""
    return uint32(cuda.threadIdx.x) < uint32(BM * BN // 128)


@device
def _stash_filter(sb, i, f, there, BN, back, bf16):
    if not back:
        stash_row(sb, i, f, there, bf16)
    elif there:
        stash_column(sb, i, pitch_of(BN, bf16), f, bf16)


@device
def _stash_filters(sb, i, f, filters, BM, BN, back, bf16):
    tile = uint32(_tile_words(BN, bf16))
    i = uint32(i + filters[5])
    _stash_filter(sb, i, f[0], True, BN, back, bf16)
    if BM == 256:
        _stash_filter(sb, uint32(i + tile + tile), f[1], _stages_last(BM, BN), BN, back, bf16)
    else:
        _stash_filter(sb, uint32(i + tile), f[1], True, BN, back, bf16)
        _stash_filter(sb, uint32(i + tile + tile), f[2], True, BN, back, bf16)


# The product ------------------------------------------------------------------------------------------------


@device
def _words(bf16):
    """Words of a pixel's channels."""
    return DEEP // 2 if bf16 else DEEP


@device
def _tile_words(BN, bf16):
    """Words of the filters of a tap."""
    return _words(bf16) * pitch_of(BN, bf16)


@device
def _multiply_tap(acc, sa, sb, ia, ib, at, tile, BN, bf16):
    """acc + the thread's pixels under a tap times its filters; ``at``, ``tile``: the tap's offsets, constants."""
    down, half, pitch = ALONG * _words(bf16), BN // 2, pitch_of(BN, bf16)
    b = load2_at(sb, ib, tile) + load2_at(sb, ib, tile + half)
    if bf16:
        a = (
            load_at(sa, ia, at), load_at(sa, ia, at + down), load_at(sa, ia, at + 2 * down),
            load_at(sa, ia, at + 3 * down), load_at(sa, ia, at + 4 * down), load_at(sa, ia, at + 5 * down),
            load_at(sa, ia, at + 6 * down), load_at(sa, ia, at + 7 * down),
        )  # fmt: skip
        acc = mma_bf16(acc, a, b)
    else:
        b2 = load2_at(sb, ib, tile + pitch) + load2_at(sb, ib, tile + pitch + half)
        p0, p1 = load2_at(sa, ia, at), load2_at(sa, ia, at + down)
        p2, p3 = load2_at(sa, ia, at + 2 * down), load2_at(sa, ia, at + 3 * down)
        p4, p5 = load2_at(sa, ia, at + 4 * down), load2_at(sa, ia, at + 5 * down)
        p6, p7 = load2_at(sa, ia, at + 6 * down), load2_at(sa, ia, at + 7 * down)
        a = p0[0], p1[0], p2[0], p3[0], p4[0], p5[0], p6[0], p7[0]
        a2 = p0[1], p1[1], p2[1], p3[1], p4[1], p5[1], p6[1], p7[1]
        acc = mma_tf32(acc, a + a2, b + b2)
    return acc


@device
def _row_of_taps(acc, sa, sb, ia, ib, to, source, ats, quads, c, filters, row, more, BM, BN, bf16):
    """acc + a row of taps; meanwhile the filters of the next, and a quad or two of the next channels' halos.

    ``to``: where the next halos (in quads) and filters (in words) go; ``ats``, ``quads``: where the thread's quads lie
    and their numbers, less its own. ``more``: there are next channels.
    """
    back, words, last = source[6], _words(bf16), row == TAPS - 1
    threads, all_quads = BM * BN // 64, BM // PATCH * HALO * 2
    one, both = row * threads < all_quads, (row + TAPS) * threads < all_quads  # quads that the thread has
    tile, first, f, v, r = _tile_words(BN, bf16), row * ALONG * words, (ZERO4, ZERO4, ZERO4), ZERO4, ZERO4
    # registers are few: filters first, which are near, then halos under two taps
    if not last or more:
        f = _look_filters(filters, uint32(0 if last else row + 1), uint32(c + DEEP) if last else c, BM, BN)
    acc = _multiply_tap(acc, sa, sb, ia, ib, first, 0, BN, bf16)
    c = uint32(c + uint32(DEEP) + (uint32(cuda.threadIdx.x) & ONE) * FOUR)
    if not last or more:
        _stash_filters(sb, to[1], f, filters, BM, BN, back, bf16)
    if more and one:
        v, r = _look(source, ats[0], c)
    acc = _multiply_tap(acc, sa, sb, ia, ib, first + words, tile, BN, bf16)
    if more and both:
        _stash_halo(sa, to[0], quads[0], all_quads, v, r, ats[0] != NOWHERE, c, source, bf16)
        v, r = _look(source, ats[1], c)
    acc = _multiply_tap(acc, sa, sb, ia, ib, first + 2 * words, 2 * tile, BN, bf16)
    if more and one:
        at, quad = ats[0], quads[0]
        if both:
            at, quad = ats[1], quads[1]
        _stash_halo(sa, to[0], quad, all_quads, v, r, at != NOWHERE, c, source, bf16)
    cuda.syncthreads()
    return acc


@device
def _begin(sa, source, at, quad, quads, bf16):
    """The first channels of a halo's quad."""
    c = uint32((uint32(cuda.threadIdx.x) & ONE) * FOUR)
    v, r = _look(source, at, c)
    _stash_halo(sa, NOUGHT, quad, quads, v, r, at != NOWHERE, c, source, bf16)


@device
def patch_product(sa, sb, source, first, patches, image, w, n0, N, BM, BN, bf16):
    """The thread's 8 x 8 of windows (pixels, 9 C) @ filters (9 C, N), of ``patches`` patches from ``first`` on.

    ``source`` is an image of pixels (H, W, C) under its pending affine, or with ``back`` a pending gradient: ``a, raw,
    scale, shift, gb, act, back``. ``back``, a constant, reaches backwards, by w (3, 3, N, C); else w is (3, 3, C, N).
    ``bf16``: see ``mma.py``.
    """
    back, C = source[6], image[2]
    threads, all_quads, words = BM * BN // 64, BM // PATCH * HALO * 2, _words(bf16)
    t = uint32(cuda.threadIdx.x)
    at0 = halo_place(uint32(t >> ONE), first, patches, image)
    at1 = halo_place(uint32(uint32(t + uint32(threads)) >> ONE), first, patches, image)
    at2 = at3 = NOWHERE
    if 2 * threads < all_quads:
        at2 = halo_place(uint32(uint32(t + uint32(2 * threads)) >> ONE), first, patches, image)
        at3 = halo_place(uint32(uint32(t + uint32(3 * threads)) >> ONE), first, patches, image)

    # a thread stages a quad of the filters of a tap: from the first tap on or, with twice the threads, from a second
    u, tap = uint32(t % uint32(2 * BN)), uint32(t // uint32(2 * BN))
    if back:
        n, k = uint32(n0 + (u >> ONE)), uint32((u & ONE) * FOUR)
        to_b = column_place(k, uint32(u >> ONE), pitch_of(BN, bf16), bf16)
        i, over, along = uint32(uint32(uint32(uint32(8) - tap) * N + n) * C + k), uint32(NOUGHT - N * C), ONE
    else:
        k, _, n, to_b = rows_of(u, BN, False, bf16)
        n = uint32(n0 + n)
        i, over, along = uint32(uint32(tap * C + k) * N + n), uint32(C * N), N
    filters = w, i, over, along, n < N, uint32(to_b + tap * uint32(_tile_words(BN, bf16)))

    lane, warp_m = uint32(t & LANES), uint32(uint32(t >> FIVE) // uint32(BN // 32))
    _, first_b = starts_of(t, BM, BN, bf16)
    first_a = uint32(uint32(warp_m * uint32(HALO) + (lane >> TWO)) * uint32(words))
    first_a = uint32(first_a + (lane & THREE) * uint32(words // 4))
    size_a, size_b = uint32(all_quads * words // 2), uint32(TAPS * _tile_words(BN, bf16))
    _begin(sa, source, at0, 0, all_quads, bf16)
    _begin(sa, source, at1, threads, all_quads, bf16)
    _begin(sa, source, at2, 2 * threads, all_quads, bf16)
    _begin(sa, source, at3, 3 * threads, all_quads, bf16)
    _stash_filters(sb, NOUGHT, _look_filters(filters, NOUGHT, NOUGHT, BM, BN), filters, BM, BN, back, bf16)
    cuda.syncthreads()
    acc, c = ZERO64, NOUGHT
    while c < C:
        more, odd = uint32(c + uint32(DEEP)) < C, uint32(c // uint32(DEEP) & ONE)
        even = uint32(odd ^ ONE)
        a, b, b2 = uint32(odd * size_a + first_a), uint32(odd * size_b), uint32(even * size_b)
        ib, ib2, to_a = uint32(b + first_b), uint32(b2 + first_b), uint32(even * uint32(all_quads))
        acc = _row_of_taps(
            acc, sa, sb, a, ib, (to_a, b2), source, (at0, at3), (0, 3 * threads), c, filters, 0, more, BM, BN, bf16
        )
        acc = _row_of_taps(
            acc, sa, sb, a, ib2, (to_a, b), source, (at1, at1), (threads, 0), c, filters, 1, more, BM, BN, bf16
        )
        acc = _row_of_taps(
            acc, sa, sb, a, ib, (to_a, b2), source, (at2, at2), (2 * threads, 0), c, filters, 2, more, BM, BN, bf16
        )
        c = uint32(c + uint32(DEEP))
    return acc

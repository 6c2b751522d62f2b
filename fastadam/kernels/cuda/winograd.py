"""3 x 3 convolution of stride 1 by Winograd's minimal filtering, forward and backward, see ``points.py``.

    forward    V = B' P(x) B    U = G w G'    M = V U    y = A' M A
    backward   dM = A d A'      dV = dM U'    dX = B dV B'    dU = V' dM    dw = G' dU G

V (36, tiles, C), U (36, C, OC) and M (36, tiles, OC) lie in scratch memory; the 36 products are those of ``gemm.py``.
Tiles are numbered by sample, row and column. Any height, width and batch, padding 0 to 2; what a tile has beyond the
output is dropped. The arrays of points must have fewer than 2**32 elements.
"""

from fastadam.kernels.cuda.from_points import (
    FILTER_THREADS,
    SLOTS,
    filter_from_points,
    input_from_points,
    output_from_points,
)  # fmt: skip
from fastadam.kernels.cuda.gemm import NN, NT, SMS, SPEED, TN, gemm_launch, tile_of
from fastadam.kernels.cuda.lanes import add_launch, tiles_of
from fastadam.kernels.cuda.launch import Launch, Scratch, blocks_of
from fastadam.kernels.cuda.points import POINTS, TILE
from fastadam.kernels.cuda.ptx import WARP
from fastadam.kernels.cuda.to_points import THREADS, to_points

MOST_SHARES = 16
"""Of a lane's tiles: each is a dU of its own, to be written and added up."""

DEPTH = 64
"""Tiles for which a block of a product takes as long as for what it does besides."""


def _tiles(size):
    return -(-size // TILE)


def _groups(lanes, samples, tiles, channels, summed):
    """(groups of a lane, tiles of a group): one, and no launch that adds groups, if lanes alone are enough work."""
    most, columns = -(-samples // lanes) * tiles, blocks_of(channels, WARP)
    wanted = blocks_of(SMS if summed else 4 * SMS, lanes * columns)
    if summed and 10 * lanes * columns >= 9 * SMS:
        wanted = 1
    rows = blocks_of(blocks_of(most, wanted), SLOTS) * SLOTS
    return tiles_of(lanes, samples, tiles, rows), rows


def forward(y, moments, x, scale, shift, w, act, pad):
    """Launches of ``conv2d_forward``."""
    (N, H, W, C), (_, OH, OW, OC) = x.shape, y.shape
    TH, TW = _tiles(OH), _tiles(OW)
    tiles, pairs = N * TH * TW, C * OC
    u, v, m = Scratch(POINTS * pairs), Scratch(POINTS * tiles * C), Scratch(POINTS * tiles * OC)
    blocks = blocks_of(tiles * C, THREADS)
    yield Launch(
        to_points, blocks + blocks_of(pairs, THREADS),
        (v, x, scale, shift, m, x, x, x, x, x, u, w, act, 0, pad, blocks, 0, tiles, TH, TW, H, W, C, OH, OW, OC),
    )  # fmt: skip
    yield gemm_launch(NN, m, v, u, tiles, OC, C, batch=POINTS)
    lanes = moments.shape[0] if moments.size else 1
    groups, rows = _groups(lanes, N, TH * TW, OC, moments.size > 0)
    part = moments if groups == 1 or not moments.size else Scratch(lanes * groups * 3 * OC)
    yield Launch(
        output_from_points, (lanes * groups, blocks_of(OC, WARP)),
        (y, part, m, moments.size > 0, lanes, groups, rows, N, TH, TW, OH, OW, OC),
    )  # fmt: skip
    if part is not moments:
        yield add_launch(moments, part, lanes, groups, 3 * OC)


def _shares(lanes, samples, tiles, C, OC):
    """Shares that the tiles of a lane are cut into, for dU: the least time, see ``gemm.tile_of``."""
    depth = tiles // lanes
    most = min(MOST_SHARES, samples // lanes if lanes > 1 else blocks_of(tiles, DEPTH))

    def time(shares):
        BM, BN = tile = tile_of(C, OC, POINTS * lanes * shares)
        blocks = blocks_of(C, BM) * blocks_of(OC, BN) * POINTS * lanes * shares
        return blocks_of(blocks, SMS) * BM * BN / SPEED[tile] * (depth / shares + DEPTH)

    return min(range(1, most + 1), key=time)


def backward(dx, sums, dw, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre, act, gact, pad):
    """Launches of ``conv2d_backward``."""
    (N, H, W, C), (_, OH, OW, OC), lanes = x.shape, dz.shape, dw.shape[0]
    TH, TW = _tiles(OH), _tiles(OW)
    tiles, pairs = N * TH * TW, C * OC
    u, v, dm = Scratch(POINTS * pairs), Scratch(POINTS * tiles * C), Scratch(POINTS * tiles * OC)
    blocks_v, blocks_d = blocks_of(tiles * C, THREADS), blocks_of(tiles * OC, THREADS)
    yield Launch(
        to_points, blocks_v + blocks_d + (blocks_of(pairs, THREADS) if dx.size else 0),
        (v, x, scale, shift, dm, dz, raw, gscale, ga, gb, u, w, act, gact, pad, blocks_v, blocks_d,
         tiles, TH, TW, H, W, C, OH, OW, OC),
    )  # fmt: skip
    shares = _shares(lanes, N, tiles, C, OC)
    du = Scratch(lanes * shares * POINTS * pairs)
    by_lanes = {"samples": N, "pixels": TH * TW} if lanes > 1 else {}
    yield gemm_launch(TN, du, v, dm, C, OC, tiles, batch=POINTS, lanes=lanes * shares, **by_lanes)
    yield Launch(filter_from_points, blocks_of(lanes * pairs, FILTER_THREADS), (dw, du, lanes, shares, pairs))
    if not dx.size:
        return
    dv = v  # which is not needed any more
    yield gemm_launch(NT, dv, dm, u, tiles, C, OC, batch=POINTS)
    lanes = sums.shape[0] if sums.size else 1
    first = 0 if pad else -1
    BH, BW = (pad + H - 2) // TILE - first + 1, (pad + W - 2) // TILE - first + 1
    groups, rows = _groups(lanes, N, BH * BW, C, sums.size > 0)
    part = sums if groups == 1 or not sums.size else Scratch(lanes * groups * 2 * C)
    yield Launch(
        input_from_points, (lanes * groups, blocks_of(C, WARP)),
        (dx, part, dv, x, scale, shift, base, of, centre, act, pad, base.size > 0, of.size > 0, sums.size > 0,
         lanes, groups, rows, N, BH, BW, TH, TW, H, W, C),
    )  # fmt: skip
    if part is not sums:
        yield add_launch(sums, part, lanes, groups, 2 * C)

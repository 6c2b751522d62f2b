"""Linear layers: products of few blocks, k in parts, and whatever waits for a sum in the launch that adds the parts.

y is x w.T with P(x) made while x is fetched; one launch makes dw and dx, which alone would fill half a device each.
A product of few tiles is cut along k, so that there are blocks for all multiprocessors. Then, and where moments, a
mask or sums are wanted, a second launch adds the parts in their order and does the rest: a thread has a column of
some rows of one lane.
"""

from numba import cuda, float32, uint32

from fastadam.kernels.cuda.gemm import BLOCKS_PER_SM, parts_of, plain, product, put_block, share_of
from fastadam.kernels.cuda.jit import device, kernel
from fastadam.kernels.cuda.lanes import add_launch, join_launch, lanes_of_their_own, tile_place, tiles_of
from fastadam.kernels.cuda.launch import Launch, Scratch, blocks_of, op
from fastadam.kernels.cuda.mma import FLOAT32, PRECISIONS, place_of
from fastadam.kernels.cuda.narrow import STAGED, TILE, is_staged, put_narrow, stage_gradient, staged4
from fastadam.kernels.cuda.pending import activated, activated4, finished, gradient, gradient4
from fastadam.kernels.cuda.ptx import ZERO, ZERO4, ZERO64, load4
from fastadam.kernels.cuda.tiles import BK, divided

THREADS = TILE * TILE // 64
SIZE = 2 * BK * (TILE + 4)
BOTH = 2 * SIZE

ROWS = 32
"""Rows that a thread of the second launch adds up."""

ROW_THREADS = 128

ONE, TWO, THREE, SEVEN = uint32(1), uint32(2), uint32(3), uint32(7)


# Operands, as ``product`` fetches them -----------------------------------------------------------------------


@device
def _multiple_of_4(n):
    return n & THREE == uint32(0)


@device
def _activated_at(operand, row, col, cols):
    x, scale, shift, act, C, ld, _ = operand
    return activated(x[uint32(row * ld + col)], scale, shift, uint32(col % C), act) if col < cols else ZERO


@device
def activated_rows(operand, row, col, rows, cols):
    """P(x) of x (N, pixels, C) seen as (N, I); ``operand``: x, scale, shift, act, C, I, whether C % 4 == 0."""
    x, scale, shift, act, C, ld, wide = operand
    v = ZERO4
    if row < rows and col < cols:
        if wide:
            c = uint32(col % C) if act & ONE and C != ld else col
            v = activated4(load4(x, uint32(row * ld + col)), scale, shift, c, act)
        else:
            v0, v1 = _activated_at(operand, row, col, cols), _activated_at(operand, row, uint32(col + ONE), cols)
            v2 = _activated_at(operand, row, uint32(col + TWO), cols)
            v = (v0, v1, v2, _activated_at(operand, row, uint32(col + THREE), cols))
    return v


@device
def _gradient_at(operand, i, c, C):
    dz, raw, gscale, ga, gb, gact, _, _, _, _ = operand
    return gradient(dz, raw, gscale, ga, gb, i, c, gact) if c < C else ZERO


@device
def gradient_rows(operand, row, col, rows, cols):
    """The pending gradient; ``operand``: dz, raw, gscale, ga, gb, gact, O, whether O % 4 == 0, staged rows, the first.

    See ``is_staged`` for when they are.
    """
    dz, raw, gscale, ga, gb, gact, ld, wide, staged, first = operand
    v = ZERO4
    if is_staged(ld):
        v = staged4(staged, uint32(row - first), col, uint32(rows - first), ld)
    elif row < rows and col < cols:
        i = uint32(row * ld + col)
        if wide:
            v = gradient4(dz, raw, gscale, ga, gb, i, col, gact)
        else:
            v0, v1 = _gradient_at(operand, i, col, cols), _gradient_at(operand, i + ONE, uint32(col + ONE), cols)
            v2 = _gradient_at(operand, i + TWO, uint32(col + TWO), cols)
            v = (v0, v1, v2, _gradient_at(operand, i + THREE, uint32(col + THREE), cols))
    return v


# Forward ----------------------------------------------------------------------------------------------------


def make_forward(bf16):
    """The kernel for y or its parts, in a precision of ``mma.py``."""

    @kernel(THREADS, BLOCKS_PER_SM[THREADS])
    def linear_product(part, x, scale, shift, w, N, O, I, C, act, parts):
        tiles = cuda.shared.array(BOTH, float32, alignment=16)
        sa, sb = tiles[:SIZE], tiles[SIZE:]
        z = uint32(cuda.blockIdx.z)
        ty, tx = place_of(uint32(cuda.threadIdx.x), TILE, bf16)
        m0, n0 = uint32(cuda.blockIdx.x * TILE), uint32(cuda.blockIdx.y * TILE)
        k, k_end = share_of(z, parts, (I + uint32(BK - 1)) // uint32(BK), uint32(BK), I)
        rows, columns = (x, scale, shift, act, C, I, _multiple_of_4(C)), (w, I, _multiple_of_4(I))
        acc = product(
            ZERO64, sa, sb, activated_rows, rows, plain, columns, m0, n0, N, O, k, k_end, TILE, TILE, False, False, bf16
        )
        part = part[uint32(z * uint32(N * O)) :]
        if O <= TILE and O & SEVEN:
            put_narrow(part, tiles, ty, tx, m0, N, O, acc)
        else:
            put_block(part, ty, tx, m0, n0, N, O, TILE, TILE, acc)

    return linear_product


FORWARD = {bf16: make_forward(bf16) for bf16 in PRECISIONS.values()}


@device
def _added(part, i, parts, size):
    """part[0, i] + part[1, i] + ..."""
    total = part[i]
    for _ in range(uint32(1), parts):
        i = uint32(i + size)
        total += part[i]
    return total


@kernel(ROW_THREADS)
def _finish_outputs(y, moments, part, parts, lanes, tiles, N, O, has_moments):
    """y (N, O) from its parts, and moments (L, T, 3, O) of tiles of lanes."""
    i = uint32(cuda.grid(1))
    tile, o = uint32(i // O), uint32(i % O)
    if tile < lanes * tiles:
        first, rows = tile_place(tile, tiles, lanes, N, uint32(1), uint32(ROWS))
        at = uint32(first * O + o)
        k = s = q = ZERO
        for row in range(rows):
            v = _added(part, at, parts, uint32(N * O))
            y[at] = v
            at = uint32(at + O)
            if row == 0:
                k = v
            s += v - k
            q += (v - k) * (v - k)
        if has_moments:
            to = uint32(tile * THREE * O + o)
            moments[to] = k
            moments[uint32(to + O)] = s
            moments[uint32(to + TWO * O)] = q


def forward(y, moments, x, scale, shift, w, act, bf16):
    """Launches of ``linear_forward``."""
    (N, *_, C), (O, I) = x.shape, w.shape
    has_moments = moments.size > 0
    grid = blocks_of(N, TILE), blocks_of(O, TILE)
    parts = parts_of(grid[0] * grid[1], I, alone=not has_moments)
    part = Scratch(parts * N * O) if parts > 1 else y
    yield Launch(FORWARD[bf16], (*grid, parts), (part, x, scale, shift, w, N, O, I, C, act, parts))
    if parts > 1 or has_moments:
        lanes = moments.shape[0] if has_moments else lanes_of_their_own(N)
        tiles = tiles_of(lanes, N, 1, ROWS)
        several = has_moments and tiles > 1
        by_tile = Scratch(lanes * tiles * 3 * O) if several else moments
        grid = blocks_of(lanes * tiles * O, ROW_THREADS)
        yield Launch(_finish_outputs, grid, (y, by_tile, part, parts, lanes, tiles, N, O, has_moments))
        if several:
            yield join_launch(moments, by_tile, lanes, tiles, N, 1, ROWS, O)


@op
def linear_forward(y, moments, x, scale, shift, w, act):
    """y = P(x) @ w.T, without the bias: that is an affine of y, pending for whoever reads it.

    y (N, O)             out
    moments (L, 3, O)    out, optional: lane moments of y
    x (N, ..., C)        in, raw; its I = ... * C numbers a sample in the order H, W, C
    scale, shift (C,)    in, pending affine (act 1); act 2 is a pending ReLU
    w (O, I)             in, columns in the order H, W, C
    Blocks own 64 x 64 of y and a part of k; then threads own columns of the rows of a tile of a lane.
    """
    yield from forward(y, moments, x, scale, shift, w, act, FLOAT32)


# Backward ---------------------------------------------------------------------------------------------------


def make_backward(bf16):
    """The kernel for dw and dx or their parts, in a precision of ``mma.py``."""

    @kernel(THREADS, BLOCKS_PER_SM[THREADS])
    def linear_products(
        dw, dx, dz, raw, gscale, ga, gb, w, x, scale, shift, N, O, I, C, act, gact, dw_blocks, dw_parts, dx_parts
    ):  # fmt: skip
        """The first blocks make dw or its parts, the others dx or its parts."""
        sa = cuda.shared.array(SIZE, float32, alignment=16)
        sb = cuda.shared.array(SIZE, float32, alignment=16)
        staged = cuda.shared.array(STAGED, float32, alignment=16)
        d = dz, raw, gscale, ga, gb, gact, O, _multiple_of_4(O), staged
        block, across, tile = uint32(cuda.blockIdx.x), (I + uint32(TILE - 1)) // uint32(TILE), uint32(TILE)
        step, (ty, tx) = uint32(BK), place_of(uint32(cuda.threadIdx.x), TILE, bf16)
        if block < dw_blocks:
            rest, column = divided(block, across)
            part, row = divided(rest, (O + uint32(TILE - 1)) // tile)
            m0, n0 = uint32(row * tile), uint32(column * tile)
            k, k_end = share_of(part, dw_parts, (N + step - ONE) // step, step, N)
            columns = x, scale, shift, act, C, I, _multiple_of_4(C)
            acc = ZERO64
            while k < k_end:  # once, or as often as rows are staged
                end = k_end
                if is_staged(O):
                    end = min(k_end, uint32(k + tile))
                    stage_gradient(staged, dz, raw, gscale, ga, gb, gact, k, end, O)
                acc = product(
                    acc, sa, sb, gradient_rows, (*d, k), activated_rows, columns,
                    m0, n0, O, I, k, end, TILE, TILE, True, True, bf16,
                )  # fmt: skip
                k = end
            put_block(dw[uint32(part * uint32(O * I)) :], ty, tx, m0, n0, O, I, TILE, TILE, acc)
        else:
            rest, column = divided(uint32(block - dw_blocks), across)
            part, row = divided(rest, (N + uint32(TILE - 1)) // tile)
            m0, n0 = uint32(row * tile), uint32(column * tile)
            k, k_end = share_of(part, dx_parts, (O + step - ONE) // step, step, O)
            if is_staged(O):
                stage_gradient(staged, dz, raw, gscale, ga, gb, gact, m0, N, O)
            rows = w, I, _multiple_of_4(I)
            acc = product(
                ZERO64, sa, sb, gradient_rows, (*d, m0), plain, rows,
                m0, n0, N, I, k, k_end, TILE, TILE, False, True, bf16,
            )  # fmt: skip
            put_block(dx[uint32(part * uint32(N * I)) :], ty, tx, m0, n0, N, I, TILE, TILE, acc)

    return linear_products


BACKWARD = {bf16: make_backward(bf16) for bf16 in PRECISIONS.values()}


@kernel(ROW_THREADS)
def _finish_inputs(
    dx, sums, part, x, scale, shift, base, of, centre, act, has_base, has_of, has_sums,
    parts, lanes, tiles, N, pixels, C,
):  # fmt: skip
    """The tail of dx (N, pixels, C) from its parts, and sums (L, T, 2, C) of tiles of lanes."""
    i = uint32(cuda.grid(1))
    tile, c = uint32(i // C), uint32(i % C)
    if tile < lanes * tiles:
        first, rows = tile_place(tile, tiles, lanes, N, pixels, uint32(ROWS))
        at, middle = uint32(first * C + c), centre[c] if has_of else ZERO
        s = q = ZERO
        for _ in range(rows):
            d = _added(part, at, parts, uint32(N * pixels * C))
            d = finished(d, x, scale, shift, base, at, c, act, has_base)
            dx[at] = d
            s += d
            if has_of:
                q += d * (of[at] - middle)
            at = uint32(at + C)
        if has_sums:
            to = uint32(tile * TWO * C + c)
            sums[to] = s
            sums[uint32(to + C)] = q


def backward(dx, sums, dw, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre, act, gact, bf16):
    """Launches of ``linear_backward``."""
    (N, *_, C), (O, I) = x.shape, w.shape
    has_sums, has_base, has_of = sums.size > 0, base.size > 0, of.size > 0
    finish = has_sums or has_base or act & 2
    across = blocks_of(I, TILE)
    dw_tiles, dx_tiles = across * blocks_of(O, TILE), across * blocks_of(N, TILE) if dx.size else 0
    dw_parts = parts_of(dw_tiles, N, alone=True)
    dx_parts = parts_of(dx_tiles, O, alone=not finish) if dx.size else 0
    dw_part = Scratch(dw_parts * O * I) if dw_parts > 1 else dw
    dx_part = Scratch(dx_parts * N * I) if dx_parts > 1 else dx
    yield Launch(
        BACKWARD[bf16], dw_tiles * dw_parts + dx_tiles * dx_parts,
        (dw_part, dx_part, dz, raw, gscale, ga, gb, w, x, scale, shift, N, O, I, C, act, gact,
         dw_tiles * dw_parts, dw_parts, dx_parts),
    )  # fmt: skip
    if dw_parts > 1:
        yield add_launch(dw, dw_part, 1, dw_parts, O * I)
    if dx.size and (finish or dx_parts > 1):
        lanes, pixels = sums.shape[0] if has_sums else lanes_of_their_own(N), I // C
        tiles = tiles_of(lanes, N, pixels, ROWS)
        several = has_sums and tiles > 1
        by_tile = Scratch(lanes * tiles * 2 * C) if several else sums
        yield Launch(
            _finish_inputs, blocks_of(lanes * tiles * C, ROW_THREADS),
            (dx, by_tile, dx_part, x, scale, shift, base, of, centre, act, has_base, has_of, has_sums,
             dx_parts, lanes, tiles, N, pixels, C),
        )  # fmt: skip
        if several:
            yield add_launch(sums, by_tile, lanes, tiles, 2 * C)


@op
def linear_backward(dx, sums, dw, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre, act, gact):
    """Gradients of ``linear_forward``, d being the pending gradient of y.

    dx (N, ..., C)     out, optional: [base +] mask(P(x)) * (d @ w), see ``fastadam.kernels``
    sums (L, 2, C)     out, optional: lane sums of dx and of dx * (of - centre)
    dw (O, I)          out: d.T @ P(x), summed over N
    dz, raw (N, O), gscale, ga, gb (O,)   in: d = dz, or gscale * dz + ga + gb * raw with gact
    w (O, I), x, scale, shift             in, as in forward
    base, of like dx, centre (C,)         in, optional
    Blocks own 64 x 64 of dw or dx and a part of k; then threads own a channel of the pixels of a tile of a lane.
    """
    arrays = dx, sums, dw, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre
    yield from backward(*arrays, act, gact, FLOAT32)

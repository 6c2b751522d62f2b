"""The micro-kernel under linear and convolution: a tile of a matrix product kept in vector registers.

    C[i, j] (+)= sum over k of A[i, k] * B[k, j]        i < rows <= TILE_ROWS, j < cols <= PANEL

A is found in one of two ways. ``tile``: by strides, a plain matrix or its transpose. ``gather_tile``: through
two tables of offsets, A[row[i] + col[k]]; with the offsets of an image's pixels and of a filter's taps that
is im2col without a copy, and with the two exchanged the transpose that a weight gradient needs. B is read in
panels of 16 columns.

It is emitted as LLVM IR: the accumulators are SSA values, so they live in registers for the whole loop over
k, which plain loops over arrays do not achieve.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastadam.kernels.cpu.jit import leaf
from fastadam.kernels.cpu.simd import IR_VECTOR, WIDTH, element, load_ir, splat_ir, store_ir

PANEL = 16
"""Columns of B in a panel; a panel is stored k by k, 16 floats each, padded with zeros."""

TILE_ROWS = {16: 16, 8: 6, 4: 3}[WIDTH]
"""Rows of a tile: as many accumulators as registers allow beside the operands; 16 of 32, as channels come in 16s."""

_VECTORS = PANEL // WIDTH
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_MASK = ir.VectorType(ir.IntType(1), WIDTH)
_ZERO = ir.Constant(IR_VECTOR, [0.0] * WIDTH)
_INDICES = ir.Constant(ir.VectorType(_I64, WIDTH), list(range(WIDTH)))


class _Strides:
    """A[i, k] at ``base + i * row_step + k * col_step``: a pointer for every three rows moves along k.

    Three rows a pointer, at 0, 1 and 2 steps, are what x86 addresses by one register and the step.
    """

    def __init__(self, builder, base, row_step, col_step):
        self._row_step, self._col_step = row_step, col_step
        self.start = [builder.gep(base, [builder.mul(row_step, _I64(i))]) for i in range(0, TILE_ROWS, 3)]

    def scalars(self, builder, pointers):
        """(the numbers of one k, the pointers for the next)."""
        double = builder.add(self._row_step, self._row_step)
        found = []
        for pointer in pointers:
            found += [pointer, builder.gep(pointer, [self._row_step]), builder.gep(pointer, [double])]
        return [builder.load(p) for p in found[:TILE_ROWS]], [builder.gep(p, [self._col_step]) for p in pointers]


class _Tables:
    """A[i, k] at ``base + row[i] + col[k]``. Rows that do not exist repeat the last one: read, never stored."""

    def __init__(self, builder, base, row, col, rows):
        self._rows = []
        last = builder.sub(rows, _I64(1))
        for i in range(TILE_ROWS):
            index = builder.select(builder.icmp_signed("<", _I64(i), last), _I64(i), last)
            self._rows.append(builder.gep(base, [builder.load(builder.gep(row, [index]))]))
        self.start = [col]

    def scalars(self, builder, pointers):
        """(the numbers of one k, the pointers for the next)."""
        offset = builder.load(pointers[0])
        found = [builder.load(builder.gep(row, [offset])) for row in self._rows]
        return found, [builder.gep(pointers[0], [_I64(1)])]


def _emit(builder, depth, factors, b, b_step, c, c_step, rows, cols, add):
    """The loop over k, then the stores; ``factors`` finds the numbers of A."""
    before = builder.block
    loop, end = builder.append_basic_block("tile.k"), builder.append_basic_block("tile.store")
    builder.cbranch(builder.icmp_signed("<=", depth, _I64(0)), end, loop)
    builder.position_at_end(loop)

    def phi(start):
        value = builder.phi(start.type)
        value.add_incoming(start, before)
        return value

    k, b_pointer = phi(_I64(0)), phi(b)
    pointers = [phi(p) for p in factors.start]
    sums = [phi(_ZERO) for _ in range(TILE_ROWS * _VECTORS)]
    panel = [load_ir(builder, builder.gep(b_pointer, [_I64(v * WIDTH)])) for v in range(_VECTORS)]
    scalars, moved = factors.scalars(builder, pointers)
    kind = ir.FunctionType(IR_VECTOR, [IR_VECTOR] * 3)
    fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{WIDTH}f32")
    new = []
    for i in range(TILE_ROWS):
        factor = splat_ir(builder, scalars[i])
        new += [builder.call(fma, [factor, panel[v], sums[i * _VECTORS + v]]) for v in range(_VECTORS)]
    k_next = builder.add(k, _I64(1))
    following = [k_next, builder.gep(b_pointer, [b_step]), *moved, *new]
    for old, value in zip([k, b_pointer, *pointers, *sums], following, strict=True):
        old.add_incoming(value, loop)
    builder.cbranch(builder.icmp_signed("<", k_next, depth), loop, end)

    builder.position_at_end(end)
    result = []
    for value in new:
        joined = builder.phi(IR_VECTOR)
        joined.add_incoming(_ZERO, before)
        joined.add_incoming(value, loop)
        result.append(joined)
    whole = builder.icmp_signed(">=", cols, _I64(PANEL))
    for i in range(TILE_ROWS):
        with builder.if_then(builder.icmp_signed("<", _I64(i), rows)):
            line = builder.gep(c, [builder.mul(c_step, _I64(i))])
            for v in range(_VECTORS):
                pointer, value = builder.gep(line, [_I64(v * WIDTH)]), result[i * _VECTORS + v]
                with builder.if_else(whole) as (full, part):
                    with full, builder.if_else(add) as (yes, no):
                        with yes:
                            store_ir(builder, builder.fadd(value, load_ir(builder, pointer)), pointer)
                        with no:
                            store_ir(builder, value, pointer)
                    with part:
                        _store_part(builder, value, pointer, builder.sub(cols, _I64(v * WIDTH)), add)


def _store_part(builder, value, pointer, count, add):
    """The first ``count`` numbers of a vector, stored or added."""
    pointer_type = IR_VECTOR.as_pointer()
    load_kind = ir.FunctionType(IR_VECTOR, [pointer_type, _I32, _MASK, IR_VECTOR])
    store_kind = ir.FunctionType(ir.VoidType(), [IR_VECTOR, pointer_type, _I32, _MASK])
    load, store = (
        cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.{name}.v{WIDTH}f32.p0")
        for name, kind in (("load", load_kind), ("store", store_kind))
    )
    mask = builder.icmp_signed("<", _INDICES, splat_ir(builder, count, _INDICES.type))
    at = builder.bitcast(pointer, pointer_type)
    old = builder.call(load, [at, _I32(4), builder.and_(mask, splat_ir(builder, add, _MASK)), _ZERO])
    builder.call(store, [builder.fadd(value, old), at, _I32(4), mask])


@intrinsic
def tile(typingctx, depth, a, a_at, row_step, col_step, b, b_at, b_step, c, c_at, c_step, rows, cols, add):
    """One tile of C.

    depth             number of k
    a, a_at           flat float32; element (i, k) is ``a[a_at + i * row_step + k * col_step]``; all TILE_ROWS
                      rows are read, those that do not exist too
    b, b_at, b_step   flat float32; 16 numbers from ``b[b_at + k * b_step]`` are read for every k
    c, c_at, c_step   flat float32, out; element (i, j) is ``c[c_at + i * c_step + j]``
    rows, cols        the part of the tile that exists: nothing else is written (or read of C)
    add               True: C += the product; False: C = the product
    """
    n = types.intp

    def generate(context, builder, sig, args):
        depth, row_step, col_step, b_step, c_step, rows, cols, add = (args[i] for i in (0, 3, 4, 7, 10, 11, 12, 13))
        at = (element(context, builder, sig.args[t], args[t], args[t + 1]) for t in (1, 5, 8))
        a_base, b_base, c_base = at
        factors = _Strides(builder, a_base, row_step, col_step)
        _emit(builder, depth, factors, b_base, b_step, c_base, c_step, rows, cols, add)
        return context.get_dummy_value()

    return types.void(n, a, n, n, n, b, n, n, c, n, n, n, n, types.boolean), generate


@intrinsic
def gather_tile(typingctx, depth, a, a_at, row, row_at, col, col_at, b, b_at, b_step, c, c_at, c_step, rows, cols, add):
    """One tile of C with A through tables: element (i, k) is ``a[a_at + row[row_at + i] + col[col_at + k]]``.

    row, col   flat int64 tables of offsets; ``row`` needs ``rows`` entries, ``col`` depth
    The other arguments are those of ``tile``.
    """
    n = types.intp

    def generate(context, builder, sig, args):
        depth, rows, cols, add = (args[i] for i in (0, 13, 14, 15))
        at = (element(context, builder, sig.args[t], args[t], args[t + 1]) for t in (1, 3, 5, 7, 10))
        a_base, row, col, b_base, c_base = at
        factors = _Tables(builder, a_base, row, col, rows)
        _emit(builder, depth, factors, b_base, args[9], c_base, args[12], rows, cols, add)
        return context.get_dummy_value()

    return types.void(n, a, n, row, n, col, n, b, n, n, c, n, n, n, n, types.boolean), generate


DEPTH_BLOCK = 384
"""Most k in one pass: 384 rows of a panel are 24 KiB, so that the panel stays in a first-level cache of 32 KiB."""


@leaf
def depth_step(depth):
    """How many k one pass takes: equal shares, none above DEPTH_BLOCK."""
    blocks = max(1, (depth + DEPTH_BLOCK - 1) // DEPTH_BLOCK)
    return max(1, (depth + blocks - 1) // blocks)


@leaf
def _width(size):
    """Columns of a block of B: as many panels of ``size`` k as stay in a first-level cache together."""
    return max(1, DEPTH_BLOCK // size) * PANEL


@leaf
def product(m, n, depth, a, a_at, row_step, col_step, b, b_at, panel_step, b_step, c, c_at, c_step, add):
    """C (m, n) (+)= A (m, depth) @ B (depth, n): a block of B stays in L1 while A passes.

    Arguments as in ``tile``; panel p of B starts at ``b_at + p * panel_step``. A has m rounded up to whole
    tiles of rows that may be read.
    """
    size = depth_step(depth)
    for k in range(0, max(depth, 1), size):
        more, wide = add or k > 0, _width(size)
        for first in range(0, n, wide):
            for i in range(0, m, TILE_ROWS):
                for j in range(first, min(first + wide, n), PANEL):
                    tile(
                        min(size, depth - k), a, a_at + i * row_step + k * col_step, row_step, col_step,
                        b, b_at + (j // PANEL) * panel_step + k * b_step, b_step,
                        c, c_at + i * c_step + j, c_step, min(TILE_ROWS, m - i), n - j, more,
                    )  # fmt: skip


@leaf
def row_product(rows, n, depth, run, a, a_at, row_step, col_step, b, b_at, panel_step, b_step, c, c_at, c_step, add):
    """``product`` for one tile of rows: they stay in L1 while all of B passes, from a second-level cache.

    No sum in float32 is longer than ``run``; where the next one is added to C digits are lost but once.
    """
    for j in range(0, n, PANEL):
        for k in range(0, depth, run):
            tile(
                min(run, depth - k), a, a_at + k * col_step, row_step, col_step,
                b, b_at + (j // PANEL) * panel_step + k * b_step, b_step, c, c_at + j, c_step,
                rows, n - j, add or k > 0,
            )  # fmt: skip


@leaf
def gather_product(m, n, depth, a, a_at, row, row_at, col, col_at, b, b_at, panel_step, b_step, c, c_at, c_step, add):
    """``product`` with A through tables, as in ``gather_tile``."""
    size = depth_step(depth)
    for k in range(0, max(depth, 1), size):
        more, wide = add or k > 0, _width(size)
        for first in range(0, n, wide):
            for i in range(0, m, TILE_ROWS):
                for j in range(first, min(first + wide, n), PANEL):
                    gather_tile(
                        min(size, depth - k), a, a_at, row, row_at + i, col, col_at + k,
                        b, b_at + (j // PANEL) * panel_step + k * b_step, b_step,
                        c, c_at + i * c_step + j, c_step, min(TILE_ROWS, m - i), n - j, more,
                    )  # fmt: skip

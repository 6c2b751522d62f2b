"""The micro-kernel under linear and convolution: a tile of a matrix product kept in vector registers.

    C[i, j] (+)= sum over k of A[row[i] + col[k]] * B[k, j]        i < rows <= TILE_ROWS, j < cols <= PANEL

A is addressed through two tables of offsets. With ``row[i] = i * I, col[k] = k`` it is a plain matrix;
with the offsets of an image's pixels and of a filter's taps it is im2col without a copy; with the two
exchanged it is the transpose that a weight gradient needs. B is read in panels of 16 columns.

It is emitted as LLVM IR because numba has no vector type: the accumulators are SSA values, so they
live in registers for the whole loop over k, which plain loops over arrays do not achieve.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastadam.kernels.cpu.jit import leaf
from fastadam.kernels.cpu.simd import WIDTH

PANEL = 16
"""Columns of B in a panel; a panel is stored k by k, 16 floats each, padded with zeros."""

TILE_ROWS = {16: 12, 8: 6, 4: 3}[WIDTH]
"""Rows of a tile: as many accumulators as registers allow beside the operands."""

_VECTORS = PANEL // WIDTH
_F32 = ir.FloatType()
_I1 = ir.IntType(1)
_I32 = ir.IntType(32)
_I64 = ir.IntType(64)
_VECTOR = ir.VectorType(_F32, WIDTH)
_MASK = ir.VectorType(_I1, WIDTH)
_ZERO = ir.Constant(_VECTOR, [0.0] * WIDTH)
_LANES = ir.Constant(ir.VectorType(_I64, WIDTH), list(range(WIDTH)))


def _splat(builder, scalar, vector_type):
    undefined = ir.Constant(vector_type, ir.Undefined)
    first = builder.insert_element(undefined, scalar, _I32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, vector_type.count), None))


def _load(builder, pointer):
    value = builder.load(builder.bitcast(pointer, _VECTOR.as_pointer()))
    value.align = 4
    return value


def _store(builder, value, pointer):
    builder.store(value, builder.bitcast(pointer, _VECTOR.as_pointer())).align = 4


def _masked(builder, name, *operands):
    """llvm.masked.load or .store of one vector with the alignment of a float."""
    void = ir.VoidType()
    pointer = _VECTOR.as_pointer()
    if name == "load":
        kind = ir.FunctionType(_VECTOR, [pointer, _I32, _MASK, _VECTOR])
    else:
        kind = ir.FunctionType(void, [_VECTOR, pointer, _I32, _MASK])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.{name}.v{WIDTH}f32.p0")
    return builder.call(function, operands)


@intrinsic
def tile(typingctx, depth, a, a_at, row, row_at, col, col_at, b, b_at, b_step, c, c_at, c_step, rows, cols, add):
    """One tile of C.

    depth             number of k
    a, a_at           flat float32; element (i, k) is ``a[a_at + row[row_at + i] + col[col_at + k]]``
    row, col          flat int64 tables of offsets; ``row`` needs ``rows`` entries, ``col`` depth
    b, b_at, b_step   flat float32; 16 numbers from ``b[b_at + k * b_step]`` are read for every k
    c, c_at, c_step   flat float32, out; element (i, j) is ``c[c_at + i * c_step + j]``
    rows, cols        the part of the tile that exists: nothing else is written (or read of C)
    add               True: C += the product; False: C = the product
    """
    n = types.intp
    signature = types.void(n, a, n, row, n, col, n, b, n, n, c, n, n, n, n, types.boolean)

    def generate(context, builder, sig, args):
        depth, _, a_at, _, row_at, _, col_at, _, b_at, b_step, _, c_at, c_step, rows, cols, add = args
        array = {t: context.make_array(sig.args[t]) for t in (1, 3, 5, 7, 10)}
        data = {t: array[t](context, builder, args[t]).data for t in array}
        a_base = builder.gep(data[1], [a_at])
        row_base = builder.gep(data[3], [row_at])
        col_base = builder.gep(data[5], [col_at])
        b_base = builder.gep(data[7], [b_at])
        c_base = builder.gep(data[10], [c_at])
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fma.v{WIDTH}f32"
        )

        last = builder.sub(rows, _I64(1))
        a_rows = []
        for i in range(TILE_ROWS):  # rows that do not exist repeat the last one: read, never stored
            index = _I64(i)
            index = builder.select(builder.icmp_signed("<", index, last), index, last)
            a_rows.append(builder.gep(a_base, [builder.load(builder.gep(row_base, [index]))]))

        before = builder.block
        loop, end = builder.append_basic_block("tile.k"), builder.append_basic_block("tile.store")
        nothing = builder.icmp_signed("<=", depth, _I64(0))
        builder.cbranch(nothing, end, loop)
        builder.position_at_end(loop)
        k = builder.phi(_I64)
        b_pointer = builder.phi(b_base.type)
        k.add_incoming(_I64(0), before)
        b_pointer.add_incoming(b_base, before)
        sums = [builder.phi(_VECTOR) for _ in range(TILE_ROWS * _VECTORS)]
        offset = builder.load(builder.gep(col_base, [k]))
        panel = [_load(builder, builder.gep(b_pointer, [_I64(v * WIDTH)])) for v in range(_VECTORS)]
        new = []
        for i in range(TILE_ROWS):
            factor = _splat(builder, builder.load(builder.gep(a_rows[i], [offset])), _VECTOR)
            for v in range(_VECTORS):
                new.append(builder.call(fma, [factor, panel[v], sums[i * _VECTORS + v]]))
        k_next = builder.add(k, _I64(1))
        k.add_incoming(k_next, loop)
        b_pointer.add_incoming(builder.gep(b_pointer, [b_step]), loop)
        for old, value in zip(sums, new, strict=True):
            old.add_incoming(_ZERO, before)
            old.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", k_next, depth), loop, end)

        builder.position_at_end(end)
        result = []
        for value in new:
            joined = builder.phi(_VECTOR)
            joined.add_incoming(_ZERO, before)
            joined.add_incoming(value, loop)
            result.append(joined)
        whole = builder.icmp_signed(">=", cols, _I64(PANEL))
        limit = _splat(builder, cols, _LANES.type)
        masks = [
            builder.icmp_signed("<", builder.add(_LANES, ir.Constant(_LANES.type, [v * WIDTH] * WIDTH)), limit)
            for v in range(_VECTORS)
        ]
        for i in range(TILE_ROWS):
            with builder.if_then(builder.icmp_signed("<", _I64(i), rows)):
                line = builder.gep(c_base, [builder.mul(c_step, _I64(i))])
                for v in range(_VECTORS):
                    pointer = builder.gep(line, [_I64(v * WIDTH)])
                    value = result[i * _VECTORS + v]
                    with builder.if_else(whole) as (full, part):
                        with full:
                            with builder.if_else(add) as (yes, no):
                                with yes:
                                    _store(builder, builder.fadd(value, _load(builder, pointer)), pointer)
                                with no:
                                    _store(builder, value, pointer)
                        with part:
                            at = builder.bitcast(pointer, _VECTOR.as_pointer())
                            keep = builder.and_(masks[v], _splat(builder, add, _MASK))
                            old = _masked(builder, "load", at, _I32(4), keep, _ZERO)
                            _masked(builder, "store", builder.fadd(value, old), at, _I32(4), masks[v])
        return context.get_dummy_value()

    return signature, generate


DEPTH_BLOCK = 384
"""Most k in one pass: 384 rows of a panel are 24 KiB, so that the panel stays in a first-level cache of 32 KiB."""


@leaf
def product(m, n, depth, a, a_at, row, row_at, col, col_at, b, b_at, panel_step, b_step, c, c_at, c_step, add):
    """C (m, n) (+)= A (m, depth) @ B (depth, n): a block of a panel of B stays in L1 while A passes.

    Arguments as in ``tile``; panel p of B starts at ``b_at + p * panel_step``.
    """
    blocks = max(1, (depth + DEPTH_BLOCK - 1) // DEPTH_BLOCK)
    size = (depth + blocks - 1) // blocks
    for k in range(0, max(depth, 1), max(size, 1)):
        more = add or k > 0
        for j in range(0, n, PANEL):
            at = b_at + (j // PANEL) * panel_step + k * b_step
            for i in range(0, m, TILE_ROWS):
                tile(
                    min(size, depth - k), a, a_at, row, row_at + i, col, col_at + k, b, at, b_step,
                    c, c_at + i * c_step + j, c_step, min(TILE_ROWS, m - i), n - j, more,
                )  # fmt: skip

"""What Python cannot say to a GPU: 16-byte accesses, tiles held in registers, sums over a warp.

A tile of registers is a tuple of float32. LLVM keeps it in registers whatever the loops around it look like; a local
array only stays there while every loop around it is unrolled. Tuples do not change, so kernels read
``acc = outer_add(acc, a, b)``; ``+`` puts two side by side and ``acc[0:8]`` is a row.

**Indices.** Arrays are flat and have fewer than 2**32 elements. An index is truncated to 32 bits and widened without
a sign, so that ``uint32(...)`` around each index that is kept is enough, though numba widens every sum to 64 bits.

Each intrinsic has a plain twin for Numba's simulator, which knows neither intrinsics nor shuffles.
"""

import numpy as np

from fastadam.kernels.cuda.jit import SIMULATED, device

ZERO = np.float32(0)
ZERO4 = (ZERO,) * 4
ZERO8 = (ZERO,) * 8
ZERO64 = (ZERO,) * 64

WARP = 32

if SIMULATED:
    import sys

    from numba import cuda
    from numba.cuda.simulator import kernelapi

    def _shared_array(self, shape, dtype, alignment=None):
        """The simulator refuses ``alignment=``, and tells shared arrays apart by the line that asks for one.

        New arrays are NaN, as uninitialised memory might be.
        """
        frame = sys._getframe(1)
        place = frame.f_code.co_filename, frame.f_lineno
        if place not in self._allocations:
            self._allocations.setdefault(place, np.full(shape, np.nan, np.float32))  # threads race for it
        return self._allocations[place]

    kernelapi.FakeCUDAShared.array = _shared_array

    def load4(a, i):
        return a[i], a[i + 1], a[i + 2], a[i + 3]

    def load4_at(a, i, offset):
        return load4(a, i + offset)

    def load_at(a, i, offset):
        return a[i + offset]

    def load_many(a, i, count):
        return tuple(a[i + k] for k in range(count))

    def kept(x):
        return x

    def load_rows(arrays, i, count):
        return tuple(tuple(a[i + k] for a in arrays) for k in range(count))

    def store4(a, i, v):
        for k in range(4):
            a[i + k] = v[k]

    def store4_at(a, i, offset, v):
        store4(a, i + offset, v)

    def store_rows(arrays, i, rows):
        for k, row in enumerate(rows):
            for a, v in zip(arrays, row, strict=True):
                a[i + k] = v

    def store_at(a, i, offset, v):
        a[i + offset] = v

    def exact_product(x, y):
        product = np.float32(x * y)
        return product, np.float32(np.float64(x) * np.float64(y) - np.float64(product))

    def outer_add(acc, x, y):
        return tuple(acc[i * len(y) + j] + x[i] * y[j] for i in range(len(x)) for j in range(len(y)))

    def add_each(x, y):
        return tuple(p + q for p, q in zip(x, y, strict=True))

    def multiply_add_each(acc, x, y):
        return tuple(s + p * q for s, p, q in zip(acc, x, y, strict=True))

    @device
    def _fold_warp(x, scratch, fold):
        t = cuda.threadIdx.x
        scratch[t] = x
        cuda.syncthreads()
        first = t - t % WARP
        if t == first:
            for lane in range(1, WARP):
                scratch[first] = fold(scratch[first], scratch[first + lane])
        cuda.syncthreads()
        total = scratch[first]
        cuda.syncthreads()
        return total

    @device
    def warp_sum(x, scratch):
        return _fold_warp(x, scratch, lambda p, q: p + q)

    @device
    def warp_max(x, scratch):
        return _fold_warp(x, scratch, max)

else:
    from llvmlite import ir
    from numba import cuda
    from numba.core import cgutils
    from numba.cuda import types
    from numba.cuda.extending import intrinsic

    _FLOAT, _INT = ir.FloatType(), ir.IntType(32)
    _EVERYONE = 0xFFFFFFFF

    def address(context, builder, array_type, array, index, offset=None):
        """Of element ``index`` of a flat array, a constant ``offset`` added after the index was widened."""
        data = context.make_array(array_type)(context, builder, array).data
        if index.type.width > 32:
            index = builder.trunc(index, _INT)
        place = builder.gep(data, [builder.zext(index, ir.IntType(64))])
        if offset is None:
            return place
        if offset.type.width < 64:
            offset = builder.zext(offset, ir.IntType(64))
        return builder.gep(place, [offset])

    def _load_vector(builder, place, count):
        vector = builder.load(builder.bitcast(place, ir.VectorType(_FLOAT, count).as_pointer()), align=4 * count)
        return [builder.extract_element(vector, _INT(k)) for k in range(count)]

    def _store_vector(builder, place, values):
        vector = ir.Constant(ir.VectorType(_FLOAT, len(values)), ir.Undefined)
        for k, value in enumerate(values):
            vector = builder.insert_element(vector, value, _INT(k))
        builder.store(vector, builder.bitcast(place, vector.type.as_pointer()), align=4 * len(values))

    def _load4(context, builder, sig, place):
        return context.make_tuple(builder, sig.return_type, _load_vector(builder, place, 4))

    @intrinsic
    def kept(typingctx, x):
        """A uint32 that stays in a register: libNVVM works out anew, in every round of a loop, what takes little."""

        def codegen(context, builder, sig, args):
            move = ir.InlineAsm(ir.FunctionType(_INT, [_INT]), "mov.u32 $0, $1;", "=r,r", side_effect=True)
            return builder.call(move, args)

        return types.uint32(types.uint32), codegen

    @intrinsic
    def load4(typingctx, a, i):
        """Elements i .. i + 3 of a flat float32 array in one access; i must be a multiple of 4."""

        def codegen(context, builder, sig, args):
            return _load4(context, builder, sig, address(context, builder, sig.args[0], *args))

        return types.UniTuple(types.float32, 4)(a, i), codegen

    @intrinsic
    def load4_at(typingctx, a, i, offset):
        """``load4`` of i + offset; a constant offset lands in the instruction: a 32-bit sum would be added first."""

        def codegen(context, builder, sig, args):
            return _load4(context, builder, sig, address(context, builder, sig.args[0], *args))

        return types.UniTuple(types.float32, 4)(a, i, offset), codegen

    @intrinsic
    def load_at(typingctx, a, i, offset):
        """a[i + offset]; a constant offset lands in the instruction."""

        def codegen(context, builder, sig, args):
            return builder.load(address(context, builder, sig.args[0], *args))

        return a.dtype(a, i, offset), codegen

    @intrinsic
    def load_many(typingctx, a, i, count):
        """Elements i, i + 1, ... of a flat array as a tuple of a constant length; those nobody reads cost nothing."""
        if not isinstance(count, types.IntegerLiteral):
            return None  # numba asks again with the constant
        length = count.literal_value

        def codegen(context, builder, sig, args):
            place = address(context, builder, sig.args[0], *args[:2])
            values = [builder.load(builder.gep(place, [ir.IntType(64)(k)])) for k in range(length)]
            return context.make_tuple(builder, sig.return_type, values)

        return types.UniTuple(a.dtype, length)(a, i, count), codegen

    @intrinsic
    def load_rows(typingctx, arrays, i, count):
        """Rows i .. i + count - 1 of the table whose columns are flat float32 arrays, each row a tuple.

        One access a column; i must be a multiple of the constant ``count``, which is 1, 2 or 4.
        """
        if not isinstance(count, types.IntegerLiteral):
            return None
        row = types.UniTuple(types.float32, arrays.count)
        rows = types.UniTuple(row, count.literal_value)

        def codegen(context, builder, sig, args):
            columns = []
            for k, array_type in enumerate(arrays):
                place = address(context, builder, array_type, builder.extract_value(args[0], k), args[1])
                columns.append(_load_vector(builder, place, rows.count))
            return context.make_tuple(
                builder, rows, [context.make_tuple(builder, row, values) for values in zip(*columns, strict=True)]
            )

        return rows(arrays, i, count), codegen

    @intrinsic
    def store_rows(typingctx, arrays, i, rows):
        """A tuple of rows, float32 each, to where ``load_rows`` would load as many."""
        expected = types.UniTuple(types.UniTuple(types.float32, arrays.count), rows.count)
        if rows != expected:
            raise TypeError(f"{rows} where {expected} is stored")

        def codegen(context, builder, sig, args):
            for k, array_type in enumerate(arrays):
                place = address(context, builder, array_type, builder.extract_value(args[0], k), args[1])
                _store_vector(builder, place, [builder.extract_value(args[2], (j, k)) for j in range(rows.count)])
            return context.get_dummy_value()

        return types.void(arrays, i, rows), codegen

    @intrinsic
    def store4(typingctx, a, i, v):
        """A tuple of four to elements i .. i + 3 in one access; i must be a multiple of 4."""

        def codegen(context, builder, sig, args):
            values = [builder.extract_value(args[2], k) for k in range(4)]
            _store_vector(builder, address(context, builder, sig.args[0], *args[:2]), values)
            return context.get_dummy_value()

        return types.void(a, i, v), codegen

    @intrinsic
    def store4_at(typingctx, a, i, offset, v):
        """``store4`` to i + offset; a constant offset lands in the instruction."""

        def codegen(context, builder, sig, args):
            values = [builder.extract_value(args[3], k) for k in range(4)]
            _store_vector(builder, address(context, builder, sig.args[0], *args[:3]), values)
            return context.get_dummy_value()

        return types.void(a, i, offset, v), codegen

    @intrinsic
    def store_at(typingctx, a, i, offset, v):
        """a[i + offset] = v; a constant offset lands in the instruction."""

        def codegen(context, builder, sig, args):
            builder.store(args[3], address(context, builder, sig.args[0], *args[:3]))
            return context.get_dummy_value()

        return types.void(a, i, offset, a.dtype), codegen

    @intrinsic
    def exact_product(typingctx, x, y):
        """(p, e): x * y rounded, and what the rounding took; p is not to be fused into a sum that it enters."""

        def codegen(context, builder, sig, args):
            rounded = ir.FunctionType(_FLOAT, [_FLOAT, _FLOAT])
            multiply = cgutils.get_or_insert_function(builder.module, rounded, "llvm.nvvm.mul.rn.f")
            product = builder.call(multiply, args)
            rest = builder.fma(*args, builder.fsub(_FLOAT(-0.0), product))
            return context.make_tuple(builder, sig.return_type, [product, rest])

        return types.UniTuple(types.float32, 2)(x, y), codegen

    @intrinsic
    def outer_add(typingctx, acc, x, y):
        """acc[i, j] + x[i] * y[j], row-major: ``len(x) * len(y)`` fused multiply-adds."""
        if acc.count != x.count * y.count:
            raise TypeError(f"{acc.count} sums for {x.count} x {y.count} products")

        def codegen(context, builder, sig, args):
            total, xs, ys = args
            for i in range(x.count):
                for j in range(y.count):
                    at = i * y.count + j
                    factors = builder.extract_value(xs, i), builder.extract_value(ys, j)
                    value = builder.fma(*factors, builder.extract_value(total, at))
                    total = builder.insert_value(total, value, at)
            return total

        return acc(acc, x, y), codegen

    @intrinsic
    def add_each(typingctx, x, y):
        """x[i] + y[i], element by element."""

        def codegen(context, builder, sig, args):
            values = [builder.fadd(*(builder.extract_value(v, i) for v in args)) for i in range(x.count)]
            return context.make_tuple(builder, sig.return_type, values)

        return x(x, y), codegen

    @intrinsic
    def multiply_add_each(typingctx, acc, x, y):
        """acc[i] + x[i] * y[i], element by element, fused."""

        def codegen(context, builder, sig, args):
            total, xs, ys = args
            values = [builder.fma(*(builder.extract_value(v, i) for v in (xs, ys, total))) for i in range(acc.count)]
            return context.make_tuple(builder, sig.return_type, values)

        return acc(acc, x, y), codegen

    @device
    def warp_sum(x, scratch):
        """Sum over the 32 threads of a warp, in each of them; ``scratch`` is for the simulator, a float a thread."""
        x += cuda.shfl_xor_sync(_EVERYONE, x, 16)
        x += cuda.shfl_xor_sync(_EVERYONE, x, 8)
        x += cuda.shfl_xor_sync(_EVERYONE, x, 4)
        x += cuda.shfl_xor_sync(_EVERYONE, x, 2)
        return x + cuda.shfl_xor_sync(_EVERYONE, x, 1)

    @device
    def warp_max(x, scratch):
        """The largest over a warp, as ``warp_sum``."""
        x = max(x, cuda.shfl_xor_sync(_EVERYONE, x, 16))
        x = max(x, cuda.shfl_xor_sync(_EVERYONE, x, 8))
        x = max(x, cuda.shfl_xor_sync(_EVERYONE, x, 4))
        x = max(x, cuda.shfl_xor_sync(_EVERYONE, x, 2))
        return max(x, cuda.shfl_xor_sync(_EVERYONE, x, 1))

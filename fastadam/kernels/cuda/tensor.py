"""Instructions of tensor cores and what feeds them: roundings, products of fragments, 8-byte accesses.

Numba's simulator has none of it: there the float32 kernels are tested.
"""

from fastadam.kernels.cuda.jit import SIMULATED

if SIMULATED:
    load2_at = store2 = to_tf32 = pack_bf16 = mma_tf32 = mma_bf16 = mma_plain = None

else:
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.extending import intrinsic

    from fastadam.kernels.cuda.ptx import address

    _FLOAT, _INT = ir.FloatType(), ir.IntType(32)
    _FLOAT2 = ir.VectorType(_FLOAT, 2)

    @intrinsic
    def load2_at(typingctx, a, i, offset):
        """Elements i + offset and the next of a flat float32 array in one access; i + offset must be even."""

        def codegen(context, builder, sig, args):
            place = builder.bitcast(address(context, builder, sig.args[0], *args), _FLOAT2.as_pointer())
            vector = builder.load(place, align=8)
            values = [builder.extract_element(vector, _INT(k)) for k in range(2)]
            return context.make_tuple(builder, sig.return_type, values)

        return types.UniTuple(types.float32, 2)(a, i, offset), codegen

    @intrinsic
    def store2(typingctx, a, i, v):
        """A pair to elements i and i + 1 in one access; i must be even."""

        def codegen(context, builder, sig, args):
            place = address(context, builder, sig.args[0], args[0], args[1])
            vector = ir.Constant(_FLOAT2, ir.Undefined)
            for k in range(2):
                vector = builder.insert_element(vector, builder.extract_value(args[2], k), _INT(k))
            builder.store(vector, builder.bitcast(place, _FLOAT2.as_pointer()), align=8)
            return context.get_dummy_value()

        return types.void(a, i, v), codegen

    @intrinsic
    def to_tf32(typingctx, x):
        """x rounded to TF32, ten bits of fraction, to nearest, ties away from zero."""

        def codegen(context, builder, sig, args):
            asm = ir.InlineAsm(ir.FunctionType(_INT, [_FLOAT]), "cvt.rna.tf32.f32 $0, $1;", "=r,f")
            return builder.bitcast(builder.call(asm, [args[0]]), _FLOAT)

        return types.float32(x), codegen

    @intrinsic
    def pack_bf16(typingctx, low, high):
        """Two numbers rounded to bfloat16, ties to even, side by side in the 32 bits of a float32."""

        def codegen(context, builder, sig, args):
            kind = ir.FunctionType(_INT, [_FLOAT, _FLOAT])
            asm = ir.InlineAsm(kind, "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f")
            return builder.bitcast(builder.call(asm, args), _FLOAT)

        return types.float32(low, high), codegen

    def _mma(numbers, words):
        """acc (8, 8) + A B, a thread's share of the products of 16 x 8 and 8 x 8 numbers that its warp does.

        ``words`` of k a thread: of A it has the words of its eight rows, at one k and then at the next; of B those
        of four columns. Fragments are two rows of the sums, and every other column of a half of them.
        """
        registers = [f"${i}" for i in range(8 + 3 * words)]
        groups = registers[:4], registers[4 : 4 + 2 * words], registers[4 + 2 * words : 4 + 3 * words], registers[-4:]
        text = f"mma.sync.aligned.m16n8k8.row.col.f32.{numbers}.{numbers}.f32 "
        text += ", ".join(f"{{{', '.join(group)}}}" for group in groups) + ";"
        constraints = ",".join(["=f"] * 4 + ["r"] * (3 * words) + ["f"] * 4)
        kind = ir.FunctionType(ir.LiteralStructType([_FLOAT] * 4), [_INT] * (3 * words) + [_FLOAT] * 4)

        @intrinsic
        def mma(typingctx, acc, a, b):
            def codegen(context, builder, sig, args):
                total, a_words, b_words = args
                asm = ir.InlineAsm(kind, text, constraints, side_effect=True)
                for i in range(4):
                    for j in range(4):
                        fragment = [(a_words, 8 * k + 2 * i + h) for k in range(words) for h in range(2)]
                        fragment += [(b_words, 4 * k + j) for k in range(words)]
                        inputs = [builder.bitcast(builder.extract_value(v, at), _INT) for v, at in fragment]
                        places = [8 * (2 * i + h) + 4 * (j // 2) + 2 * e + j % 2 for h in range(2) for e in range(2)]
                        inputs += [builder.extract_value(total, at) for at in places]
                        done = builder.call(asm, inputs)
                        for k, at in enumerate(places):
                            total = builder.insert_value(total, builder.extract_value(done, k), at)
                return total

            return acc(acc, a, b), codegen

        return mma

    mma_tf32, mma_bf16 = _mma("tf32", 2), _mma("bf16", 1)

    @intrinsic
    def mma_plain(typingctx, acc, a, b):
        """acc + A B in TF32: 4 m words of A, 2 n of B, 4 m n sums, row-major, of fragments as the instruction's."""
        m, n = a.count // 4, b.count // 2
        if acc.count != 4 * m * n:
            raise TypeError(f"{acc.count} sums for {m} x {n} fragments")
        text = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        text += "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
        kind = ir.FunctionType(ir.LiteralStructType([_FLOAT] * 4), [_INT] * 6 + [_FLOAT] * 4)

        def codegen(context, builder, sig, args):
            total, xs, ys = args
            asm = ir.InlineAsm(kind, text, ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4), side_effect=True)
            xs = [builder.bitcast(builder.extract_value(xs, k), _INT) for k in range(4 * m)]
            ys = [builder.bitcast(builder.extract_value(ys, k), _INT) for k in range(2 * n)]
            for i in range(m):
                for j in range(n):
                    at = 4 * (i * n + j)
                    sums = [builder.extract_value(total, at + k) for k in range(4)]
                    done = builder.call(asm, xs[4 * i : 4 * i + 4] + ys[2 * j : 2 * j + 2] + sums)
                    for k in range(4):
                        total = builder.insert_value(total, builder.extract_value(done, k), at + k)
            return total

        return acc(acc, a, b), codegen

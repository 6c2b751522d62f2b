"""Sums in float64, a vector at a time: one for each of its elements, which may be added up at the end.

    total = no_sums()
    total = add_squares(total, load(x, i))      # i = 0, WIDTH, ...
    sum_of(total)

A sum over one number a time waits for each addition; these wait for one in ``WIDTH``.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from fastadam.kernels.cpu.simd import IR_VECTOR, WIDTH, vector

_IR_SUMS = ir.VectorType(ir.DoubleType(), WIDTH)


class _SumsType(types.Type):
    """Numba's type of ``WIDTH`` sums in float64, in registers."""

    def __init__(self):
        super().__init__(name=f"float64x{WIDTH}")


sums = _SumsType()


@register_model(_SumsType)
class _SumsModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _IR_SUMS)


@intrinsic
def no_sums(typingctx):
    """Zero in every element."""

    def generate(context, builder, sig, args):
        return ir.Constant(_IR_SUMS, [0.0] * WIDTH)

    return sums(), generate


@intrinsic
def add_values(typingctx, total, value):
    """total + value, element by element."""

    def generate(context, builder, sig, args):
        return builder.fadd(args[0], builder.fpext(args[1], _IR_SUMS))

    return sums(sums, vector), generate


@intrinsic
def add_squares(typingctx, total, value):
    """total + value**2, element by element; the square of a float32 is exact in float64."""

    def generate(context, builder, sig, args):
        wide = builder.fpext(args[1], _IR_SUMS)
        return builder.fadd(args[0], builder.fmul(wide, wide, flags=("contract",)), flags=("contract",))

    return sums(sums, vector), generate


@intrinsic
def sum_of(typingctx, total):
    """All elements added up, in order."""

    def generate(context, builder, sig, args):
        result = ir.Constant(ir.DoubleType(), 0.0)
        for i in range(WIDTH):
            result = builder.fadd(result, builder.extract_element(args[0], ir.IntType(32)(i)))
        return result

    return types.float64(sums), generate


@intrinsic
def rounded(typingctx, total):
    """The vector of float32 that is nearest."""

    def generate(context, builder, sig, args):
        return builder.fptrunc(args[0], IR_VECTOR)

    return vector(sums), generate


@intrinsic
def sum_at(typingctx, total, index):
    """Element ``index``."""

    def generate(context, builder, sig, args):
        return builder.extract_element(args[0], builder.trunc(args[1], ir.IntType(32)))

    return types.float64(sums, types.intp), generate

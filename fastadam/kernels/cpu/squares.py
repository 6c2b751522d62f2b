"""Sums of squares in float64, a vector at a time: one partial sum for each of its elements, added up at the end.

    total = no_squares()
    total = add_squares(total, load(x, i))      # i = 0, WIDTH, ...
    sum_of(total)

A sum over one number a time waits for each addition; these wait for one in ``WIDTH``.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from fastadam.kernels.cpu.simd import WIDTH, vector

_IR_SQUARES = ir.VectorType(ir.DoubleType(), WIDTH)


class _SquaresType(types.Type):
    """Numba's type of ``WIDTH`` sums in float64, in registers."""

    def __init__(self):
        super().__init__(name=f"float64x{WIDTH}")


squares = _SquaresType()


@register_model(_SquaresType)
class _SquaresModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _IR_SQUARES)


@intrinsic
def no_squares(typingctx):
    """Zero in every element."""

    def generate(context, builder, sig, args):
        return ir.Constant(_IR_SQUARES, [0.0] * WIDTH)

    return squares(), generate


@intrinsic
def add_squares(typingctx, total, value):
    """total + value**2, element by element; the square of a float32 is exact in float64."""

    def generate(context, builder, sig, args):
        wide = builder.fpext(args[1], _IR_SQUARES)
        return builder.fadd(args[0], builder.fmul(wide, wide, flags=("contract",)), flags=("contract",))

    return squares(squares, vector), generate


@intrinsic
def sum_of(typingctx, total):
    """All elements added up, in order."""

    def generate(context, builder, sig, args):
        result = ir.Constant(ir.DoubleType(), 0.0)
        for i in range(WIDTH):
            result = builder.fadd(result, builder.extract_element(args[0], ir.IntType(32)(i)))
        return result

    return types.float64(squares), generate

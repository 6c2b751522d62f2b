"""A vector of float32 for jitted code: as wide as the machine's registers, with the operators of a number.

    v = load(x, i) * s + load(x, i + WIDTH)
    store(y, j, v)

Numba has arrays and scalars only, and LLVM's vectoriser needs a loop it can prove independent. A transform
that keeps 36 numbers a channel in registers is no such loop, but it is straight-line code over vectors. So
``vector`` is a numba type that stands for LLVM's ``<WIDTH x float>``: a value in a register, to be passed,
returned and put into tuples like a float. An operator on it is one instruction (a multiply whose only reader
is an add becomes one with it); an index counts floats and need not be aligned. Everything is emitted where
it is used, so nothing is called, and ``cache=True`` works.
"""

import math
import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

from fastadam.kernels.cache import cpu_features


def vector_width(features: set[str]) -> int:
    """Floats in a vector of a CPU with these instruction sets, by LLVM's names: 16 with AVX-512, 8 with AVX2, else 4.

    A vector is only as wide as the fused multiply-add of the machine: AVX without FMA counts as 4.
    """
    if "avx512f" in features:
        return 16
    if {"avx2", "fma"} <= features:
        return 8
    return 4


WIDTH = vector_width(cpu_features()[1])
"""Floats in a vector on this machine."""

LINE = 16
"""Floats in a cache line."""

FAR = 1 << 21
"""Floats of an array that no cache holds until it is read again: 8 MiB, with others of its size beside it."""

IR_VECTOR = ir.VectorType(ir.FloatType(), WIDTH)
"""LLVM's type of a vector."""

_ZERO = ir.Constant(IR_VECTOR, [0.0] * WIDTH)
_FLAGS = ("contract",)  # one rounding for a multiply and an add; nothing that reorders or assumes NaN away


class VectorType(types.Type):
    """Numba's type of a vector."""

    def __init__(self):
        super().__init__(name=f"float32x{WIDTH}")


vector = VectorType()


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, IR_VECTOR)


def splat_ir(builder, scalar, kind=IR_VECTOR):
    """A scalar in every element of an LLVM vector."""
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), kind.count), None))


def load_ir(builder, pointer):
    """A vector from a pointer to float, of any alignment."""
    value = builder.load(builder.bitcast(pointer, IR_VECTOR.as_pointer()))
    value.align = 4
    return value


def store_ir(builder, value, pointer):
    """A vector to a pointer to float, of any alignment."""
    builder.store(value, builder.bitcast(pointer, IR_VECTOR.as_pointer())).align = 4


def element(context, builder, array_type, array, index):
    """The LLVM pointer to ``array[index]``, unchecked."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


@intrinsic
def load(typingctx, array, index):
    """``array[index : index + WIDTH]`` of a flat float32 array."""

    def generate(context, builder, sig, args):
        return load_ir(builder, element(context, builder, sig.args[0], *args))

    return vector(array, types.intp), generate


@intrinsic
def store(typingctx, array, index, value):
    """``array[index : index + WIDTH] = value``."""

    def generate(context, builder, sig, args):
        store_ir(builder, args[2], element(context, builder, sig.args[0], *args[:2]))
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


def _apart(builder, first, step, count):
    """Pointers ``step`` floats apart.

    Of each three the later are at one and two steps, which x86 adds by itself. LLVM would keep the address of every
    one for the next time round a loop, more than there are registers; what came out of an assembly it does not.
    """
    pointers, double, start = [], builder.add(step, step), first
    kind = ir.FunctionType(first.type, [first.type])
    start = builder.call(ir.InlineAsm(kind, "", "=r,0"), [first])
    while len(pointers) < count:
        pointers += [start, builder.gep(start, [step]), builder.gep(start, [double])]
        start = builder.gep(pointers[-1], [step])
    return pointers[:count]


def _loads(count):
    kind = types.UniTuple(vector, count)

    def typing(typingctx, array, index, step):
        def generate(context, builder, sig, args):
            pointers = _apart(builder, element(context, builder, sig.args[0], *args[:2]), args[2], count)
            return context.make_tuple(builder, kind, [load_ir(builder, pointer) for pointer in pointers])

        return kind(array, types.intp, types.intp), generate

    return typing


@intrinsic
def load4(typingctx, array, index, step):
    """A tuple of four vectors, from ``index``, ``index + step``, ..."""
    return _loads(4)(typingctx, array, index, step)


@intrinsic
def load6(typingctx, array, index, step):
    """A tuple of six vectors, from ``index``, ``index + step``, ..."""
    return _loads(6)(typingctx, array, index, step)


@intrinsic
def store6(typingctx, array, index, step, values):
    """Six vectors to where ``load6`` finds them."""

    def generate(context, builder, sig, args):
        pointers = _apart(builder, element(context, builder, sig.args[0], *args[:2]), args[2], 6)
        for pointer, value in zip(pointers, cgutils.unpack_tuple(builder, args[3], 6), strict=True):
            store_ir(builder, value, pointer)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, types.UniTuple(vector, 6)), generate


def _stream_ir(builder, value, pointer):
    """A vector past the caches, if it is a whole line and aligned to one."""
    if WIDTH < LINE:
        store_ir(builder, value, pointer)
        return
    i64 = ir.IntType(64)
    within = builder.and_(builder.ptrtoint(pointer, i64), i64(4 * LINE - 1))
    with builder.if_else(builder.icmp_unsigned("==", within, i64(0))) as (whole, part):
        with whole:
            past = builder.store(value, builder.bitcast(pointer, IR_VECTOR.as_pointer()))
            past.align = 4 * LINE
            past.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        with part:
            store_ir(builder, value, pointer)


@intrinsic
def put(typingctx, array, index, value, far):
    """``store``; if ``far`` past the caches, for a line that nobody reads soon: what is there is not fetched first.

    Only whole lines go that way: a vector that is not one, or not aligned to one, is stored as usual.
    """

    def generate(context, builder, sig, args):
        pointer = element(context, builder, sig.args[0], *args[:2])
        with builder.if_else(args[3]) as (past, near):
            with past:
                _stream_ir(builder, args[2], pointer)
            with near:
                store_ir(builder, args[2], pointer)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector, types.boolean), generate


@intrinsic
def splat(typingctx, number):
    """A float32 in every element."""

    def generate(context, builder, sig, args):
        return splat_ir(builder, args[0])

    return vector(types.float32), generate


@intrinsic
def zeros(typingctx):
    """Zero in every element."""

    def generate(context, builder, sig, args):
        return _ZERO

    return vector(), generate


@intrinsic
def prefetch(typingctx, array, index):
    """Ask for the cache line of ``array[index]``, to be read soon; nothing waits for it."""

    def generate(context, builder, sig, args):
        byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, second_level, data = i32(0), i32(2), i32(1)
        pointer = element(context, builder, sig.args[0], *args)
        builder.call(function, [builder.bitcast(pointer, byte), read, second_level, data])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def cut(typingctx, value, where):
    """``0 if w <= 0 else v`` of every element: ReLU if both are the same, its mask on a gradient; NaN cuts nothing."""

    def generate(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered("<=", args[1], _ZERO), _ZERO, args[0])

    return vector(vector, vector), generate


@intrinsic
def where_beaten(typingctx, value, best, yes, no):
    """``yes if v > b or v is NaN else no`` of every element: a later value replaces the best so far."""

    def generate(context, builder, sig, args):
        more = builder.fcmp_ordered(">", args[0], args[1])
        return builder.select(builder.or_(more, builder.fcmp_unordered("uno", args[0], args[0])), args[2], args[3])

    return vector(vector, vector, vector, vector), generate


_PAIRS = [
    signature(vector, vector, vector),
    signature(vector, vector, types.float32),
    signature(vector, types.float32, vector),
]


def _binary(function, instruction):
    """Teach numba ``vector OP vector``, ``vector OP float32`` and ``float32 OP vector``."""

    @infer_global(function)
    class Typing(ConcreteTemplate):
        key = function
        cases = _PAIRS

    @lower_builtin(function, vector, vector)
    def both(context, builder, sig, args):
        return getattr(builder, instruction)(*args, flags=_FLAGS)

    @lower_builtin(function, vector, types.float32)
    def mixed(context, builder, sig, args):
        return getattr(builder, instruction)(args[0], splat_ir(builder, args[1]), flags=_FLAGS)

    @lower_builtin(function, types.float32, vector)
    def turned(context, builder, sig, args):
        return getattr(builder, instruction)(splat_ir(builder, args[0]), args[1], flags=_FLAGS)


_binary(operator.add, "fadd")
_binary(operator.sub, "fsub")
_binary(operator.mul, "fmul")
_binary(operator.truediv, "fdiv")


_ROOTS = [signature(vector, vector)]


@infer_global(math.sqrt)
class _RootTyping(ConcreteTemplate):
    key = math.sqrt
    cases = _ROOTS


@lower_builtin(math.sqrt, vector)
def _root(context, builder, sig, args):
    """``math.sqrt`` of a vector."""
    kind = ir.FunctionType(IR_VECTOR, [IR_VECTOR])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.sqrt.v{WIDTH}f32"), args)

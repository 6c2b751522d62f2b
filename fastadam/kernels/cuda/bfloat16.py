"""Moments in bfloat16, rounded at random: see the twin in ``kernels/cpu``. A thread owns four elements.

Four bfloat16 are one access of 8 bytes, widened on the way in and packed on the way out.
"""

import numpy as np
from numba import cuda, uint32

from fastadam.kernels import rules
from fastadam.kernels.cuda.flat import THREADS, flat_launch
from fastadam.kernels.cuda.jit import SIMULATED, device, kernel
from fastadam.kernels.cuda.launch import op
from fastadam.kernels.cuda.ptx import load4, store4
from fastadam.kernels.cuda.updates import hyper_of, run_of

ONE, TWO, THREE, FOUR = (uint32(i) for i in range(1, 5))
NOT_A_NUMBER, LOW = np.uint32(0x7FC0), np.uint32(0xFFFF)
S13, S16 = np.uint32(13), np.uint32(16)
FIRST, SECOND = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)

if SIMULATED:

    def bits_of(x):
        return np.float32(x).view(np.uint32)

    def widened(bits):
        return (np.uint32(bits) << S16).view(np.float32)

    def widened4(a, i):
        return tuple(widened(a[i + k]) for k in range(4))

    def store_halves(a, i, v):
        for k in range(4):
            a[i + k] = v[k]

else:
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.extending import intrinsic

    from fastadam.kernels.cuda.ptx import address

    _FLOAT, _INT = ir.FloatType(), ir.IntType(32)
    _PAIR = ir.VectorType(_INT, 2)

    @intrinsic
    def bits_of(typingctx, x):
        """The 32 bits of a float32."""

        def codegen(context, builder, sig, args):
            return builder.bitcast(args[0], _INT)

        return types.uint32(types.float32), codegen

    @intrinsic
    def widened(typingctx, bits):
        """bfloat16, as uint16, to float32."""

        def codegen(context, builder, sig, args):
            return builder.bitcast(builder.shl(builder.zext(args[0], _INT), _INT(16)), _FLOAT)

        return types.float32(types.uint16), codegen

    @intrinsic
    def widened4(typingctx, a, i):
        """Elements i .. i + 3 of a flat array of bfloat16 as float32, in one access; i must be a multiple of 4."""

        def codegen(context, builder, sig, args):
            place = builder.bitcast(address(context, builder, sig.args[0], *args), _PAIR.as_pointer())
            pair, halves = builder.load(place, align=8), []
            for word in (builder.extract_element(pair, _INT(k)) for k in range(2)):
                halves += [builder.shl(word, _INT(16)), builder.and_(word, _INT(0xFFFF0000))]
            values = [builder.bitcast(half, _FLOAT) for half in halves]
            return context.make_tuple(builder, sig.return_type, values)

        return types.UniTuple(types.float32, 4)(a, i), codegen

    @intrinsic
    def store_halves(typingctx, a, i, v):
        """Four uint32 below 2**16 to elements i .. i + 3 of a flat array of uint16, in one access."""

        def codegen(context, builder, sig, args):
            place = address(context, builder, sig.args[0], args[0], args[1])
            pair = ir.Constant(_PAIR, ir.Undefined)
            for k in range(2):
                low, high = (builder.extract_value(args[2], 2 * k + j) for j in range(2))
                word = builder.or_(low, builder.shl(high, _INT(16)))
                pair = builder.insert_element(pair, word, _INT(k))
            builder.store(pair, builder.bitcast(place, _PAIR.as_pointer()), align=8)
            return context.get_dummy_value()

        return types.void(a, i, types.UniTuple(types.uint32, 4)), codegen


_adamw = device(rules.adamw)


@device
def _mix(z):
    """The last step of MurmurHash3 (Appleby 2011), uint32 to uint32."""
    z = uint32(uint32(z ^ (z >> S16)) * FIRST)
    z = uint32(uint32(z ^ (z >> S13)) * SECOND)
    return uint32(z ^ (z >> S16))


@device
def _rounded(x, random):
    """float32 to bfloat16: away from zero with the probability that is the part cut off; ``random`` < 2**16."""
    return uint32(uint32(bits_of(x) + random) >> S16) if x == x else uint32(NOT_A_NUMBER)


@device
def _element(p, m, v, g, hyper, own, i):
    """New p, and m and v as bfloat16."""
    p, m, v = _adamw(p, m, v, g, hyper)
    random = _mix(uint32(own ^ i))
    return p, _rounded(m, uint32(random & LOW)), _rounded(v, uint32(random >> S16))


@kernel(THREADS)
def _adamw_bf16_kernel(p, m, v, g, h, groups, runs, n):
    i = uint32(uint32(cuda.grid(1)) * FOUR)
    if i >= n:
        return
    group, end = run_of(i, groups, runs)
    if uint32(i + FOUR) <= end:
        hyper = hyper_of(h, group)
        own = _mix(uint32(hyper.draw))
        p4, m4, v4, g4 = load4(p, i), widened4(m, i), widened4(v, i), load4(g, i)
        a = _element(p4[0], m4[0], v4[0], g4[0], hyper, own, i)
        b = _element(p4[1], m4[1], v4[1], g4[1], hyper, own, uint32(i + ONE))
        c = _element(p4[2], m4[2], v4[2], g4[2], hyper, own, uint32(i + TWO))
        d = _element(p4[3], m4[3], v4[3], g4[3], hyper, own, uint32(i + THREE))
        store4(p, i, (a[0], b[0], c[0], d[0]))
        store_halves(m, i, (a[1], b[1], c[1], d[1]))
        store_halves(v, i, (a[2], b[2], c[2], d[2]))
    else:
        stop = min(n, uint32(i + FOUR))
        while i < stop:
            group, end = run_of(i, groups, runs)
            if i < end:  # else between two runs
                hyper = hyper_of(h, group)
                own = _mix(uint32(hyper.draw))
                p[i], m[i], v[i] = _element(p[i], widened(m[i]), widened(v[i]), g[i], hyper, own, i)
            i = uint32(i + ONE)


@op
def adamw_bf16_update(p, m, v, g, h, groups):
    """One step of ``rules.adamw`` by moments kept in bfloat16.

    p (n,)            in and out
    m, v (n,) uint16  in and out: bfloat16; the step itself uses them before they are rounded
    g, h, groups      in, as of every update; ``draw`` of h, a whole number below 2**24, is what the step draws from
    """
    yield flat_launch(_adamw_bf16_kernel, p.size, p, m, v, g, h, groups, groups.shape[0])

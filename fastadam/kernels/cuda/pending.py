"""Pending activations, pending gradients and masks, as ``fastadam.kernels`` states them: four channels at a time.

``act``: 1 affine by channel, 2 ReLU, 4 the mask covers the base too. Comparisons are written so that a NaN is
neither cut nor masked: ``v <= 0`` is false for it.
"""

from numba import float32, uint32

from fastadam.kernels.cuda.jit import device
from fastadam.kernels.cuda.ptx import load4

ONE, TWO, FOUR = uint32(1), uint32(2), uint32(4)


@device
def cut(value, where):
    """``value``, or 0 where the ReLU of ``where`` is."""
    return float32(0) if where <= float32(0) else value


@device
def cut4(v, where):
    """``cut`` of four."""
    return cut(v[0], where[0]), cut(v[1], where[1]), cut(v[2], where[2]), cut(v[3], where[3])


@device
def affine(v, scale, shift, c, act):
    """One number of channel c under its pending affine, before its ReLU."""
    return v * scale[c] + shift[c] if act & ONE else v


@device
def affine4(v, scale, shift, c, act):
    """Channels c .. c + 3 under their pending affine, before their ReLU; c a multiple of 4."""
    if act & ONE:
        s, t = load4(scale, c), load4(shift, c)
        v = (v[0] * s[0] + t[0], v[1] * s[1] + t[1], v[2] * s[2] + t[2], v[3] * s[3] + t[3])
    return v


@device
def activated(v, scale, shift, c, act):
    """P(v) of one number of channel c."""
    v = affine(v, scale, shift, c, act)
    return cut(v, v) if act & TWO else v


@device
def activated4(v, scale, shift, c, act):
    """P(v) of channels c .. c + 3; c a multiple of 4."""
    v = affine4(v, scale, shift, c, act)
    if act & TWO:
        v = cut4(v, v)
    return v


@device
def gradient(dz, raw, gscale, ga, gb, i, c, gact):
    """The pending gradient at i, of channel c: dz, or with gact gscale * dz + ga + gb * raw."""
    d = dz[i]
    if gact:
        d = gscale[c] * d + (gb[c] * raw[i] + ga[c])
    return d


@device
def gradient4(dz, raw, gscale, ga, gb, i, c, gact):
    """The pending gradient at i .. i + 3, of channels c .. c + 3; i and c multiples of 4."""
    d = load4(dz, i)
    if gact:
        r, s, a, b = load4(raw, i), load4(gscale, c), load4(ga, c), load4(gb, c)
        d = (
            s[0] * d[0] + (b[0] * r[0] + a[0]), s[1] * d[1] + (b[1] * r[1] + a[1]),
            s[2] * d[2] + (b[2] * r[2] + a[2]), s[3] * d[3] + (b[3] * r[3] + a[3]),
        )  # fmt: skip
    return d


@device
def finished(d, x, scale, shift, base, i, c, act, has_base):
    """The tail of a backward at i, of channel c: [base +] mask * d, or mask * (base + d) with act 4."""
    if has_base and act & FOUR:
        d += base[i]
    if act & TWO:
        d = cut(d, affine(x[i], scale, shift, c, act))
    if has_base and not act & FOUR:
        d += base[i]
    return d


@device
def finished4(d, x, scale, shift, base, i, c, act, has_base):
    """``finished`` of four, i and c multiples of 4."""
    if has_base and act & FOUR:
        b = load4(base, i)
        d = (d[0] + b[0], d[1] + b[1], d[2] + b[2], d[3] + b[3])
    if act & TWO:
        d = cut4(d, affine4(load4(x, i), scale, shift, c, act))
    if has_base and not act & FOUR:
        b = load4(base, i)
        d = (d[0] + b[0], d[1] + b[1], d[2] + b[2], d[3] + b[3])
    return d

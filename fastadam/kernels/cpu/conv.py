"""Convolution: the two ops, each by the algorithm that ``choose`` names for its shape."""

from fastadam.kernels.cpu import im2col, winograd, winograd_deep
from fastadam.kernels.cpu.choose import is_deep, uses_winograd
from fastadam.kernels.cpu.workspace import sized


def _shape(w, y, stride):
    """What ``choose`` asks for."""
    return tuple(w.shape[:2]), stride, tuple(y.shape[1:3]), w.shape[2], w.shape[3]


def _forward_sizes(y, moments, x, scale, shift, w, act, stride, pad):
    if uses_winograd(*_shape(w, y, stride)):
        return winograd.forward_sizes(y, moments, w)
    return im2col.forward_sizes(y, moments, x, scale, shift, w, act, stride, pad)


@sized(_forward_sizes)
def conv2d_forward(y, moments, x, scale, shift, w, act, stride, pad):
    """y[n, oh, ow] = sum over kh, kw, c of P(x)[n, oh*stride+kh-pad, ow*stride+kw-pad, c] * w[kh, kw, c].

    y (N, OH, OW, OC)     out, without the bias: that is a pending affine of y
    moments (L, 3, OC)    out, optional: lane moments of y
    x (N, H, W, C)        in, raw; scale, shift (C,) its pending affine (act 1); act 2 is a pending ReLU
    w (KH, KW, C, OC)     in
    Padding is zero after the activation. A task owns its samples of y and their lanes of moments.
    """
    if uses_winograd(*_shape(w, y, stride)):
        winograd.forward(y, moments, x, scale, shift, w, act, pad)
    else:
        im2col.forward(y, moments, x, scale, shift, w, act, stride, pad)


def _backward_sizes(
    dx, sums, dw, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre, act, gact, stride, pad
):  # fmt: skip
    if dw.shape[0] == 1 and is_deep(*_shape(w, dz, stride)):
        return winograd_deep.backward_sizes(dx, sums, dz, w)
    if uses_winograd(*_shape(w, dz, stride)):
        return winograd.backward_sizes(dx, dw, dz, w)
    return im2col.backward_sizes(
        dx, sums, dw, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre, act, gact, stride, pad
    )


@sized(_backward_sizes)
def conv2d_backward(
    dx, sums, dw, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre, act, gact, stride, pad
):  # fmt: skip
    """Gradients of ``conv2d_forward``, d being the pending gradient of y.

    dx (N, H, W, C)          out, optional: [base +] mask(P(x)) * gradient, see ``fastadam.kernels``
    sums (L, 2, C)           out, optional: lane sums of dx and of dx * (of - centre)
    dw (L, KH, KW, C, OC)    out: gradient of w by lanes of samples, those of sums; their sum is the gradient. Or one
                             lane, whatever those of sums, where ``choose.filter_lanes`` is 0
    dz, raw (N, OH, OW, OC), gscale, ga, gb (OC,)   in: d = dz, or gscale * dz + ga + gb * raw with gact
    w (KH, KW, C, OC), x, scale, shift              in, as in forward
    base, of like dx, centre (C,)                   in, optional
    A lane owns its samples of dx and its share of sums, and of dw if that has as many.
    """
    if dw.shape[0] == 1 and is_deep(*_shape(w, dz, stride)):
        winograd_deep.backward(
            dx, sums, dw, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre, act, gact, pad
        )
    elif uses_winograd(*_shape(w, dz, stride)):
        winograd.backward(dx, sums, dw, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre, act, gact, pad)
    else:
        im2col.backward(
            dx, sums, dw, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre, act, gact, stride, pad
        )

"""Convolution: the two ops, each by the algorithm that ``choose`` names for its shape and card."""

from fastadam.kernels.cuda import images, implicit, winograd
from fastadam.kernels.cuda.choose import is_of_images, uses_winograd
from fastadam.kernels.cuda.driver import BALANCE
from fastadam.kernels.cuda.launch import op


def _by_images(w, x, stride, pad):
    return is_of_images(w.shape[:2], stride, pad, x.shape[1:3], w.shape[2], w.shape[3])


def convolutions(balance):
    """Both ops, for a card of this balance, see ``driver.Card``."""

    def by_winograd(w, y, stride):
        return uses_winograd(w.shape[:2], stride, y.shape[1:3], w.shape[2], w.shape[3], balance)

    @op
    def conv2d_forward(y, moments, x, scale, shift, w, act, stride, pad):
        """y[n, oh, ow] = sum over kh, kw, c of P(x)[n, oh*stride+kh-pad, ow*stride+kw-pad, c] * w[kh, kw, c].

        y (N, OH, OW, OC)     out, without the bias: that is a pending affine of y
        moments (L, 3, OC)    out, optional: lane moments of y
        x (N, H, W, C)        in, raw; scale, shift (C,) its pending affine (act 1); act 2 is a pending ReLU
        w (KH, KW, C, OC)     in
        Padding is zero after the activation. A block owns a tile of y and its moments.
        """
        if by_winograd(w, y, stride):
            yield from winograd.forward(y, moments, x, scale, shift, w, act, pad)
        elif _by_images(w, x, stride, pad):
            yield from images.forward(y, moments, x, scale, shift, w, act)
        else:
            yield from implicit.forward(y, moments, x, scale, shift, w, act, stride, pad)

    @op
    def conv2d_backward(
        dx, sums, dw, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre, act, gact, stride, pad
    ):  # fmt: skip
        """Gradients of ``conv2d_forward``, d being the pending gradient of y.

        dx (N, H, W, C)          out, optional: [base +] mask(P(x)) * gradient, see ``fastadam.kernels``
        sums (L, 2, C)           out, optional: lane sums of dx and of dx * (of - centre)
        dw (L, KH, KW, C, OC)    out: gradient of w by lanes of samples; their sum is the gradient
        dz, raw (N, OH, OW, OC), gscale, ga, gb (OC,)   in: d = dz, or gscale * dz + ga + gb * raw with gact
        w (KH, KW, C, OC), x, scale, shift              in, as in forward
        base, of like dx, centre (C,)                   in, optional
        A block owns a tile of dx and its sums, or a tile of dw.
        """
        arrays = dx, sums, dw, dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre
        if by_winograd(w, dz, stride):
            yield from winograd.backward(*arrays, act, gact, pad)
        elif _by_images(w, x, stride, pad):
            yield from images.weights(dw, dz, raw, gscale, ga, gb, x, scale, shift, act, gact)
            if dx.size:
                tensors = dz, raw, gscale, ga, gb, w, x, scale, shift, base, of, centre
                yield from implicit.data(dx, sums, *tensors, act, gact, stride, pad)
        else:
            yield from implicit.backward(*arrays, act, gact, stride, pad)

    return conv2d_forward, conv2d_backward


conv2d_forward, conv2d_backward = convolutions(BALANCE)

"""Every op in plain NumPy: the witness that kernels and plans are held against.

Names, argument order and meaning are those of ``fastadam.kernels``: outs, ins, scalars; outs are
overwritten; an optional array that is left out has size 0. The arithmetic has the precision of the
arrays, so that float64 arrays give a float64 witness. Slow and clear on purpose.

A pending activation is (x, scale, shift, act); a pending gradient (dz, raw, gscale, ga, gb, gact); the
tail of every backward (base, of, centre). Lanes are contiguous shares of the samples.
"""

import inspect
from collections.abc import Callable, Iterator

import numpy as np

from fastadam.bfloat16 import widened
from fastadam.kernels import rules
from fastadam.kernels.rules import GRAD_SCALE, WEIGHT_DECAY, Hyper
from fastadam.reference_averages import interpolate as interpolate
from fastadam.reference_averages import lookahead_update as lookahead_update
from fastadam.reference_averages import sam_ascent as sam_ascent
from fastadam.reference_layerwise import centre_units as centre_units
from fastadam.reference_layerwise import clip_units as clip_units
from fastadam.reference_layerwise import lamb_moments as lamb_moments
from fastadam.reference_layerwise import lamb_update as lamb_update
from fastadam.reference_layerwise import lars_update as lars_update
from fastadam.reference_layerwise import tensor_norms as tensor_norms
from fastadam.reference_layerwise import tile_squares as tile_squares
from fastadam.reference_muon import muon_update as muon_update

Array = np.ndarray

# What ops share -------------------------------------------------------------------------------------------


def shares(count: int, lanes: int) -> Iterator[slice]:
    """Contiguous shares of ``count`` things: share l begins at ``l * count // lanes``."""
    for lane in range(lanes):
        yield slice(lane * count // lanes, (lane + 1) * count // lanes)


def activated(x: Array, scale: Array, shift: Array, act: int) -> Array:
    """P(x): ``x * scale + shift`` by channel with act 1, then ReLU with act 2; NaN stays NaN."""
    y = x * scale + shift if act & 1 else x
    return np.where(y <= 0, 0, y) if act & 2 else y


def pending_gradient(dz: Array, raw: Array, gscale: Array, ga: Array, gb: Array, gact: int) -> Array:
    """d = dz, or with gact the gradient through a batch norm: ``gscale * dz + ga + gb * raw``."""
    return gscale * dz + ga + gb * raw if gact else dz


def _fill_sums(sums: Array, dx: Array, of: Array, centre: Array) -> None:
    channels = sums.shape[2]
    for lane, rows in zip(sums, shares(len(dx), len(sums)), strict=True):
        d = dx[rows].reshape(-1, channels)
        lane[0] = d.sum(0)
        lane[1] = (d * (of[rows].reshape(-1, channels) - centre)).sum(0) if of.size else 0


def _finish(
    dx: Array, sums: Array, d: Array, x: Array, scale: Array, shift: Array,
    base: Array, of: Array, centre: Array, act: int,
) -> None:  # fmt: skip
    """dx = [base +] mask * d, or mask * (base + d) with act 4; then its sums."""
    if dx.size:
        d = d.reshape(dx.shape)
        if base.size and act & 4:
            d = base + d
        if act & 2:
            d = np.where(activated(x, scale, shift, act & 1) <= 0, 0, d)
        if base.size and not act & 4:
            d = base + d
        dx[...] = d
    if sums.size:
        _fill_sums(sums, dx, of, centre)


# Randomness -----------------------------------------------------------------------------------------------


def mix(z: Array) -> Array:
    """splitmix64's next output for a state (Steele, Lea and Flood 2014), on uint64 arrays, wrapping."""
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def sample_stream(key: Array, index: Array, salt: int) -> Array:
    """One uint64 a sample, from seed, epoch (``key``), the sample's number and what it is wanted for."""
    seed, epoch = key.astype(np.uint64).reshape(2, 1)
    return mix(mix(mix(mix(seed) ^ epoch) ^ index.astype(np.uint64)) ^ np.uint64(salt))


def dropout_factor(key: Array, index: Array, shape: tuple[int, ...], p: float, salt: int, per_sample: bool) -> Array:
    """Inverted dropout's factor, 0 or 1 / (1 - p), of ``shape`` (N, ...), or to be broadcast to it."""
    elements = np.arange(1 if per_sample else int(np.prod(shape[1:])), dtype=np.uint64)
    z = mix(sample_stream(key, index, salt)[:, None] ^ elements)
    u = (z >> np.uint64(40)).astype(np.float64) / 2.0**24
    factor = (u >= p) / (1.0 - p)
    return factor.reshape(-1, *[1] * (len(shape) - 1)) if per_sample else factor.reshape(shape)


# The batch ------------------------------------------------------------------------------------------------


def batch_prepare(
    y: Array, images: Array, index: Array, key: Array, mean: Array, rstd: Array,
    flip: bool, crop: int, cutout: int,
) -> None:  # fmt: skip
    """y (N, H, W, C) from images (T, C, H, W) uint8: augmented, ``(pixel / 255 - mean) * rstd``.

    With ``flip`` a coin mirrors; ``crop`` shifts by up to that many pixels each way, black beyond the edge;
    a ``cutout`` square centred anywhere is 0 after normalisation (DeVries and Taylor 2017).
    """
    _, H, W, _ = y.shape
    coin, down, right, centre_h, centre_w = (sample_stream(key, index, draw) for draw in range(5))

    def below(draw: Array, count: int) -> Array:
        return ((draw >> np.uint64(32)) % np.uint64(count)).astype(np.int64)

    mirrored = (coin >> np.uint64(63) == 1) & bool(flip)
    down, right = below(down, 2 * crop + 1) - crop, below(right, 2 * crop + 1) - crop
    top, left = below(centre_h, H) - cutout // 2, below(centre_w, W) - cutout // 2
    for n, sample in enumerate(index):
        rows, columns = np.arange(H), np.arange(W)
        cut = (rows >= top[n]) & (rows < top[n] + cutout)
        cut = cut[:, None] & (columns >= left[n]) & (columns < left[n] + cutout)
        rows = rows + down[n]
        columns = (columns[::-1] if mirrored[n] else columns) + right[n]
        inside = ((rows >= 0) & (rows < H))[:, None] & (columns >= 0) & (columns < W)
        pixels = images[sample][:, rows.clip(0, H - 1)][:, :, columns.clip(0, W - 1)]
        pixels = np.where(inside, pixels, 0).transpose(1, 2, 0).astype(y.dtype)
        y[n] = np.where(cut[:, :, None], 0, (pixels / 255 - mean) * rstd)


def batch_load(y: Array, images: Array) -> None:
    """y (N, H, W, C) from images (N, C, H, W) that are normalised already."""
    y[...] = images.transpose(0, 2, 3, 1)


# Convolution and linear layers ----------------------------------------------------------------------------


def _columns(x: Array, KH: int, KW: int, stride: int, pad: int) -> Array:
    """(N, OH, OW, KH, KW, C): the window of each output pixel."""
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (KH, KW), (1, 2))
    return windows[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)


def conv2d_forward(
    y: Array, moments: Array, x: Array, scale: Array, shift: Array, w: Array,
    act: int, stride: int, pad: int,
) -> None:  # fmt: skip
    """y (N, OH, OW, OC) = P(x) (N, H, W, C) convolved with w (KH, KW, C, OC); zeros round P(x)."""
    KH, KW, C, OC = w.shape
    columns = _columns(activated(x, scale, shift, act), KH, KW, stride, pad)
    y[...] = (columns.reshape(-1, KH * KW * C) @ w.reshape(-1, OC)).reshape(y.shape)
    if moments.size:
        lane_moments(moments, y)


def conv2d_backward(
    dx: Array, sums: Array, dw: Array,
    dz: Array, raw: Array, gscale: Array, ga: Array, gb: Array, w: Array,
    x: Array, scale: Array, shift: Array, base: Array, of: Array, centre: Array,
    act: int, gact: int, stride: int, pad: int,
) -> None:  # fmt: skip
    """dx like x, sums; dw (L, KH, KW, C, OC): a sum for each lane of samples."""
    g = pending_gradient(dz, raw, gscale, ga, gb, gact)
    KH, KW, C, OC = w.shape
    columns = _columns(activated(x, scale, shift, act), KH, KW, stride, pad)
    for lane, rows in zip(dw, shares(len(x), len(dw)), strict=True):
        lane[...] = (columns[rows].reshape(-1, KH * KW * C).T @ g[rows].reshape(-1, OC)).reshape(w.shape)
    if dx.size:
        (N, H, W, _), (OH, OW) = x.shape, g.shape[1:3]
        d = np.zeros((N, H + 2 * pad, W + 2 * pad, C), dx.dtype)
        for kh in range(KH):
            for kw in range(KW):
                rows = slice(kh, kh + (OH - 1) * stride + 1, stride)
                d[:, rows, kw : kw + (OW - 1) * stride + 1 : stride] += g @ w[kh, kw].T
        _finish(dx, sums, d[:, pad : pad + H, pad : pad + W], x, scale, shift, base, of, centre, act)


def linear_forward(y: Array, moments: Array, x: Array, scale: Array, shift: Array, w: Array, act: int) -> None:
    """y (N, O) = P(x) (N, ..., C) flattened @ w.T, w (O, I)."""
    y[...] = activated(x, scale, shift, act).reshape(len(x), -1) @ w.T
    if moments.size:
        lane_moments(moments, y)


def linear_backward(
    dx: Array, sums: Array, dw: Array,
    dz: Array, raw: Array, gscale: Array, ga: Array, gb: Array, w: Array,
    x: Array, scale: Array, shift: Array, base: Array, of: Array, centre: Array, act: int, gact: int,
) -> None:  # fmt: skip
    """dx like x, sums; dw (O, I)."""
    g = pending_gradient(dz, raw, gscale, ga, gb, gact)
    dw[...] = g.T @ activated(x, scale, shift, act).reshape(len(x), -1)
    _finish(dx, sums, g @ w, x, scale, shift, base, of, centre, act)


# Pooling, addition, dropout --------------------------------------------------------------------------------


def _windows(x: Array) -> Array:
    """(N, H // 2, 2, W // 2, 2, C); an odd last row or column is dropped."""
    N, H, W, C = x.shape
    return x[:, : H // 2 * 2, : W // 2 * 2].reshape(N, H // 2, 2, W // 2, 2, C)


def maxpool_forward(y: Array, x: Array, scale: Array, shift: Array, act: int) -> None:
    """y (N, H // 2, W // 2, C): the largest of each 2x2 window of P(x)."""
    y[...] = _windows(activated(x, scale, shift, act)).max((2, 4))


def maxpool_backward(
    dx: Array, sums: Array, dy: Array, x: Array, scale: Array, shift: Array,
    base: Array, of: Array, centre: Array, act: int,
) -> None:  # fmt: skip
    """A window's gradient goes to its first largest value in row-major order, found again; or to a NaN."""
    windows, d = _windows(activated(x, scale, shift, act)), np.zeros_like(dx)
    OH, OW = dy.shape[1:3]
    corners = [(h, w) for h in range(2) for w in range(2)]
    best, winner = windows[:, :, 0, :, 0], np.zeros(dy.shape, int)
    for i, (h, w) in enumerate(corners[1:], start=1):
        value = windows[:, :, h, :, w]
        beats = (value > best) | np.isnan(value)
        best, winner = np.where(beats, value, best), np.where(beats, i, winner)
    for i, (h, w) in enumerate(corners):
        d[:, h : 2 * OH : 2, w : 2 * OW : 2] = np.where(winner == i, dy, 0)
    _finish(dx, sums, d, x, scale, shift, base, of, centre, act)


def avgpool_forward(y: Array, x: Array, scale: Array, shift: Array, act: int) -> None:
    """y (N, C): the mean of P(x) over all pixels."""
    y[...] = activated(x, scale, shift, act).mean((1, 2))


def avgpool_backward(
    dx: Array, sums: Array, dy: Array, x: Array, scale: Array, shift: Array,
    base: Array, of: Array, centre: Array, act: int,
) -> None:  # fmt: skip
    """Every pixel gets its share of dy (N, C)."""
    _, H, W, _ = x.shape
    d = np.broadcast_to(dy[:, None, None] / (H * W), x.shape)
    _finish(dx, sums, d, x, scale, shift, base, of, centre, act)


def affine_forward(y: Array, x: Array, scale: Array, shift: Array, act: int) -> None:
    """y = P(x): a pending value, stored."""
    y[...] = activated(x, scale, shift, act)


def add_forward(
    y: Array, a: Array, a_scale: Array, a_shift: Array, b: Array, b_scale: Array, b_shift: Array,
    a_act: int, b_act: int,
) -> None:  # fmt: skip
    """y = P(a) + P(b)."""
    y[...] = activated(a, a_scale, a_shift, a_act) + activated(b, b_scale, b_shift, b_act)


def join_backward(
    dx: Array, sums: Array, dz: Array, raw: Array, gscale: Array, ga: Array, gb: Array,
    x: Array, scale: Array, shift: Array, base: Array, of: Array, centre: Array, act: int, gact: int,
) -> None:  # fmt: skip
    """The tail alone: masks a gradient, joins it to a base, or makes a pending one dense."""
    d = pending_gradient(dz, raw, gscale, ga, gb, gact)
    _finish(dx, sums, d, x, scale, shift, base, of, centre, act)


def dropout_forward(
    y: Array, x: Array, scale: Array, shift: Array, key: Array, index: Array,
    act: int, p: float, salt: int, per_sample: bool,
) -> None:  # fmt: skip
    """y = P(x), 0 with probability p, else divided by 1 - p."""
    y[...] = activated(x, scale, shift, act) * dropout_factor(key, index, x.shape, p, salt, per_sample)


def dropout_backward(
    dx: Array, sums: Array, dy: Array, x: Array, scale: Array, shift: Array, key: Array, index: Array,
    base: Array, of: Array, centre: Array, act: int, p: float, salt: int, per_sample: bool,
) -> None:  # fmt: skip
    """The forward's factors, made again."""
    d = dy * dropout_factor(key, index, x.shape, p, salt, per_sample)
    _finish(dx, sums, d, x, scale, shift, base, of, centre, act)


# Batch norm and sums over lanes ----------------------------------------------------------------------------


def lane_moments(moments: Array, x: Array) -> None:
    """moments (L, 3, C): k, the lane's first pixel, so that little cancels; sums of x - k and (x - k)**2."""
    for lane, rows in zip(moments, shares(len(x), len(moments)), strict=True):
        pixels = x[rows].reshape(-1, moments.shape[2])
        d = pixels - pixels[0]
        lane[0], lane[1], lane[2] = pixels[0], d.sum(0), (d * d).sum(0)


def lane_sums(sums: Array, dz: Array, of: Array, centre: Array) -> None:
    """sums (L, 2, C): sum of dz, and of dz * (of - centre)."""
    _fill_sums(sums, dz, of, centre)


def bn_finalize(
    scale: Array, shift: Array, mean: Array, rstd: Array, running_mean: Array, running_var: Array,
    moments: Array, gamma: Array, beta: Array, bias: Array, step: Array,
    samples: int, pixels: int, eps: float,
) -> None:  # fmt: skip
    """Batch statistics as an affine: scale = gamma * rstd, shift = beta - mean * scale; all (C,).

    Lanes are joined in float64 (Chan, Golub and LeVeque 1979). The running statistics, which are read too,
    move by the momentum ``step[1]`` towards the mean, ``bias`` added, and the unbiased variance; momentum 0
    leaves them as they are.
    """
    count, momentum = samples * pixels, step[1]
    k, first, second = moments.astype(np.float64).transpose(1, 0, 2)
    n = np.array([[(rows.stop - rows.start) * pixels] for rows in shares(samples, len(moments))])
    m = (n * k + first).sum(0) / count
    var = (second - first * first / n + n * (k + first / n - m) ** 2).sum(0) / count
    mean[...], rstd[...] = m, 1 / np.sqrt(var + eps)
    scale[...] = gamma * rstd
    shift[...] = beta - m * scale
    if momentum:
        running_mean += momentum * (m + (bias if bias.size else 0) - running_mean)
        running_var += momentum * (var * count / max(count - 1, 1) - running_var)


def bn_inference(
    scale: Array, shift: Array, running_mean: Array, running_var: Array,
    gamma: Array, beta: Array, bias: Array, eps: float,
) -> None:  # fmt: skip
    """The running statistics as an affine of the raw without its bias."""
    scale[...] = gamma / np.sqrt(running_var + eps)
    shift[...] = beta + ((bias if bias.size else 0) - running_mean) * scale


def bn_backward_finalize(
    dgamma: Array, dbeta: Array, ga: Array, gb: Array,
    sums: Array, mean: Array, rstd: Array, scale: Array, count: int,
) -> None:  # fmt: skip
    """From sums of dz and dz * (raw - mean): dgamma, dbeta, and d raw = scale * dz + ga + gb * raw."""
    total, product = sums.sum(0, dtype=np.float64)
    dbeta[...] = total
    dgamma[...] = rstd * product
    gb[...] = -scale * rstd * (rstd * product) / count
    ga[...] = -scale * total / count - gb * mean


def sum_lanes(y: Array, part: Array) -> None:
    """y = the sum over lanes, in float64, of the first ``y.size`` numbers of each lane of part (L, ...)."""
    lanes = part.reshape(len(part), -1)[:, : y.size]
    y[...] = lanes.sum(0, dtype=np.float64).reshape(y.shape)


def fill(y: Array, value: float) -> None:
    """y = value."""
    y[...] = value


# The loss -------------------------------------------------------------------------------------------------


def softmax_loss(
    dz: Array, sums: Array, rows: Array, x: Array, scale: Array, shift: Array,
    labels: Array, index: Array, step: Array, base: Array, of: Array, centre: Array,
    act: int, smoothing: float,
) -> None:  # fmt: skip
    """Cross-entropy of the logits P(x) (N, K) with labels smoothed as in Szegedy et al. 2016, section 7.

    rows (N, 2): loss * ``step[0]``, and 1 where the first highest logit is that of ``labels[index[n]]``.
    d = (softmax - target) * ``step[0]``.
    """
    z = activated(x, scale, shift, act)
    z = z - z.max(1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    n, own = np.arange(len(z)), labels[index]
    target = np.full_like(z, smoothing / z.shape[1])
    target[n, own] += 1 - smoothing
    rows[:, 0] = -(target * log_p).sum(1) * step[0]
    rows[:, 1] = z.argmax(1) == own
    _finish(dz, sums, (np.exp(log_p) - target) * step[0], x, scale, shift, base, of, centre, act)


# Updates --------------------------------------------------------------------------------------------------


def norm_lanes(part: Array, g: Array) -> None:
    """part (L, 2): sums of g * g over contiguous shares of the flat g, rounded to float32, and the rest, if finite."""
    for lane, share in enumerate(shares(g.size, len(part))):
        total = (g[share].astype(np.float64) ** 2).sum()
        part[lane] = np.float32(total), np.nan_to_num(total - np.float32(total))


def clip_factor(h: Array, part: Array, max_norm: float) -> None:
    """grad_scale of every row = min(1, max_norm / (norm + 1e-6)) (Pascanu et al. 2013, section 3.2, as PyTorch)."""
    h[:, GRAD_SCALE] = np.minimum(1, max_norm / (np.sqrt(part.sum()) + 1e-6))


def hypers(h: Array, groups: Array) -> Hyper:
    """``rules.Hyper`` with, for every number, an array over the elements of the arena: that of its group."""
    group = np.repeat(groups[:, 2], groups[:, 1] - groups[:, 0])
    return Hyper(*h[group].T)


def adam_update(p: Array, m: Array, v: Array, g: Array, h: Array, groups: Array) -> None:
    """Kingma and Ba 2015, Algorithm 1, with L2 weight decay; ``h`` holds ``rules.Hyper`` by group."""
    s = hypers(h, groups)
    g = s.grad_scale * g + s.weight_decay * p
    m[...] = s.beta1 * m + s.one_minus_beta1 * g
    v[...] = s.beta2 * v + s.one_minus_beta2 * g**2
    p -= s.lr * (m * s.m_correction) / (np.sqrt(v * s.v_correction) + s.eps)


def adamw_update(p: Array, m: Array, v: Array, g: Array, h: Array, groups: Array) -> None:
    """Loshchilov and Hutter 2019, Algorithm 2; the decay is multiplied by lr. What is in no run stays as it is."""
    without = h.copy()
    without[:, WEIGHT_DECAY] = 0
    for start, end, group in groups:
        run, whole = slice(start, end), np.array([[0, end - start, group]])
        p[run] *= 1 - Hyper(*h[group]).decay
        adam_update(p[run], m[run], v[run], g[run], without, whole)


def adamw_bf16_update(p: Array, m: Array, v: Array, g: Array, h: Array, groups: Array) -> None:
    """``adamw_update`` by moments in bfloat16, uint16 arrays: upper bits, after random ones are added to the lower."""
    wide_m, wide_v = (widened(moment).astype(p.dtype) for moment in (m, v))
    adamw_update(p, wide_m, wide_v, g, h, groups)
    element = np.arange(p.size, dtype=np.uint32)
    random = mixed32(mixed32(np.asarray(hypers(h, groups).draw, np.uint32)) ^ element)
    for moment, wide, low in ((m, wide_m, random & 0xFFFF), (v, wide_v, random >> 16)):
        bits = wide.astype(np.float32).view(np.uint32).astype(np.uint64) + low
        moment[...] = np.where(np.isnan(wide), 0x7FC0, bits >> 16 & 0xFFFF)


def mixed32(z: Array) -> Array:
    """The finalizer of MurmurHash3 (Appleby 2011), uint32 to uint32."""
    z = (z ^ z >> 16) * np.uint32(0x85EBCA6B)
    z = (z ^ z >> 13) * np.uint32(0xC2B2AE35)
    return z ^ z >> 16


_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD


def _by_element(rule: Callable[..., tuple[float, ...]]) -> Callable[..., None]:
    """An update by the rule itself, in Python's float64: what ``fastadam.oracles`` holds against the papers."""

    def update(p: Array, *others: Array) -> None:
        *kept, g, h, groups = others
        for start, end, group in groups:
            s = Hyper(*map(float, h[group]))
            for i in range(start, end):
                p[i], *new = rule(float(p[i]), *(float(k[i]) for k in kept), float(g[i]), s)
                for k, value in zip(kept, new, strict=True):
                    k[i] = value

    names = (*inspect.signature(rule).parameters, "groups")
    update.__signature__ = inspect.Signature([inspect.Parameter(name, _POSITIONAL) for name in names])  # type: ignore
    return update


amsgrad_update = _by_element(rules.amsgrad)
adamax_update = _by_element(rules.adamax)
nadam_update = _by_element(rules.nadam)
radam_update = _by_element(rules.radam)
adabelief_update = _by_element(rules.adabelief)
adabound_update = _by_element(rules.adabound)
padam_update = _by_element(rules.padam)
adan_update = _by_element(rules.adan)
lion_update = _by_element(rules.lion)
schedulefree_update = _by_element(rules.schedulefree)


def sgd_update(p: Array, m: Array, g: Array, h: Array, groups: Array) -> None:
    """Sutskever et al. 2013 as PyTorch has it: lr outside the buffer, L2 decay, Nesterov if asked."""
    s = hypers(h, groups)
    g = s.grad_scale * g + s.weight_decay * p
    m[...] = s.momentum * m + s.one_minus_dampening * g
    p -= s.lr * np.where(s.nesterov > 0, g + s.momentum * m, m)


def ema_update(ema: Array, p: Array, share: Array) -> None:
    """ema = share * p + (1 - share) * ema."""
    ema[...] = share[0] * p + (1 - share[0]) * ema


def accumulate(y: Array, x: Array) -> None:
    """y + x."""
    y += x

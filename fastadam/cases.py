"""One table of calls for every op: what the kernel tests run.

    for case in CASES:
        outs, ins = case.make()
        getattr(cpu, case.op)(*outs.values(), *ins.values(), *case.scalars.values())

Sizes are odd on purpose (1, 7, 1003, one channel, more outputs than a vector): tails and edges break there.
Raw tensors and their pending affines lie on a grid of quarters. So their activations are exact in float32,
ties and zeros are frequent, and a mask or a maximum cannot differ by a rounding.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fastadam.bfloat16 import cut
from fastadam.case import (
    EPSILON,
    Array,
    Case,
    Fill,
    Shape,
    absent,
    below,
    given,
    gradient,
    grid,
    image_bytes,
    junk,
    normal,
    optional,
    pending,
    squares,
)
from fastadam.cases_layerwise import layerwise_cases, unit_cases
from fastadam.cases_muon import muon_cases
from fastadam.kernels import rules
from fastadam.kernels.lanes import DEEP_PAIRS
from fastadam.kernels.rules import Hyper


@dataclass(frozen=True)
class Tail:
    """How a backward op may end: the activation whose mask it applies, a base, and sums in so many lanes."""

    act: int = 0
    base: bool = False
    lanes: int = 0
    of: bool = False

    def outs(self, shape: Shape, terms: int = 1, name: str = "dx") -> dict[str, Array]:
        """dx and sums."""
        lanes, rows = min(self.lanes, shape[0]), int(np.prod(shape[:-1]))
        sums = optional(lanes > 0, (lanes, 2, shape[-1]), junk, rows + terms)
        return {name: Array(shape, junk, terms), "sums": sums}

    def ins(self, shape: Shape) -> dict[str, Array]:
        """base, of, centre."""
        return {
            "base": optional(self.base, shape),
            "of": optional(self.of, shape),
            "centre": optional(self.of, shape[-1:]),
        }


TAILS = (
    Tail(),
    Tail(act=3, base=True, lanes=3, of=True),
    Tail(act=7, base=True, lanes=1, of=True),
    Tail(act=2, lanes=64),
    Tail(act=6, base=True, lanes=3),
    Tail(act=1, base=True),
    Tail(act=3, lanes=1, of=True),
    Tail(act=6, base=True, lanes=64, of=True),
    Tail(act=0, base=True, lanes=3, of=True),
)


def fitting(tails: Iterator[Tail], shapes: list[Shape]) -> Iterator[tuple[Shape, Tail]]:
    """Every tail with the first shape; with the others a tail each, in turn."""
    yield from ((shapes[0], tail) for tail in TAILS)
    yield from zip(shapes[1:], tails, strict=False)


ACTIVATIONS = (0, 1, 2, 3)

KEY = Array((2,), given(2**40 + 12345, 7, dtype=np.int64))
"""Seed, epoch."""

STEP = Array((2,), given(1 / 128, 0.1))
"""Loss scale, batch-norm momentum."""


# The batch --------------------------------------------------------------------------------------------------


def batch_cases() -> Iterator[Case]:
    """uint8 images with and without augmentation; float images."""
    for samples, channels, high, wide, flip, crop, cutout in (
        (7, 3, 32, 32, 0, 0, 0),
        (9, 3, 32, 32, 1, 4, 8),
        (1, 1, 5, 7, 1, 0, 0),
        (33, 2, 7, 5, 0, 3, 0),
        (33, 3, 6, 9, 1, 1, 3),
        (8, 1, 3, 3, 0, 0, 9),
    ):
        ins = {
            "images": Array((5, channels, high, wide), image_bytes), "index": Array((samples,), below(5)),
            "key": KEY, "mean": Array((channels,), squares), "rstd": Array((channels,), grid),
        }  # fmt: skip
        y = Array((samples, high, wide, channels), junk, terms=8)
        yield Case("batch_prepare", {"y": y}, ins, {"flip": flip, "crop": crop, "cutout": cutout})
    for samples, channels, high, wide in ((1, 1, 1, 1), (7, 3, 30, 30), (3, 5, 2, 7)):
        y = Array((samples, high, wide, channels), junk, terms=0)
        yield Case("batch_load", {"y": y}, {"images": Array((samples, channels, high, wide), normal)})


# Convolution and linear layers ------------------------------------------------------------------------------


def scaled(inputs: int) -> Fill:
    """Weights that keep a sum of ``inputs`` terms of size one."""
    return lambda rng, shape: normal(rng, shape) / np.float32(np.sqrt(inputs))


CONVOLUTIONS = (
    # N, H, W, C, OC, kernel, stride, pad
    (7, 8, 5, 3, 10, 3, 1, 1),
    (1, 30, 30, 3, 10, 3, 1, 1),
    (2, 7, 5, 1, 7, 1, 1, 0),
    (3, 8, 8, 16, 33, 3, 2, 1),
    (2, 6, 7, 4, 16, 5, 2, 2),
    (5, 4, 4, 2, 1, 2, 2, 0),
    (2, 9, 9, 3, 5, 3, 3, 0),
    (1, 3, 3, 7, 17, 5, 1, 2),
    (7, 1, 1, 3, 2, 1, 1, 0),
    (2, 5, 5, 20, 48, 2, 3, 1),
    (3, 6, 5, 17, 16, 1, 2, 0),
    (2, 7, 7, 33, 40, 3, 1, 0),
    (1, 4, 9, 2, 3, 5, 3, 1),
    (3, 8, 8, 32, 32, 3, 1, 1),  # from here on by Winograd's algorithm, with ragged tiles
    (1, 30, 31, 32, 16, 3, 1, 1),
    (5, 6, 7, 48, 16, 3, 1, 0),
    (2, 9, 4, 48, 16, 3, 1, 2),
    (4, 30, 31, 3, 10, 3, 1, 1),  # so many pixels that GPUs share out a lane's
    (3, 16, 24, 64, 68, 3, 1, 1),  # whole patches of 8 x 8 pixels, as tensor cores take them
    (5, 8, 16, 3, 12, 3, 1, 1),  # from here on as images, whose rows make up tiles
    (3, 4, 32, 3, 68, 3, 1, 1),
    (3, 768, 4, 3, 8, 3, 1, 1),  # with several strips a share
    (2, 5, 7, 128, 256, 3, 1, 1),  # so many channels that CPUs go point by point
)


def conv_cases() -> Iterator[Case]:
    """Kernels 1, 2, 3, 5; strides 1 to 3; padding 0 to 2."""
    acts, tails = itertools.cycle(ACTIVATIONS), itertools.cycle(TAILS)
    for number, (N, H, W, C, OC, kernel, stride, pad) in enumerate(CONVOLUTIONS):
        OH, OW = (H + 2 * pad - kernel) // stride + 1, (W + 2 * pad - kernel) // stride + 1
        x, y, w, pixels, taps = (N, H, W, C), (N, OH, OW, OC), (kernel, kernel, C, OC), N * OH * OW, kernel**2
        weights, windows = {"w": Array(w, scaled(taps * C))}, {"stride": stride, "pad": pad}
        for lanes in (0, min(N, 3)) if number else (0, 1, 3, N):
            act = next(acts)
            moments = optional(lanes > 0, (lanes, 3, OC), junk, 4 * pixels + taps * C)
            yield Case(
                "conv2d_forward", {"y": Array(y, junk, taps * C), "moments": moments},
                pending(x, act) | weights, {"act": act, **windows},
            )  # fmt: skip
        for tail in itertools.chain(TAILS if number == 0 else (), (next(tails), next(tails))):
            gact = (tail.act + number) % 2
            lanes = min(tail.lanes or 2, N) if C * OC < DEEP_PAIRS else 1
            yield Case(
                "conv2d_backward", tail.outs(x, taps * OC) | {"dw": Array((lanes, *w), junk, 4 * pixels)},
                gradient(y, gact) | weights | pending(x, tail.act) | tail.ins(x),
                {"act": tail.act, "gact": gact, **windows},
            )  # fmt: skip
        yield Case(
            "conv2d_backward", {"dx": absent(4), "sums": absent(3), "dw": Array((1, *w), junk, 4 * pixels)},
            gradient(y, number % 2) | weights | pending(x, number % 4) | Tail().ins((0,) * 4),
            {"act": number % 4, "gact": number % 2, **windows},
        )  # fmt: skip


LINEARS: tuple[tuple[Shape, int], ...] = (
    # shape of x, outputs
    ((13, 2, 3, 5), 10),
    ((1, 1), 1),
    ((7, 1003), 10),
    ((3, 4, 5, 3), 17),
    ((50, 2, 2, 8), 33),
    ((1, 3, 3, 32), 100),
    ((130, 16), 48),
    ((201, 20), 11),
    ((70, 12), 50),
)


def linear_cases() -> Iterator[Case]:
    """x of two and four dimensions, more samples than a panel and fewer."""
    acts, tails = itertools.cycle(ACTIVATIONS), itertools.cycle(TAILS)
    for number, (x, O) in enumerate(LINEARS):
        N, I = x[0], int(np.prod(x[1:]))
        weights = {"w": Array((O, I), scaled(I))}
        for lanes in (0, min(N, 3)) if number else (0, 1, 3, N):
            act = next(acts)
            moments = optional(lanes > 0, (lanes, 3, O), junk, 4 * N + I)
            yield Case(
                "linear_forward", {"y": Array((N, O), junk, I), "moments": moments},
                pending(x, act) | weights, {"act": act},
            )  # fmt: skip
        dw = {"dw": Array((O, I), junk, 4 * N)}
        for tail in itertools.chain(TAILS if number == 0 else (), (next(tails), next(tails))):
            gact = (tail.act + number) % 2
            yield Case(
                "linear_backward", tail.outs(x, O) | dw,
                gradient((N, O), gact) | weights | pending(x, tail.act) | tail.ins(x),
                {"act": tail.act, "gact": gact},
            )  # fmt: skip
        yield Case(
            "linear_backward", {"dx": absent(len(x)), "sums": absent(3)} | dw,
            gradient((N, O), number % 2) | weights | pending(x, number % 4) | Tail().ins((0,) * len(x)),
            {"act": number % 4, "gact": number % 2},
        )  # fmt: skip


# Pools, addition, dropout -----------------------------------------------------------------------------------

IMAGES: list[Shape] = [
    (7, 5, 7, 3),
    (1, 30, 30, 3),
    (3, 2, 2, 1),
    (2, 4, 3, 33),
    (5, 6, 2, 16),
    (1, 3, 2, 1003),
]

TENSORS: list[Shape] = [(7, 3, 5, 10), (1, 30, 30, 3), (9, 1), (7, 1003), (64, 2, 2, 17), (2, 3, 3, 1003)]


def pool_cases() -> Iterator[Case]:
    """Even and odd sizes: max-pool drops an odd edge, whose gradient is 0."""
    for x, act in itertools.product(IMAGES, ACTIVATIONS):
        N, H, W, C = x
        small, mean = Array((N, H // 2, W // 2, C), junk, terms=0), Array((N, C), junk, H * W)
        yield Case("maxpool_forward", {"y": small}, pending(x, act), {"act": act})
        yield Case("avgpool_forward", {"y": mean}, pending(x, act), {"act": act})
    for op, rank in (("maxpool_backward", 4), ("avgpool_backward", 2)):
        for x, tail in fitting(itertools.cycle(TAILS[1:]), IMAGES + [(3, 4, 6, 32)] * len(TAILS)):
            N, H, W, C = x
            dy = Array((N, H // 2, W // 2, C) if rank == 4 else (N, C), normal)
            yield Case(op, tail.outs(x), {"dy": dy} | pending(x, tail.act) | tail.ins(x), {"act": tail.act})


def pointwise_cases() -> Iterator[Case]:
    """Tensors of two and four dimensions."""
    for x, act in itertools.product(TENSORS, ACTIVATIONS):
        yield Case("affine_forward", {"y": Array(x, junk, terms=0)}, pending(x, act), {"act": act})
    for number, (a_act, b_act) in enumerate(itertools.product(ACTIVATIONS, ACTIVATIONS)):
        x = TENSORS[number % len(TENSORS)]
        ins = pending(x, a_act, "a", "a_") | pending(x, b_act, "b", "b_")
        yield Case("add_forward", {"y": Array(x, junk, terms=0)}, ins, {"a_act": a_act, "b_act": b_act})
    for gact in (0, 1):
        for x, tail in fitting(itertools.cycle(TAILS[gact:]), TENSORS):
            ins = gradient(x, gact) | pending(x, tail.act) | tail.ins(x)
            if tail.act == 0:  # nothing is masked, so x is not needed
                ins["x"] = absent(len(x))
            yield Case("join_backward", tail.outs(x), ins, {"act": tail.act, "gact": gact})
    for y, value in (((7, 3), 0.0), ((1003,), 1.5), ((1,), -2.0)):
        yield Case("fill", {"y": Array(y, junk, terms=0)}, {}, {"value": value})


def dropout_cases() -> Iterator[Case]:
    """By element and by sample; probability 0 keeps all."""
    drops = itertools.cycle([(0.5, 3, False), (0.3, 0, True), (0.0, 1, False), (0.9, 2**31, False), (0.7, 11, True)])
    for (x, act), (p, salt, per_sample) in zip(itertools.product(TENSORS, ACTIVATIONS), drops, strict=False):
        ins = pending(x, act) | {"key": KEY, "index": Array(x[:1], below(50_000))}
        scalars = {"act": act, "p": p, "salt": salt, "per_sample": per_sample}
        yield Case("dropout_forward", {"y": Array(x)}, ins, scalars)
    for (x, tail), (p, salt, per_sample) in zip(fitting(itertools.cycle(TAILS[1:]), TENSORS), drops, strict=False):
        ins = pending(x, tail.act) | {"key": KEY, "index": Array(x[:1], below(50_000))}
        scalars = {"act": tail.act, "p": p, "salt": salt, "per_sample": per_sample}
        outs = tail.outs(x, terms=round(1 / (1 - p)))
        yield Case("dropout_backward", outs, {"dy": Array(x, normal)} | ins | tail.ins(x), scalars)


# Batch norm and sums over lanes -----------------------------------------------------------------------------


def lane_counts(samples: int, lanes: int, pixels: int) -> np.ndarray:
    """(L, 1): how many pixels each lane has."""
    return np.diff(np.arange(lanes + 1) * samples // lanes)[:, None] * pixels


def moments_of(samples: int, pixels: int) -> Fill:
    """Lane moments of a batch whose channels have means of a few deviations."""

    def fill(rng: np.random.Generator, shape: Shape) -> np.ndarray:
        lanes, _, C = shape
        n, moments = lane_counts(samples, lanes, pixels), normal(rng, shape)
        offset = 0.3 * normal(rng, (lanes, C))
        moments[:, 0] += 3 * normal(rng, (1, C))
        moments[:, 1] = n * offset
        moments[:, 2] = n * (offset**2 + (0 if samples * pixels == 1 else 1 + squares(rng, (lanes, C))))
        return moments

    return fill


def norm_cases() -> Iterator[Case]:
    """One lane and many, one pixel and many, with a bias before the norm and without."""
    for x, lanes in itertools.product(TENSORS, (1, 3, 64)):
        N, C, rows = x[0], x[-1], int(np.prod(x[:-1]))
        lanes = min(lanes, N)
        moments = Array((lanes, 3, C), junk, rows)
        yield Case("lane_moments", {"moments": moments}, {"x": Array(x, normal)})
        of = lanes != 1
        yield Case(
            "lane_sums", {"sums": Array((lanes, 2, C), junk, 2 * rows)},
            {"dz": Array(x, normal), "of": optional(of, x), "centre": optional(of, (C,))},
        )  # fmt: skip
    for samples, pixels, lanes, C, bias, momentum in (
        (128, 64, 64, 32, False, 0.1),
        (7, 9, 3, 10, True, 0.1),
        (1, 1, 1, 1, False, 0.1),
        (1, 1024, 1, 1003, True, 0.0),
        (100, 1, 8, 7, False, 1.0),
    ):
        by_channel = Array((C,), junk, terms=8)
        running = Array((C,), squares, terms=8)
        yield Case(
            "bn_finalize",
            dict.fromkeys(("scale", "shift", "mean", "rstd"), by_channel)
            | {"running_mean": running, "running_var": running},
            {
                "moments": Array((lanes, 3, C), moments_of(samples, pixels)),
                "gamma": Array((C,), normal), "beta": Array((C,), normal), "bias": optional(bias, (C,)),
                "step": Array((2,), given(1 / 128, momentum)),
            },
            {"samples": samples, "pixels": pixels, "eps": 1e-5},
        )  # fmt: skip
        yield Case(
            "bn_inference", {"scale": by_channel, "shift": by_channel},
            {
                "running_mean": Array((C,), normal), "running_var": Array((C,), squares),
                "gamma": Array((C,), normal), "beta": Array((C,), normal), "bias": optional(bias, (C,)),
            },
            {"eps": 0.1},  # so large that no drawn variance makes a scale beyond the size of the others
        )  # fmt: skip
        yield Case(
            "bn_backward_finalize",
            dict.fromkeys(("dgamma", "dbeta", "ga", "gb"), by_channel),
            {
                "sums": Array((lanes, 2, C), normal), "mean": Array((C,), normal),
                "rstd": Array((C,), squares), "scale": Array((C,), normal),
            },
            {"count": samples * pixels},
        )  # fmt: skip
    for y, part in (
        ((10,), (5, 2, 10)),
        ((2,), (1003, 2)),
        ((3, 3, 4, 5), (2, 3, 3, 4, 5)),
        ((1,), (1, 2, 1)),
        ((97, 101), (7, 97, 101)),
        ((1003,), (64, 1003)),
        ((10,), (131, 10)),
        ((31,), (50, 31)),
    ):
        exact = Array(y, junk, terms=0)  # in float64, so that only the result is rounded
        yield Case("sum_lanes", {"y": exact}, {"part": Array(part, normal)}, rtol=1e-7)


# Loss and updates -------------------------------------------------------------------------------------------


def loss_cases() -> Iterator[Case]:
    """With a gradient and without, labels smoothed and not."""
    tails, smoothings = itertools.cycle(TAILS), itertools.cycle((0.0, 0.1))
    for shape, tail in fitting(tails, [(7, 10), (1, 10), (1003, 10), (3, 1), (30, 101)]):
        N, K = shape
        for backward in (True, False):
            outs = (tail if backward else Tail()).outs(shape if backward else (0, 0), K, "dz")
            logits = tail.act & 3
            yield Case(
                "softmax_loss", outs | {"rows": Array((N, 2), junk, K)},
                pending(shape, logits)
                | {"labels": Array((N + 5,), below(K, np.int32)), "index": Array((N,), below(N + 5))}
                | {"step": STEP}
                | (tail if backward else Tail()).ins(shape),
                {"act": tail.act if backward else logits, "smoothing": next(smoothings)},
            )  # fmt: skip


def hyper(nesterov: bool, grad_scale: float) -> Array:
    """The numbers of one step, t = 3, for two groups: the second is neither decayed nor as fast nor has norms."""
    numbers = Hyper(
        lr=1e-2, beta1=0.9, one_minus_beta1=0.1, beta2=0.999, one_minus_beta2=0.001, beta3=0.99, one_minus_beta3=0.01,
        eps=1e-8, weight_decay=0.1, decay=0.001, m_correction=1 / (1 - 0.9**3), v_correction=1 / (1 - 0.999**3),
        n_correction=1 / (1 - 0.99**3), g_correction=0.2, rectification=0.05, lower=0.001, upper=0.1, eighths=7.0,
        later=1.0, momentum=0.9, one_minus_dampening=0.8, nesterov=float(nesterov), average=0.3, draw=12345.0,
        trust=0.02, grad_scale=grad_scale,
    )  # fmt: skip
    second = numbers._replace(
        weight_decay=0.0, decay=0.0, lr=3e-3, rectification=0.0, unrectified=1.0, eighths=2.0, trust=0.0
    )  # fmt: skip
    return Array((2, len(numbers)), given(*numbers, *second))


def group_runs(n: int) -> Array:
    """Runs of both groups over ``n`` elements: short ones, and a long one over several tasks."""
    ends = sorted({min(n, end) for end in (3, 4, 21, n - n // 7, n)})
    rows = [(start, end, i % 2) for i, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True))]
    return Array((len(rows), 3), given(*itertools.chain(*rows), dtype=np.int64))


def bfloat16(fill: Fill) -> Fill:
    """The bits of such numbers in bfloat16."""
    return lambda rng, shape: cut(fill(rng, shape))


PLACE = 1.01 / (8 * EPSILON)
"""Terms of a bfloat16 as bits: one place, for the sum that is cut may differ in its own last place."""

_KEPT = dict.fromkeys(("v", "v_max", "s", "u", "n"), squares)
"""What rules keep that is never negative."""


def update_cases() -> Iterator[Case]:
    """Flat arrays of one element, of an odd number, and of several tasks."""
    for rule, kept in rules.MOMENTS.items():
        if rule in (*rules.LAYERWISE, "muon"):  # no formula by element
            continue
        op, fills = f"{rule}_update", {"p": normal} | {name: _KEPT.get(name, normal) for name in kept}
        for n, nesterov, grad_scale in (
            (1, True, 1.0),
            (7, False, 1.0),
            (1003, True, 0.25),
            (50_001, False, 0.5),
        ):
            outs = {name: Array((n,), fill, terms=4) for name, fill in fills.items()}
            if rule in rules.MOMENT_DTYPES:
                outs |= {name: Array((n,), bfloat16(fills[name]), PLACE) for name in kept}
            ins = {"g": Array((n,), normal), "h": hyper(nesterov, grad_scale), "groups": group_runs(n)}
            yield Case(op, outs, ins)
    flat = Array((997,), normal, terms=4)
    yield Case(
        "adamw_update", {"p": flat, "m": flat, "v": Array((997,), squares, terms=4)},
        {"g": flat, "h": hyper(True, 1.0), "groups": Array((2, 3), given(0, 9, 1, 17, 990, 0, dtype=np.int64))},
    )  # fmt: skip
    for n, share in ((1, 1.0), (7, 0.0), (1003, 0.125), (50_001, 0.001)):
        p = Array((n,), normal)
        yield Case("ema_update", {"ema": Array((n,), normal, terms=3)}, {"p": p, "share": Array((1,), given(share))})
        yield Case("accumulate", {"y": p}, {"x": p})
        share = -share if n > 7 else share  # beyond an end too
        both = {"p": Array((n,), normal, terms=3), "slow": Array((n,), normal, terms=3)}
        yield Case("lookahead_update", both, scalars={"share": share})
        yield Case("interpolate", {"y": Array((n,), junk, terms=3)}, {"a": p, "b": p}, {"share": share})
    for lanes, n in ((1, 1), (5, 1003), (64, 64), (64, 50_001), (3, 20_001)):
        part = Array((lanes, 2), junk, terms=1e-4)  # of which the second number alone is so small
        yield Case("norm_lanes", {"part": part}, {"g": Array((n,), normal)}, rtol=1e-7)
        for max_norm in (1.0, 1e6):
            summed = Array((lanes, 2), lambda rng, shape: squares(rng, shape) * np.array([1, 1e-8], np.float32))
            yield Case("clip_factor", {"h": hyper(True, 1.0)}, {"part": summed}, {"max_norm": max_norm})
        pair = {"p": Array((n,), normal), "g": Array((n,), normal)}
        yield Case("sam_ascent", {"q": Array((n,), junk, terms=3)}, pair | {"part": summed}, {"rho": 0.05})


def every_case() -> Iterator[Case]:
    """All of the above."""
    yield from batch_cases()
    yield from conv_cases()
    yield from linear_cases()
    yield from pool_cases()
    yield from pointwise_cases()
    yield from dropout_cases()
    yield from norm_cases()
    yield from loss_cases()
    yield from update_cases()
    yield from layerwise_cases(hyper)
    yield from unit_cases()
    yield from muon_cases()


CASES: tuple[Case, ...] = tuple({str(case): case for case in every_case()}.values())
"""Every op with all of its options, each call once."""

"""The kernels: one module of twins a device, the same names and the same signatures.

    from fastadam.kernels import cpu

**Contract of every op.** Arguments are outs, then ins, then scalars. Outs are overwritten, never added to (a
join says so with ``base``). Arrays are C-contiguous, float32 unless the docstring says otherwise, activations
NHWC, filters (KH, KW, C, OC), linear weights (O, I). Nothing is validated, allocated or returned: shapes are
checked where a plan is bound. An optional array that is absent has size 0 and the rank it would have.

**Pending activation** ``P(x)`` = ``x, scale, shift`` and ``act``: a tensor is stored as its producer computed it;
each reader applies the affine by channel (act 1) and the ReLU (act 2) while it reads. Bias and batch norm are
such affines. ReLU is ``0 if v <= 0 else v``, so a NaN stays a NaN.

**Pending gradient** ``dz, raw, gscale, ga, gb`` and ``gact``: d = dz, or with gact 1 the gradient before a batch
norm, ``gscale * dz + ga + gb * raw`` by channel.

**Tail of every backward** ``base, of, centre`` and ``sums``: dx = [base +] mask * d, where mask is 0 where the
pending ReLU cut x; with act 4 the mask covers the base too. ``sums`` (L, 2, C) takes lane sums of dx and of
dx * (of - centre).

**Lanes.** A sum over the batch is kept in L partial sums over contiguous shares of the samples; L depends on
shapes only, and lanes are added in their order. So the bits do not depend on the number of threads. No lane is
without a sample.

**Groups.** An update is one pass over flat arenas. ``groups`` (K, 3) int64 has rows (start, end, group) that
tile them in order, and ``h`` (G, fields) float32 a row of ``rules.Hyper`` for each group. In ``adamw_update`` there
may be gaps behind runs: what is in none is left as it is.

**Tiles.** Where norms of whole tensors are asked for, ``tiles`` (T, 4) int64 has rows (start, end, group, tensor):
tensor 0, 1, ... cut into pieces of up to ``TILE`` elements, in order, each starting at a multiple of 16. A sum over a
tensor is kept by tile, and its tiles are added in their order: the bits depend on shapes only.

**Units.** What feeds one output: a column of filters, a row of a linear weight; a vector is one unit. ``units`` (T, 5)
int64 has rows (start, across, along, count, length): ``count`` units of one tensor, up to ``UNITS``, element k of
unit u being start + u * across + k * along, k < length. One of the steps is 1.
"""

MOST_LANES = 64
"""Shares of a batch at the most: work for as many cores."""

TILE = 4096
"""Elements of a tensor that are summed up as one."""

UNITS = 16
"""Units of a tensor that are worked on as one."""

PRECISIONS = ("float32", "tf32", "bf16")
"""What the operands of matrix products are rounded to; sums, and all that is stored, are float32."""

PRODUCTS = ("conv2d_backward", "conv2d_forward", "linear_backward", "linear_forward")
"""The ops that have such products."""

MUON_RATES = ("original", "match_rms_adamw")
"""How Muon's rate depends on a matrix's shape, see ``rules.muon_rate``; PyTorch's names."""

OPS = (
    "accumulate",
    "adabelief_update",
    "adabound_update",
    "adam_update",
    "adamax_update",
    "adamw_bf16_update",
    "adamw_update",
    "adan_update",
    "add_forward",
    "affine_forward",
    "amsgrad_update",
    "avgpool_backward",
    "avgpool_forward",
    "batch_load",
    "batch_prepare",
    "bn_backward_finalize",
    "bn_finalize",
    "bn_inference",
    "centre_units",
    "clip_factor",
    "clip_units",
    "conv2d_backward",
    "conv2d_forward",
    "dropout_backward",
    "dropout_forward",
    "ema_update",
    "fill",
    "interpolate",
    "join_backward",
    "lamb_moments",
    "lamb_update",
    "lane_moments",
    "lane_sums",
    "lars_update",
    "linear_backward",
    "linear_forward",
    "lion_update",
    "lookahead_update",
    "maxpool_backward",
    "maxpool_forward",
    "muon_update",
    "nadam_update",
    "norm_lanes",
    "padam_update",
    "radam_update",
    "sam_ascent",
    "schedulefree_update",
    "sgd_update",
    "softmax_loss",
    "sum_lanes",
    "tensor_norms",
    "tile_squares",
)
"""Names of the ops every device has."""

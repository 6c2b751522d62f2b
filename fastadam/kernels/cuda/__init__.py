"""CUDA kernels: twins of those of the CPU. ``fastadam.kernels`` states the contract they share.

An op is a list of launches (``launch.py``); matrix products are built from tiles in registers (``tiles.py``), what is
bound by memory from 16-byte accesses (``ptx.py``).
"""

from fastadam.kernels import OPS
from fastadam.kernels.cuda.averages import ema_update, interpolate, lookahead_update
from fastadam.kernels.cuda.batch import batch_load, batch_prepare
from fastadam.kernels.cuda.bfloat16 import adamw_bf16_update
from fastadam.kernels.cuda.conv import conv2d_backward, conv2d_forward
from fastadam.kernels.cuda.dropout import dropout_backward, dropout_forward
from fastadam.kernels.cuda.gradients import accumulate, clip_factor, norm_lanes
from fastadam.kernels.cuda.layerwise import lamb_moments, lamb_update, lars_update, tensor_norms, tile_squares
from fastadam.kernels.cuda.linear import linear_backward, linear_forward
from fastadam.kernels.cuda.loss import softmax_loss
from fastadam.kernels.cuda.muon import muon_update
from fastadam.kernels.cuda.norm import (
    bn_backward_finalize,
    bn_finalize,
    bn_inference,
    lane_moments,
    lane_sums,
    sum_lanes,
)
from fastadam.kernels.cuda.pointwise import add_forward, affine_forward, fill, join_backward
from fastadam.kernels.cuda.pool import avgpool_backward, avgpool_forward, maxpool_backward, maxpool_forward
from fastadam.kernels.cuda.precision import with_precision
from fastadam.kernels.cuda.sam import sam_ascent
from fastadam.kernels.cuda.unitwise import centre_units, clip_units
from fastadam.kernels.cuda.updates import (
    adabelief_update,
    adabound_update,
    adam_update,
    adamax_update,
    adamw_update,
    adan_update,
    amsgrad_update,
    lion_update,
    nadam_update,
    padam_update,
    radam_update,
    schedulefree_update,
    sgd_update,
)

__all__ = [*OPS, "with_precision"]

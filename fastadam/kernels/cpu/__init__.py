"""CPU kernels: hand-written numba, no BLAS. ``fastadam.kernels`` states the contract they share."""

from fastadam.kernels import OPS
from fastadam.kernels.cpu.averages import ema_update, interpolate, lookahead_update
from fastadam.kernels.cpu.batch import batch_load, batch_prepare
from fastadam.kernels.cpu.bfloat16 import adamw_bf16_update
from fastadam.kernels.cpu.conv import conv2d_backward, conv2d_forward
from fastadam.kernels.cpu.dropout import dropout_backward, dropout_forward
from fastadam.kernels.cpu.gradients import accumulate, clip_factor, norm_lanes
from fastadam.kernels.cpu.layerwise import lamb_moments, lamb_update, lars_update, tensor_norms, tile_squares
from fastadam.kernels.cpu.linear import linear_backward, linear_forward
from fastadam.kernels.cpu.loss import softmax_loss
from fastadam.kernels.cpu.muon import muon_update
from fastadam.kernels.cpu.norm import (
    bn_backward_finalize,
    bn_finalize,
    bn_inference,
    lane_moments,
    lane_sums,
    sum_lanes,
)
from fastadam.kernels.cpu.pointwise import add_forward, affine_forward, fill, join_backward
from fastadam.kernels.cpu.pool import avgpool_backward, avgpool_forward, maxpool_backward, maxpool_forward
from fastadam.kernels.cpu.sam import sam_ascent
from fastadam.kernels.cpu.unitwise import centre_units, clip_units
from fastadam.kernels.cpu.updates import (
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

__all__ = list(OPS)

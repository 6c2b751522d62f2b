"""The optimisers: hyperparameters, their checks, and the numbers a rule needs of one step.

    opt = fastadam.optim.Adam({"w": w}, lr=1e-3)
    opt.step({"w": dw})                       # updates w in place

Arguments mean what they mean in PyTorch. The formulas, with their papers, are in ``fastadam.kernels.rules``.
The same classes, made without parameters, are the settings of a ``fastadam.Trainer``.

    clip_grad_norm, clip_grad_value                    of the gradients of such a loop
    minimize_adam                                      for SciPy: ``minimize(fun, x0, jac=True, method=minimize_adam)``
    initialize_adam, update_parameters_with_adam       as a course has them: dicts of W1, b1, ... and dW1, db1, ...
"""

from fastadam.optim.adam import Adam, Adamax, AdamW, NAdam, RAdam
from fastadam.optim.adamw_bf16 import AdamWBF16
from fastadam.optim.base import Optimizer
from fastadam.optim.clip import clip_grad_norm, clip_grad_value
from fastadam.optim.layerwise import LAMB, LARS
from fastadam.optim.minimize import minimize_adam
from fastadam.optim.muon import Muon
from fastadam.optim.named import OPTIMIZERS, make
from fastadam.optim.schedulefree import ScheduleFree
from fastadam.optim.sgd import SGD
from fastadam.optim.tutorial import initialize_adam, update_parameters_with_adam
from fastadam.optim.variants import AdaBelief, AdaBound, Adan, Lion, Padam

__all__ = [
    "LAMB",
    "LARS",
    "OPTIMIZERS",
    "SGD",
    "AdaBelief",
    "AdaBound",
    "Adam",
    "AdamW",
    "AdamWBF16",
    "Adamax",
    "Adan",
    "Lion",
    "Muon",
    "NAdam",
    "Optimizer",
    "Padam",
    "RAdam",
    "ScheduleFree",
    "clip_grad_norm",
    "clip_grad_value",
    "initialize_adam",
    "make",
    "minimize_adam",
    "update_parameters_with_adam",
]

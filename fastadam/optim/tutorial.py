"""Adam in the shape in which a well-known course has it as an exercise: dicts of W1, b1, ..., and of dW1, db1, ...

    v, s = initialize_adam(parameters)
    t = 0
    ...
    t = t + 1
    parameters, v, s = update_parameters_with_adam(parameters, grads, v, s, t, learning_rate=0.01)

Who has written their own can put this in its place: names, order and meanings are the same, and what is computed is
``fastadam.optim.Adam``.
"""

from collections.abc import Mapping

import numpy as np

from fastadam.checks import whole
from fastadam.device import get_device
from fastadam.optim.adam import Adam
from fastadam.optim.arrays import check_array, check_like, check_writeable, memory_of
from fastadam.optim.own_loop import Table

Arrays = Mapping[str, np.ndarray]


def initialize_adam(parameters: Arrays) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(v, s): zeros for the averages of gradients and of their squares, under "d" + the name of each parameter.

    parameters   {"W1": array, "b1": array, ...}: any names, float32 or float64
    """
    v, s = ({"d" + name: np.zeros_like(p, order="C") for name, p in parameters.items()} for _ in range(2))
    return v, s


def update_parameters_with_adam(
    parameters: dict[str, np.ndarray],
    grads: Arrays,
    v: dict[str, np.ndarray],
    s: dict[str, np.ndarray],
    t: int,
    learning_rate: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """One step of Adam (Kingma & Ba 2015, Algorithm 1): (parameters, v, s), the dicts that were passed.

    parameters   {"W1": array, "b1": array, ...}: any names, float32 or float64, updated in place
    grads        {"dW1": array, "db1": array, ...}: "d" + name for each of them, in its shape and dtype; others, such as
                 the "dA1" or "dZ1" that a backward pass leaves there too, are not looked at
    v, s         of ``initialize_adam``, with the names of grads, updated in place
    t            the step, counted from 1: the averages are divided by 1 - beta**t

    With v_c = v / (1 - beta1**t) and s_c = s / (1 - beta2**t), a parameter moves by
    -learning_rate * v_c / (sqrt(s_c) + epsilon). Editions of the course that return v_c and s_c as well are served by
    ``parameters, v, s, *_ = ...``. ValueError, naming the array, before anything is changed.
    """
    if t < 1:
        raise ValueError(f"t is the step, counted from 1, it is {t}; add 1 to it before the update")
    t = whole("t", t)
    numbers = Adam(None, learning_rate, beta1, beta2, epsilon).all_numbers(t)
    kept = {"m": _twins("v", v, parameters), "v": _twins("s", s, parameters)}
    gradients = _twins("grads", grads, parameters)
    arrays = [*parameters.values(), *kept["m"].values(), *kept["v"].values()]
    names = [f"{what} {name!r}" for what in ("parameter", "v of", "s of") for name in parameters]
    for name, array, p in zip(names, arrays, [*parameters.values()] * 3, strict=True):
        check_array(name, p)
        check_like(name, array, p)
        check_writeable(name, array)
    memory = memory_of(arrays, names.__getitem__)
    device = get_device("cpu")
    kinds = {p.dtype.type for p in parameters.values()}
    members = [[(name, 0) for name, p in parameters.items() if p.dtype == kind] for kind in kinds]
    tables = [Table("adam", of_kind, parameters, kept, memory) for of_kind in members]
    found = [[gradients[name] for name in table.names] for table in tables]
    for table, grads_of_kind in zip(tables, found, strict=True):
        table.find(grads_of_kind)
    with device.running():
        for table in tables:
            table.update(np.array([numbers], table.dtype))
    return parameters, v, s


def _twins(what: str, arrays: Arrays, parameters: Arrays) -> dict[str, np.ndarray]:
    """What a dict has under "d" + name, by the names of the parameters."""
    missing = sorted("d" + name for name in parameters if "d" + name not in arrays)
    if missing:
        raise ValueError(f"{what} has no {', '.join(missing)}, which the parameters {', '.join(parameters)} need")
    return {name: arrays["d" + name] for name in parameters}

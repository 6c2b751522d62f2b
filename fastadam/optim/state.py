"""The state of an optimiser as a flat dict of arrays, and back."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastadam.optim.arrays import check_names
from fastadam.optim.checks import not_negative, positive
from fastadam.setting import shown

if TYPE_CHECKING:
    from fastadam.optim.base import Optimizer

_SETTINGS, _INITIAL = "settings/", "initial_lr"
_OWN = ("t", "lr", "_loop", "threads")
"""Attributes of an optimiser that no other settings bring along."""


def _of_group(number: int, name: str) -> str:
    return f"groups/{number}/{name}"


def _numeric(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a state has: of what is no number, such as a choice by name, an optimiser keeps its own."""
    return {name: value for name, value in settings.items() if isinstance(value, (int, float))}


def state_of(optimizer: "Optimizer") -> dict[str, np.ndarray]:
    """``Optimizer.state_dict``."""
    numbers: dict[str, Any] = {"t": optimizer.t}
    numbers |= {_SETTINGS + name: value for name, value in _numeric(optimizer.settings()).items()}
    for i, group in enumerate(optimizer.param_groups):
        own = _numeric(group.own)
        numbers |= {_of_group(i, name): value for name, value in {_INITIAL: group.initial_lr, **own}.items()}
    return {name: np.array(value) for name, value in numbers.items()} | {
        f"{key}/{name}": array.copy() for key, arrays in optimizer.moments.items() for name, array in arrays.items()
    }


def load_state(optimizer: "Optimizer", state: Mapping[str, Any]) -> None:
    """``Optimizer.load_state_dict``."""
    arrays = {f"{key}/{name}": a for key, kept in optimizer.moments.items() for name, a in kept.items()}
    all_settings, groups = optimizer.settings(), optimizer.param_groups
    names = list(_numeric(all_settings))
    wanted = {"t", *arrays, *(_SETTINGS + name for name in names)}
    wanted |= {_of_group(i, _INITIAL) for i in range(len(groups))}
    optional = {_of_group(i, name) for i in range(len(groups)) for name in names}
    check_names("the state does not fit this optimiser", set(state) - optional, wanted)
    for name, array in arrays.items():
        given = np.asarray(state[name])
        if (given.shape, given.dtype) != (array.shape, array.dtype):
            raise ValueError(
                f"{name} of the state is {given.dtype} {given.shape}, this optimiser's is {array.dtype} {array.shape}"
            )
    t = _number("t", state["t"])
    if t != int(t) or t < 0:
        raise ValueError(f"t of the state must be a whole number of 0 or more, it is {t}")
    settings = {name: _number(_SETTINGS + name, state[_SETTINGS + name]) for name in names}
    settings = {name: value for name, value in all_settings.items() if name not in names} | settings
    lr = not_negative("lr", settings.pop("lr"))
    unnumbered = [{n: value for n, value in group.own.items() if n not in _numeric(group.own)} for group in groups]
    own = [
        {n: _number(_of_group(i, n), state[_of_group(i, n)]) for n in (_INITIAL, *names) if _of_group(i, n) in state}
        for i in range(len(groups))
    ]
    initial = [positive(_INITIAL, values.pop(_INITIAL)) for values in own]
    made = type(optimizer)(None, lr=initial[0] if initial else None, **settings)
    own = [kept | values for kept, values in zip(unnumbered, own, strict=True)]
    for group, first, values in zip(groups, initial, own, strict=True):
        group.check({"lr": lr, **settings, **values}, first)

    vars(optimizer).update({key: value for key, value in vars(made).items() if key not in _OWN})
    optimizer.lr, optimizer.t = lr, int(t)
    for group, first, values in zip(groups, initial, own, strict=True):
        group.initial_lr, group.own = first, values
    for name, array in arrays.items():
        np.copyto(array, state[name])


def _number(name: str, value: Any) -> Any:
    array = np.asarray(value)
    if array.shape != () or array.dtype.kind not in "biuf":
        raise ValueError(f"{name} of the state must be a number, found {shown(value)}")
    return array.item()

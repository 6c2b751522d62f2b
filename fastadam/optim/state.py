"""The state of an optimiser as a flat dict of arrays, and back."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastadam.checks import not_negative, positive
from fastadam.optim.arrays import check_names
from fastadam.setting import shown

if TYPE_CHECKING:
    from fastadam.optim.base import Optimizer

_SETTINGS, _INITIAL = "settings/", "initial_lr"
_OWN = ("t", "lr", "_loop", "threads")
"""Attributes of an optimiser that no other settings bring along."""


def _of_group(number: int, name: str) -> str:
    return f"groups/{number}/{name}"


def state_of(optimizer: "Optimizer") -> dict[str, np.ndarray]:
    """``Optimizer.state_dict``."""
    values: dict[str, Any] = {"t": optimizer.t}
    values |= {_SETTINGS + name: value for name, value in optimizer.settings().items()}
    for i, group in enumerate(optimizer.param_groups):
        values |= {_of_group(i, name): value for name, value in {_INITIAL: group.initial_lr, **group.own}.items()}
    return {name: _stored(name, value) for name, value in values.items()} | {
        f"{key}/{name}": array.copy() for key, arrays in optimizer.moments.items() for name, array in arrays.items()
    }


def load_state(optimizer: "Optimizer", state: Mapping[str, Any]) -> None:
    """``Optimizer.load_state_dict``."""
    arrays = {f"{key}/{name}": a for key, kept in optimizer.moments.items() for name, a in kept.items()}
    present, groups = optimizer.settings(), optimizer.param_groups
    wanted = {"t", *arrays, *(_SETTINGS + name for name in present)}
    wanted |= {_of_group(i, _INITIAL) for i in range(len(groups))}
    optional = {_of_group(i, name) for i in range(len(groups)) for name in present}
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
    settings = {name: _value(_SETTINGS + name, state[_SETTINGS + name], like) for name, like in present.items()}
    lr = not_negative("lr", settings.pop("lr"))
    initial = [
        positive(_INITIAL, _number(_of_group(i, _INITIAL), state[_of_group(i, _INITIAL)])) for i in range(len(groups))
    ]
    own = [
        {n: _value(name, state[name], like) for n, like in present.items() if (name := _of_group(i, n)) in state}
        for i in range(len(groups))
    ]
    made = type(optimizer)(None, lr=initial[0] if initial else optimizer.initial_lr, **settings)
    for group, first, values in zip(groups, initial, own, strict=True):
        group.check({"lr": lr, **settings, **values}, first)

    vars(optimizer).update({key: value for key, value in vars(made).items() if key not in _OWN})
    optimizer.lr, optimizer.t = lr, int(t)
    for group, first, values in zip(groups, initial, own, strict=True):
        group.initial_lr, group.own = first, values
    for name, array in arrays.items():
        np.copyto(array, state[name])


def _stored(name: str, value: Any) -> np.ndarray:
    """A number, numbers, or text, as its bytes: ``safetensors.numpy.save_file`` takes no strings."""
    array = np.frombuffer(value.encode(), np.uint8).copy() if isinstance(value, str) else np.array(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} is {shown(value)}, which a state cannot hold")
    return array


def _value(name: str, stored: Any, like: Any) -> Any:
    """What ``_stored`` stored, as an optimiser has it that has ``like`` now."""
    array = np.asarray(stored)
    if isinstance(like, str):
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(f"{name} of the state must be the bytes of a text, found {shown(stored)}")
        return bytes(array.astype(np.uint8)).decode(errors="replace")
    if isinstance(like, tuple):
        if array.ndim != 1 or array.dtype.kind not in "iuf":
            raise ValueError(f"{name} of the state must be numbers in a row, found {shown(stored)}")
        return tuple(array.tolist())
    return _number(name, stored)


def _number(name: str, value: Any) -> Any:
    array = np.asarray(value)
    if array.shape != () or array.dtype.kind not in "biuf":
        raise ValueError(f"{name} of the state must be a number, found {shown(value)}")
    return array.item()

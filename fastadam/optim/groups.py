"""Parameter groups, as PyTorch has them: parameters with settings of their own."""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastadam.checks import not_negative
from fastadam.kernels import rules
from fastadam.setting import nearest, shown

if TYPE_CHECKING:
    from fastadam.optim.base import Optimizer

Params = Mapping[str, np.ndarray] | Sequence[Mapping[str, Any]]
"""Arrays by name, or a list of groups: {"params": arrays by name, "lr": 0.1, ...}."""


class ParamGroup(MutableMapping[str, Any]):
    """One of ``Optimizer.param_groups``: a dict of "params", its arrays by name, and of every setting.

    What has not been set for the group alone is the optimiser's: it follows ``optimizer.lr = ...``, and set here, in
    an optimiser's only group, it is set there. Setting one takes effect at the next step; ``del`` gives what is the
    group's own back to the optimiser.

    initial_lr   the rate that the group began with
    """

    def __init__(self, optimizer: "Optimizer", params: Mapping[str, np.ndarray], own: Mapping[str, Any]):
        self._optimizer, self._params = optimizer, dict(params)
        self.own = {name: value for name, value in own.items() if value is not None}
        for name in self.own:
            self._check_name(name)
        self.initial_lr: float = self.own.get("lr") or optimizer.initial_lr  # a group may be at rest
        self._made_of = {**self._settings(), "lr": self.initial_lr}
        self._made = self._make(self._made_of)
        self.rule = self._made.rule

    def numbers(self, t: int) -> rules.Hyper:
        """What the rule needs of step ``t``. ValueError for settings that make no sense."""
        settings = self._settings()
        made = self._made_with(settings)
        return made.all_numbers(t, made.own_rate(t, float(settings["lr"])))

    def made(self) -> "Optimizer":
        """The optimiser that the settings make as they are now. ValueError for such as make no sense.

        It was made with the rate that the group began with, whatever it is now.
        """
        return self._made_with(self._settings())

    def _made_with(self, settings: Mapping[str, Any]) -> "Optimizer":
        not_negative("lr", settings["lr"])
        others = {**settings, "lr": self.initial_lr}  # the rate may change with every step
        if others != self._made_of:
            self._made, self._made_of = self.check(settings, self.initial_lr), others
        return self._made

    def rule_of(self, p: np.ndarray) -> str:
        """The rule that updates a parameter of the group."""
        return self._made.rule_of(p)

    @property
    def constants(self) -> tuple[tuple[str, Any], ...]:
        """What the update takes beside the numbers of the step that ``numbers`` was asked of last."""
        return self._made.constants

    def check(self, settings: Mapping[str, Any], initial_lr: float) -> "Optimizer":
        """The settings as an optimiser without parameters; ValueError if they make no sense for this group."""
        not_negative("lr", settings["lr"])
        made = self._make({**settings, "lr": initial_lr})
        if made.rule != self.rule:
            raise ValueError(
                f"these settings ask for the rule {made.rule}, which keeps other arrays than {self.rule}, the one "
                "that this optimiser was made with; make a new one"
            )
        return made

    def _make(self, settings: Mapping[str, Any]) -> "Optimizer":
        return type(self._optimizer)(None, **settings)

    def _settings(self) -> dict[str, Any]:
        return {**self._optimizer.settings(), **self.own}

    def _check_name(self, name: str) -> None:
        known = self._optimizer.settings()
        if name not in known:
            kind, guess = type(self._optimizer).__name__, nearest(str(name), known)
            raise ValueError(
                f"{kind} has no setting {shown(name)} for a parameter group; it has {', '.join(known)}{guess}"
            )

    def __getitem__(self, name: str) -> Any:
        if name == "params":
            return dict(self._params)
        return self.own[name] if name in self.own else self._optimizer.settings()[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if name == "params":
            raise ValueError("the parameters of a group are fixed; make a new optimiser for others")
        self._check_name(name)
        only = len(self._optimizer.param_groups) == 1
        if only and name not in self.own and hasattr(self._optimizer, name):
            setattr(self._optimizer, name, value)
        else:
            self.own[name] = value

    def __delitem__(self, name: str) -> None:
        del self.own[name]

    def __iter__(self) -> Iterator[str]:
        return iter(("params", *self._optimizer.settings()))

    def __len__(self) -> int:
        return 1 + len(self._optimizer.settings())

    def __repr__(self) -> str:
        settings = {key: self[key] for key in self if key != "params"}
        return f"ParamGroup({len(self._params)} parameters, {listed(settings)})"


def listed(settings: Mapping[str, Any]) -> str:
    """Settings as a call would have them."""
    return ", ".join(
        f"{key}={value:g}" if isinstance(value, (int, float)) else f"{key}={value!r}" for key, value in settings.items()
    )


def groups_of(optimizer: "Optimizer", params: Params) -> list[ParamGroup]:
    """The groups of an optimiser. ValueError for what is none."""
    if isinstance(params, Mapping):
        return [ParamGroup(optimizer, params, {})]
    if not isinstance(params, Sequence) or not all(isinstance(group, Mapping) for group in params):
        raise ValueError(
            f"params must be arrays by name or a list of groups, it is a {type(params).__name__}; pass "
            '{"w": w} or [{"params": {"w": w}, "lr": 0.1}]'
        )
    groups: list[ParamGroup] = []
    names: set[str] = set()
    for i, group in enumerate(params):
        own = {key: value for key, value in group.items() if key != "params"}
        arrays = group.get("params")
        if not isinstance(arrays, Mapping):
            raise ValueError(f'group {i} must have "params", a dict of arrays by name')
        twice = sorted(names & arrays.keys())
        if twice:
            raise ValueError(f"parameter {twice[0]!r} is in two groups; names must differ")
        names |= arrays.keys()
        groups.append(ParamGroup(optimizer, arrays, own))
    return groups

"""What the optimisers share: parameters, settings, and the numbers a rule needs of one step."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from fastadam.checks import not_negative, positive, whole
from fastadam.kernels import rules
from fastadam.optim import state
from fastadam.optim.groups import ParamGroup, Params, groups_of, listed
from fastadam.optim.own_loop import OwnLoop
from fastadam.setting import FLOAT32_MOST


class Optimizer(ABC):
    """``t`` counts the steps taken; ``moments`` {"m": {name: array}, ...} is what the rule keeps.

    params         arrays by name, float32 or float64 (float32 alone for ``rules.FLOAT32_ONLY``), C-contiguous, of any
                   shape, () included, updated in place by ``step``; or a list of groups, {"params": arrays by name,
                   "lr": 0.1, ...}, with settings of their own; None for the settings of a Trainer
    lr             learning rate
    weight_decay   pull of the parameters towards zero; ``decoupled`` says whether it acts on them alone, times lr,
                   or is an L2 penalty that goes through the gradient (of LAMB and ScheduleFree into the step)

    Settings may change between steps, ``optimizer.lr = ...``; those of one group in ``param_groups``. ``initial_lr`` is
    the rate it was made with, and with it other rates among its settings go together: they change as lr does.
    ``threads`` is the number of CPU threads that ``step`` uses, None for all cores; it makes no difference to the bits.
    A subclass sets its own settings before it calls this constructor, which looks at the parameters with them.
    """

    name: ClassVar[str]
    default_lr: ClassVar[float]
    default_weight_decay: ClassVar[float] = 0.0
    decoupled: bool = False
    threads: int | None = None
    _loop: OwnLoop | None = None

    def __init__(
        self,
        params: Params | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
    ):
        self.lr = positive("lr", self.default_lr if lr is None else lr)
        self.initial_lr = self.lr
        self.weight_decay = not_negative(
            "weight_decay", self.default_weight_decay if weight_decay is None else weight_decay
        )
        self.t = 0
        if params is not None:
            self._loop = OwnLoop(groups_of(self, params))

    @property
    def rule(self) -> str:
        """The rule in ``fastadam.kernels.rules`` that these settings ask for."""
        return self.name

    @property
    def moment_names(self) -> tuple[str, ...]:
        """What the rule keeps of every parameter between steps."""
        return rules.MOMENTS[self.rule]

    def rule_of(self, p: np.ndarray) -> str:
        """The rule that updates a parameter given by name."""
        return self.rule

    @property
    def params(self) -> Mapping[str, np.ndarray]:
        """The parameters of all groups by name."""
        return MappingProxyType(self._loop.params if self._loop else {})

    @property
    def param_groups(self) -> list[ParamGroup]:
        """The groups of parameters, one if they were given as a dict. ``group["lr"] = ...`` sets the rate of one."""
        return list(self._loop.groups) if self._loop else []

    @property
    def moments(self) -> Mapping[str, Mapping[str, np.ndarray]]:
        """What is kept, by its name and the parameter's."""
        kept = self._loop.kept if self._loop else {name: {} for name in self.moment_names}
        return MappingProxyType({name: MappingProxyType(arrays) for name, arrays in kept.items()})

    @property
    def constants(self) -> tuple[tuple[str, Any], ...]:
        """(name, value) of what the update takes beside ``hyper``: the same in every step."""
        return ()

    def settings(self) -> dict[str, Any]:
        """The hyperparameters by name, as the class takes them."""
        return {"lr": self.lr, "weight_decay": self.weight_decay}

    @abstractmethod
    def numbers(self, t: int, lr: float) -> dict[str, float]:
        """The rule's own numbers of step ``t`` at the rate ``lr``, by the names of ``rules.Hyper``."""

    def all_numbers(self, t: int, lr: float | None = None) -> rules.Hyper:
        """The numbers of step ``t`` = 1, 2, ...; ``lr``, from a schedule, stands in for the optimiser's own."""
        lr = self.own_rate(t, self.lr) if lr is None else lr
        decay = {"decay": lr * self.weight_decay} if self.decoupled else {"weight_decay": self.weight_decay}
        return rules.Hyper(**({"lr": lr} | decay | self.numbers(t, lr)))

    def own_rate(self, t: int, lr: float) -> float:
        """The rate of step ``t`` where no schedule sets it: ``lr``, unless the optimiser warms up by itself."""
        return lr

    def hyper(self, t: int, lr: float | None = None) -> np.ndarray:
        """``all_numbers`` in float32, as the kernels take them."""
        numbers = self.all_numbers(t, lr)
        with np.errstate(over="ignore"):
            narrow = np.array(numbers, np.float32)
        if not np.isfinite(narrow).all():
            name, value = next(pair for pair in numbers._asdict().items() if not abs(pair[1]) <= FLOAT32_MOST)
            raise ValueError(f"{name} of step {t} is {value}, more than float32 can hold; choose smaller settings")
        return narrow

    def decay_rows(self, t: int, lr: float | None = None) -> np.ndarray:
        """``hyper`` for parameters that decay, and for those that do not: (2, fields) float32."""
        h = np.stack([self.hyper(t, lr)] * 2)
        h[1, [rules.WEIGHT_DECAY, rules.DECAY]] = 0
        return h

    def step(self, grads: Mapping[str, np.ndarray]) -> None:
        """One update of all parameters by ``grads``, which has their names, shapes and dtypes.

        Nothing is copied, whatever the sizes. A number of NumPy's will do for a parameter of no dimension. Raises
        ValueError, naming the array, before anything is changed.
        """
        if self._loop is None:
            raise ValueError(f"this {type(self).__name__} was made without parameters: pass them to its constructor")
        t = whole("t", self.t, 0) + 1
        self._loop.step(t, grads, self.threads)
        self.t = t

    def state_dict(self) -> dict[str, np.ndarray]:
        """All that ``load_state_dict`` needs to go on with the same bits, in copies; the parameters are yours to keep.

        "t", "m/NAME" and what else the rule keeps, "settings/lr" ..., and of groups "groups/0/lr" ...; numbers are
        arrays of no dimension and a text is its bytes, so that ``numpy.savez`` and ``safetensors.numpy.save_file`` take
        the dict as it is.
        """
        return state.state_of(self)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where another optimiser of the same class, with parameters of the same names and shapes, has been.

        Raises ValueError, naming what does not fit, before anything is changed.
        """
        state.load_state(self, state_dict)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({listed(self.settings())})"

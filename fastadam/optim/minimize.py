"""The optimisers as methods of SciPy's ``minimize``.

scipy.optimize.minimize(fun, x0, jac=True, method=fastadam.optim.minimize_adam, options={"lr": 0.01})
"""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from fastadam.checks import not_negative, whole
from fastadam.kernels import rules
from fastadam.optim.base import Optimizer
from fastadam.optim.named import kind_of
from fastadam.setting import nearest, shown

REACHED, TOO_MANY, NOT_FINITE, STOPPED = 0, 1, 2, 99
"""What ``status`` of a result may be."""

_MESSAGES = {
    REACHED: "Optimization terminated successfully: no component of the gradient is larger than gtol.",
    TOO_MANY: "Maximum number of iterations has been exceeded.",
    NOT_FINITE: "The function or its gradient is not finite.",
    STOPPED: "`callback` raised `StopIteration`.",
}


def minimize_adam(
    fun: Callable[..., Any],
    x0: Any,
    args: tuple[Any, ...] = (),
    jac: Any = None,
    hess: Any = None,
    hessp: Any = None,
    bounds: Any = None,
    constraints: Any = (),
    callback: Callable[..., Any] | None = None,
    *,
    optimizer: str = "adam",
    lr: float | Callable[[int], float] | None = None,
    maxiter: int = 10_000,
    gtol: float = 1e-5,
    tol: float | None = None,
    disp: bool = False,
    **settings: Any,
) -> Any:
    """Minimise a function of one flat array by Adam or another of ``fastadam.optim.OPTIMIZERS``, in float64.

    fun, x0, args   as ``scipy.optimize.minimize`` has them
    jac             True if ``fun`` returns (value, gradient), or a function of the gradient; without one it comes from
                    forward differences, one more call of ``fun`` for every variable and step
    callback        called after every step with x, or, where its only parameter is ``intermediate_result``, with an
                    OptimizeResult of x, fun and nit; StopIteration ends the run

    options
    optimizer       a name of ``OPTIMIZERS`` but those in ``fastadam.kernels.rules.FLOAT32_ONLY``
    lr              learning rate, the optimiser's own by default; or a function of the steps taken, 0, 1, ...,
                    such as a ``fastadam.schedule.Schedule``
    maxiter         steps
    gtol            the run ends where no component of the gradient is larger; SciPy's ``tol`` stands in for it
    disp            print how it ended
    beta1, eps ...  settings of the optimiser

    Returns an OptimizeResult of x, fun, jac, nit, nfev, njev, success, status, message. ``success`` says that gtol was
    reached, and x is where that was; otherwise x is the best of all points seen, for the last one of a method that
    does not descend with every step need not be good. ``status``: 0 gtol reached, 1 maxiter, 2 not finite, 99 stopped
    by the callback. Raises ValueError for bounds, constraints, an optimiser of float32 alone, and settings that the
    optimiser does not have, ConfigError for an optimiser that there is not.
    """
    from scipy.optimize import OptimizeResult

    _refuse_what_is_bounded(bounds, constraints)
    if hess is not None or hessp is not None:
        warnings.warn("Method minimize_adam does not use Hessian information.", RuntimeWarning, stacklevel=3)
    x = np.array(x0, np.float64, ndmin=1)
    if x.ndim != 1:
        raise ValueError(f"x0 must have one dimension, it has {x.ndim}")
    maxiter = whole("maxiter", maxiter, 0)
    gtol = not_negative("gtol", gtol if tol is None else tol)
    rate = lr if callable(lr) else None
    stepper = _make(optimizer, {"x": x}, lr=None if rate else lr, **settings)
    function, tell = _Function(fun, args, jac), _teller(callback)

    best: tuple[float, np.ndarray, np.ndarray] | None = None
    while True:
        value, gradient = function(x)
        finite = np.isfinite(value) and bool(np.isfinite(gradient).all())
        if best is None or value < best[0]:
            best = value, x.copy(), gradient
        if stepper.t and not tell(OptimizeResult(x=x.copy(), fun=value, nit=stepper.t)):
            status = STOPPED
        elif not finite:
            status = NOT_FINITE
        elif np.abs(gradient).max(initial=0.0) <= gtol:
            status, best = REACHED, (value, x.copy(), gradient)
        elif stepper.t >= maxiter:
            status = TOO_MANY
        else:
            if rate:
                stepper.lr = rate(stepper.t)
            stepper.step({"x": gradient})
            continue
        break
    result = OptimizeResult(
        x=best[1], fun=best[0], jac=best[2], nit=stepper.t, nfev=function.calls, njev=function.gradients,
        success=status == REACHED, status=status, message=_MESSAGES[status],
    )  # fmt: skip
    if disp:
        print(f"{result.message}\n  fun: {result.fun:g}  nit: {result.nit}  nfev: {result.nfev}  njev: {result.njev}")
    return result


class _Function:
    """The function and its gradient in float64, counting how often they are called."""

    def __init__(self, fun: Callable[..., Any], args: tuple[Any, ...], jac: Any):
        self._fun, self._args, self._jac = fun, args if isinstance(args, tuple) else (args,), jac
        self.calls = self.gradients = 0

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        self.gradients += 1
        if self._jac is True:
            value, gradient = self._told(x)
        elif callable(self._jac):
            value, gradient = self._told(x), self._jac(x.copy(), *self._args)
        else:
            value = _number(self._told(x))
            gradient = self._differences(x, value)
        gradient = np.array(gradient, np.float64, ndmin=1)
        if gradient.shape != x.shape:
            raise ValueError(f"the gradient must have the shape of x, {x.shape}, it has {gradient.shape}")
        return _number(value), gradient

    def _differences(self, x: np.ndarray, value: float) -> np.ndarray:
        """Forward differences; the step balances their error and the function's rounding."""
        gradient, ahead = np.empty_like(x), x + np.sqrt(np.finfo(np.float64).eps) * np.maximum(1, np.abs(x))
        for i in range(x.size):
            at = x.copy()
            at[i] = ahead[i]
            gradient[i] = (_number(self._told(at)) - value) / (ahead[i] - x[i])
        return gradient

    def _told(self, x: np.ndarray) -> Any:
        self.calls += 1
        return self._fun(x.copy(), *self._args)  # theirs to keep or to change


def _number(value: Any) -> float:
    array = np.asarray(value, np.float64)
    if array.size != 1:
        raise ValueError(f"the function must return one number, it returned an array of shape {array.shape}")
    return float(array.reshape(()))


def _teller(callback: Callable[..., Any] | None) -> Callable[[Any], bool]:
    """Tells a callback of a result so far; False if it wants no more. How it is called is SciPy's convention."""
    if callback is None:
        return lambda result: True
    named = set(inspect.signature(callback).parameters) == {"intermediate_result"}

    def tell(result: Any) -> bool:
        try:
            if named:
                callback(intermediate_result=result)
            else:
                callback(result.x)
        except StopIteration:
            return False
        return True

    return tell


def _refuse_what_is_bounded(bounds: Any, constraints: Any) -> None:
    given = "bounds" if bounds is not None else "constraints" if np.size(constraints) else ""
    if given:
        raise ValueError(
            f"minimize_adam knows no {given}; use a method of SciPy that does, such as L-BFGS-B or SLSQP, or minimise "
            "over variables without them"
        )


def _make(name: str, params: dict[str, np.ndarray], **settings: Any) -> Optimizer:
    kind = kind_of(name)
    if name in rules.FLOAT32_ONLY:
        raise ValueError(
            f"minimize_adam computes in float64, and optimizer {name} takes float32 alone; use another, such as adam"
        )
    takes = [key for key in inspect.signature(kind).parameters if key != "params"]
    for key in settings:
        if key not in takes:
            options = ["optimizer", "maxiter", "gtol", "disp", *takes]
            raise ValueError(
                f"minimize_adam with {name} has no option {shown(key)}; it has {', '.join(options)}"
                f"{nearest(key, options)}"
            )
    return kind(params, **settings)

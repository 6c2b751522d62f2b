"""Proof, on this machine, that kernels and optimisers compute what they should: ``fastadam verify``.

Four kinds of checks, each with its worst error as a multiple of what is tolerated:

op          every op on every case of ``fastadam.cases``: against the float64 reference, the same bits for one
            and two threads, on a GPU twice and beside the CPU's; nothing written outside its outs. Products of
            rounded operands, on tensor cores, are held to the digits of these
gradient    the backward ops of that reference against finite differences of its forward ops
optimizer   twenty steps against the papers' formulas in float64, and those of TORCH_CLASSES against PyTorch's where
            that is installed
step        whole training steps of a small network with every layer, against ``fastadam.interpret`` in float64
"""

import contextlib
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastadam import gradcheck, trial
from fastadam.case import Case
from fastadam.cases import CASES
from fastadam.device import COMPILING, Device, get_device
from fastadam.errors import DeviceError
from fastadam.graph import Graph, Node
from fastadam.interpret import interpret
from fastadam.kernels import OPS, PRECISIONS, PRODUCTS
from fastadam.kernels.rules import MOMENTS
from fastadam.layout import to_kernel, to_public
from fastadam.matrices import hidden_matrices
from fastadam.model import Model
from fastadam.optim import OPTIMIZERS
from fastadam.oracles import ORACLES
from fastadam.trainer import Trainer

OPTIMIZER_STEPS, TRAINING_STEPS = 20, 3

DIGITS = {"tf32": 10, "bf16": 7}
"""Binary digits of the fraction of an operand."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Check:
    """What was checked and how it went.

    error     the worst error, as a multiple of what is tolerated
    problem   what else was wrong, one line; empty if nothing was
    """

    kind: str
    name: str
    cases: int
    error: float
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether all is well: not so for an error that is not a number."""
        return not self.problem and self.error <= 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "ok": self.ok}


def verify(
    device: str = "auto", say: Callable[[str], None] = lambda text: None, precision: str = PRECISIONS[0]
) -> Iterator[Check]:
    """All checks, one after the other; ``say`` hears what begins. DeviceError for a device that is not there.

    precision   of the ops' matrix products, one of ``kernels.PRECISIONS``; whole training steps are in float32
    """
    places = _places(device, precision)
    with places[0].compile_clock(lambda: say(COMPILING)):
        where = " and ".join(dict.fromkeys(place.description for place in places))
        say(f"{len(OPS)} ops in {len(CASES)} cases, on {where} ...")
        for op in OPS:
            yield check_op(op, places, precision)
        say("gradients of the reference by finite differences ...")
        yield from check_gradients()
        say("optimisers ...")
        for name in OPTIMIZERS:
            yield check_optimizer(name)
        yield from check_against_torch()
        say("whole training steps ...")
        for rule in MOMENTS:
            yield check_training(rule, places)


def _places(device: str, precision: str) -> list[Device]:
    """The CPU with one and with two threads; with one alone where numba was started with no more. A GPU twice."""
    two: list[Device] = []
    with contextlib.suppress(DeviceError):
        two = [get_device(device, 2, precision)]  # first: it decides how many threads numba can have
    one = get_device(device, 1, precision)
    return [one, *two] if one.is_host else [one, one]


def _checked(kind: str, name: str, cases: int, errors: Iterator[float]) -> Check:
    """The check of so many cases, whose errors are computed now; what is raised meanwhile is its problem."""
    worst = 0.0
    try:
        for error in errors:
            worst = float(np.maximum(worst, error))  # NaN stays
    except Exception as error:
        return Check(kind, name, cases, worst, " ".join(f"{type(error).__name__}: {error}".split()))
    return Check(kind, name, cases, worst)


# Ops and gradients ----------------------------------------------------------------------------------------


def check_op(op: str, places: list[Device], precision: str = PRECISIONS[0]) -> Check:
    """An op on all of its cases."""
    cases = [case for case in CASES if case.op == op]
    digits = DIGITS.get(precision) if op in PRODUCTS else None

    def error(case: Case, got: Arrays, want: Arrays) -> float:
        return trial.worst_error(case, got, want) if digits is None else rounding_error(got, want, digits)

    def errors() -> Iterator[float]:
        for case in cases:
            results = []
            for place in places:
                with place.running():
                    results.append(trial.call(case, place.ops, device=place))
            if len({tuple(out.tobytes() for out in outs.values()) for outs in results}) > 1:
                raise AssertionError(f"{case}: other bits on other numbers of threads, or in another run")
            yield error(case, results[0], trial.expect(case))
            if not places[0].is_host:
                twin = get_device("cpu")
                with twin.running():
                    yield error(case, results[0], trial.call(case, twin.ops)) / 2  # both may be off

    return _checked("op", op, len(cases), errors())


def rounding_error(got: Arrays, want: Arrays, digits: int) -> float:
    """The largest error of all outs, as a multiple of what products of operands of so many digits may have.

    That is a share of an out's largest number; a larger one of sums and moments, in which much cancels.
    """
    errors = []
    for name, array in want.items():
        share = (20 if name in ("sums", "moments") else 4) * 2.0**-digits
        largest = np.abs(array[np.isfinite(array)]).max(initial=0)
        errors.append(trial.error_over(got[name], array, 0, share * largest))
    return max(errors)


def check_gradients() -> Iterator[Check]:
    """The reference's gradients, op by op, and batch norm, which takes several ops."""
    for op in OPS:
        cases = [case for case in gradcheck.GRADIENT_CASES if case.op == op]
        if cases:
            yield _checked("gradient", op, len(cases), map(gradcheck.gradient_error, cases))
    norms = (gradcheck.batch_norm_error(relu, np.random.default_rng(0)) for relu in (False, True))
    yield _checked("gradient", "batch norm", 2, norms)


# Optimisers -----------------------------------------------------------------------------------------------

_DECAYED = {"weight_decay": 0.1, "decoupled_weight_decay": True}

SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "adam": (
        {},
        {"lr": 0.1, "weight_decay": 0.1, "beta1": 0.5, "eps": 0.1},
        {"lr": 0.1, "beta2": 0.5, "eps": 0.1, "weight_decay": 0.1, "amsgrad": True},
    ),
    "adamw": (
        {},
        {"lr": 0.1, "beta1": 0.5, "beta2": 0.9, "eps": 0.1, "weight_decay": 0.1},
        {"lr": 0.1, "beta2": 0.5, "eps": 0.1, "weight_decay": 0.1, "amsgrad": True},
    ),
    "sgd": (
        {"lr": 0.5},
        {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01},
        {"momentum": 0.9, "nesterov": True},
        {"dampening": 0.3},
    ),
    "adamax": ({}, {"lr": 0.1, "beta1": 0.5, "beta2": 0.9, "eps": 0.1, "weight_decay": 0.1}),
    "nadam": (
        {},
        {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "eps": 0.1, "weight_decay": 0.1, "momentum_decay": 0.1},
        {"lr": 0.1, **_DECAYED},
    ),
    "radam": (
        {},
        {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "eps": 0.1, "weight_decay": 0.1},
        {"lr": 0.1, **_DECAYED},
    ),
    "adabelief": (
        {},
        {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "eps": 0.1, "weight_decay": 0.1},
        {"lr": 0.1, **_DECAYED},
    ),
    "adabound": (
        {},
        {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "eps": 0.1, "weight_decay": 0.1, "final_lr": 0.2, "gamma": 0.5},
        {"lr": 0.1, **_DECAYED},
    ),
    "padam": (
        {},
        {"lr": 0.2, "beta1": 0.8, "beta2": 0.5, "eps": 0.1, "weight_decay": 0.1, "partial": 7 / 16},
        {"lr": 0.1, "partial": 1 / 2, **_DECAYED},
    ),
    "adan": ({}, {"lr": 0.1, "beta1": 0.8, "beta2": 0.7, "beta3": 0.9, "eps": 0.1, "weight_decay": 0.1}),
    "lion": ({}, {"lr": 0.1, "beta1": 0.8, "beta2": 0.7, "weight_decay": 0.1}),
    "schedulefree": (
        {},
        {"lr": 0.1, "beta1": 0.5, "beta2": 0.9, "eps": 0.1, "weight_decay": 0.1, "warmup_steps": 7},
    ),
    "adamw_bf16": ({}, {"lr": 2e-3, "beta1": 0.8, "beta2": 0.9, "eps": 0.1, "weight_decay": 0.1, "seed": 1}),
    "lamb": ({}, {"lr": 0.1, "beta1": 0.5, "beta2": 0.9, "eps": 0.1, "weight_decay": 0.1}),
    "lars": ({}, {"lr": 20.0, "momentum": 0.5, "weight_decay": 0.1, "trust_coefficient": 0.01}),
    "muon": (
        {},
        {
            "lr": 0.01, "weight_decay": 1.0, "momentum": 0.5, "nesterov": False, "ns_coefficients": (2.0, -1.5, 0.5),
            "eps": 100.0, "ns_steps": 7, "adjust_lr_fn": "match_rms_adamw", "adamw_lr": 0.1, "beta1": 0.5, "beta2": 0.9,
            "adamw_eps": 0.1,
        },
    ),
}  # fmt: skip
"""What each optimiser is checked with; one that is not listed, with its defaults."""

SHAPES = {"scalar": (), "vector": (7,), "filter": (5, 3, 3, 3), "large": (50_001,)}

STEPS_RTOL, STEPS_ATOL = 2e-5, 5e-6  # the roundings of twenty steps in float32, on numbers of up to ten

COARSER = {"adamw_bf16": 100}
"""How much more is tolerated of optimisers whose moments have fewer digits."""


UNDECIDED = 1e-6
"""What Lion takes the sign of is zero but for rounding: the sign, and where the step goes to, may be either."""


def check_optimizer(name: str) -> Check:
    """Steps of an optimiser on arrays of several ranks against its paper."""
    chosen = SETTINGS.get(name, ({},))

    def errors() -> Iterator[float]:
        oracle, coarser = ORACLES[name], COARSER.get(name, 1)
        for settings in chosen:
            start, gradients, optimizer, end = _run_optimizer(name, settings)
            for key, p in start.items():
                want, decided = p.astype(np.float64), np.ones(p.shape, bool)
                kept: Arrays = {}
                for t, g in enumerate(gradients, 1):
                    want = oracle(want, g[key].astype(np.float64), kept, t, optimizer.settings())
                    decided &= _decided(kept)
                yield trial.error_over(end[key][decided], want[decided], STEPS_RTOL, STEPS_ATOL) / coarser

    return _checked("optimizer", name, len(chosen), errors())


def _decided(kept: Arrays) -> np.ndarray | bool:
    """Where an oracle's last step does not hang on rounding."""
    return np.abs(kept["c"]) > UNDECIDED if "c" in kept else True


TORCH_CLASSES = {
    "adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "adamax": "Adamax", "nadam": "NAdam", "radam": "RAdam",
}  # fmt: skip
"""The optimisers that PyTorch has too, by our names."""


def check_against_torch() -> Iterator[Check]:
    """The same steps against PyTorch's optimisers in float64; nothing without PyTorch."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError):  # not there, or broken
        return
    for name in filter(TORCH_CLASSES.__contains__, OPTIMIZERS):
        errors = (_torch_error(torch, name, settings) for settings in SETTINGS[name])
        yield _checked("optimizer", f"{name}, PyTorch {torch.__version__}", len(SETTINGS[name]), errors)


def torch_twin(torch: Any, optimizer: Any, tensors: Iterable[Any]) -> Any:
    """PyTorch's optimiser of these tensors with the settings that ours has."""
    settings = optimizer.settings()
    betas = {"betas": (settings.pop("beta1"), settings.pop("beta2"))} if "beta1" in settings else {}
    return getattr(torch.optim, TORCH_CLASSES[optimizer.name])(tensors, **settings, **betas)


def _torch_error(torch: Any, name: str, settings: Mapping[str, Any]) -> float:
    start, gradients, optimizer, end = _run_optimizer(name, settings)
    tensors = {key: torch.tensor(p.astype(np.float64), requires_grad=True) for key, p in start.items()}
    other = torch_twin(torch, optimizer, tensors.values())
    for g in gradients:
        for key, tensor in tensors.items():
            tensor.grad = torch.tensor(g[key].astype(np.float64))
        other.step()
    return max(
        trial.error_over(end[key], tensor.detach().numpy(), STEPS_RTOL, STEPS_ATOL) for key, tensor in tensors.items()
    )


def _run_optimizer(name: str, settings: Mapping[str, Any]) -> tuple[Arrays, list[Arrays], Any, Arrays]:
    """Arrays before, the gradients of every step, the optimiser, the arrays after."""
    rng = np.random.default_rng(0)

    def draw() -> Arrays:
        return {key: np.array(rng.standard_normal(shape), np.float32) for key, shape in SHAPES.items()}

    start, gradients = draw(), [draw() for _ in range(OPTIMIZER_STEPS)]
    end = {key: p.copy() for key, p in start.items()}
    optimizer = OPTIMIZERS[name](end, **settings)
    for g in gradients:
        optimizer.step(g)
    return start, gradients, optimizer, end


# Whole steps ----------------------------------------------------------------------------------------------

BATCH = 16

# Roundings of parameters of size one, and of gradients summed from a few thousand terms, times the rate.
TRAINING_TOLERANCE = 5e-6


def small_network(bias: bool = True) -> Graph:
    """Every kind of layer, a value that is read twice, a convolution with a stride.

    bias   before a batch norm too, which takes it away again: its gradient is zero
    """
    conv = {"out": 8, "kernel": 3, "stride": 1, "pad": 1, "bias": False}
    rows: tuple[tuple[str, str, tuple[str, ...], dict[str, Any]], ...] = (
        ("x", "input", (), {"shape": (12, 10, 3)}),
        ("c", "conv", ("x",), {**conv, "bias": bias}),
        ("n", "bn", ("c",), {}),
        ("r", "relu", ("n",), {}),
        ("d", "conv", ("r",), conv),
        ("b", "bn", ("d",), {}),
        ("s", "add", ("b", "r"), {}),
        ("q", "relu", ("s",), {}),
        ("m", "maxpool", ("q",), {}),
        ("e", "conv", ("m",), {**conv, "out": 12, "stride": 2}),
        ("o", "dropout", ("e",), {"p": 0.3}),
        ("a", "avgpool", ("o",), {}),
        ("l", "linear", ("a",), {"out": 20, "bias": True}),
        ("t", "relu", ("l",), {}),
        ("fc", "linear", ("t",), {"out": 10, "bias": True}),
    )
    return Graph([Node(op, name, inputs, attrs) for name, op, inputs, attrs in rows])


def check_training(rule: str, places: list[Device]) -> Check:
    """Steps of a ``Trainer`` on a small network: losses, parameters and running statistics after the last."""

    def errors() -> Iterator[float]:
        results = [_train(rule, place) for place in places]
        if len({tuple(a.tobytes() for a in arrays.values()) for arrays, _ in results}) > 1:
            raise AssertionError("other bits on other numbers of threads, or in another run")
        arrays, losses = results[0]
        want, decided, want_losses = _interpreted(rule)
        tolerance = TRAINING_TOLERANCE * COARSER.get(rule, 1)
        yield trial.error_over(np.array(losses), np.array(want_losses), tolerance, tolerance)
        for key, array in want.items():
            sure = decided.get(key, ...)
            yield trial.error_over(arrays[key][sure], array[sure], tolerance, tolerance)

    return _checked("step", f"training by {rule}", TRAINING_STEPS, errors())


def _train(rule: str, place: Device) -> tuple[Arrays, list[float]]:
    """{parameter or running statistic: array in kernel layout} after the steps, and their losses."""
    model = _model(rule)
    trainer = Trainer(model, _optimizer(rule), label_smoothing=0.1, seed=3, device=place.name, threads=place.threads)
    losses = [trainer.step(*batch) for batch in _batches()]
    return {**model.parameters.views, **model.state.views}, losses


def _interpreted(rule: str) -> tuple[Arrays, Arrays, list[float]]:
    """The same in float64, node by node; and where the parameters do not hang on rounding.

    Weight decay, and rates by norms, are for weights of convolutions and linear layers alone.
    """
    model, optimizer, losses = _model(rule), _optimizer(rule), []
    settings, oracle = optimizer.settings(), ORACLES[optimizer.name]
    params, state = (
        {key: view.astype(np.float64) for key, view in arena.views.items()} for arena in (model.parameters, model.state)
    )
    kept: dict[str, Arrays] = {key: {} for key in params}
    decided = {key: np.ones(p.shape, bool) for key, p in params.items()}
    of = {param.name: param for param in model.graph.params}
    decayed = {param.name for param in model.graph.params if param.kind in ("conv", "linear")}
    hidden = {param.name for param in hidden_matrices(model.graph)}
    for t, (images, labels) in enumerate(_batches(), 1):
        x = images.transpose(0, 2, 3, 1)
        result = interpret(model.graph, params, state, x, labels, key=(3, t - 1), smoothing=0.1)
        losses.append(result.loss)
        state = result.state
        for key, g in result.gradients.items():
            own = {**settings, "hidden": key in hidden}
            own |= {} if key in decayed else {"weight_decay": 0.0, "trust": 0.0}
            p, g = to_public(of[key], params[key]), to_public(of[key], g)
            params[key] = to_kernel(of[key], oracle(p, g, kept[key], t, own))
            decided[key] &= to_kernel(of[key], np.broadcast_to(_decided(kept[key]), p.shape))
    return {**params, **state}, decided, losses


def _model(rule: str) -> Model:
    """For Lion without the bias whose gradient is zero: it would go where rounding sends it."""
    model = Model(small_network(bias=rule != "lion"), {})
    model.initialize(0)
    return model


def _optimizer(rule: str) -> Any:
    """With a decay to be seen; and a large eps: with a small one rounding decides the steps where a gradient is 0.

    Lion, which has no eps, takes small steps, so that those in a direction that rounding decides move nothing else.
    """
    name = "adam" if rule == "amsgrad" else rule
    own: dict[str, dict[str, Any]] = {
        "sgd": {"momentum": 0.9},
        "lion": {"lr": 1e-3},
        "adamw_bf16": {"lr": 1e-2, "eps": 1e-2},
        "lars": {},
        "amsgrad": {"eps": 1e-2, "amsgrad": True},
        "muon": {"lr": 1e-2, "adamw_lr": 0.1, "adamw_eps": 1e-2},
    }
    return OPTIMIZERS[name](None, **{"lr": 0.1, "weight_decay": 0.1, **own.get(rule, {"eps": 1e-2})})


def _batches() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    shape = (BATCH, 3, 12, 10)
    return [(rng.standard_normal(shape, np.float32), rng.integers(0, 10, BATCH)) for _ in range(TRAINING_STEPS)]

"""``fastadam.optim`` in other people's shapes: a method of SciPy's ``minimize``, and a course's exercise."""

import numpy as np
import pytest
from own_arrays import drawn, plain_adam
from scipy import optimize
from small import small_model

from fastadam import optim
from fastadam.errors import ConfigError
from fastadam.kernels import rules
from fastadam.optim import OPTIMIZERS
from fastadam.trainer import Trainer

# SciPy ----------------------------------------------------------------------------------------------------

START = np.array([1.3, 0.7, 0.8])


def rosen_both(x):
    return optimize.rosen(x), optimize.rosen_der(x)


def minimize(fun=rosen_both, x0=START, jac=True, callback=None, **options):
    return optimize.minimize(fun, x0, jac=jac, method=optim.minimize_adam, callback=callback, options=options)


def test_scipy_solves_rosenbrock():
    result = minimize(lr=0.05)
    assert result.success
    assert (result.status, result.njev) == (0, result.nfev)
    assert result.nfev == result.nit + 1
    np.testing.assert_allclose(result.x, 1, atol=1e-4)
    assert result.x.dtype == np.float64
    assert np.abs(result.jac).max() <= 1e-5
    assert result.fun == optimize.rosen(result.x)
    assert result.jac.tobytes() == optimize.rosen_der(result.x).tobytes()
    apart = minimize(optimize.rosen, jac=optimize.rosen_der, lr=0.05)
    assert apart.x.tobytes() == result.x.tobytes()
    assert (START == [1.3, 0.7, 0.8]).all()


def test_scipy_steps_are_the_optimisers():
    x, seen = START.copy(), []
    minimize(lr=0.01, beta1=0.8, maxiter=20, callback=lambda xk: seen.append(xk))
    optimizer = optim.Adam({"x": x}, lr=0.01, beta1=0.8)
    assert len(seen) == 20
    for at in seen:
        optimizer.step({"x": optimize.rosen_der(x)})
        assert at.tobytes() == x.tobytes()


@pytest.mark.parametrize("name", rules.FLOAT32_ONLY)
def test_optimisers_of_float32_are_refused(name):
    """Muon too: an x is no matrix."""
    with pytest.raises(ValueError, match=f"^minimize_adam computes in float64, and optimizer {name} takes .*adam$"):
        minimize(lambda x: (x @ x, 2 * x), [1.0], optimizer=name)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in rules.FLOAT32_ONLY])
def test_every_other_optimiser_is_a_method(name):
    """A parabola; a rate that falls, for the sake of what moves by it whatever the gradient."""
    settings = {"momentum": 0.9} if name == "sgd" else {}
    scale = np.array([1.0, 3.0])
    result = minimize(
        lambda x: (np.sum(scale * x**2), 2 * scale * x), [1.0, -2.0], optimizer=name, lr=lambda k: 0.5 * 0.995**k,
        maxiter=2000, gtol=1e-3, **settings,
    )  # fmt: skip
    assert result.success, result
    assert np.abs(result.x).max() <= 1e-3


def test_scipy_without_a_gradient():
    calls = []

    def fun(x, a):
        calls.append(x)
        return a * np.sum((x - 1) ** 2)

    result = optimize.minimize(fun, [0, 3], args=(2.0,), method=optim.minimize_adam, tol=1e-4, options={"lr": 0.1})
    assert result.success
    np.testing.assert_allclose(result.x, 1, atol=1e-4)
    assert result.nfev == len(calls) == 3 * result.njev
    assert result.njev == result.nit + 1


def test_scipy_without_success():
    result = minimize(lr=1e-3, maxiter=7)
    assert (result.success, result.status, result.nit, result.nfev) == (False, 1, 7, 8)
    assert "Maximum number of iterations" in result.message
    assert minimize(maxiter=0).nfev == 1
    best = minimize(lambda x: (x[0] ** 2, 2 * x), [0.1], lr=1.0, maxiter=2)  # steps over the minimum
    assert (best.x[0], best.nit) == (0.1, 2)
    assert best.fun == pytest.approx(0.01)
    assert best.jac[0] == pytest.approx(0.2)

    def cliff(x):
        return (np.nan if x[0] < 0.5 else x[0]), np.ones(1)

    lost = minimize(cliff, [1.0], lr=0.2)
    assert (lost.success, lost.status) == (False, 2)
    assert "not finite" in lost.message
    assert lost.fun == lost.x[0] == pytest.approx(0.6)


def test_scipy_callbacks():
    seen = []

    def stop(intermediate_result):
        seen.append(intermediate_result)
        if len(seen) == 3:
            raise StopIteration

    result = minimize(callback=stop)
    assert (result.success, result.status, result.nit) == (False, 99, 3)
    assert "StopIteration" in result.message
    assert seen[-1].fun == optimize.rosen(seen[-1].x)
    last = []
    result = minimize(callback=last.append, lr=0.05)
    assert last[-1].tobytes() == result.x.tobytes()
    last[-1][:] = 0  # a copy, theirs
    assert result.x.all()


def test_scipy_what_is_refused(capsys):
    with pytest.raises(ValueError, match="knows no bounds"):
        optimize.minimize(rosen_both, START, jac=True, method=optim.minimize_adam, bounds=[(0, 1)] * 3)
    with pytest.raises(ValueError, match="knows no constraints"):
        optimize.minimize(
            rosen_both, START, jac=True, method=optim.minimize_adam, constraints={"type": "eq", "fun": np.sum}
        )
    for options, words in (
        ({"beta": 0.5}, "minimize_adam with adam has no option 'beta'; it has .*did you mean 'beta"),
        ({"optimizer": "lion", "eps": 0.5}, "minimize_adam with lion has no option 'eps'"),
        ({"maxiter": -1}, "maxiter must be a whole number of 0 or more"),
        ({"gtol": -1}, "gtol must be 0 or more"),
        ({"lr": -1}, "lr must be above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            minimize(**options)
    with pytest.raises(ValueError, match=r"the gradient must have the shape of x, \(3,\), it has \(2,\)"):
        minimize(lambda x: (0.0, np.ones(2)))
    with pytest.raises(ValueError, match="must return one number"):
        minimize(lambda x: (x, x))
    with pytest.warns(RuntimeWarning, match="Hessian"):
        optimize.minimize(
            rosen_both, START, jac=True, hess=optimize.rosen_hess, method=optim.minimize_adam, options={"maxiter": 1}
        )
    minimize(maxiter=1, disp=True)
    assert "Maximum number" in capsys.readouterr().out


@pytest.mark.parametrize(
    "ask",
    [
        lambda name: Trainer(small_model(), name),
        lambda name: minimize(optimizer=name),
        lambda name: optim.make(name),
    ],
)
def test_the_nearest_optimiser_is_named(ask):
    with pytest.raises(ConfigError, match=r"no optimizer is called 'adamv'; use one of adam, .*did you mean 'adam"):
        ask("adamv")


# The exercise ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_exercise(dtype):
    """Twenty calls against the formulas in NumPy, with the gradients that a backward pass leaves."""
    shapes = {"W1": (4, 3), "b1": (4, 1), "W2": (1, 4), "b2": (1, 1)}
    parameters, want = drawn(0, shapes, dtype), {n: p.astype(np.float64) for n, p in drawn(0, shapes, dtype).items()}
    v, s = optim.initialize_adam(parameters)
    assert v.keys() == s.keys() == {"dW1", "db1", "dW2", "db2"}
    assert not any(array.any() for array in (*v.values(), *s.values()))
    m64, v64 = ({name: np.zeros_like(p) for name, p in want.items()} for _ in range(2))
    for t in range(1, 21):
        gradients = drawn(t, shapes, dtype)
        grads = {"d" + name: g for name, g in gradients.items()} | {"dA1": None, "dZ2": "anything"}
        result = optim.update_parameters_with_adam(parameters, grads, v, s, t, learning_rate=0.02, epsilon=1e-6)
        assert all(a is b for a, b in zip(result, (parameters, v, s), strict=True))
        for name, p in want.items():
            g = gradients[name].astype(np.float64)
            plain_adam(p, g, m64[name], v64[name], t, 0.02, 0.9, 0.999, 1e-6)
    tolerance = {np.float32: 1e-5, np.float64: 1e-14}[dtype]
    for name, p in want.items():
        np.testing.assert_allclose(parameters[name], p, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(v["d" + name], m64[name], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(s["d" + name], v64[name], rtol=tolerance)


def test_what_the_exercise_refuses():
    parameters = {"W1": np.ones((2, 3)), "b1": np.ones((2, 1), np.float32)}
    grads = {"dW1": np.ones((2, 3)), "db1": np.ones((2, 1), np.float32)}
    v, s = optim.initialize_adam(parameters)

    def update(p=parameters, g=grads, v=v, s=s, t=1, **settings):
        return optim.update_parameters_with_adam(p, g, v, s, t, **settings)

    for arguments, words in (
        ({"t": 0}, "t is the step, counted from 1, it is 0"),
        ({"g": {"dW1": grads["dW1"]}}, "grads has no db1"),
        ({"v": {}}, "v has no dW1, db1"),
        ({"g": {**grads, "dW1": np.ones((3, 2))}}, r"gradient 'W1' has shape \(3, 2\)"),
        ({"g": {**grads, "dW1": np.ones((2, 3), np.float32)}}, "gradient 'W1' is float32"),
        ({"v": {**v, "dW1": np.ones((3, 2))}}, r"v of 'W1' has shape \(3, 2\)"),
        ({"s": v}, "share memory"),
        ({"g": {**grads, "dW1": v["dW1"]}}, "gradient 'W1' shares memory"),
        ({"p": {**parameters, "W1": [1.0]}}, "parameter 'W1' must be a NumPy array"),
        ({"beta1": 1.0}, "beta1"),
    ):
        with pytest.raises(ValueError, match=words):
            update(**arguments)
    assert all((p == 1).all() for p in parameters.values())
    assert not any(array.any() for array in (*v.values(), *s.values()))

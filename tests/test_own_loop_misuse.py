"""An optimiser in somebody else's loop, and what may happen to its arrays, names and settings between steps."""

import copy
import threading

import numpy as np
import pytest

from fastadam import optim


def larger(optimizer):
    optimizer.params["w"].resize(100_000, refcheck=False)


def whole_numbers(optimizer):
    optimizer.params["w"].dtype = np.int64


def another_shape(optimizer):
    optimizer.params["w"].shape = (2, 2)


def smaller_moments(optimizer):
    optimizer.moments["m"]["w"].resize(1, refcheck=False)


CHANGES = [larger, whole_numbers, another_shape, smaller_moments]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("change", CHANGES)
def test_arrays_that_are_no_longer_as_they_were_are_refused(change, steps):
    optimizer = optim.Adam({"w": np.ones(4)})
    for _ in range(steps):
        optimizer.step({"w": np.ones(4)})
    change(optimizer)
    p = optimizer.params["w"]
    with pytest.raises(ValueError, match="since the optimiser was made"):
        optimizer.step({"w": np.ones_like(p)})
    with pytest.raises(ValueError, match="since the optimiser was made"):
        copy.deepcopy(optimizer)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_keeps_watch_as_well(change):
    optimizer = copy.deepcopy(optim.Adam({"w": np.ones(4)}))
    change(optimizer)
    with pytest.raises(ValueError, match="since the optimiser was made"):
        optimizer.step({"w": np.ones_like(optimizer.params["w"])})


def test_steps_from_two_threads_come_one_after_the_other():
    w = np.zeros(1_000_000)
    optimizer = optim.SGD({"w": w}, lr=1.0)
    optimizer.step({"w": np.zeros_like(w)})

    def steps(value):
        for _ in range(25):
            optimizer.step({"w": np.full_like(w, value)})

    threads = [threading.Thread(target=steps, args=(value,)) for value in (1.0, 1000.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (w == -25 * 1001).all()


def test_names_that_a_state_could_not_tell_apart():
    with pytest.raises(ValueError, match="names that are the same as text"):
        optim.Adam({1: np.ones(2), "1": np.ones(3)})


@pytest.mark.parametrize("t", [-5, 1.5, np.nan])
def test_a_count_of_steps_that_is_none(t):
    optimizer = optim.Adam({"w": np.ones(2)})
    optimizer.t = t
    with pytest.raises(ValueError, match="t must be a whole number"):
        optimizer.step({"w": np.ones(2)})


@pytest.mark.parametrize("gradients", [[np.ones(2)], np.ones(2), None])
def test_gradients_come_by_name(gradients):
    with pytest.raises(TypeError, match="gradients must be a dict"):
        optim.Adam({"w": np.ones(2)}).step(gradients)


@pytest.mark.parametrize("lr", [1e39, 1e-50, np.inf, np.nan, 0.0])
def test_rates_that_float32_has_not(lr):
    with pytest.raises(ValueError, match="lr must be"):
        optim.Adam({"w": np.ones(2)}, lr=lr)


@pytest.mark.parametrize("name", ["lr", "beta1", "eps", "weight_decay"])
def test_a_setting_that_is_no_number_is_named(name):
    with pytest.raises(TypeError, match=f"{name} must be a number, it is '0.1'"):
        optim.AdamW({"w": np.ones(2)}, **{name: "0.1"})

"""``fastadam.optim`` in somebody else's loop: any NumPy arrays, in place, by the kernels' own numbers."""

import copy
import gc
import pickle
import tracemalloc

import numpy as np
import pytest
from own_arrays import SHAPES, copied, drawn, plain_adam, same_bits

from fastadam import optim
from fastadam.device import get_device
from fastadam.kernels import rules
from fastadam.optim import OPTIMIZERS

ASKED = {"amsgrad": ("adam", {"amsgrad": True})}
"""Rules that are no optimiser's name."""


def run(make, params, steps=3, first=100, dtype=np.float32):
    """An optimiser after some steps on random gradients."""
    optimizer = make(params)
    for seed in range(first, first + steps):
        optimizer.step(drawn(seed, {name: p.shape for name, p in params.items()}, dtype))
    return optimizer


# Numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", sorted(rules.MOMENTS.keys() - {*rules.LAYERWISE, "muon", "adamw_bf16"}))
def test_bits_are_those_of_the_arena_kernels(rule):
    """One flat array and the kernel of training, beside tables of addresses; on one thread and on four.

    Not of rules that look at whole tensors, or draw by an element's place in its array.
    """
    name, settings = ASKED.get(rule, (rule, {}))
    make = OPTIMIZERS[name]
    results = []
    for threads in (1, 4):
        params = drawn(0)
        optimizer = make(params, weight_decay=0.1, **settings)
        optimizer.threads = threads
        for seed in (1, 2, 3):
            optimizer.step(drawn(seed))
        results.append({**params, **{f"{k}/{n}": a for k, kept in optimizer.moments.items() for n, a in kept.items()}})
    same_bits(*results)

    def flat(arrays):
        return np.concatenate([array.reshape(-1) for array in arrays.values()])

    device, p = get_device("cpu", 2), flat(drawn(0))
    begin_as_p = rules.BEGIN_AS_PARAMETERS.get(rule, ())
    kept = [p.copy() if key in begin_as_p else np.zeros_like(p) for key in rules.MOMENTS[rule]]
    maker, whole = make(weight_decay=0.1, **settings), np.array([[0, p.size, 0]])
    for t, seed in enumerate((1, 2, 3), 1):
        with device.running():
            getattr(device.ops, f"{rule}_update")(p, *kept, flat(drawn(seed)), maker.hyper(t)[None], whole)
    names = list(SHAPES)
    assert flat({name: results[0][name] for name in names}).tobytes() == p.tobytes()
    for key, array in zip(rules.MOMENTS[rule], kept, strict=True):
        assert flat({name: results[0][f"{key}/{name}"] for name in names}).tobytes() == array.tobytes()


def test_float64_is_float64():
    params, want = drawn(0, dtype=np.float64), drawn(0, dtype=np.float64)
    m, v = ({name: np.zeros_like(p) for name, p in want.items()} for _ in range(2))
    optimizer = optim.Adam(params, lr=0.01, beta1=0.8, beta2=0.99, eps=1e-7)
    for t in range(1, 21):
        grads = drawn(t, dtype=np.float64)
        optimizer.step(grads)
        for name, p in want.items():
            plain_adam(p, grads[name], m[name], v[name], t, 0.01, 0.8, 0.99, 1e-7)
    for name, p in want.items():
        np.testing.assert_allclose(params[name], p, rtol=0, atol=2e-15)  # twenty roundings of numbers up to 4
        np.testing.assert_allclose(optimizer.moments["v"][name], v[name], rtol=5e-15)


def test_types_may_be_mixed():
    """Each array is updated in its own precision, as if it were alone."""
    names = ("vector", "large", "scalar")
    params = {
        f"{name}{kind.__name__}": drawn(0, dtype=kind)[name] for name in names for kind in (np.float32, np.float64)
    }
    alone = copied(params)
    grads = {name: np.array(drawn(1)[name[:-7]], p.dtype) for name, p in params.items()}
    together = optim.NAdam(params)
    single = {name: optim.NAdam({name: p}) for name, p in alone.items()}
    for _ in range(3):
        together.step(grads)
        for name, optimizer in single.items():
            optimizer.step({name: grads[name]})
    same_bits(params, alone)


def test_a_gradient_may_be_a_number_or_the_parameter_itself():
    w = np.array(3.0)
    optimizer = optim.SGD({"w": w}, lr=0.1)
    optimizer.step({"w": 2 * w})  # NumPy makes a float64 of it, not an array
    assert w == pytest.approx(3 - 0.6)
    x, y = (np.arange(1000, dtype=np.float32) for _ in range(2))
    one, other = optim.Adam({"x": x}), optim.Adam({"x": y})
    for _ in range(3):
        one.step({"x": x})  # the gradient of x**2 / 2
        other.step({"x": y.copy()})
    assert x.tobytes() == y.tobytes()


def test_no_parameters():
    optimizer = optim.Adam({})
    optimizer.step({})
    assert optimizer.t == 1
    with pytest.raises(ValueError, match="made without parameters"):
        optim.Adam().step({})


# Memory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_is_written_beside_the_arrays(dtype):
    """Parameters and gradients lie in the middle of other people's numbers."""
    band, shapes = 37, {name: shape for name, shape in SHAPES.items() if name != "exact"}

    def embedded(seed):
        arrays = drawn(seed, shapes, dtype)
        whole = np.full(band + sum(a.size + band for a in arrays.values()), 12345, dtype)
        views, free, at = {}, np.ones(whole.size, bool), band
        for name, array in arrays.items():
            views[name] = whole[at : at + array.size].reshape(array.shape)
            views[name][...] = array
            free[at : at + array.size] = False
            at += array.size + band
        return whole, views, free

    whole, params, free = embedded(0)
    rest, grads, _ = embedded(1)
    untouched = rest.copy()
    for make in (optim.Adam, optim.Adan, optim.Lion):
        optimizer = make(params)
        optimizer.threads = 3
        before = copied(params)
        optimizer.step(grads)
        assert (whole[free] == 12345).all()
        assert rest.tobytes() == untouched.tobytes()
        assert all((p != before[name]).all() for name, p in params.items())
    optim.clip_grad_norm(grads, 0.1)
    optim.clip_grad_value(grads, 1e-3)
    assert (rest[free] == 12345).all()


def test_a_step_copies_nothing():
    size = 2_000_000
    w, dw = np.ones(size, np.float32), np.ones(size, np.float32)
    optimizer = optim.Adam({"w": w})
    optimizer.step({"w": dw})
    assert optimizer.params["w"] is w
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(3):
            optimizer.step({"w": dw})
        optim.clip_grad_norm({"w": dw}, 1.0)
        assert tracemalloc.get_traced_memory()[1] < 100_000  # an array has 8,000,000 bytes
    finally:
        tracemalloc.stop()


def test_arrays_live_as_long_as_the_optimiser():
    optimizer = optim.Adam({"w": np.ones(1000)})
    gc.collect()
    junk = [np.full(1000, 7.0) for _ in range(50)]
    optimizer.step({"w": np.ones(1000)})
    np.testing.assert_allclose(optimizer.params["w"], 0.999)
    assert all((array == 7).all() for array in junk)


@pytest.mark.parametrize("name", ["adam", "lamb", "lars", "muon"])
def test_parameters_that_change_under_it(name):
    """An address is used only while it is that of the array it was taken from."""
    w = np.ones((4, 6), np.float32)
    optimizer = OPTIMIZERS[name]({"w": w, "b": np.ones(3, np.float32)})
    grads = {"w": np.ones((4, 6), np.float32), "b": np.ones(3, np.float32)}
    optimizer.step(grads)
    w.shape = (6, 4)
    with pytest.raises(ValueError, match="'w', or what is kept of it, has been resized"):
        optimizer.step(grads)
    w.shape = (4, 6)
    for array in (w, optimizer.moments["m"]["w"]):
        before = array.copy()
        array.flags.writeable = False
        with pytest.raises(ValueError, match=r"'w', or what is kept of it, .*read-only"):
            optimizer.step(grads)
        array.flags.writeable = True
        assert (array == before).all()
    w.resize((400, 600), refcheck=False)
    with pytest.raises(ValueError, match="resized"):
        optimizer.step(grads)
    assert optimizer.t == 1
    with pytest.raises(TypeError):
        optimizer.params["b"] = np.zeros(3, np.float32)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_has_arrays_of_its_own(how):
    params = drawn(0)
    one = run(optim.AdamW, params, steps=2)
    before = copied(params)
    other = how(one)
    other.step(drawn(5))
    same_bits(params, before)
    one.step(drawn(5))
    same_bits(params, dict(other.params))


def test_the_short_way_is_the_usual_one(monkeypatch):
    """Arrays, and NumPy's numbers, are not looked at one by one."""
    params, grads = drawn(0), drawn(1)
    optimizer = optim.Adam(params)
    monkeypatch.setattr("fastadam.optim.own_loop.Table._find_one_by_one", lambda *_: pytest.fail("the long way"))
    optimizer.step(grads)
    optimizer.step({**grads, "scalar": np.float32(1)})
    optimizer.step(params)


def test_without_a_known_layout_of_array_objects(monkeypatch):
    """The long way round: everything asked of NumPy, to the same effect."""
    from fastadam.kernels.cpu import addresses

    assert addresses.READABLE, "the short way must be the usual one"
    short, long = drawn(0), drawn(0)
    run(optim.Adam, short)
    monkeypatch.setattr(addresses, "READABLE", False)
    optimizer = run(optim.Adam, long)
    same_bits(short, long)
    assert optim.clip_grad_norm(drawn(0), 1.0) == pytest.approx(np.sqrt(sum(np.sum(a**2) for a in drawn(0).values())))
    long["vector"].resize((9000,), refcheck=False)
    with pytest.raises(ValueError, match="'vector'"):
        optimizer.step(drawn(1))


# What is refused ------------------------------------------------------------------------------------------


def memory(size=10, dtype=np.float32):
    return np.zeros(size, dtype)


FIELDS = np.zeros(4, [("a", "i1"), ("b", "f4")])["b"]  # neither aligned nor contiguous
SHIFTED = np.zeros(41, np.int8)[1:].view(np.float32)
TABLE = np.zeros((4, 3), np.float32)
READ_ONLY = np.zeros(3, np.float32)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("array", "words"),
    [
        ([1.0, 2.0], "must be a NumPy array, it is of type builtins.list"),
        (np.float32(1), "must be a NumPy array, it is of type numpy.float32"),
        (np.ma.zeros(3, np.float32), "MaskedArray"),
        (np.zeros(3, np.int64), r"must be float32 or float64, it is int64; convert it with \.astype"),
        (np.zeros(3, np.float16), "float16"),
        (np.zeros(3, ">f4"), ">f4"),
        (np.zeros(3, complex), "complex128"),
        (TABLE[:, 1], "must be C-contiguous; pass numpy.ascontiguousarray of it"),
        (TABLE.T, r"its transpose \.T, which needs no copy"),
        (SHIFTED, "no multiple of its item size"),
        (FIELDS, "item size"),
        (READ_ONLY, "read-only"),
    ],
)
def test_parameters_that_cannot_be_updated_in_place(array, words):
    with pytest.raises(ValueError, match=words) as caught:
        optim.Adam({"good": np.zeros(3), "bad": array})
    assert str(caught.value).startswith("parameter 'bad'")
    assert "\n" not in str(caught.value)


def test_parameters_that_share_memory():
    whole = memory()
    for one, other in ((whole, whole), (whole[:6], whole[5:]), (whole, whole[3:4]), (whole, whole.view(np.float64))):
        with pytest.raises(ValueError, match="parameter 'a' and parameter 'b' share memory"):
            optim.Adam([{"params": {"a": one}}, {"params": {"c": memory(), "b": other}}])
    optim.Adam({"a": whole[:5], "b": whole[5:], "none": whole[3:3]})


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"w": np.zeros((3, 4))}, r"gradient 'w' is float64, its parameter is float32; convert it with \.astype"),
        ({"w": np.zeros((4, 3), np.float32)}, r"gradient 'w' has shape \(4, 3\), its parameter has \(3, 4\)"),
        ({"w": np.zeros(12, np.float32)}, r"has shape \(12,\)"),
        ({"w": TABLE.T}, "gradient 'w' must be C-contiguous"),
        ({"w": None}, "gradient 'w' must be a NumPy array, it is of type builtins.NoneType"),
        ({"w": 0.5}, "builtins.float"),
        ({"w": np.float32(0.5)}, r"has shape \(\)"),
        ({"w": np.zeros((3, 4), np.int32)}, "int32"),
        ({"w": np.zeros((3, 4), ">f4")}, ">f4"),
        ({"w": np.zeros(49, np.int8)[1:].view(np.float32).reshape(3, 4)}, "item size"),
        ({"v": np.zeros((3, 4), np.float32), "w": None}, r"missing \[\], unknown \['v'\]"),
        ({}, r"gradients do not match the parameters: missing \['w'\], unknown \[\]"),
        ({"v": np.zeros((3, 4), np.float32)}, r"missing \['w'\], unknown \['v'\]"),
    ],
)
@pytest.mark.parametrize("readable", [True, False])
def test_gradients_that_do_not_fit(wrong, words, readable, monkeypatch):
    from fastadam.kernels.cpu import addresses

    monkeypatch.setattr(addresses, "READABLE", readable)
    w, b = np.ones((3, 4), np.float32), np.ones(5)
    optimizer = optim.Adam({"b": b, "w": w})
    with pytest.raises(ValueError, match=words) as caught:
        optimizer.step({"b": np.ones(5), **wrong})
    assert "\n" not in str(caught.value)
    assert optimizer.t == 0
    assert (b == 1).all()
    assert (w == 1).all()
    assert not optimizer.moments["m"]["b"].any()


@pytest.mark.parametrize("readable", [True, False])
def test_gradients_in_memory_that_is_written(readable, monkeypatch):
    from fastadam.kernels.cpu import addresses

    monkeypatch.setattr(addresses, "READABLE", readable)
    whole = memory(20)
    optimizer = optim.Adam({"a": whole[4:8], "b": memory(4), "c": memory(4, np.float64)})
    good = {"a": memory(4), "b": memory(4), "c": memory(4, np.float64)}
    wrong = (whole[5:9], whole[3:7], optimizer.moments["m"]["a"], optimizer.params["b"])
    for g in wrong:
        with pytest.raises(ValueError, match="gradient 'a' shares memory with what the optimiser writes"):
            optimizer.step({**good, "a": g})
    optimizer.step({**good, "a": whole[8:12], "b": whole[:4]})
    assert optimizer.t == 1


def test_other_kinds_of_parameters():
    for wrong in ([np.zeros(3)], np.zeros(3), "w"):
        with pytest.raises(ValueError, match=r"pass {\"w\": w} or"):
            optim.Adam(wrong)


def test_memory_mapped_parameters(tmp_path):
    """A subclass of NumPy's array is one too."""
    params = np.memmap(tmp_path / "w", np.float32, "w+", shape=(3, 5))
    params[...] = 1
    optim.Adam({"w": params}).step({"w": np.ones((3, 5), np.float32)})
    np.testing.assert_allclose(np.fromfile(tmp_path / "w", np.float32), 0.999, rtol=1e-6)


# Groups and settings --------------------------------------------------------------------------------------


def test_groups_have_settings_of_their_own():
    params = drawn(0)
    names = sorted(params)
    parts = {name: i % 3 for i, name in enumerate(names)}
    overrides = ({}, {"lr": 0.1, "weight_decay": 0.0}, {"beta1": 0.5, "eps": 1e-3, "amsgrad": True})
    groups = [{"params": {n: params[n] for n in names if parts[n] == i}, **own} for i, own in enumerate(overrides)]
    optimizer = optim.AdamW(groups, lr=0.01, weight_decay=0.1)
    alone = copied(params)
    single = {n: optim.AdamW({n: alone[n]}, **({"lr": 0.01, "weight_decay": 0.1} | overrides[parts[n]])) for n in names}
    for seed in (1, 2, 3):
        grads = drawn(seed)
        optimizer.step(grads)
        for name in names:
            single[name].step({name: grads[name]})
    same_bits(params, alone)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.1, 0.01]
    assert sorted(optimizer.param_groups[1]["params"]) == [n for n in names if parts[n] == 1]
    assert sorted(optimizer.moments["v_max"]) == [n for n in names if parts[n] == 2]


def test_groups_equal_pytorchs():
    torch = pytest.importorskip("torch")
    values = {"w": np.linspace(-1, 1, 20).reshape(4, 5), "b": np.linspace(1, 2, 5)}
    ours = copied(values)
    theirs = {name: torch.tensor(a, requires_grad=True) for name, a in values.items()}
    own = {"lr": 0.03, "weight_decay": 0.0}
    one = optim.AdamW([{"params": {"w": ours["w"]}}, {"params": {"b": ours["b"]}, **own}], lr=0.01)
    other = torch.optim.AdamW([{"params": [theirs["w"]]}, {"params": [theirs["b"]], **own}], lr=0.01)
    for t in range(10):
        grads = drawn(t, {"w": (4, 5), "b": (5,)}, np.float64)
        for name, g in grads.items():
            theirs[name].grad = torch.tensor(g)
        one.step(grads)
        other.step()
        for groups in (one.param_groups, other.param_groups):
            for group in groups:
                group["lr"] *= 0.9
    for name, p in ours.items():
        np.testing.assert_allclose(p, theirs[name].detach().numpy(), rtol=1e-14)


def test_a_schedule_by_hand():
    """Setting the rate between steps is what a rate from a schedule is in training."""
    one, other, third = (memory(5, np.float64) for _ in range(3))
    by_hand, by_group = optim.Adam({"w": one}, lr=1.0), optim.Adam({"w": third}, lr=1.0)
    m, v = np.zeros(5), np.zeros(5)
    for t, lr in enumerate((1.0, 0.1, 0.0, 0.5), 1):
        by_hand.lr = lr
        by_group.param_groups[0]["lr"] = lr
        assert by_group.lr == lr
        g = np.arange(5.0)
        by_hand.step({"w": g})
        by_group.step({"w": g})
        plain_adam(other, g, m, v, t, lr, 0.9, 0.999, 1e-8)
    np.testing.assert_allclose(one, other, rtol=1e-14)
    assert one.tobytes() == third.tobytes()


def test_which_rate_a_group_follows():
    optimizer = optim.Adam([{"params": {"a": memory()}}, {"params": {"b": memory()}, "lr": 1.0}], lr=0.1)
    optimizer.lr = 0.2
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 1.0]
    optimizer.param_groups[0]["lr"] = 0.3
    optimizer.lr = 0.4
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 1.0]
    del optimizer.param_groups[0]["lr"]
    assert optimizer.param_groups[0]["lr"] == 0.4
    assert dict(optimizer.param_groups[1]).keys() == {"params", *optimizer.settings()}


def test_the_only_group_may_have_settings_of_its_own():
    """And a schedule by hand reaches them."""
    w, plain = np.ones(3), np.ones(3)
    optimizer, other = optim.Adam([{"params": {"w": w}, "lr": 0.1, "beta1": 0.8}]), optim.Adam({"w": plain}, beta1=0.5)
    (group,) = optimizer.param_groups
    for lr in (0.1, 0.01):
        group["lr"], group["beta1"], other.lr = lr, 0.5, lr
        assert (group["lr"], group["beta1"]) == (lr, 0.5)
        optimizer.step({"w": np.ones(3)})
        other.step({"w": np.ones(3)})
    np.testing.assert_allclose(w, plain, rtol=1e-14)
    del group["lr"]
    group["lr"] = 0.3
    assert optimizer.lr == 0.3


def test_a_group_may_be_at_rest():
    params = {"a": np.ones(3), "b": np.ones(3)}
    optimizer = optim.Adam([{"params": {"a": params["a"]}, "lr": 0}, {"params": {"b": params["b"]}}])
    optimizer.step({"a": np.ones(3), "b": np.ones(3)})
    assert (params["a"] == 1).all()
    assert (params["b"] < 1).all()


def test_the_last_rate_of_adabound_follows_the_schedule():
    """It is given for the rate the optimiser began with, as in its authors' code."""
    half, whole = np.zeros(3), np.zeros(3)
    one, other = optim.AdaBound({"w": half}, lr=1e-3), optim.AdaBound({"w": whole}, lr=1e-3)
    one.lr = 5e-4
    for optimizer in (one, other):
        optimizer.step({"w": np.array([1e-6, 1.0, 1e6])})
    np.testing.assert_allclose(half, whole / 2)


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ([{"params": {"a": memory()}, "weigth_decay": 0.1}], r"no setting 'weigth_decay'.*did you mean 'weight_decay'"),
        (
            [{"params": {"a": memory()}, "momentum": 0.1}],
            "Adam has no setting 'momentum' for a parameter group; it has lr",
        ),
        ([{"params": {"a": memory()}, "beta1": 1.0}], "beta1 must be at least 0 and below 1"),
        ([{"params": {"a": memory()}, "lr": -1}], "lr must be above 0"),
        ([{"params": {"a": memory()}}, {"params": {"a": memory()}}], "parameter 'a' is in two groups"),
        ([{"a": memory()}], 'group 0 must have "params"'),
        ([{"params": [memory()]}], 'group 0 must have "params", a dict of arrays by name'),
    ],
)
def test_groups_that_make_no_sense(groups, words):
    with pytest.raises(ValueError, match=words):
        optim.Adam(groups)


def test_settings_that_make_no_sense_between_steps():
    w = np.ones(3)
    optimizer = optim.Adam({"w": w})
    changes = (("lr", -1.0, "lr"), ("lr", np.nan, "lr"), ("beta2", 1.0, "beta2"), ("amsgrad", True, "rule amsgrad"))
    for name, value, words in changes:
        before = getattr(optimizer, name)
        setattr(optimizer, name, value)
        for _ in range(2):
            with pytest.raises(ValueError, match=words):
                optimizer.step({"w": np.ones(3)})
        setattr(optimizer, name, before)
    assert (w == 1).all()
    with pytest.raises(ValueError, match="did you mean 'beta1'"):
        optimizer.param_groups[0]["beta_1"] = 0.5
    optimizer.step({"w": np.ones(3)})
    assert optimizer.t == 1


# State ----------------------------------------------------------------------------------------------------


def through_npz(state, folder):
    np.savez(folder / "state.npz", **state)
    with np.load(folder / "state.npz", allow_pickle=False) as file:
        return dict(file)


def through_safetensors(state, folder):
    from safetensors.numpy import load_file, save_file

    save_file(state, folder / "state.safetensors")
    return load_file(folder / "state.safetensors")


CHOSEN = {
    "sgd": {"momentum": 0.9},
    "muon": {"ns_coefficients": (2.0, -1.5, 0.5), "adjust_lr_fn": "match_rms_adamw"},
}


@pytest.mark.parametrize("through", [through_npz, through_safetensors])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_going_on_from_a_state_gives_the_same_bits(name, through, tmp_path):
    settings = {"weight_decay": 0.05, **CHOSEN.get(name, {})}
    own = {"adjust_lr_fn": "original"} if name == "muon" else {}

    def make(params):
        odd = {n: p for i, (n, p) in enumerate(params.items()) if i % 2}
        even = {n: p for n, p in params.items() if n not in odd}
        return OPTIMIZERS[name]([{"params": odd}, {"params": even, "lr": 0.01, **own}], lr=0.02, **settings)

    shapes = {key: shape for key, shape in SHAPES.items() if key not in ("exact", "more")}
    straight, stopped = drawn(0, shapes), drawn(0, shapes)
    one = run(make, straight)
    one.lr, one.weight_decay = 0.003, 0.01
    first = run(make, stopped)
    first.lr, first.weight_decay = 0.003, 0.01
    state = through(first.state_dict(), tmp_path)
    then = copied(stopped)
    first.step(drawn(1, shapes))  # what was saved is a copy
    second = OPTIMIZERS[name]([{"params": dict(g["params"])} for g in make(then).param_groups])
    second.load_state_dict(state)
    assert second.t == 3
    assert second.settings() == one.settings()
    for seed in (7, 8):
        one.step(drawn(seed, shapes))
        second.step(drawn(seed, shapes))
    same_bits(straight, then)


def test_what_a_state_holds():
    optimizer = run(optim.Adam, {"w": np.ones((2, 3), np.float32)}, steps=2)
    state = optimizer.state_dict()
    assert all(type(value) is np.ndarray for value in state.values())
    assert state["t"] == 2
    assert state["settings/beta2"] == 0.999
    assert not state["settings/amsgrad"]
    assert state["v/w"].shape == (2, 3)
    assert not np.shares_memory(state["v/w"], optimizer.moments["v"]["w"])
    plain = {name: value.item() if value.ndim == 0 else value.tolist() for name, value in state.items()}
    other = optim.Adam({"w": np.ones((2, 3), np.float32)})
    with pytest.raises(ValueError, match="float64"):
        other.load_state_dict(plain)
    arrays = {name: np.array(plain[name], np.float32) for name in ("m/w", "v/w")}
    other.load_state_dict({**plain, **arrays})
    same_bits(other.state_dict(), state)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"m/w": None}, r"the state does not fit this optimiser: missing \['m/w'\], unknown \[\]"),
        ({"m/x": np.zeros(2)}, r"unknown \['m/x'\]"),
        ({"settings/momentum": 0.9}, r"unknown \['settings/momentum'\]"),
        ({"m/w": np.zeros(3)}, r"m/w of the state is float64 \(3,\), this optimiser's is float64 \(2,\)"),
        ({"m/w": np.zeros(2, np.float32)}, "float32"),
        ({"t": -1}, "t of the state must be a whole number of 0 or more, it is -1"),
        ({"t": 0.5}, "whole number"),
        ({"t": np.zeros(2)}, "t of the state must be a number"),
        ({"settings/beta1": 2.0}, "beta1"),
        ({"settings/lr": np.nan}, "lr"),
        ({"groups/0/eps": -1.0}, "eps"),
        ({"groups/1/eps": 1.0}, r"unknown \['groups/1/eps'\]"),
        ({"settings/amsgrad": True}, "amsgrad"),
    ],
)
def test_states_that_do_not_fit(change, words):
    optimizer = run(optim.Adam, {"w": np.ones(2)}, steps=2, dtype=np.float64)
    before = optimizer.state_dict()
    state = {name: value for name, value in (before | change).items() if value is not None}
    with pytest.raises(ValueError, match=words):
        optimizer.load_state_dict(state)
    same_bits(optimizer.state_dict(), before)
    optimizer.step({"w": np.ones(2)})
    assert optimizer.moments["m"]["w"][0] != before["m/w"][0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"settings/ns_coefficients": 3.0},
            "settings/ns_coefficients of the state must be numbers in a row, found 3.0",
        ),
        ({"settings/ns_coefficients": np.ones(2)}, "ns_coefficients must be three numbers"),
        ({"settings/adjust_lr_fn": 1}, "settings/adjust_lr_fn of the state must be the bytes of a text, found 1"),
        ({"settings/adjust_lr_fn": np.array([255, 65], np.uint8)}, "adjust_lr_fn must be one of original"),
        ({"settings/adjust_lr_fn": None}, r"missing \['settings/adjust_lr_fn'\]"),
    ],
)
def test_choices_of_a_state_that_do_not_fit(change, words):
    optimizer = run(optim.Muon, {"w": np.ones((2, 3), np.float32)})
    before = optimizer.state_dict()
    assert before["settings/adjust_lr_fn"].tobytes() == b"original"
    state = {name: value for name, value in (before | change).items() if value is not None}
    with pytest.raises(ValueError, match=words):
        optimizer.load_state_dict(state)
    same_bits(optimizer.state_dict(), before)
    optimizer.adjust_lr_fn = None
    with pytest.raises(ValueError, match="settings/adjust_lr_fn is None, which a state cannot hold"):
        optimizer.state_dict()


# Clipping -------------------------------------------------------------------------------------------------


def test_clipping_by_norm():
    for dtype, tolerance in ((np.float32, 1e-6), (np.float64, 1e-14)):
        grads = drawn(0, dtype=dtype)
        before = copied(grads)
        norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in before.values()))
        assert optim.clip_grad_norm(grads, 2 * norm) == pytest.approx(norm, rel=1e-13)
        same_bits(grads, before)
        assert optim.clip_grad_norm(grads, 3.0) == pytest.approx(norm, rel=1e-13)
        for name, g in grads.items():
            np.testing.assert_allclose(g, before[name] * (3.0 / (norm + 1e-6)), rtol=tolerance)
        assert optim.clip_grad_norm(grads, np.inf) == pytest.approx(3.0, rel=1e-6)
    assert optim.clip_grad_norm({}, 1.0) == 0.0


def test_clipping_equals_pytorchs():
    torch = pytest.importorskip("torch")
    for spoilt in (None, np.nan, np.inf):
        grads = drawn(0, {"a": (3, 4), "b": (5,), "c": ()})
        if spoilt is not None:
            grads["b"][2] = spoilt
        tensors = {name: torch.zeros(g.shape, requires_grad=True) for name, g in grads.items()}
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(grads[name])
        want = torch.nn.utils.clip_grad_norm_(tensors.values(), 0.5)
        np.testing.assert_allclose(optim.clip_grad_norm(grads, 0.5), want.item(), rtol=1e-6)
        for name, g in grads.items():
            np.testing.assert_allclose(g, tensors[name].grad.numpy(), rtol=2e-6)
        torch.nn.utils.clip_grad_value_(tensors.values(), 0.1)
        optim.clip_grad_value(grads, 0.1)
        for name, g in grads.items():
            np.testing.assert_allclose(g, tensors[name].grad.numpy(), rtol=2e-6)


def test_clipping_numbers_and_mixtures():
    grads = {"a": np.float64(3.0), "b": np.array([4.0], np.float32)}
    assert optim.clip_grad_norm(grads, 1.0) == pytest.approx(5)
    assert grads["a"] == pytest.approx(0.6)
    assert grads["b"][0] == pytest.approx(0.8)
    optim.clip_grad_value(grads, 0.7)
    assert grads["a"] == pytest.approx(0.6)
    assert grads["b"][0] == pytest.approx(0.7)


def test_clipping_that_makes_no_sense():
    whole = memory()
    for clip in (optim.clip_grad_norm, optim.clip_grad_value):
        for limit in (-1.0, np.nan):
            with pytest.raises(ValueError, match="must be 0 or more"):
                clip({"a": whole}, limit)
        with pytest.raises(ValueError, match="gradient 'b' must be C-contiguous"):
            clip({"a": whole, "b": TABLE.T}, 1.0)
        with pytest.raises(ValueError, match="gradient 'b' is read-only"):
            clip({"b": READ_ONLY}, 1.0)
        with pytest.raises(ValueError, match="gradient 'a' and gradient 'b' share memory"):
            clip({"a": whole, "b": whole[2:]}, 1.0)

"""``fastadam bench``: its arithmetic, its processes, and a small real run of every part. No figure is judged."""

import importlib.util
import json
import os
import signal
import sys
import time
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fastadam_cli.main import main
from fastadam_cli.options import ListType

from fastadam import data, models
from fastadam.bench import adam, calls, machine, measure, memory, numbers, rounds, steps, work
from fastadam.bench.children import OWN_VARIABLES, Child
from fastadam.bench.config import PARTS, SETTINGS, BenchConfig
from fastadam.bench.fresh import answer, ask_fresh
from fastadam.bench.numbers import Limits
from fastadam.bench.rounds import Budget
from fastadam.bench.runs import bench_runs
from fastadam.device import Loops, get_device
from fastadam.errors import BenchError, ConfigError, DataError, DeviceError, OutOfMemoryError
from fastadam.program import bound

TORCH = importlib.util.find_spec("torch") is not None
LIMITS = Limits(fma_one=50e9, fma=100e9, copy=10e9, mix=20e9, fork_join=5e-6)


def run(*arguments: Any, **env: str) -> Any:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)], env=env, prog_name="fastadam")


# Numbers --------------------------------------------------------------------------------------------------


def test_quartiles():
    assert numbers.quartiles([3.0]) == (3, 3, 3)
    assert numbers.quartiles([4, 1, 3, 2, 5]) == (2, 3, 4)
    assert numbers.quartiles([1, 2]) == (1.25, 1.5, 1.75)
    assert numbers.spread([0.001, 0.003], 1e3) == pytest.approx({"median": 2, "low": 1.5, "high": 2.5})


def test_a_ratio_pairs_the_rounds():
    """A round in which the machine was half as fast for both counts like the others."""
    ours = [[1.0, 1.0, 9.0], [2.0, 2.0], [1.0]]
    theirs = [[3.0, 3.0, 3.0], [6.0, 6.0], [4.0]]
    assert numbers.paired_ratio(ours, theirs) == {"median": 3, "low": 3, "high": 3.5}
    assert numbers.median(ours) == 1.5


def test_the_share_of_the_roof():
    assert LIMITS.memory == 20e9
    assert LIMITS.share(2.0, flops=100e9, moved=20e9) == 0.5  # both limits are a second away
    assert LIMITS.share(2.0, flops=100e9, moved=80e9) == 2.0  # the longer one counts: memory
    assert LIMITS.share(1.0, flops=25e9, moved=0) == 0.25
    told = LIMITS.to_dict()
    assert told == {
        "fma_gflops_one_thread": 50, "fma_gflops": 100, "copy_gb_per_second": 10, "adam_mix_gb_per_second": 20,
        "fork_join_microseconds": pytest.approx(5),
    }  # fmt: skip
    card = Limits(fma=1e12, copy=1e12, mix=1e12, launch=3e-6)  # which has no threads
    assert card.to_dict().keys() == {
        "fma_gflops", "copy_gb_per_second", "adam_mix_gb_per_second", "launch_microseconds",
    }  # fmt: skip


def test_how_long_is_measured():
    now = time.perf_counter()
    assert [Budget(60, 2).more(done, now) for done in (0, 1, 2)] == [True, True, False]
    assert Budget(1e-9, None).more(rounds.LEAST - 1, now - 1)
    assert not Budget(1e-9, None).more(rounds.LEAST, now - 1)
    assert Budget(60, None).more(1000, now)
    assert [rounds.turn_steps(seconds) for seconds in (0, 0.01, 0.25, 10)] == [rounds.MOST_STEPS, 50, 3, 3]


def test_sides_take_turns():
    class Side:
        def __init__(self, name: str):
            self.name = name

        def ask(self, method: str, count: int) -> list[float]:
            asked.append((self.name, method, count))
            return [0.5] * count

    asked: list[tuple[str, str, int]] = []
    seconds = rounds.take_turns({"a": Side("a"), "b": Side("b")}, 2, Budget(1, 3))  # type: ignore[dict-item]
    assert [name for name, _, _ in asked] == ["a", "b", "b", "a", "a", "b"]
    assert seconds == {"a": [[0.5, 0.5]] * 3, "b": [[0.5, 0.5]] * 3}


def test_rows_gather_equal_calls():
    """Every call of a step is in one row, and all their operations and bytes are counted."""
    plan = work.training_plan(models.graph_of("resnet20"), 4)
    rows = calls.rows_of(plan.calls)
    assert sorted(place for row in rows for place in row.places) == list(range(len(plan.calls)))
    assert sum(row.flops for row in rows) == plan.flops
    assert sum(row.bytes for row in rows) == plan.bytes
    assert len(rows) < len(plan.calls) / 2
    (stem,) = (row for row in rows if row.op == "conv2d_forward" and "conv1" in row.layers)
    assert stem.layers == ["conv1"]
    (wide,) = (row for row in rows if row.op == "conv2d_forward" and "layer3.1.conv1" in row.layers)
    assert wide.layers == ["layer3.1.conv1", "layer3.2.conv1"]  # others read a pending batch norm
    assert [row.launches for row in rows] == [len(row.places) for row in rows]
    (wide,) = (row for row in calls.rows_of(plan.calls, range(len(plan.calls))) if row.places == wide.places)
    assert wide.launches == sum(wide.places)


def test_sides_that_did_other_work_are_told_of():
    steps.check_losses("mlp", {"fastadam": [2.3, 2.0], "torch": [2.3001, 2.01]})
    steps.check_losses("mlp", {"fastadam": [2.3, 2.0]})
    with pytest.raises(BenchError, match=r"mlp: the losses of step 2 differ \(fastadam: 2, torch: 2.3\)"):
        steps.check_losses("mlp", {"fastadam": [2.3, 2.0], "torch": [2.3, 2.3]})
    with pytest.raises(BenchError, match="step 1"):
        steps.check_losses("mlp", {"fastadam": [np.nan], "torch": [np.nan]})
    adam.check_moved({"fastadam": 1.0, "torch": 1.0001})
    with pytest.raises(BenchError, match=r"fastadam: 1, torch: 1\.1"):
        adam.check_moved({"fastadam": 1.0, "torch": 1.1})


def test_the_two_updates_move_as_far_as_adam_does():
    """Three steps with the same gradients move every parameter by three times the rate."""
    ours = adam.OurUpdate("resnet20", "cpu", 1)
    assert ours.begin() == pytest.approx(adam.FIRST * adam.LR * np.sqrt(272_474), rel=1e-3)


def test_batches_are_the_same_whoever_asks():
    first, second = work.batches(6, 2), work.batches(6, 2)
    for (images, labels), (again, labels_again) in zip(first, second, strict=True):
        assert images.dtype == np.float32
        np.testing.assert_array_equal(images, again)
        np.testing.assert_array_equal(labels, labels_again)
    assert not np.array_equal(first[0][0], first[1][0])
    assert abs(np.concatenate([images for images, _ in first]).mean()) < 1e-5


def test_a_step_that_does_not_fit_is_refused():
    plan = work.training_plan(models.graph_of("mlp"), 8)
    device = get_device("cpu", 1)
    work.check_memory(plan, device)
    device.available_memory = lambda: 1e6  # type: ignore[method-assign]
    with pytest.raises(OutOfMemoryError, match=r"batch size 8 needs .* 1\.0 MB are free"):
        work.check_memory(plan, device)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_peak_memory_is_what_was_taken_since():
    before = memory.restart_peak()
    block = np.ones(1 << 24)
    del block
    assert 0.9 < (memory.peak() - before) / 2**27 < 1.5
    assert memory.restart_peak() - before < 1 << 26
    taken = memory.meter_of(get_device("cpu", 1))
    block = np.ones(1 << 24)
    del block
    assert 0.9 < taken() / 2**27 < 1.5
    assert steps.memory_ratio({"fastadam": 100, "torch": 250}) == 2.5
    assert steps.memory_ratio({"fastadam": None, "torch": 250}) is None
    assert steps.memory_ratio({"fastadam": 100}) is None


def test_memory_of_a_gpu_is_what_it_has_less_to_offer():
    """Told once: later on another process may take some too."""

    class Card:
        is_host, free = False, 1000

        def available_memory(self) -> float:
            return self.free

    card = Card()
    taken = memory.meter_of(card)  # type: ignore[arg-type]
    card.free = 400
    assert taken() == 600
    card.free = 100
    assert taken() == 600


# Devices --------------------------------------------------------------------------------------------------


def test_a_device_times_what_it_runs():
    """In turn, each on its own."""
    device, done = get_device("cpu", 1), []
    seconds = device.seconds([lambda: done.append(1), lambda: time.sleep(0.05), lambda: done.append(2)])
    assert done == [1, 2]
    assert len(seconds) == 3
    assert seconds[1] >= 0.05 > seconds[0] >= 0
    assert device.seconds([]) == []


def test_a_call_of_the_cpu_is_one_thing_to_do():
    device, y = get_device("cpu", 1), np.ones(4, np.float32)
    (action,) = bound(device.ops.accumulate, (y, np.ones(4, np.float32)))
    with device.running():
        action()
        action()
    device.synchronize()
    assert y.tolist() == [3, 3, 3, 3]


def test_a_machine_tells_its_limits(monkeypatch):
    device = get_device("cpu", 2)
    loops = device.limits
    assert loops.lanes == 2
    small = Loops(loops.module, loops.empty, lanes=2, times=100, floats=1 << 12)
    monkeypatch.setattr(type(device), "limits", small)
    made = machine.Machine("cpu", 2)
    assert made.place() == ("cpu", 2)
    environment, limits = made.measure()
    assert environment["device"] == "cpu"
    assert limits.launch is None
    assert all(value > 0 for value in limits.to_dict().values())


def test_the_limits_of_a_gpu_compile():
    """To 16-byte accesses, to hardly anything but multiply-adds, and without float64."""
    pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'fastadam[cuda13]'")
    from cuda_kernels import compiling_for
    from numba import cuda, types

    from fastadam.kernels.cuda import limits

    flat, number = types.Array(types.float32, 1, "C"), types.uint32
    texts = {}
    for kernel, arguments in (
        (limits._multiply_add, (flat, number)), (limits._copy, (flat, flat, number)),
        (limits._mix, (flat, flat, flat, flat, number)), (limits._nothing, (flat,)), (limits._sleep, (number,)),
    ):  # fmt: skip
        with compiling_for((7, 5)):
            texts[kernel] = cuda.compile_ptx(kernel.py_func, types.void(*arguments), cc=(7, 5))[0]
        assert ".f64" not in texts[kernel]
        assert ".local" not in texts[kernel]
    for kernel, loads, stores in ((limits._multiply_add, 4, 4), (limits._copy, 1, 1), (limits._mix, 4, 3)):
        assert texts[kernel].count("ld.global.v4") == loads
        assert texts[kernel].count("st.global.v4") == stores
    assert texts[limits._multiply_add].count("fma.rn.f32") % (limits.ACCUMULATORS * limits.UNROLLED) == 0
    assert "nanosleep" in texts[limits._sleep]


def test_without_a_gpu_one_line_says_what_to_do(monkeypatch):
    try:
        get_device("cuda")
    except DeviceError as error:
        problem = str(error)
    else:
        pytest.skip("there is a GPU")
    result = run("adam", "--device", "cuda", "--quiet")
    assert result.exit_code == 1
    assert result.stderr == f"Error: {problem}\n"
    assert "--device cpu" in problem


@pytest.mark.skipif(not TORCH, reason="PyTorch is not installed: pip install torch")
def test_a_pytorch_that_cannot_compute_there_is_told_of(monkeypatch):
    import torch

    from fastadam.bench import peer

    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(BenchError, match=r"--device cuda:1 needs .* is built without CUDA; install .* or leave --vs"):
        peer.Place("cuda:1", 1)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BenchError, match=r"built for CUDA 13\.0, finds no GPU it can use; install"):
        peer.Place("cuda:0", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BenchError, match="no GPU of that number, but 1;"):
        peer.Place("cuda:1", 1)


# Processes ------------------------------------------------------------------------------------------------


class Parrot:
    """What a child of the tests is."""

    def __init__(self, *known: str):
        if "nothing" in known:
            raise DataError("there is nothing to say")
        self.known = known

    def say(self, word: str) -> str:
        if word == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "bug":
            raise ValueError("a bug")
        if word == "much":
            raise type("OutOfMemoryError", (RuntimeError,), {})  # as PyTorch has it
        if word not in self.known:
            raise ConfigError(f"it does not know {word}")
        return word

    def variable(self, name: str) -> str | None:
        return os.environ.get(name)


def test_a_child_answers_or_says_why_not(monkeypatch):
    with Child("parrot", Parrot, "hello") as child:
        assert child.ask("say", "hello") == "hello"
        with pytest.raises(BenchError, match="it does not know fish") as caught:
            child.ask("say", "fish")
        assert caught.value.exit_code == 2
        with pytest.raises(RuntimeError, match="ValueError: a bug"):
            child.ask("say", "bug")
        with pytest.raises(BenchError, match="out of memory; try a smaller --batch-size"):
            child.ask("say", "much")
        assert child.ask("say", "hello") == "hello"
        with pytest.raises(BenchError, match=r"the process of parrot was killed by signal 9; .*--batch-size"):
            child.ask("say", "die")
        with pytest.raises(BenchError, match="signal 9"):
            child.ask("say", "hello")
    with pytest.raises(BenchError, match="there is nothing to say"):
        Child("parrot", Parrot, "nothing")


def test_pytorchs_process_does_not_see_our_variables(monkeypatch):
    (name,) = OWN_VARIABLES
    monkeypatch.setenv(name, "10000")
    for peer, value in ((False, "10000"), (True, None)):
        with Child("parrot", Parrot, peer=peer) as child:
            assert child.ask("variable", name) == value
        assert os.environ[name] == "10000"


def test_a_fresh_process_answers_or_says_why_not(tmp_path, monkeypatch):
    (tmp_path / "thing.py").write_text(
        "import os, sys\n"
        "from fastadam.bench.fresh import answer\n"
        "from fastadam.errors import DataError\n"
        "def thing(word):\n"
        "    if word == 'refuse':\n"
        "        raise DataError('it is refused')\n"
        "    if word == 'die':\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return {'word': word, 'variable': os.environ.get('THING')}\n"
        "answer(thing)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcome = ask_fresh("thing", "thing", {"word": "hello"}, variables={"THING": "1"})
    assert outcome.answer == {"word": "hello", "variable": "1"}
    assert 0 < outcome.answer_seconds <= outcome.end_seconds
    with pytest.raises(BenchError, match="the process of thing failed: it is refused"):
        ask_fresh("thing", "thing", {"word": "refuse"})
    with pytest.raises(BenchError, match="was killed by signal 9"):
        ask_fresh("thing", "thing", {"word": "die"})
    with pytest.raises(BenchError, match="No module named nothing"):
        ask_fresh("thing", "nothing", {})


def test_an_answer_is_a_line_of_json(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", '{"a": 1}'])
    answer(lambda a: {"b": a + 1})
    assert json.loads(capsys.readouterr().out) == {"b": 2}


# Settings -------------------------------------------------------------------------------------------------


def test_settings_that_do_not_go_together():
    assert BenchConfig().models("kernels") == ("vgg",)
    assert BenchConfig(model=("mlp",)).models("kernels") == ("mlp",)
    with pytest.raises(ConfigError, match="data is for train"):
        BenchConfig(parts=("adam", "kernels"), data="x")
    with pytest.raises(ConfigError, match="model is for kernels, train and startup"):
        BenchConfig(parts=("adam",), model=("vgg",))
    with pytest.raises(ConfigError, match="give --data too"):
        BenchConfig(epochs=3)


def test_lists_of_values(tmp_path):
    kind = ListType(SETTINGS["batch_size"])
    assert kind.convert("32, 8,32", None, None) == (32, 8)
    assert kind.convert(64, None, None) == (64,)
    assert kind.convert([64, 1], None, None) == (64, 1)
    for wrong in ([], [0], ["x"], [True], 0):
        with pytest.raises(ValueError, match="must"):
            kind.check(wrong)
    kind.check([1, 2])
    kind.check("1,2")


@pytest.fixture
def settled(monkeypatch, tmp_path):
    """``settled(*arguments, **env)`` is what would be measured."""
    monkeypatch.chdir(tmp_path)
    caught: list[BenchConfig] = []

    def catch(config: BenchConfig, say: Any) -> dict[str, Any]:
        caught.append(config)
        return {}

    monkeypatch.setattr(measure, "measure", catch)

    def settle(*arguments: Any, **env: str) -> BenchConfig:
        result = run(*arguments, "--json", **env)
        assert result.exit_code == 0, result.output
        return caught[-1]

    return settle


def test_where_values_come_from(settled, tmp_path):
    assert settled() == BenchConfig()
    assert settled("startup", "adam").parts == ("adam", "startup")
    (tmp_path / "c.toml").write_text("model = ['mlp', 'cnn']\nbatch_size = 64\nseconds = 2\nthreads = 3\n")
    assert settled("--device", "cuda:1").device == "cuda:1"
    assert settled(FASTADAM_BENCH_DEVICE="cuda").device == "cuda"
    config = settled("--config", "c.toml", "--threads", 1, FASTADAM_BENCH_BATCH_SIZE="8,16")
    assert config == BenchConfig(model=("mlp", "cnn"), batch_size=(8, 16), seconds=2.0, threads=1)
    for content, told in (
        ("model = []", "model must have one value at least"),
        ("model = 'vgg99,mlp'", "model must be one of"),
        ("device = 'gpu'", "device must be auto, cpu, cuda or cuda:N, found 'gpu'"),
        ("batch_size = [0]", "batch_size must be at least 1"),
        ("repeat = 3", "did you mean 'repeats'?"),
    ):
        (tmp_path / "c.toml").write_text(content)
        result = run("--config", "c.toml")
        assert result.exit_code == 2
        assert told in result.stderr


def test_a_variable_that_is_no_option_is_told_of(settled):
    settled()
    result = run("--quiet", "--json", FASTADAM_BENCH_REPEAT="3")
    assert "FASTADAM_BENCH_REPEAT has no effect" in result.stderr


def test_without_pytorch_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = run("adam", "--vs", "torch", "--quiet")
    assert result.exit_code == 1
    assert result.stderr == ("Error: --vs torch needs PyTorch, which is not installed; python -m pip install torch\n")


# Real runs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A net whose few kernels are soon compiled."""
    path = tmp_path_factory.mktemp("nets") / "tiny.toml"
    path.write_text('layer = [{op = "linear", out = "classes"}]\n')
    return str(path)


@pytest.fixture(scope="module")
def found(net: str) -> dict[str, Any]:
    """What all parts find, beside PyTorch if there is one."""
    arguments = ["--model", net, "--batch-size", "4", "--repeats", "1", "--threads", "2", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        sets = {"resnet20": adam.sets_of_parameters()["resnet20"]}
        patch.setattr(measure, "sets_of_parameters", lambda: sets)  # ten million are no small run
        result = run(*arguments, *["--vs", "torch"] * TORCH)
    assert result.exit_code == 0, result.output
    assert all(line.endswith(" ...") for line in result.stderr.splitlines())
    return json.loads(result.stdout)


def test_the_machine_is_described(found):
    assert list(found) == ["environment", "limits", *PARTS]
    environment, limits = found["environment"], found["limits"]
    assert environment.keys() == {"device", "cpu", "cores", "threads", "threading_layer", "versions"}
    assert environment["threads"] == 2
    assert environment["versions"].keys() >= {"python", "fastadam", "numba", "numpy", "torch"}
    assert limits.keys() == LIMITS.to_dict().keys()
    assert all(value > 0 for value in limits.values())


def test_every_part_has_both_sides(found):
    own = {
        "adam": {"milliseconds", "gb_per_second", "memory_share"},
        "train": {
            "milliseconds", "images_per_second", "gflops", "fma_share", "first_step_seconds", "compile_seconds",
            "peak_memory_bytes", "first_losses",
        },
        "startup": {"seconds"},
    }  # fmt: skip
    for part, keys in own.items():
        (result,) = found[part]
        assert result["rounds"] == 1
        assert result["device"] == "cpu"
        assert result["fastadam"].keys() == keys | ({"cold_seconds"} if part == "startup" else set())
        if TORCH:
            assert result["torch"].keys() == keys
            assert result["ratio"].keys() == {"median", "low", "high"}
            assert result["ratio"]["median"] > 0
        else:
            assert result["torch"] is None
            assert result["ratio"] is None


def test_the_numbers_of_a_step_fit_together(found, net):
    (step,) = found["train"]
    ours = step["fastadam"]
    seconds = ours["milliseconds"]["median"] / 1e3
    assert ours["images_per_second"] == pytest.approx(4 / seconds)
    assert ours["gflops"] == pytest.approx(step["gflop"] / seconds)
    assert round(step["gflop"] * 1e9) == work.training_plan(models.graph_of(net), 4).flops
    assert ours["compile_seconds"] >= 0
    assert step["losses_compared"] is TORCH
    if TORCH:
        assert ours["first_losses"] == pytest.approx(step["torch"]["first_losses"], rel=1e-3)
        assert step["memory_ratio"] is None or step["memory_ratio"] > 0
    (update,) = found["adam"]
    assert (update["count"], update["tensors"], update["bytes_per_parameter"]) == (272_474, 65, 28)


def test_the_calls_of_a_step(found):
    (result,) = found["kernels"]
    rows = result["rows"]
    assert sum(row["calls"] for row in rows) == result["calls"] == result["launches"]
    assert sum(row["step_share"] for row in rows) == pytest.approx(1)
    assert sum(row["milliseconds"] for row in rows) == pytest.approx(result["milliseconds"])
    assert [row["milliseconds"] for row in rows] == sorted((row["milliseconds"] for row in rows), reverse=True)
    compared = {row["op"] for row in rows if row["ratio"] is not None}
    assert compared == ({"linear_forward", "linear_backward"} if TORCH else set())
    assert {row["op"] for row in rows} >= {"batch_load", "softmax_loss", "adam_update"}


def test_results_are_tables_for_people(found, monkeypatch):
    monkeypatch.setattr(measure, "measure", lambda config, say: found)
    result = run()
    assert result.exit_code == 0
    for title in ("All figures are those of this machine", *(f"{part}: " for part in PARTS)):
        assert title in result.stdout
    assert ("PyTorch ms" in result.stdout) is TORCH
    assert "GFLOP/s one thread" in result.stdout


def test_tables_of_a_gpu_tell_its_name(found, monkeypatch):
    card = {"name": "Some GPU", "capability": "9.0", "multiprocessors": 132, "memory_bytes": 1 << 36}
    environment = {
        key: value for key, value in found["environment"].items() if key not in ("threads", "threading_layer")
    }
    environment |= {"device": "cuda:0", "gpu": card, "driver": "13.0", "toolkit": "13.1", "package": "numba-cuda 1"}
    (step,) = found["kernels"]
    results = {
        "environment": environment,
        "limits": Limits(fma=1e12, copy=1e12, mix=1e12, launch=3e-6).to_dict(),
        "kernels": [{**step, "launches": step["calls"] + 2}],
    }
    monkeypatch.setattr(measure, "measure", lambda config, say: results)
    told = run("kernels").stdout
    assert "cuda:0          Some GPU, compute capability 9.0, 132 multiprocessors" in told
    assert "driver 13.0, toolkit 13.1" in told
    assert "empty launch    3.0 microseconds" in told
    assert f"{step['calls']} calls in {step['calls'] + 2} launches" in told
    assert "thread" not in told


def test_whole_runs(tmp_path):
    data.write_binary(tmp_path / "data", data.synthetic.generate(train=60, test=20))
    net = tmp_path / "net.toml"
    net.write_text('layer = [{op = "linear", out = "classes"}]\n')
    result = bench_runs(str(net), 20, "cpu", 1, str(tmp_path / "data"), 1, None, "torch" if TORCH else None)
    sides = ["fastadam", "torch"] if TORCH else ["fastadam"]
    for side in sides:
        assert 0 <= result[side]["test_accuracy"] <= 1
        assert result[side]["seconds"]["median"] > 0
    assert (result["epochs"], result["rounds"]) == (1, 1)
    with pytest.raises(BenchError, match=f"there is no file or folder {tmp_path / 'none'}"):
        bench_runs(str(net), 20, "cpu", 1, str(tmp_path / "none"), 1, None, None)


def test_steps_with_dropout_are_not_compared():
    assert not steps.has_dropout(models.graph_of("mlp"))
    assert steps.has_dropout(models.graph_of("mlp", dropout=0.5))

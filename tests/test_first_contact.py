"""Each way in which a GPU may be out of reach has a line of its own, with the cure."""

import importlib.util
import os
import subprocess
import sys

import pytest

from fastadam import cuda_device, device
from fastadam.config import TrainConfig
from fastadam.device import get_device
from fastadam.errors import DeviceError
from fastadam.kernels.start import cores

with_cuda = pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None, reason="needs numba-cuda: pip install 'fastadam[cuda13]'"
)


def refusal(name: str = "cuda") -> str:
    with pytest.raises(DeviceError) as caught:
        get_device(name)
    line = str(caught.value)
    assert "\n" not in line
    assert "--device cpu" in line
    return line


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(cuda_device.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'fastadam[cuda13]'" in refusal()
    assert "cuda12" in refusal("cuda:1")
    assert cuda_device.describe_gpus()["cards"] == []


@with_cuda
@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("\nCUDA driver library cannot be found.\nEnsure that a compatible NVIDIA driver is installed", "nvidia-smi"),
        ("CUDA_ERROR_NO_DEVICE (100)", "finds no GPU"),
        ("something else", "CUDA cannot be used: something else"),
        (None, "the driver or the CUDA toolkit cannot be used"),
    ],
)
def test_without_a_driver_that_works(monkeypatch, error, told):
    from fastadam.kernels.cuda import driver

    monkeypatch.setattr(driver.cuda, "is_available", lambda: False)
    monkeypatch.setattr(driver._driver.driver, "initialization_error", error)
    assert told in refusal()
    assert told in cuda_device.describe_gpus()["problem"]


@pytest.fixture
def cards(monkeypatch):
    """A machine with an old card and a new one."""
    from fastadam.kernels.cuda import driver

    found = [driver.Card(0, "Old", (6, 1), 20), driver.Card(1, "New", (9, 0), 132)]
    monkeypatch.setattr(driver, "cards", lambda: found)
    monkeypatch.setattr(driver, "start", lambda number: 1 << 36)


@with_cuda
def test_a_card_that_is_not_there_or_too_old(cards):
    assert "there are cuda:0 Old, cuda:1 New" in refusal("cuda:2")
    assert "compute capability 6.1" in refusal("cuda")
    new = get_device("cuda:1")
    assert (new.name, new.is_host) == ("cuda:1", False)
    assert new.description == "cuda:1, New, compute capability 9.0"
    told = cuda_device.describe_gpus()["cards"]
    assert [card["device"] for card in told] == ["cuda:0", "cuda:1"]
    assert "7.5" in told[0]["problem"]
    assert told[1]["problem"] is None


@with_cuda
def test_auto_takes_what_can_be_used(cards, monkeypatch):
    monkeypatch.setattr(device, "_may_have_cuda", lambda: True)
    assert get_device("auto").name == "cuda:1"  # the first card is too old


@with_cuda
def test_a_card_that_cannot_be_had(cards, monkeypatch):
    from fastadam.kernels.cuda import driver

    def start(number):
        raise DeviceError(f"cuda:{number} is there but cannot be used (busy); use another GPU or use --device cpu")

    monkeypatch.setattr(driver, "start", start)
    monkeypatch.setattr(device, "_may_have_cuda", lambda: True)
    assert "busy" in refusal("cuda:1")
    assert get_device("auto").name == "cpu"
    assert "busy" in cuda_device.describe_gpus()["cards"][1]["problem"]


@with_cuda
def test_a_driver_older_than_the_toolkit(monkeypatch):
    from fastadam.kernels.cuda import driver

    monkeypatch.setattr(driver.cuda, "is_available", lambda: True)
    monkeypatch.setattr(driver, "versions", lambda: {"package": "", "driver": "12.4", "toolkit": "13.5"})
    assert "pip install 'fastadam[cuda12]'" in refusal()


def test_the_cpu_computes_in_float32_alone():
    with pytest.raises(DeviceError, match="precision bf16 was asked for, and the CPU computes in float32"):
        get_device("cpu", precision="bf16")


@with_cuda
def test_tensor_products_need_a_newer_card(monkeypatch):
    from fastadam.kernels.cuda import driver

    monkeypatch.setattr(driver, "cards", lambda: [driver.Card(0, "Turing", (7, 5), 40)])
    monkeypatch.setattr(driver, "start", lambda number: 1 << 34)
    assert get_device("cuda").name == "cuda:0"
    with pytest.raises(DeviceError, match=r"cuda:0, Turing, has compute capability 7\.5"):
        get_device("cuda", precision="tf32")


@pytest.mark.parametrize("layer", ["nonsense", "tbb"])
@pytest.mark.skipif(importlib.util.find_spec("tbb") is not None, reason="tbb is installed")
def test_a_threading_layer_that_is_not_there(layer):
    environment = {**os.environ, "NUMBA_THREADING_LAYER": layer}
    code = "from fastadam.device import get_device; get_device('cpu')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert f"the threading layer '{layer}' was asked for" in last
    assert last.endswith("unset NUMBA_THREADING_LAYER")


@pytest.mark.parametrize(("asked", "threads"), [("1", 1), ("0", 1), ("", None), ("many", None), ("9999", None)])
def test_numbas_variable_limits_threads_that_nobody_asked_for(monkeypatch, asked, threads):
    monkeypatch.setenv("NUMBA_NUM_THREADS", asked)
    assert TrainConfig().resolved(train_images=1000).threads == (threads or cores())

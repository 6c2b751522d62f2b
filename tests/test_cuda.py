"""CUDA kernels and programs, where they can run: on a GPU, or in Numba's simulator.

``test_simulator.py`` starts these once more under ``NUMBA_ENABLE_CUDASIM=1``. The simulator takes a second for a
thousand threads, so it gets what is small.
"""

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'fastadam[cuda13]'")

from numba import config

from fastadam import models, trial
from fastadam.cases import CASES
from fastadam.device import get_device
from fastadam.errors import DeviceError
from fastadam.graph import Graph, Node
from fastadam.kernels import OPS
from fastadam.model import Model
from fastadam.trainer import Trainer

SIMULATED = bool(config.ENABLE_CUDASIM)
MOST_THREADS, MOST_CASES = (700, 5) if SIMULATED else (1 << 40, 1 << 40)


@pytest.fixture(scope="module")
def gpu():
    """The first GPU."""
    try:
        return get_device("cuda")
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("op", OPS)
def test_matches_the_reference_and_writes_nothing_else(op, gpu):
    from cuda_kernels import threads

    cases = [case for case in CASES if case.op == op]
    small = [case for case in cases if threads(case) <= MOST_THREADS] or [min(cases, key=threads)]
    for case in small[:: -(-len(small) // MOST_CASES)]:
        with gpu.running():
            got = trial.call(case, gpu.ops, device=gpu)
        assert trial.worst_error(case, got, trial.expect(case)) <= 1, case


@pytest.mark.skipif(SIMULATED, reason="the simulator is too slow for every case twice")
def test_same_bits_in_every_run(gpu):
    for case in CASES:
        with gpu.running():
            first, second = (trial.call(case, gpu.ops, device=gpu) for _ in range(2))
        assert {name: out.tobytes() for name, out in first.items()} == {
            name: out.tobytes() for name, out in second.items()
        }, case


def small_net(*rows: tuple[str, str, tuple[str, ...], dict]) -> Model:
    """A model of a few nodes on 4 x 4 images of one channel, with three classes."""
    nodes = [("x", "input", (), {"shape": (4, 4, 1)}), *rows]
    model = Model(Graph([Node(op, name, inputs, attrs) for name, op, inputs, attrs in nodes]), {})
    model.initialize(0)
    return model


CONV = {"out": 4, "kernel": 3, "stride": 1, "pad": 1, "bias": False}
FC = {"out": 3, "bias": True}
NETS = {
    "mlp": (("h", "linear", ("x",), {"out": 5, "bias": True}), ("r", "relu", ("h",), {}), ("fc", "linear", ("r",), FC)),
    "cnn": (
        ("c", "conv", ("x",), CONV), ("b", "bn", ("c",), {}), ("r", "relu", ("b",), {}),
        ("p", "maxpool", ("r",), {}), ("fc", "linear", ("p",), FC),
    ),
}  # fmt: skip


@pytest.mark.parametrize("net", NETS)
def test_training_steps_equal_the_cpus(net, gpu):
    rng = np.random.default_rng(0)
    batches = [(rng.integers(0, 256, (2, 1, 4, 4), np.uint8), rng.integers(0, 3, 2)) for _ in range(2)]
    results = []
    for device in ("cpu", gpu.name):
        model = small_net(*NETS[net])
        clip = None if SIMULATED else 1.0  # 64 blocks of 256 threads
        trainer = Trainer(model, "adamw", lr=0.01, augment=("flip", "crop"), clip_norm=clip, seed=3, device=device)
        losses = [trainer.step(*batch) for batch in batches]
        arrays = {**model.state_dict(), **{name: arena.flat.copy() for name, arena in trainer.moments.items()}}
        results.append((losses, arrays))
    (losses, arrays), (their_losses, theirs) = results
    np.testing.assert_allclose(their_losses, losses, rtol=1e-5)
    for name, array in arrays.items():
        np.testing.assert_allclose(theirs[name], array, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.skipif(SIMULATED, reason="too large for the simulator")
@pytest.mark.parametrize("name", ["mlp", "cnn", "vgg", "resnet20"])
def test_losses_of_whole_nets_equal_the_cpus(name, gpu):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (8, 3, 32, 32), np.uint8), rng.integers(0, 10, 8)
    losses = []
    for device in ("cpu", gpu.name):
        trainer = Trainer(models.build(name), "adam", lr=1e-4, device=device)
        losses.append([trainer.step(images, labels) for _ in range(5)])
    np.testing.assert_allclose(*losses, rtol=1e-3)


@pytest.mark.skipif(not SIMULATED, reason="a part of kernels, which Python can call in the simulator alone")
@pytest.mark.parametrize("samples", [1, 7, 128, 65_535, 65_536, 70_000, 1 << 20])
def test_lanes_share_out_any_number_of_samples(samples):
    from fastadam.kernels.cuda.lanes import lane_start, lanes_of_their_own

    own = lanes_of_their_own(samples)
    assert own == samples or samples > 65_535
    for lanes in {1, min(samples, 64), own}:
        for lane in {0, 1, lanes // 2, lanes - 1, lanes}:
            start = lane_start(*map(np.uint32, (lane, lanes, samples, 1)))
            assert start == lane * samples // lanes

"""All that was asked for, one thing after the other."""

import importlib.util
from collections.abc import Callable
from itertools import product
from typing import Any

from fastadam import models
from fastadam.bench.adam import bench_adam, is_for, sets_of_parameters
from fastadam.bench.calls import bench_calls
from fastadam.bench.children import Child
from fastadam.bench.config import PARTS, BenchConfig
from fastadam.bench.machine import Machine, check_peer
from fastadam.bench.rounds import Budget
from fastadam.bench.runs import bench_runs
from fastadam.bench.startup import bench_startup
from fastadam.bench.steps import bench_steps
from fastadam.errors import BenchError


def measure(config: BenchConfig, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """{"environment", "limits", and a list of results for each part asked for}; ready for JSON.

    With ``config.data`` the results of train are whole runs, and are called "runs".

    ``say`` hears what begins. BenchError if something cannot be measured, other kinds of FastAdamError as the
    sides raise them.
    """
    if config.vs == "torch" and importlib.util.find_spec("torch") is None:
        raise BenchError("--vs torch needs PyTorch, which is not installed; python -m pip install torch")
    for part in config.parts:
        for name in config.models(part) if part != "adam" else ():
            models.graph_of(name)  # a net that cannot be is refused before anything is measured
    with Child("fastadam", Machine, config.device, config.threads) as machine:
        device, threads = machine.ask("place")
        if config.vs == "torch":
            Child("PyTorch", check_peer, device, threads, peer=True).close()
        say(f"the limits of this machine, {device} ...")
        environment, limits = machine.ask("measure")
    results: dict[str, Any] = {"environment": environment, "limits": limits.to_dict()}
    vs, budget = config.vs, Budget(config.seconds, config.repeats)

    def each(part: str, run: Callable[[str, int], dict[str, Any]]) -> list[dict[str, Any]]:
        found = []
        for name, batch in product(config.models(part), config.batch_size):
            say(f"{part}: {name}, batch size {batch:,} ...")
            found.append(run(name, batch))
        return found

    def whole(name: str, batch: int) -> dict[str, Any]:
        return bench_runs(name, batch, device, threads, str(config.data), config.epochs, config.repeats, vs)

    for part in filter(config.parts.__contains__, PARTS):
        if part == "adam":
            results[part] = []
            for name in filter(lambda name: is_for(name, device), sets_of_parameters()):
                say(f"adam: {name} ...")
                results[part].append(bench_adam(name, device, threads, limits, budget, vs))
        elif part == "kernels":
            results[part] = each(part, lambda name, size: bench_calls(name, size, device, threads, limits, budget, vs))
        elif part == "startup":
            results[part] = each(part, lambda name, size: bench_startup(name, size, device, threads, budget, vs))
        elif config.data is not None:
            results["runs"] = each(part, whole)
        else:
            results[part] = each(part, lambda name, size: bench_steps(name, size, device, threads, limits, budget, vs))
    return results

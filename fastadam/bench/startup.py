"""From the start of a process to the end of its first training step."""

import tempfile
import time
from typing import Any

from fastadam.bench.children import side_names
from fastadam.bench.fresh import ask_fresh
from fastadam.bench.numbers import both_sides, paired_ratio, spread
from fastadam.bench.rounds import Budget, Rounds

MODULE = "fastadam.bench.first_step"


def bench_startup(name: str, batch: int, device: str, threads: int, budget: Budget, vs: str | None) -> dict[str, Any]:
    """First steps of one model, for JSON: with an empty kernel cache once, then with that cache filled."""
    names = side_names(vs)

    def seconds(key: str) -> float:
        question = {"side": key, "model": name, "batch_size": batch, "device": device, "threads": threads}
        variables = {"NUMBA_CACHE_DIR": cache}
        return ask_fresh(names[key], MODULE, question, peer=key != "fastadam", variables=variables).answer_seconds

    with tempfile.TemporaryDirectory(prefix="fastadam-bench-") as cache:
        cold = seconds("fastadam")
        for key in names:
            seconds(key)  # not counted: reads files that the next start finds in memory
        rounds: dict[str, Rounds] = {key: [] for key in names}
        order, begun, done = list(names), time.perf_counter(), 0
        while budget.more(done, begun):
            for key in order:
                rounds[key].append([seconds(key)])
            order.reverse()
            done += 1
    starts = {key: {"seconds": spread([one for (one,) in of])} for key, of in rounds.items()}
    ratio = paired_ratio(rounds["fastadam"], rounds["torch"]) if vs else None
    ours = {**starts["fastadam"], "cold_seconds": cold}
    return {
        "model": name,
        "batch_size": batch,
        "device": device,
        "threads": threads,
        "rounds": done,
        **both_sides(ours, starts.get("torch"), ratio),
    }

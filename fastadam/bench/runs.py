"""Whole training runs, end to end: from the start of the process to its end, training, validation and test."""

from typing import Any

from fastadam.bench.children import side_names
from fastadam.bench.fresh import Outcome, ask_fresh
from fastadam.bench.numbers import both_sides, paired_ratio, spread

MODULE = "fastadam.bench.whole_run"


def bench_runs(
    name: str, batch: int, device: str, threads: int, data: str, epochs: int | None, repeats: int | None,
    vs: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Runs of one model by its recipe, for JSON; one of each side if ``repeats`` is None."""
    names = side_names(vs)
    settings = {
        "model": name, "batch_size": batch, "device": device, "threads": threads, "data": data, "epochs": epochs,
    }  # fmt: skip
    outcomes: dict[str, list[Outcome]] = {key: [] for key in names}
    order = list(names)
    for _ in range(repeats or 1):
        for key in order:
            question = {"side": key, **{k: v for k, v in settings.items() if v is not None}}
            outcomes[key].append(ask_fresh(names[key], MODULE, question, peer=key != "fastadam"))
        order.reverse()
    seconds = {key: [[outcome.end_seconds] for outcome in of] for key, of in outcomes.items()}
    ratio = paired_ratio(seconds["fastadam"], seconds["torch"]) if vs else None
    results = {key: _result(of) for key, of in outcomes.items()}
    return {
        **settings,
        "epochs": outcomes["fastadam"][0].answer["epochs"],
        "rounds": repeats or 1,
        **both_sides(results["fastadam"], results.get("torch"), ratio),
    }


def _result(outcomes: list[Outcome]) -> dict[str, Any]:
    return {
        "seconds": spread([outcome.end_seconds for outcome in outcomes]),
        "compile_seconds": max(outcome.answer["compile_seconds"] for outcome in outcomes),
        "test_accuracy": outcomes[0].answer["test_accuracy"],
    }

"""What ``fastadam bench`` found, in tables."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

from fastadam.units import human_bytes

from .options import human_seconds
from .tables import show_table

Result = dict[str, Any]

NONE = "-"


def show_results(results: Result) -> None:
    """Print all of them, the machine first."""
    _show_machine(results["environment"], results["limits"])
    for part, show in _SHOWN.items():
        if part in results:
            click.echo()
            show(results[part])


def _show_machine(environment: Result, limits: Result) -> None:
    cpu = environment["cpu"]
    rows = [
        ("cpu", f"{cpu['name']} ({cpu['llvm_name']}), {cpu['vectors']}"),
        *_place_rows(environment),
        ("versions", ", ".join(f"{name} {version}" for name, version in environment["versions"].items())),
        *_limit_rows(limits),
    ]
    click.echo("All figures are those of this machine:")
    for name, value in rows:
        click.echo(f"{name:<15} {value}")


def _place_rows(environment: Result) -> list[tuple[str, str]]:
    """What is computed on: threads of the CPU, or a GPU."""
    gpu, cores = environment.get("gpu"), str(environment["cores"])
    if gpu is None:
        return [("cores, threads", f"{cores}, {environment['threads']} ({environment['threading_layer']})")]
    card = f"{gpu['name']}, compute capability {gpu['capability']}, {gpu['multiprocessors']} multiprocessors"
    return [
        ("cores", cores),
        (environment["device"], f"{card}, {human_bytes(gpu['memory_bytes'])}"),
        ("cuda", f"driver {environment['driver']}, toolkit {environment['toolkit']}, {environment['package']}"),
    ]


def _limit_rows(limits: Result) -> list[tuple[str, str]]:
    """The most that it can do: of one thread and of all where there are such."""
    peak = f"{limits['fma_gflops']:.1f}"
    if "launch_microseconds" in limits:
        peak, nothing = f"{peak} GFLOP/s", ("empty launch", limits["launch_microseconds"])
    else:
        peak = f"{limits['fma_gflops_one_thread']:.1f} GFLOP/s one thread, {peak} all"
        nothing = ("fork and join", limits["fork_join_microseconds"])
    return [
        ("multiply-adds", peak),
        ("memory", f"{limits['copy_gb_per_second']:.1f} GB/s copying, {limits['adam_mix_gb_per_second']:.1f} as Adam"),
        (nothing[0], f"{nothing[1]:.1f} microseconds"),
    ]


def _show_adam(results: Sequence[Result]) -> None:
    click.echo("adam: one update")
    head = ("parameters", "tensors", "ms", "GB/s", "of memory")
    own = (
        (
            f"{r['parameters']} ({r['count']:,})", f"{r['tensors']}", _number(r["fastadam"]["milliseconds"]["median"]),
            f"{r['fastadam']['gb_per_second']:.1f}", _percent(r["fastadam"]["memory_share"]),
        )
        for r in results
    )  # fmt: skip
    _show(head, own, results, lambda torch: _number(torch["milliseconds"]["median"]), "PyTorch ms")


def _show_kernels(results: Sequence[Result]) -> None:
    for i, result in enumerate(results):
        launches = f" in {result['launches']} launches" if result["launches"] > result["calls"] else ""
        click.echo(
            "\n" * (i > 0) + f"kernels: one step of {_title(result)}, {_number(result['milliseconds'])} ms in all: "
            f"{result['calls']} calls{launches}"
        )
        peer = any(row["ratio"] is not None for row in result["rows"])
        head: tuple[str, ...] = ("op", "layers", "shape", "calls", "ms", "GFLOP/s", "GB/s", "of roof", "of step")
        head += ("PyTorch ms", "ratio") * peer
        show_table(head, [_kernel_cells(row, peer) for row in result["rows"]], left=(0, 1, 2))


def _kernel_cells(row: Result, peer: bool) -> tuple[str, ...]:
    layers = row["layers"]
    more = f" +{len(layers) - 1}" if len(layers) > 1 else ""
    cells = (
        row["op"],
        f"{layers[0]}{more}" if layers else NONE,
        " x ".join(map(str, row["shape"])),
        str(row["calls"]),
        _number(row["milliseconds"]),
        f"{row['gflops']:.1f}" if row["gflops"] else NONE,
        f"{row['gb_per_second']:.1f}",
        _percent(row["roof_share"]),
        _percent(row["step_share"]),
    )
    if not peer:
        return cells
    theirs, ratio = row["torch_milliseconds"], row["ratio"]
    return (*cells, NONE if theirs is None else _number(theirs), NONE if ratio is None else f"{ratio:.2f}")


def _show_steps(results: Sequence[Result]) -> None:
    click.echo("train: one step")
    peer = results[0]["torch"] is not None
    head = ("model", "batch", "ms", "images/s", "GFLOP/s", "of peak", "first step", "memory")
    own = []
    for r in results:
        ours = r["fastadam"]
        compiled = ours["compile_seconds"]
        told = f" (compiled before: {human_seconds(compiled)})" if compiled else ""
        own.append(
            (
                r["model"], str(r["batch_size"]), _number(ours["milliseconds"]["median"]),
                f"{ours['images_per_second']:,.0f}", f"{ours['gflops']:.1f}", _percent(ours["fma_share"]),
                human_seconds(ours["first_step_seconds"]) + told, _bytes(ours["peak_memory_bytes"]),
            )
        )  # fmt: skip
    _show(head, own, results, lambda torch: _number(torch["milliseconds"]["median"]), "PyTorch ms")
    if peer:
        click.echo()
        rows = [
            (
                r["model"], str(r["batch_size"]), _bytes(r["torch"]["peak_memory_bytes"]),
                NONE if r["memory_ratio"] is None else f"{r['memory_ratio']:.2f}",
                human_seconds(r["torch"]["first_step_seconds"]),
                "equal" if r["losses_compared"] else "random (dropout)",
            )
            for r in results
        ]  # fmt: skip
        show_table(("model", "batch", "PyTorch memory", "ratio", "PyTorch first step", "first losses"), rows)


def _show_runs(results: Sequence[Result]) -> None:
    click.echo("train: whole runs, from start to end of the process")
    head = ("model", "batch", "epochs", "time", "of it compiling", "test accuracy")
    own = (
        (
            r["model"], str(r["batch_size"]), str(r["epochs"]), human_seconds(r["fastadam"]["seconds"]["median"]),
            human_seconds(r["fastadam"]["compile_seconds"]), _accuracy(r["fastadam"]["test_accuracy"]),
        )
        for r in results
    )  # fmt: skip

    def theirs(torch: Result) -> str:
        return f"{human_seconds(torch['seconds']['median'])}, {_accuracy(torch['test_accuracy'])}"

    _show(head, own, results, theirs, "PyTorch")


def _show_startup(results: Sequence[Result]) -> None:
    click.echo("startup: from the start of a process to the end of its first step")
    head = ("model", "batch", "cold", "cached")
    own = (
        (
            r["model"], str(r["batch_size"]), human_seconds(r["fastadam"]["cold_seconds"]),
            _seconds(r["fastadam"]["seconds"]),
        )
        for r in results
    )  # fmt: skip
    _show(head, own, results, lambda torch: _seconds(torch["seconds"]), "PyTorch")


_SHOWN: dict[str, Callable[[Sequence[Result]], None]] = {
    "adam": _show_adam,
    "kernels": _show_kernels,
    "train": _show_steps,
    "runs": _show_runs,
    "startup": _show_startup,
}


def _show(
    head: tuple[str, ...], own: Iterable[tuple[str, ...]], results: Sequence[Result], theirs: Callable[[Result], str],
    their_head: str,
) -> None:  # fmt: skip
    """A table of our cells, and if there is another side, of its and of the ratio."""
    rows = list(own)
    if results[0]["torch"] is not None:
        head += (their_head, "ratio", "quartiles")
        rows = [(*row, theirs(r["torch"]), *_ratio(r["ratio"])) for row, r in zip(rows, results, strict=True)]
    show_table(head, rows)


def _ratio(ratio: Result) -> tuple[str, str]:
    return f"{ratio['median']:.2f}", f"{ratio['low']:.2f} to {ratio['high']:.2f}"


def _title(result: Result) -> str:
    return f"{result['model']}, batch size {result['batch_size']}"


def _number(value: float) -> str:
    """Three digits or more."""
    return f"{value:,.{max(0, 2 - (value >= 10) - (value >= 100))}f}" if value >= 0.1 else f"{value:.4f}"


def _seconds(spread: Result) -> str:
    return f"{spread['median']:.2f} s"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _accuracy(fraction: float | None) -> str:
    return NONE if fraction is None else f"{100 * fraction:.2f} %"


def _bytes(size: int | None) -> str:
    return NONE if size is None else human_bytes(size)

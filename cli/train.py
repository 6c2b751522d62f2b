"""``fastadam train``."""

import textwrap
from pathlib import Path
from typing import Any

import click

from fastadam.config import TrainConfig, settings
from fastadam.recipes import in_words
from fastadam.units import human_bytes

from .options import (
    COMMAND_LINE,
    DEFAULT,
    ENVIRONMENT,
    FILE,
    PathType,
    config_option,
    human_seconds,
    json_option,
    print_json,
    quiet_option,
    setting_options,
    source_of,
    switch,
    unused_variables,
)
from .report import PlainReporter, make_reporter, rate
from .tables import show_table

SOURCES = ("default", "file", "environment", "command line")


@click.command("train", epilog="\b\nRecipes, for the options left open:\n" + textwrap.indent(in_words(), "  "))
@setting_options(*settings())
@click.option(
    "--out",
    type=PathType(),
    metavar="RUN",
    show_default="runs/<date>-<time>-<model>",
    help="New or empty folder for the run: settings, log, checkpoints, summary.",
)
@click.option(
    "--resume",
    type=PathType(),
    metavar="RUN",
    show_default="none",
    help="Go on with the run in this folder, with its settings; only --epochs may be given, to extend it.",
)
@switch("dry_run", "Show what the run takes in memory, by layer, and stop; exit code 1 if that is too much.")
@json_option
@quiet_option
@config_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    out: Path | None,
    resume: Path | None,
    dry_run: bool,
    json: bool,
    quiet: bool,
    **values: Any,
) -> None:
    """Train a network, one line an epoch, and test it once at the end.

    Without --data it trains on CIFAR-10 if that is in the cache, and on generated images if not. Interrupted
    by Ctrl-C or a signal, it writes a checkpoint first; --resume then gives the same bits as a run that was
    never stopped. Options left open are those of the model's recipe, which stands at the end.

    \b
    Examples:
      fastadam train
      fastadam train --model vgg --ema 0.999
      fastadam train --data cifar-10-binary.tar.gz --epochs 20 --augment flip,crop
      fastadam train --optimizer sgd --momentum 0.9 --steps 500 --out runs/sgd
      fastadam train --optimizer muon --lr 0.02
      fastadam train --config runs/sgd/config.toml --seed 1
      fastadam train --model resnet20 --accumulate 4 --schedule step
      fastadam train --data cifar100 --init runs/sgd
      fastadam train --resume runs/sgd
    """
    with make_reporter(quiet) as reporter:
        for warning in unused_variables(ctx):
            reporter.warning(warning)
        if resume is not None:
            ignored = _refuse_beside_resume(ctx, out, dry_run)
            if ignored:
                reporter.warning(f"{', '.join(ignored)} ignored: --resume goes on with the run's own settings")
            config = TrainConfig(epochs=values["epochs"] if source_of(ctx, "epochs") != ENVIRONMENT else None)
        else:
            _settle_length(ctx, values)
            config = TrainConfig.from_dict(values)
        if dry_run:
            _show_plan(config, json, reporter)
            return
        from fastadam.training import run_training

        summary = run_training(config, out=out, resume=resume, reporter=reporter)
    if json:
        print_json(summary)
    else:
        click.echo(_in_words(summary))


def _settle_length(ctx: click.Context, values: dict[str, Any]) -> None:
    """--epochs and --steps exclude each other; given in different places, the stronger place wins."""
    epochs, steps = source_of(ctx, "epochs"), source_of(ctx, "steps")
    if DEFAULT in (epochs, steps):
        return
    if epochs == steps:
        raise click.UsageError(f"Both epochs and steps are given ({SOURCES[epochs]}); give one of them.", ctx)
    values["epochs" if epochs < steps else "steps"] = None


def _refuse_beside_resume(ctx: click.Context, out: Path | None, dry_run: bool) -> list[str]:
    """Usage error for what --resume does not go with; returns the environment variables it ignores."""
    if out is not None:
        raise click.UsageError("--resume goes on in the run's own folder; leave --out away.", ctx)
    if dry_run:
        raise click.UsageError("--dry-run shows the plan of a new run; leave --resume away.", ctx)
    names = list(settings())
    for name in names:
        if name != "epochs" and source_of(ctx, name) in (FILE, COMMAND_LINE):
            option = name.replace("_", "-")
            raise click.UsageError(f"--resume keeps the run's own settings: --{option} cannot be changed.", ctx)
    return [f"FASTADAM_TRAIN_{name.upper()}" for name in names if source_of(ctx, name) == ENVIRONMENT]


def _show_plan(config: TrainConfig, json: bool, reporter: PlainReporter) -> None:
    """What the run takes, by layer and by purpose; OutOfMemoryError after that if it does not fit."""
    from fastadam.training import describe_plan

    plan = describe_plan(config, reporter)
    if json:
        print_json(plan.to_dict())
    else:
        over = plan.first_over
        rows = [
            (
                row.name,
                row.op,
                " x ".join(map(str, row.shape)),
                f"{row.parameters:,}",
                human_bytes(row.arena_bytes),
                human_bytes(row.activation_bytes),
                human_bytes(row.total_bytes) + (" <- breaks the budget" if row is over else ""),
            )
            for row in plan.layers
        ]
        head = ("layer", "op", "shape", "parameters", "training state", "activations", "all up to here")
        show_table(head, rows, (0, 1, 2))
        step = plan.step
        click.echo(f"\n{plan.parameters:,} parameters, {plan.calls} calls and {plan.flops / 1e9:,.3f} GFLOP a step\n")
        if step.matrices:
            click.echo(textwrap.fill(f"muon updates {', '.join(step.matrices)}; adamw all others", 100) + "\n")
        sums = [*plan.rows, ("total", plan.total_bytes), ("free, the data set being read", plan.free_bytes)]
        width = max(len(name) for name, _ in sums)
        for name, size in sums:
            click.echo(f"{name:<{width}}  {human_bytes(size):>10}")
    plan.check()


def _in_words(summary: dict[str, Any]) -> str:
    accuracy = summary["test_accuracy"]
    told = "-" if accuracy is None else f"{100 * accuracy:.2f} %"
    lines = [
        f"test accuracy  {told}  ({summary['model']} on {summary['dataset']})",
        f"time           {human_seconds(summary['seconds'])}, {rate(summary['samples_per_second'])}",
        f"run            {Path(summary['checkpoint']).parent}",
    ]
    return "\n".join(lines)

"""``fastadam bench``."""

import dataclasses
from typing import Any

import click

from fastadam.bench.config import PARTS, SETTINGS, BenchConfig
from fastadam.setting import Setting

from .options import (
    SettingType,
    config_option,
    json_option,
    print_json,
    quiet_option,
    unused_variables,
    value_option,
)
from .report import make_reporter

LISTS = ("model", "batch_size")
_PART = Setting("choice", "What to measure.", "|".join(PARTS), choices=PARTS)
_DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(BenchConfig)}


def _options(function: Any) -> Any:
    for name in reversed(SETTINGS):
        default = _DEFAULTS[name]
        if name == "batch_size":
            default = ",".join(map(str, default))
        function = value_option(name, SETTINGS[name], default, several=name in LISTS)(function)
    return function


@click.command("bench")
@click.argument("parts", nargs=-1, type=SettingType(_PART), metavar=f"[{'|'.join(PARTS)}]...")
@_options
@json_option
@quiet_option
@config_option
@click.pass_context
def command(ctx: click.Context, /, parts: tuple[str, ...], json: bool, quiet: bool, **values: Any) -> None:
    """Measure how fast this machine trains, beside its limits and PyTorch.

    First what the device can do at the most: multiply-adds a second, bytes a second, the cost of a parallel
    loop or of a launch. Then all parts, or those named:

    \b
      adam     one update of many small tensors, of 1 and 10 million parameters;
               on the CPU also of dicts of arrays
      kernels  every call of one training step: time, rates, share of the roof
      train    whole steps: time, images and operations a second, peak memory
      startup  from the start of a process to the end of its first step

    Nothing is measured beside PyTorch unless --vs torch asks for it. Then both sides do the same work, which
    their losses must show, in processes of their own and in turns; a ratio is the median over rounds, with its
    quartiles. PyTorch runs in its best setting: eager, channels last, fused Adam, ReLU in place; on a GPU with
    TF32 off and the algorithms of cuDNN tried out. All figures are those of this machine at this time: let it
    have nothing else to do.

    With --device cuda the calls of a step are on the GPU's own clock, which does not see the host; updates and
    steps are on the host's, until the GPU is done. This has not met a GPU yet: no figure of one has been taken.

    \b
    Examples:
      fastadam bench
      fastadam bench train --vs torch
      fastadam bench kernels --model cnn --batch-size 32,128 --threads 1
      fastadam bench adam kernels --device cuda
      fastadam bench train --data cifar10 --model cnn --epochs 5 --vs torch
      fastadam bench adam startup --repeats 5 --json
    """
    config = BenchConfig(parts=tuple(part for part in PARTS if part in parts) or PARTS, **values)
    from fastadam.bench.measure import measure

    with make_reporter(quiet) as reporter:
        for warning in unused_variables(ctx):
            reporter.warning(warning)
        results = measure(config, reporter.message)
    if json:
        print_json(results)
    else:
        from .bench_tables import show_results

        show_results(results)

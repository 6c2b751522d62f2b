"""``fastadam eval``."""

from pathlib import Path
from typing import Any

import click

from .options import PathType, config_option, json_option, print_json, setting_options
from .report import make_reporter


@click.command("eval")
@click.argument("checkpoint", type=PathType())
@setting_options("data", required=True)
@setting_options("device", "batch_size", "threads", "limit_test")
@json_option
@config_option
def command(checkpoint: Path, json: bool, **values: Any) -> None:
    """Accuracy and loss of CHECKPOINT on a test set.

    CHECKPOINT is a .safetensors file, or the folder of a run: its best checkpoint then.

    \b
    Examples:
      fastadam eval runs/first --data cifar-10-binary.tar.gz
      fastadam eval runs/first/last.safetensors --data synthetic --json
    """
    from fastadam.checkpoint import locate
    from fastadam.training import evaluate_checkpoint

    with make_reporter(quiet=False) as reporter:
        result = evaluate_checkpoint(locate(checkpoint), values.pop("data"), reporter=reporter, **values)
    if json:
        print_json(result)
        return
    click.echo(f"accuracy  {100 * result['accuracy']:.2f} %")
    click.echo(f"loss      {result['loss']:.4f}")
    click.echo(f"images    {result['images']:,}")

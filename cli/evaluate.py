"""``fastadam eval``."""

from pathlib import Path
from typing import Any

import click

from .options import PathType, config_option, json_option, print_json, quiet_option, setting_options
from .report import make_reporter
from .tables import show_table

MATRIX_CLASSES = 20
"""Of more classes than this, the most frequent mistakes are shown instead of the whole matrix."""

MISTAKES = 10


@click.command("eval")
@click.argument("checkpoint", type=PathType())
@setting_options("data", required=True)
@setting_options("device", "precision", "batch_size", "threads", "limit_test")
@click.option(
    "--plot",
    type=PathType(),
    metavar="FILE.png",
    show_default="none",
    help="Also draw the confusion matrix into this file (.png, .svg or .pdf; needs matplotlib, the extra plot).",
)
@json_option
@quiet_option
@config_option
def command(checkpoint: Path, plot: Path | None, json: bool, quiet: bool, **values: Any) -> None:
    """Accuracy, loss and mistakes of CHECKPOINT on a test set.

    Overall, for each class (precision, recall, F1), and as a confusion matrix.

    CHECKPOINT is a .safetensors file, or the folder of a run: its best checkpoint then.

    \b
    Examples:
      fastadam eval runs/first --data cifar-10-binary.tar.gz
      fastadam eval runs/first --data cifar10 --plot confusion.png
      fastadam eval runs/first/last.safetensors --data synthetic --json
    """
    from fastadam.evaluation import evaluate_checkpoint
    from fastadam.plots import check_plot, plot_confusion

    if plot is not None:
        check_plot(plot)
    with make_reporter(quiet) as reporter:
        data = values.pop("data")
        result = evaluate_checkpoint(checkpoint, data, say=reporter.message, warn=reporter.warning, **values)
        if plot is not None:
            title = f"{result['dataset']}: {100 * result['accuracy']:.2f} % of {result['images']:,} images"
            plot_confusion(plot, result["confusion"], result["classes"], title)
            reporter.message(f"confusion matrix drawn in {plot}")
    if json:
        print_json(result)
    else:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    click.echo(f"accuracy  {100 * result['accuracy']:.2f} %")
    click.echo(f"loss      {result['loss']:.4f}")
    click.echo(f"images    {result['images']:,}\n")
    show_table(
        ("class", "images", "precision", "recall", "F1"),
        [
            (row["class"], f"{row['images']:,}", *(f"{100 * row[key]:.1f} %" for key in ("precision", "recall", "f1")))
            for row in result["per_class"]
        ],
    )
    classes, confusion = result["classes"], result["confusion"]
    if len(classes) <= MATRIX_CLASSES:
        click.echo("\nrows: the class of the images; columns, in the same order: what they were taken for")
        head = ("", *(name[:4] for name in classes))
        show_table(head, [(name, *map(str, row)) for name, row in zip(classes, confusion, strict=True)])
        return
    pairs = [(count, i, j) for i, row in enumerate(confusion) for j, count in enumerate(row) if i != j and count]
    pairs.sort(key=lambda pair: (-pair[0], *pair[1:]))
    click.echo(
        f"\nthe most frequent mistakes, of {sum(count for count, _, _ in pairs):,} (--json has the whole matrix)"
    )
    rows = [(classes[i], classes[j], str(count)) for count, i, j in pairs[:MISTAKES]]
    show_table(("class", "taken for", "images"), rows, left=(0, 1))

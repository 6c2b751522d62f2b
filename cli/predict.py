"""``fastadam predict``."""

from pathlib import Path
from typing import Any

import click

from fastadam.setting import Setting

from .options import PathType, config_option, json_option, print_json, quiet_option, setting_options, value_option
from .report import make_reporter
from .tables import show_table

TOP = Setting("count", "Classes shown of each image, the most probable first.", "K", low=1, high=1000)


@click.command("predict")
@click.argument("checkpoint", type=PathType())
@click.argument("images", metavar="IMAGE...", type=PathType(), nargs=-1, required=True)
@value_option("top", TOP, 3)
@setting_options("device", "threads")
@json_option
@quiet_option
@config_option
def command(checkpoint: Path, images: tuple[Path, ...], json: bool, quiet: bool, **values: Any) -> None:
    """The most probable classes of each IMAGE, as CHECKPOINT sees it.

    IMAGE is a PNG, JPEG or other picture that pillow (the extra images) reads: its short side is resized to
    the network's 32 pixels and the middle is cut out. Or it is a .bin file of CIFAR-10 or CIFAR-100 records:
    each is shown with its number and the label that stands there.

    CHECKPOINT is a .safetensors file, or the folder of a run: its best checkpoint then. If one file cannot be
    read, nothing is printed but the reason.

    \b
    Examples:
      fastadam predict runs/first cat.png dog.jpg
      fastadam predict runs/first --top 1 --json photographs/*.jpg
      fastadam predict runs/first cifar-10-batches-bin/test_batch.bin
    """
    from fastadam.predict import predict_files

    with make_reporter(quiet) as reporter:
        result = predict_files(checkpoint, images, say=reporter.message, **values)
    if json:
        print_json(result)
        return
    found = result["predictions"]
    records = any("record" in row for row in found)
    head = ["image", *(("record", "label") if records else ()), "class", "probability"]
    for place in range(2, len(found[0]["top"]) + 1):
        head += [f"class {place}", "probability"]
    left = [i for i, name in enumerate(head) if name not in ("record", "probability")]
    show_table(head, [_cells(row, records) for row in found], left)


def _cells(row: dict[str, Any], records: bool) -> list[str]:
    known = [str(row.get("record", "")), row.get("label", "")] if records else []
    told = (cell for best in row["top"] for cell in (best["class"], f"{100 * best['probability']:.1f} %"))
    return [row["file"], *known, *told]

"""``fastadam data``: make, check and describe data sets."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastadam.errors import DataError
from fastadam.setting import Setting

from .options import (
    F,
    PathType,
    config_option,
    group_help,
    human_bytes,
    json_option,
    print_json,
    setting_options,
    value_option,
)

if TYPE_CHECKING:
    from fastadam.data import DataReport


def _images(name: str, default: int) -> Callable[[F], F]:
    setting = Setting("count", f"Images of the {name}ing set.", "N", low=1, high=1_000_000)
    return value_option(name, setting, default)


@click.group("data", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Make, check and describe data sets.

    \b
    Examples:
      fastadam data synth images
      fastadam data check cifar-10-binary.tar.gz
    """
    group_help(ctx)


@command.command("synth")
@click.argument("dest", type=PathType())
@_images("train", 10_000)
@_images("test", 2_000)
@setting_options("seed")
@json_option
@config_option
def synth(dest: Path, train: int, test: int, seed: int, json: bool) -> None:
    """Draw the data set `synthetic` into the folder DEST, as CIFAR-10 binary files.

    Ten classes of shapes and textures, each image a function of the seed and its number. With the defaults
    these are the images that `--data synthetic` trains on.

    \b
    Example:
      fastadam data synth images --train 50000 --test 10000
    """
    from fastadam.data import synthetic, write_binary

    files = write_binary(dest, synthetic.generate(train, test, seed))
    if json:
        print_json({"path": str(dest), "files": [path.name for path in files]})
    else:
        click.echo(f"{dest}: {train:,} training and {test:,} test images in {len(files)} files")


@command.command("check")
@click.argument("data", metavar="PATH")
@json_option
def check(data: str, json: bool) -> None:
    """Look for damage in every file and record of PATH; exit 1 if there is any.

    PATH is a folder or tar.gz of binary files, or the name of a data set.

    \b
    Example:
      fastadam data check cifar-10-binary.tar.gz
    """
    from fastadam.data import check as find_problems

    problems = find_problems(data)
    if json:
        print_json({"ok": not problems, "problems": [problem.to_dict() for problem in problems]})
    else:
        for problem in problems:
            click.echo(problem.message)
    if problems:
        raise DataError(f"{data}: {len(problems)} problem{'s' * (len(problems) != 1)} found, listed above")
    if not json:
        click.echo(f"{data} is in order")


@command.command("info")
@click.argument("data", metavar="PATH")
@json_option
def info(data: str, json: bool) -> None:
    """What the data set in PATH is made of: files, images of each class, mean and deviation.

    PATH is a folder or tar.gz of binary files, or the name of a data set.

    \b
    Example:
      fastadam data info synthetic
    """
    from fastadam.data import inspect

    report = inspect(data)
    if json:
        print_json(report.to_dict())
    else:
        click.echo("\n".join(_in_words(report)))


def _in_words(report: "DataReport") -> list[str]:
    origin = {True: ", the published archive", False: ", not the published archive", None: ""}[report.published]
    lines = [
        f"{report.name}  {report.kind} {report.source}, {human_bytes(report.bytes)}{origin}",
        f"training images  {report.train_records:,}",
        f"test images      {report.test_records:,}",
        f"channel mean     {'  '.join(f'{mean:.2f}' for mean in report.mean)}",
        f"deviation        {'  '.join(f'{deviation:.2f}' for deviation in report.deviation)}",
    ]
    if report.files:
        width = max(len(file.name) for file in report.files)
        lines += ["", f"{'file':<{width}}  {'images':>8}  SHA-256"]
        lines += [f"{file.name:<{width}}  {file.records:>8,}  {file.sha256}" for file in report.files]
    width = max(map(len, report.classes))
    lines += ["", f"{'class':<{width}}  {'training':>8}  {'test':>8}"]
    counts = zip(report.classes, report.train_counts, report.test_counts, strict=True)
    return lines + [f"{name:<{width}}  {train:>8,}  {test:>8,}" for name, train, test in counts]

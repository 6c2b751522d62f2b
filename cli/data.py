"""``fastadam data``: get, make, check and describe data sets."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastadam.errors import DataError
from fastadam.setting import Setting
from fastadam.units import human_bytes

from .options import (
    DEFAULT,
    F,
    PathType,
    config_option,
    group_help,
    json_option,
    print_json,
    quiet_option,
    setting_options,
    source_of,
    value_option,
)
from .progress import make_progress

if TYPE_CHECKING:
    from fastadam.data import DataReport, Fetched

DATA_SETS = ("cifar10", "cifar100")
"""What is published and can be fetched."""


class AddressType(click.ParamType):
    """An http or https address."""

    name = "url"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The address as it is; a usage error if nothing can be downloaded from it."""
        if not value.startswith(("http://", "https://")):
            self.fail(f"must be an address that begins with https:// or http://, found {value!r}", param, ctx)
        return value


def _images(name: str, default: int) -> Callable[[F], F]:
    setting = Setting("count", f"Images of the {name}ing set.", "N", low=1, high=1_000_000)
    return value_option(name, setting, default)


@click.group("data", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Get, make, check and describe data sets.

    \b
    Examples:
      fastadam data fetch cifar10
      fastadam data import photographs --out own
      fastadam data check cifar-10-binary.tar.gz
    """
    group_help(ctx)


@command.command("fetch")
@click.argument("name", type=click.Choice(DATA_SETS), default=DATA_SETS[0])
@click.option(
    "--mirror",
    type=AddressType(),
    multiple=True,
    metavar="URL",
    show_default="none",
    help="Ask here first: the archive's address, or that of its folder, ending in /. May be given several times.",
)
@click.option(
    "--from",
    type=PathType(),
    metavar="FILE",
    show_default="none",
    help="Download nothing: check this archive, which you have, and copy it.",
)
@json_option
@quiet_option
@config_option
def fetch(name: str, mirror: tuple[str, ...], json: bool, quiet: bool, **values: Any) -> None:
    """Get the published archive of cifar10 (the default) or cifar100, 170 MB, for --data cifar10 or cifar100.

    It goes to your cache folder, which `fastadam doctor` shows, and is used only if its size and SHA-256 are those
    of the published file. A download that was stopped or broke off is gone on with by the same command. If the
    archive is there and damaged, it is replaced. Addresses are tried in turn: your mirrors, the home page, a known
    mirror; one that fails or stalls gives way to the next.

    \b
    Examples:
      fastadam data fetch
      fastadam data fetch cifar100 --mirror https://example.org/data/
      fastadam data fetch --from Downloads/cifar-10-binary.tar.gz
    """
    file: Path | None = values["from"]  # no name for an argument in Python
    if file is not None and mirror:
        raise click.UsageError("--from downloads nothing; leave --mirror away.")
    from fastadam.data import fetch as fetch_archive

    with make_progress(quiet) as progress:
        result = fetch_archive(name, mirrors=mirror, file=file, progress=progress)
    if json:
        print_json(result.to_dict())
    else:
        click.echo(_told(result))


def _told(result: "Fetched") -> str:
    if result.sha256 is None:
        return f"{result.path} holds the data already: --data {result.name}"
    origin = "was there already" if result.source == "cache" else f"from {result.source}"
    rate = f", {human_bytes(round(result.received / result.seconds))}/s" if result.received and result.seconds else ""
    return f"{result.path}: the published file ({origin}{rate}): --data {result.name}"


@command.command("import")
@click.argument("folder", type=PathType())
@click.option("--out", type=PathType(), metavar="DIR", required=True, help="New or empty folder for the data set.")
@value_option(
    "test_share",
    Setting(
        "number",
        "Share of the images for the test set, in proportion from each class; not where FOLDER has a test folder.",
        "SHARE",
        low=0.0,
        low_open=True,
        high=0.9,
    ),
    0.2,
)
@setting_options("seed")
@json_option
@quiet_option
@config_option
@click.pass_context
def import_images(
    ctx: click.Context, folder: Path, out: Path, test_share: float, seed: int, json: bool, quiet: bool
) -> None:
    """Make a data set of your own images: PNG, JPEG and whatever else pillow reads (extra `images`).

    FOLDER holds a folder of images for each class, or train and test with such folders in each. There may be 2 to
    256 classes, called as their folders are. An image is turned as its camera says, transparent parts become white,
    its short side is resized to 32 pixels and the middle of the long one is kept. The files are CIFAR-10's, with
    other names of classes, and the model trained on them keeps those.

    \b
    Examples:
      fastadam data import photographs --out own
      fastadam train --data own
    """
    from fastadam.data import import_folder

    share = None if source_of(ctx, "test_share") == DEFAULT else test_share
    with make_progress(quiet) as progress:
        made = import_folder(folder, out, test_share=share, seed=seed, progress=progress)
    if json:
        print_json(made.to_dict())
    else:
        click.echo(f"{out}: {made.train:,} training and {made.test:,} test images of {len(made.classes)} classes")


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
@config_option
def check(data: str, json: bool) -> None:
    """Look for damage in every file and record of PATH; exit 1 if there is any.

    PATH is a folder or tar.gz of binary files, or the name of a data set. Each problem is told with the file and
    the command that cures it.

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
@config_option
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

"""Tables on standard output: drawn on a terminal, aligned plain text anywhere else."""

import os
import sys
from collections.abc import Iterable, Sequence

import click


def show_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int] = (0,), indent: str = ""
) -> None:
    """Print rows of cells under a head; the columns ``left`` are aligned left, the others right."""
    rows = list(rows)
    if sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        _draw(head, rows, left)
        return
    for line in aligned(head, rows, left):
        click.echo(indent + line)


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """The lines of a table in plain text, two spaces between columns."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(
            c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]


def _draw(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    for i, name in enumerate(head):
        table.add_column(Text(name), justify="left" if i in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)

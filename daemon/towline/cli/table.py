"""Tables on stdout: drawn on a terminal, plain columns otherwise, so that other programs can read them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text


def show(headers: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> None:
    """Print a table; the columns at the places ``numbers`` are aligned to the right."""
    if sys.stdout.isatty():
        Console().print(drawn(headers, rows, numbers))
        return
    for line in plain(headers, rows, numbers):
        click.echo(line)


def drawn(headers: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> Table:
    """The table for a terminal."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place, header in enumerate(headers):
        table.add_column(header, justify="right" if place in numbers else "left")
    for row in rows:
        table.add_row(*map(Text, row))  # not as markup: names may hold square brackets
    return table


def plain(headers: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> list[str]:
    """The lines of a table in plain text, columns two spaces apart."""
    cells = [list(map(str.upper, headers)), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place in numbers else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]

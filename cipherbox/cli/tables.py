"""Tables that fit the terminal they are shown on.

A script gets all columns, unformatted.  On a terminal that is too narrow the least important
columns are omitted, with a note; an id or a name is never truncated.  A table that still does not
fit is shown as one block of lines for each row.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

_GAP = 2
_LEAST = 16  # a folded column narrower than this is hard to read
# The columns of HQ's rows that are omitted first: a queue's limits and counts, a client's dates.
LEAST_IMPORTANT = (
    "max length",
    "ttl s",
    "bytes",
    "consumers",
    "number",
    "software",
    "added",
    "unacknowledged",
    "remote",
    "asked",
    "connected at",
    "readers",
    "oldest",
    "expires",
    "reason",
    "role",
    "serial",
    "owner",
)


def show(
    heads: Sequence[str], rows: Sequence[Sequence[object]], drop: Sequence[str] = LEAST_IMPORTANT
) -> None:
    """Print the table; ``drop``: headings of the columns to omit if they do not fit, the least
    important first.
    """
    if not on_terminal():
        _plain(heads, rows, bold=False)
        return
    import shutil

    width = max(20, shutil.get_terminal_size().columns)
    heads, rows, left_out = fitting(heads, rows, drop, width)
    if needed(heads, rows) <= width:
        _plain(heads, rows, bold=True)
    elif (folded := foldable(heads, rows, width)) is not None:
        _folded(heads, rows, folded, width)
    else:
        _blocks(heads, rows)
    if left_out:
        more = f"(a wider terminal and --json also show: {', '.join(left_out)})"
        click.secho(click.wrap_text(more, width), err=True, dim=True)


def on_terminal() -> bool:
    """Return whether standard output is a terminal."""
    return sys.stdout.isatty()


def fitting(
    heads: Sequence[str], rows: Sequence[Sequence[object]], drop: Sequence[str], width: int
) -> tuple[Sequence[str], Sequence[Sequence[object]], list[str]]:
    """Return the table without the columns that do not fit, and their headings; empty columns are
    omitted first.
    """
    left_out: list[str] = []
    empty = [head for i, head in enumerate(heads) if i and all(str(row[i]) == "-" for row in rows)]
    for head in (*empty, *drop):
        if needed(heads, rows) <= width:
            break
        if head in heads[1:]:
            at = list(heads).index(head)
            heads = [h for i, h in enumerate(heads) if i != at]
            rows = [[cell for i, cell in enumerate(row) if i != at] for row in rows]
            left_out.append(head)
    return heads, rows, left_out


def needed(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> int:
    """Return the width of the unfolded table in terminal cells."""
    return sum(_widths(heads, rows)) + _GAP * (len(heads) - 1)


def foldable(heads: Sequence[str], rows: Sequence[Sequence[object]], width: int) -> int | None:
    """Return the one column to fold so that the rest fits: the widest with sentences or paths."""
    widths = _widths(heads, rows)
    texts = [i for i in range(len(heads)) if any(set(str(row[i])) & set(" /") for row in rows)]
    for at in sorted(texts, key=lambda i: -widths[i]):
        if width - (needed(heads, rows) - widths[at]) >= max(_LEAST, len(heads[at])):
            return at
    return None


def _widths(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[int]:
    return [max(cells(head), *(cells(row[i]) for row in rows)) for i, head in enumerate(heads)]


def cells(value: object) -> int:
    """Return the width of a text on a terminal; wide characters take two cells."""
    text = str(value)
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _padded(value: object, width: int) -> str:
    text = str(value)
    space = " " * (width - cells(text))
    return f"{space}{text}" if isinstance(value, int) else f"{text}{space}"


def _plain(heads: Sequence[str], rows: Sequence[Sequence[object]], *, bold: bool) -> None:
    widths = _widths(heads, rows)
    right = [isinstance(rows[0][i], int) for i in range(len(heads))]
    tops = [f"{h:>{w}}" if r else f"{h:<{w}}" for h, w, r in zip(heads, widths, right, strict=True)]
    top = (" " * _GAP).join(tops).rstrip()
    click.echo(click.style(top, bold=True) if bold else top)
    for row in rows:
        click.echo(
            (" " * _GAP).join(_padded(c, w) for c, w in zip(row, widths, strict=True)).rstrip()
        )


def _folded(heads: Sequence[str], rows: Sequence[Sequence[object]], at: int, width: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(
        box=None,
        header_style="bold",
        pad_edge=False,
        padding=(0, _GAP, 0, 0),
        collapse_padding=True,
    )
    widths = _widths(heads, rows)
    for index, head in enumerate(heads):
        if index == at:
            grid.add_column(head, overflow="fold")
        else:
            justify = "right" if isinstance(rows[0][index], int) else "left"
            grid.add_column(head, justify=justify, no_wrap=True, min_width=widths[index])  # type: ignore[arg-type]
    for row in rows:
        grid.add_row(*(Text(str(cell)) for cell in row))
    Console(width=width).print(grid)


def _blocks(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    longest = max(cells(head) for head in heads)
    for number, row in enumerate(rows):
        if number:
            click.echo()
        for head, cell in zip(heads, row, strict=True):
            click.echo(f"{_padded(head, longest)}  {cell}")

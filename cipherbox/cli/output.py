"""Output: results, warnings, errors, tables and records.

Results go to standard output, so that a script can read them; next steps, warnings and errors go to
standard error.  Text from another party is passed through `safe` before it gets here: a client id
that is really an escape sequence must not move the cursor.  Colour is used on a terminal only, and
never carries meaning alone.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click
import orjson

from cipherbox.cli.commands import COMMANDS
from cipherbox.cli.wrapping import pieces_of, wrap
from cipherbox.portable import escape_text as safe
from cipherbox.readable import local_time, size_text

if TYPE_CHECKING:
    from cipherbox.client.events import Event

CHECK = "✅"
_USUAL = 80  # columns of a terminal that does not report its width
_WORDS = "|".join(
    ["--home", "--password-file", *(name for section in COMMANDS.values() for name in section)]
)
# Another user types the installed command, and may not be able to read this file.  What is already
# as it has to be typed stays.
_COMMAND = re.compile(rf"(?<!sudo -u cipherbox )(?<!-m )\bcipherbox (?=(?:{_WORDS})\b)")

__all__ = [
    "as_called",
    "explain",
    "fail",
    "keep",
    "next_step",
    "print_event",
    "print_json",
    "print_keys",
    "print_raw",
    "print_trouble",
    "record",
    "rows_table",
    "safe",
    "say",
    "size_text",
    "table",
    "time_text",
    "warn",
]


def say(text: str = "") -> None:
    """Print one result to standard output."""
    click.echo(text)  # click flushes, so that a reading program sees every line immediately


def explain(head: str, text: str) -> None:
    """Print a result in prose to standard output, after ``head``; on a terminal its lines break
    between words.
    """
    _print_wrapped(head, text, err=False)


def warn(text: str) -> None:
    """Print something that the user should see but a script need not read."""
    _print_wrapped("", text, "yellow")


def next_step(*lines: str) -> None:
    """Print what to do next."""
    _print_wrapped("Next: ", "\n".join(lines), "cyan")


def fail(text: str, advice: str = "") -> None:
    """Print an error and its remedy."""
    _print_wrapped("Error: ", text, "red")
    if advice:
        _print_wrapped("       ", advice)


def keep(text: str, advice: str = "") -> None:
    """Print that a message is not sent yet, but stored in the outbox."""
    _print_wrapped("Kept: ", text, "yellow")
    if advice:
        _print_wrapped("      ", advice)


def _print_wrapped(head: str, text: str, colour: str | None = None, *, err: bool = True) -> None:
    """Print the first line after ``head`` and the others below it, wrapped to the terminal's
    width.
    """
    width = width_of(sys.stderr if err else sys.stdout)
    for number, line in enumerate(text.split("\n")):
        indent = " " * len(head)
        pieces = map(as_called, pieces_of(line))
        click.secho(wrap(pieces, width, indent if number else head, indent), err=err, fg=colour)


def width_of(stream: TextIO) -> int:
    """Return the columns of a terminal; unlimited for any other stream."""
    if not stream.isatty():
        return sys.maxsize
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or _USUAL
    except (OSError, ValueError):
        return _USUAL


def as_called(text: str) -> str:
    """Return ``text`` with each command as the user has to type it: `cipherbox send`, or `python3
    cipherbox.pyz send`.
    """
    return _COMMAND.sub(lambda _: f"{_called()} ", text)


def _called() -> str:
    program = Path(sys.argv[0])
    if program.suffix == ".pyz":
        return "cipherbox" if shutil.which("cipherbox") else f"python3 {shlex.quote(sys.argv[0])}"
    return "cipherbox" if program.stem == "cipherbox" else "python3 -m cipherbox"


def print_json(value: object) -> None:
    """Print a value as one line of JSON, for scripts."""
    click.echo(orjson.dumps(value, default=_plain).decode())


def print_event(event: Event) -> None:
    """Print an event of the client's work, with a check mark when HQ has stored it durably."""
    if not event.mark or not _can_print(CHECK):
        click.echo(event, err=event.role == "LINE")
        return
    step = f"[{event.role}] {event.text}"
    click.echo(f"{event.removesuffix(step)}{CHECK} {step}")


def print_trouble(event: Event) -> None:
    """Print only events that matter while other output has the screen: the connection to HQ, keys,
    refused callers.
    """
    if event.role in ("LINE", "KEYS") or event.kind in ("key", "stranger"):
        warn(event)


def print_keys(event: Event) -> None:
    """Print only events about keys and the clock, for commands that report the rest later."""
    if event.role == "KEYS" or event.kind in ("key", "clock"):
        warn(event)


def print_raw(line: bytes) -> None:
    """Write bytes unchanged to standard output."""
    sys.stdout.flush()
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    empty: str = "none",
    drop: Sequence[str] | None = None,
) -> None:
    """Print a table; numbers are right-aligned.  ``drop``: columns omitted on a narrow terminal,
    least important first.
    """
    from cipherbox.cli import tables

    texts = [[cell if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    if not texts:
        explain("", empty)
        return
    tables.show(heads, texts, tables.LEAST_IMPORTANT if drop is None else drop)


def rows_table(rows: Sequence[Mapping[str, object]], *, empty: str = "none") -> None:
    """Print HQ's rows as a table: the keys of the first row are the headings, times and lists are
    formatted, all text is made safe.
    """
    heads = list(rows[0]) if rows else []
    cells = [[_cell(head, row.get(head)) for head in heads] for row in rows]
    table([head.removesuffix("_at").replace("_", " ") for head in heads], cells, empty=empty)


def record(row: Mapping[str, object]) -> None:
    """Print one record, a line for each property."""
    width = max((len(head) for head in row), default=0)
    for head, value in row.items():
        say(f"{head.removesuffix('_at').replace('_', ' '):<{width}}  {_cell(head, value)}")


def _cell(head: str, value: object) -> object:
    if head.endswith("_at") and isinstance(value, int):
        return time_text(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return value
    if isinstance(value, list | tuple):
        return ", ".join(safe(str(v)) for v in value) or "-"
    return "-" if value in (None, "") else safe(str(value))


def time_text(ms: int) -> str:
    """Return a time in ms since 1970 as local time to the second; a dash for none."""
    if not ms:
        return "-"
    then = local_time(ms)
    return f"{then:%Y-%m-%d %H:%M:%S}" if then else f"{ms} ms"


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _plain(value: object) -> object:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    return str(value)

"""How things look on the screen.

Results go to standard output, so that a script can read them; what to do next, warnings and errors
go to standard error.  Text that another party chose is passed through `safe` before it gets here: a
client id that is really an escape sequence must not move the cursor.  Colour is used on a terminal
only, and never carries meaning alone.
"""

from __future__ import annotations

import datetime
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

if TYPE_CHECKING:
    from cipherbox.client.events import Event

CHECK = "✅"
_USUAL = 80  # columns of a terminal that does not say
_WORDS = "|".join(
    ["--home", "--password-file", *(name for section in COMMANDS.values() for name in section)]
)
# Another user types the installed command, and may not be able to read this file.
_COMMAND = re.compile(rf"(?<!sudo -u cipherbox )\bcipherbox (?=(?:{_WORDS})\b)")

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
    """One result, to standard output."""
    click.echo(text)  # click flushes, so that a program that reads us sees every line at once


def explain(head: str, text: str) -> None:
    """A result in words, to standard output: on a terminal its lines break between words, and
    stand behind ``head``.
    """
    _tell(head, text, err=False)


def warn(text: str) -> None:
    """Something the user should see but a script need not read."""
    _tell("", text, "yellow")


def next_step(*lines: str) -> None:
    """What a newcomer does now."""
    _tell("Next: ", "\n".join(lines), "cyan")


def fail(text: str, advice: str = "") -> None:
    """An error in plain words, and what to do about it."""
    _tell("Error: ", text, "red")
    if advice:
        _tell("       ", advice)


def keep(text: str, advice: str = "") -> None:
    """Something is not done yet and safe all the same: it is in the outbox."""
    _tell("Kept: ", text, "yellow")
    if advice:
        _tell("      ", advice)


def _tell(head: str, text: str, colour: str | None = None, *, err: bool = True) -> None:
    """Lines of which the first stands behind ``head`` and the others under it; on a terminal
    they fit its width.
    """
    width = width_of(sys.stderr if err else sys.stdout)
    for number, line in enumerate(text.split("\n")):
        indent = " " * len(head)
        pieces = map(as_called, pieces_of(line))
        click.secho(wrap(pieces, width, indent if number else head, indent), err=err, fg=colour)


def width_of(stream: TextIO) -> int:
    """The columns of a terminal; what is no terminal has no width."""
    if not stream.isatty():
        return sys.maxsize
    said = os.environ.get("COLUMNS", "")
    if said.isdigit() and int(said):
        return int(said)
    try:
        return os.get_terminal_size(stream.fileno()).columns or _USUAL
    except (OSError, ValueError):
        return _USUAL


def as_called(text: str) -> str:
    """``text`` with each command in it as the user has to type it: `cipherbox send`, `python3
    cipherbox.pyz send`.
    """
    return _COMMAND.sub(lambda _: f"{_called()} ", text)


def _called() -> str:
    program = Path(sys.argv[0])
    if program.suffix == ".pyz":
        return "cipherbox" if shutil.which("cipherbox") else f"python3 {shlex.quote(sys.argv[0])}"
    return "cipherbox" if program.stem == "cipherbox" else "python3 -m cipherbox"


def print_json(value: object) -> None:
    """A value as one line of JSON, for scripts."""
    click.echo(orjson.dumps(value, default=_plain).decode())


def print_event(event: Event) -> None:
    """A line that the client says while it works; a check mark when HQ has it durably."""
    if not event.mark or not _can_print(CHECK):
        click.echo(event, err=event.role == "LINE")
        return
    step = f"[{event.role}] {event.text}"
    click.echo(f"{event.removesuffix(step)}{CHECK} {step}")


def print_trouble(event: Event) -> None:
    """Only what a person must know while something else has the screen: the line to HQ, keys,
    who was turned away.
    """
    if event.role in ("LINE", "KEYS") or event.kind in ("key", "stranger"):
        warn(event)


def print_keys(event: Event) -> None:
    """Only what was learned of keys: for commands that say the rest themselves at their end."""
    if event.role == "KEYS" or event.kind == "key":
        warn(event)


def print_raw(line: bytes) -> None:
    """Bytes as they are, to standard output."""
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
    """A table; numbers stand to the right.  ``drop``: columns that go on a narrow terminal,
    least important first.
    """
    from cipherbox.cli import tables

    texts = [[cell if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    if not texts:
        explain("", empty)
        return
    tables.show(heads, texts, tables.LEAST_IMPORTANT if drop is None else drop)


def rows_table(rows: Sequence[Mapping[str, object]], *, empty: str = "none") -> None:
    """HQ's rows as a table: the keys of the first row are the heads, times and lists in words,
    all text made safe.
    """
    heads = list(rows[0]) if rows else []
    cells = [[_cell(head, row.get(head)) for head in heads] for row in rows]
    table([head.removesuffix("_at").replace("_", " ") for head in heads], cells, empty=empty)


def record(row: Mapping[str, object]) -> None:
    """One thing, a line for each of its properties."""
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
    """A time in ms since 1970 as local time to the second; a dash for none."""
    if not ms:
        return "-"
    return datetime.datetime.fromtimestamp(ms / 1000).strftime("%Y-%m-%d %H:%M:%S")


def size_text(size: int) -> str:
    """Bytes in the unit a person would use."""
    number = float(size)
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


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

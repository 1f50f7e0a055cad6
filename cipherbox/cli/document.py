"""The parts of the manual that are generated from code: commands, settings, exit codes, metrics.

`make generate` replaces what is between `<!-- made: begin -->` and `<!-- made: end -->`; the
rest of each page is written by hand.  A test compares, so no option or setting is undocumented.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import attrs
import click

from cipherbox import limits
from cipherbox.cli.commands import COMMANDS
from cipherbox.cli.exits import MEANING
from cipherbox.cli.main import cli, every_command
from cipherbox.config import settings as config
from cipherbox.config.toml_file import FIXED_LIMITS
from cipherbox.ops.metrics import METRICS

BEGIN, END = "<!-- made: begin -->", "<!-- made: end -->"
MANUAL = Path(__file__).resolve().parent.parent / "manual"


def commands() -> str:
    """Return every command with its arguments, options and help."""
    parts = ["Before any command:\n", *_options(cli, click.Context(cli, info_name="cipherbox"))]
    for section in COMMANDS:
        parts.append(f"\n## {section}\n")
        for command, context in every_command(section):
            parts += _command(command, context)
    return "\n".join(parts)


def settings() -> str:
    """Return every setting of both files with its type, default and meaning."""
    parts = [f"## HQ: `{config.SERVER_FILE}`\n"]
    for table, kind in config.SERVER_TABLES.items():
        if kind is not limits.Limits:
            parts += _settings(table, kind)
    parts.append(
        "\n### `[limits]`\n\nEach limit has a default and the reason for it; change one only for a "
        "known need.\n"
    )
    reasons = _reasons()
    rows = [
        (f"`{a.name}`", f"{a.default:_}", reasons[a.name])
        for a in attrs.fields(limits.Limits)
        if a.name not in FIXED_LIMITS
    ]
    parts += _table(("key", "default", "why"), rows)
    parts.append(f"\n## A client: `{config.CLIENT_FILE}`\n")
    for table, kind in config.CLIENT_TABLES.items():
        parts += _settings(table, kind)
    return "\n".join(parts)


def _reasons() -> dict[str, str]:
    """Return the comment of each limit: beside its line, or above it."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(limits.Limits).splitlines():
        comment = re.match(r"    # (.+)", line)
        field = re.match(r"    (\w+): \w+ = [^#\n]+(?:# (.+))?", line)
        if field:
            found[field[1]] = field[2] or " ".join(above)
        above = [*above, comment[1]] if comment else []
    return found


def exit_codes() -> str:
    """Return the table of exit codes."""
    return "\n".join(
        _table(("code", "meaning"), [(str(int(code)), words) for code, words in MEANING.items()])
    )


def metrics() -> str:
    """Return the table of metrics."""
    rows = [
        (f"`{name}`", metric.kind, ", ".join(f"`{label}`" for label in metric.labels), metric.help)
        for name, metric in METRICS.items()
    ]
    return "\n".join(_table(("metric", "kind", "labels", "meaning"), rows))


def costs() -> str:
    """Return what each kind of frame costs a client's rate limit."""
    from cipherbox.server.connection.budget import COSTS
    from cipherbox.wire.fields import TABLE

    names = {spec.cls: spec.name for spec in TABLE.values()}
    rows = [
        (f"`{names[kind]}`", cost.budget, str(cost.points), cost.why)
        for kind, cost in COSTS.items()
    ]
    return "\n".join(_table(("frame", "budget", "points", "why"), rows))


PAGES: dict[str, Callable[[], str]] = {
    "commands": commands,
    "configuration": settings,
    "exit-codes": exit_codes,
    "metrics": metrics,
    "broker": costs,
}


def renewed(page: str, made: str) -> str:
    """Return ``page`` with ``made`` between its markers."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{made.strip()}\n\n{END}{tail}"


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    group = isinstance(command, click.Group)
    words = [] if group else [w for w in command.collect_usage_pieces(context) if w != "[OPTIONS]"]
    yield f"### `{' '.join([str(context.info_name), *words])}`\n\n{_help(command)}\n"
    if not group:
        yield from _options(command, context)


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    rows = []
    for option in command.get_params(context):
        if isinstance(option, click.Option) and "--help" not in option.opts:
            found = option.get_help_record(context)
            if found is not None:  # None: a hidden one
                rows.append((f"`{found[0]}`", found[1]))
    if rows:
        yield from _table(("option", "meaning"), rows)
        yield ""


def _help(command: click.Command) -> str:
    text = inspect.cleandoc(command.help or "")
    before, examples, after = text.partition("\b\n")
    if not examples:
        return text
    block, gap, rest = after.partition("\n\n")
    return f"{before.rstrip()}\n\n```\n{block}\n```{gap}{rest}".rstrip()


def _settings(table: str, kind: Any) -> Iterator[str]:
    words = {
        bool: "true or false",
        int: "whole number",
        float: "number",
        str: "text",
        tuple[str, ...]: "list of text",
    }
    hints = get_type_hints(kind)
    rows = []
    for a in attrs.fields(kind):
        choices = a.metadata["choices"]
        allowed = ", ".join(choices) if choices else words.get(hints[a.name], "path")
        default = str(a.default).lower() if isinstance(a.default, bool) else str(a.default or "")
        rows.append((f"`{a.name}`", allowed, f"`{default}`" if default else "", a.metadata["doc"]))
    yield f"### `[{table}]`\n"
    yield from _table(("key", "type", "default", "meaning"), rows)
    yield ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        cells = " | ".join(cell.replace("|", "\\|") for cell in row)
        yield f"| {cells} |"


def main() -> None:
    """Regenerate the pages."""
    for name, make in PAGES.items():
        file = MANUAL / f"{name}.md"
        file.write_text(renewed(file.read_text("utf-8"), make()), encoding="utf-8")


if __name__ == "__main__":
    main()

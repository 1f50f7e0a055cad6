"""Layout of a manual page on a terminal: text and tables fit its width, code is unchanged, so that
it can be copied.
"""

from __future__ import annotations

import io
import re
import shutil
from typing import ClassVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement, TableElement
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

_THEME = Theme(
    {
        "markdown.code": "bold",
        "markdown.table.border": "none",
        "markdown.table.header": "underline",
    }
)


def laid_out(page: str, widest: int = 120) -> str:
    """Return the Markdown page as text with colours, at most ``widest`` columns wide."""
    console = Console(
        file=io.StringIO(),
        force_terminal=True,
        legacy_windows=False,
        highlight=False,
        width=min(shutil.get_terminal_size().columns, widest),
        theme=_THEME,
    )
    with console.capture() as capture:
        console.print(_Page(page, hyperlinks=False), crop=False)
    lines = "\n".join(line.rstrip() for line in capture.get().splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines) + "\n"


class _Code(CodeBlock):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip()
        yield Text(
            "\n".join(f"    {line}" for line in code.splitlines()), no_wrap=True, overflow="ignore"
        )


class _Title(Heading):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.tag != "h1":
            yield Text("")
        yield Text(str(self.text).upper() if self.tag == "h1" else str(self.text), style="bold")


class _Rows(TableElement):
    """Shows every cell in full, and the first column, which is what readers look up, on one line
    where it fits.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for table in super().__rich_console__(console, options):
            assert isinstance(table, Table)
            for column in table.columns:
                column.overflow = "fold"
            longest = max((len(str(cell)) for cell in table.columns[0].cells), default=0)
            table.columns[0].no_wrap = longest <= options.max_width // 2
            yield table


class _Page(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "fence": _Code,
        "code_block": _Code,
        "heading_open": _Title,
        "table_open": _Rows,
    }

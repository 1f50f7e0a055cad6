"""Word wrapping for a terminal.  A word is never broken: neither a path nor an id nor an option.

A command to type counts as one word, spaces included, so that it can be copied: a line break by the
program would be copied with it, one by the terminal is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import click
from click.formatting import iter_rows, measure_table

from cipherbox.cli.tables import cells

_COMMAND = re.compile(r"^[(`]?(cipherbox|sudo|systemctl|journalctl)$")
# These words in the middle of a sentence end a command.
_PROSE = frozenset(
    [
        "and",
        "or",
        "on",
        "in",
        "to",
        "then",
        "shows",
        "with",
        "for",
        "until",
        "here",
        "has",
        "says",
        "is",
        "are",
        "was",
    ]
)
_ENDS = (",", ";", ":", ".", ")", "?", "!", "`")


def wrap(pieces: Iterable[str], width: int, first: str = "", rest: str = "") -> str:
    """Return the pieces in lines of at most ``width`` cells, unless a piece is longer; ``first``,
    ``rest``: indents.
    """
    lines, line, empty = [], first, True
    for piece in pieces:
        if not empty and cells(line) + cells(piece) > width:
            lines.append(line.rstrip())
            line = rest + piece.lstrip(" ")
        else:
            line += piece
        empty = False
    return "\n".join([*lines, line.rstrip()])


def pieces_of(text: str) -> Iterator[str]:
    """Yield the unbreakable pieces, each with the spaces before it: words, and whole commands."""
    words = re.findall(r" *[^ ]+", text)
    while words:
        piece = words.pop(0)
        if _COMMAND.search(piece.strip()):
            while words and not _ended(piece, words[0].strip()):
                piece += words.pop(0)
        yield piece


def _ended(command: str, word: str) -> bool:
    if command.count("'") % 2 or command.count('"') % 2:  # inside a quoted argument
        return False
    ended = command.endswith(_ENDS) and not command.endswith("...")
    return ended or word in _PROSE or word.startswith("(")


class HelpFormatter(click.HelpFormatter):
    """Click's layout of help, without breaking words."""

    def write_text(self, text: str) -> None:
        indent = " " * self.current_indent
        self.write(_paragraphs(text, self.width, indent))
        self.write("\n")

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2
    ) -> None:
        rows = list(rows)
        column = min(measure_table(rows)[0], col_max) + col_spacing
        indent = " " * self.current_indent
        for head, text in iter_rows(rows, 2):
            self.write(f"{indent}{head}".rstrip())
            if text:
                fits = cells(head) <= column - col_spacing
                self.write(" " * (column - cells(head)) if fits else f"\n{indent}{' ' * column}")
                rest = f"{indent}{' ' * column}"
                self.write(_paragraphs(text, max(self.width, len(rest) + 10), rest).lstrip(" "))
            self.write("\n")


def _paragraphs(text: str, width: int, indent: str) -> str:
    """Return a help text as click lays it out: paragraphs are separated by empty lines, and one
    that begins with \\b is unchanged.
    """
    found = []
    for paragraph in re.split(r"\n[ \t]*\n", text.strip("\n")):
        lines = paragraph.splitlines()
        if lines and lines[0].strip() == "\b":
            found.append("\n".join(f"{indent}{line}" for line in lines[1:]))
        else:
            found.append(
                wrap(pieces_of(" ".join(line.strip() for line in lines)), width, indent, indent)
            )
    return "\n\n".join(found)


class Context(click.Context):
    """The context of every command."""

    formatter_class = HelpFormatter

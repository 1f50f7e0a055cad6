"""The man page, made from the commands: `cipherbox manual --man`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

import cipherbox
from cipherbox.cli.commands import COMMANDS
from cipherbox.cli.exits import MEANING
from cipherbox.cli.main import cli, every_command


def man_page() -> str:
    """Return cipherbox(1) in roff."""
    lines = [f'.TH CIPHERBOX 1 "" "CipherBox {cipherbox.__version__}" "User Commands"', ".SH NAME"]
    lines += [r"cipherbox \- a blind message broker in one file", ".SH SYNOPSIS"]
    lines += [r"\fBcipherbox\fR [\fIOPTIONS\fR] \fICOMMAND\fR [\fIARGUMENTS\fR]", ".SH DESCRIPTION"]
    lines += [
        "Laboratories seal data and reports on their own machines, a central server (HQ) that "
        "cannot read them stores,",
        "routes and pushes them, and research centers open them and sign for them.",
        r"\fBcipherbox manual\fR lists the pages of the manual; \fBcipherbox manual "
        r"quickstart\fR is the first.",
        ".SH OPTIONS",
        *_options(cli, click.Context(cli, info_name="cipherbox")),
    ]
    for section in COMMANDS:
        lines.append(f".SH {_text(section.upper())}")
        for command, context in every_command(section):
            if not isinstance(command, click.Group):
                lines += _command(command, context)
    lines.append(".SH EXIT STATUS")
    for code, words in MEANING.items():
        lines += [".TP", str(int(code)), _text(words)]
    lines += [
        ".SH FILES",
        ".TP",
        r"\fI~/.cipherbox\fR",
        "a client's settings, certificate and keys",
    ]
    lines += [
        ".TP",
        r"\fI/var/lib/cipherbox\fR",
        "HQ's settings, certificates and data",
        ".SH ENVIRONMENT",
    ]
    lines += [".TP", "CIPHERBOX_HOME", "the client's home", ".TP", "CIPHERBOX_CACHE"]
    lines += [r"where the one file unpacks itself at its first start", ""]
    return "\n".join(lines)


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    name = _text(str(context.info_name))
    yield f".SS {name}"
    yield rf"\fB{name}\fR {_text(' '.join(command.collect_usage_pieces(context)))}"
    yield from _help(command.help or "")
    yield from _options(command, context)


def _help(text: str) -> Iterator[str]:
    """Yield a help text in roff; click's `\\b` marks a paragraph whose lines stay as they are."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        yield ".PP"
        fixed = paragraph.startswith("\b")
        if fixed:
            yield ".nf"
        yield from (_text(line) for line in paragraph.lstrip("\b\n").splitlines())
        if fixed:
            yield ".fi"


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    for option in command.get_params(context):
        if isinstance(option, click.Option):
            found = option.get_help_record(context)
            if found is not None:  # None: a hidden one
                yield from (".TP", rf"\fB{_text(found[0])}\fR", _text(found[1]))


def _text(text: str) -> str:
    """Return the text escaped, so that nothing in it is a request or an escape of roff."""
    safe = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return "\\&" + safe if safe.startswith(".") else safe

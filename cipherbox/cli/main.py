"""The command `cipherbox`, and the one place that turns errors into messages and exit codes."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import click

import cipherbox
from cipherbox.cli.commands import COMMANDS, COMPLETE_VARIABLE, PASSWORD_FILE
from cipherbox.cli.exits import Exit, advice, exit_code, leaf, sentence
from cipherbox.cli.wrapping import Context
from cipherbox.harness import RUN_VARIABLE

DEBUG_VARIABLE = "CIPHERBOX_DEBUG"
_DIRECTORY = click.Path(path_type=Path, file_okay=False, readable=False)
_LINES = 20  # of an error; a file with more errors than that is probably the wrong one

FLAT = {name: entry for section in COMMANDS.values() for name, entry in section.items()}


class LazyGroup(click.Group):
    """A group that imports a command's module only when the command is used."""

    context_class = Context

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(FLAT)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in FLAT:
            return None
        module, attribute, _ = FLAT[cmd_name]
        found: click.Command = getattr(
            importlib.import_module(f"cipherbox.cli.{module}"), attribute
        )
        _prepare(found)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in FLAT and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], list(FLAT), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"Unknown command {args[0]!r}.{hint} See: cipherbox --help", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, commands in COMMANDS.items():
            with formatter.section(section):
                formatter.write_dl([(name, entry[2]) for name, entry in commands.items()])


def _prepare(command: click.Command) -> None:
    """Accept --home and --password-file after the command, too, where people put them; hidden in
    its help.
    """
    command.context_class = Context
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _prepare(inner)
        return
    known = {
        name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    if command.ignore_unknown_options or "--home" in known:
        return
    command.params += [
        click.Option(
            ["--home", "_home"],
            type=_DIRECTORY,
            hidden=True,
            expose_value=False,
            callback=lambda ctx, _, value: _set_home(ctx, value),
        ),
        *[
            click.Option(
                ["--password-file", "_password_file"],
                type=click.Path(path_type=Path),
                hidden=True,
                expose_value=False,
                callback=lambda ctx, _, value: _set_password_file(ctx, value),
            )
        ]
        * ("--password-file" not in known),
    ]


def _set_home(ctx: click.Context, home: Path | None) -> None:
    if home is not None:
        ctx.find_root().obj = home


def _set_password_file(ctx: click.Context, file: Path | None) -> None:
    if file is not None:
        ctx.meta[PASSWORD_FILE] = file


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="New here? cipherbox manual quickstart - or see it run: cipherbox demo",
)
@click.option(
    "--home",
    envvar="CIPHERBOX_HOME",
    type=_DIRECTORY,
    help="This client's directory. [default: $CIPHERBOX_HOME, else ~/.cipherbox]",
)
@click.option(
    "--password-file",
    type=click.Path(path_type=Path),
    help="Read the password of the keys from this file. [default: password_file in client.toml, "
    "else a prompt]",
)
@click.version_option(cipherbox.__version__, prog_name="CipherBox", message="%(prog)s %(version)s")
@click.option(
    "--debug", is_flag=True, envvar=DEBUG_VARIABLE, help="Show the traceback of an error."
)
@click.pass_context
def cli(ctx: click.Context, home: Path | None, password_file: Path | None, debug: bool) -> None:
    """CipherBox: a blind message broker in one file."""
    ctx.obj = home
    ctx.meta[PASSWORD_FILE] = password_file


def every_command(section: str) -> Iterator[tuple[click.Command, click.Context]]:
    """Yield a section's commands, a group before its subcommands; each context's `info_name` is the
    full name.
    """
    for name in COMMANDS[section]:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        yield from _within(command, f"cipherbox {name}")


def _within(command: click.Command, name: str) -> Iterator[tuple[click.Command, click.Context]]:
    context = click.Context(command, info_name=name)
    if not command.hidden:
        yield command, context
    if isinstance(command, click.Group):
        for sub in command.list_commands(context):
            found = command.get_command(context, sub)
            assert found is not None
            yield from _within(found, f"{name} {sub}")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit with its code; an error is printed as a message, not a traceback."""
    from cipherbox.cli.stdout import drop_unread_errors, guard_output
    from cipherbox.portable import standard_files

    closed = standard_files()
    if lock := os.environ.get(RUN_VARIABLE):
        from cipherbox.harness.workplace import end_with_run

        end_with_run(Path(lock))
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    guard_output(closed)
    code = _unprinted(run(arguments))
    drop_unread_errors()
    sys.exit(code)


def run(arguments: list[str] | None) -> int:
    try:
        result = cli.main(
            arguments, prog_name="cipherbox", complete_var=COMPLETE_VARIABLE, standalone_mode=False
        )
        return result if isinstance(result, int) else Exit.OK
    except click.Abort:
        return Exit.INTERRUPTED
    except click.ClickException as error:
        _say_usage(error)
        return Exit.USAGE
    except BaseException as error:
        return _report(error, arguments if arguments is not None else sys.argv[1:])


def _say_usage(error: click.ClickException) -> None:
    from cipherbox.cli.output import fail

    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        click.echo(
            f"{context.get_usage()}\nTry '{context.command_path} --help' for help.\n", err=True
        )
    fail(error.format_message())


def _unprinted(code: int) -> int:
    """Return the code, or `OUTPUT` if the command succeeded but its result could not be printed."""
    from cipherbox.cli.stdout import output_failure

    failure = output_failure()
    if failure is None or code not in (Exit.OK, Exit.OUTPUT):
        return int(code)
    from cipherbox.cli.output import fail

    # a reader that stops early, like head, needs no explanation
    if failure.errno != errno.EPIPE:
        fail(f"the work is done, but its result could not be printed: {failure.strerror}")
    return int(Exit.OUTPUT)


def _report(group: BaseException, arguments: list[str]) -> int:
    error = leaf(group)
    if isinstance(error, SystemExit):
        return (
            error.code
            if isinstance(error.code, int)
            else Exit.OK
            if error.code is None
            else Exit.REFUSED
        )
    code = exit_code(error)
    if code in (Exit.INTERRUPTED, Exit.OUTPUT):
        return code
    if _wants_traceback(arguments):
        import traceback

        traceback.print_exception(group)
    from cipherbox.cli.output import fail, keep, safe
    from cipherbox.errors import CipherBoxError

    text = error.what if isinstance(error, CipherBoxError) else str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if code == Exit.BUG:
        text = f"Internal error ({type(error).__name__}: {text})"
        fail(safe(text), "Please report it with what this shows: cipherbox --debug ...")
    else:
        lines = [safe(line) for line in sentence(text).splitlines()[:_LINES]]
        # QUEUED is not a failure: the message is stored here and will be sent
        (keep if code == Exit.QUEUED else fail)("\n".join(lines), advice(error))
    return code


def _wants_traceback(arguments: list[str]) -> bool:
    return "--debug" in arguments or os.environ.get(DEBUG_VARIABLE, "").lower() in (
        "1",
        "true",
        "yes",
        "on",
    )

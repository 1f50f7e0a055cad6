"""The command `cipherbox`: its table of commands, and the one place where an error becomes words
and an exit code.
"""

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
from cipherbox.cli.exits import Exit, advice, exit_code
from cipherbox.cli.wrapping import Context
from cipherbox.errors import CipherBoxError

DEBUG_VARIABLE = "CIPHERBOX_DEBUG"
PASSWORD_FILE = "cipherbox.password_file"  # noqa: S105 - where a context's meta has the option
_DIRECTORY = click.Path(path_type=Path, file_okay=False, readable=False)
_LINES = 20  # of an error; a file with more mistakes than that is another file
COMPLETE_VARIABLE = "_CIPHERBOX_COMPLETE"  # set by the shell's completion script

# section -> command -> (module below cipherbox.cli, attribute, one line)
COMMANDS: dict[str, dict[str, tuple[str, str, str]]] = {
    "Headquarters": {
        "init": ("serve", "init", "Make HQ's data directory, its CA and the first admin."),
        "serve": ("serve", "serve", "Run HQ."),
        "enroll": ("enrol", "enroll", "Make a one-time token for a new client."),
        "approve": ("enrol", "approve", "Let a held enrolment go, or refuse it."),
        "revoke": ("enrol", "revoke", "Revoke a client and cut its connections."),
        "grant": ("topology", "grant", "Give or take a right."),
        "grants": ("topology", "grants", "List who has which right."),
        "config": ("config", "config", "Show the settings, or check whether HQ could start."),
        "dead": ("dead_letters", "dead", "Dead letters: list, show, send again, drop."),
        "audit": ("audit", "audit", "Verify or read HQ's signed log."),
        "witness": (
            "witness",
            "witness",
            "Cosign HQ's signed log, so that nobody is shown another one.",
        ),
        "top": ("top", "top", "Watch queues, rates, clients and alerts."),
        "reload": ("operate", "reload", "Let HQ read settings and certificates again."),
        "drain": ("operate", "drain", "Let HQ finish and end, for an upgrade."),
        "ca": (
            "ca.command",
            "ca",
            "Show HQ's certificates; renew them; an offline CA, or an organization's.",
        ),
        "backup": ("store", "backup", "Back up everything HQ is, while it runs."),
        "restore": ("store", "restore", "Make an HQ from a backup, and prove that it is whole."),
        "store": ("store", "store", "Copy HQ's store to another database; upgrade it."),
    },
    "Every client": {
        "join": ("enrol", "join", "Enrol this machine with a token."),
        "send": ("send", "send", "Seal a message or file and send it."),
        "receive": ("receive", "receive", "Receive, open and acknowledge until stopped."),
        "fetch": ("receive", "fetch", "Take what waits now, then stop."),
        "chat": ("chat", "chat", "Write to somebody, line by line, and read what they write."),
        "pipe": ("pipe", "pipe", "Standard input here to standard output there: netcat."),
        "agent": ("agent", "agent", "Send from a folder and receive into another, for good."),
        "status": ("status", "status", "Where is my message?  And how is HQ?"),
        "inbox": (
            "inbox_lines",
            "inbox",
            "What was received here: list, show, save, search; refused, parked.",
        ),
        "outbox": ("outbox", "outbox", "What was sent from here and is under way; retry, cancel."),
        "receipt": ("receipt", "receipt", "Proof that a recipient opened a message."),
        "clients": (
            "clients",
            "clients",
            "Who is enrolled and connected; roles; cut a connection.",
        ),
        "alerts": (
            "alerts",
            "alerts",
            "Who is told when something is wrong: test it, list what was told.",
        ),
        "doctor": (
            "doctor.command",
            "doctor",
            "Look for what is wrong on this machine and say what to do.",
        ),
    },
    "Routes and keys": {
        "exchange": ("topology", "exchange", "Declare, show, list and delete exchanges."),
        "queue": ("topology", "queue", "Declare, show, list, purge and delete queues."),
        "binding": ("topology", "binding", "Lead routing keys into queues."),
        "contacts": ("contacts", "contacts", "Whom you take mail from."),
        "route": ("route", "route", "Who may receive what you send to an exchange."),
        "keys": (
            "keys.command",
            "keys",
            "Keys, yours and others': list, compare, pin; your password.",
        ),
    },
    "More": {
        "demo": ("demo.command", "demo", "Play the labs scenario on this machine."),
        "prove": (
            "prove.command",
            "prove",
            "Prove that nothing is lost or doubled, whatever is killed.",
        ),
        "bench": ("bench.command", "bench", "Measure how fast this machine does the whole job."),
        "manual": ("manual", "manual", "Read the manual."),
        "python": ("python", "python", "Run a program of yours with CipherBox's library."),
        "install": (
            "install.command",
            "install",
            "Install or upgrade HQ, or a client, on this machine.",
        ),
        "uninstall": ("install.command", "uninstall", "Remove it again; data stays."),
        "completion": (
            "completion_texts",
            "completion",
            "Print the shell's completion of these commands.",
        ),
        "version": ("completion_texts", "version", "Print the version."),
    },
}
_FLAT = {name: entry for section in COMMANDS.values() for name, entry in section.items()}


class LazyGroup(click.Group):
    """A group that imports a command's module only when the command is used."""

    context_class = Context

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_FLAT)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _FLAT:
            return None
        module, attribute, _ = _FLAT[cmd_name]
        found: click.Command = getattr(
            importlib.import_module(f"cipherbox.cli.{module}"), attribute
        )
        _prepare(found)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _FLAT and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], list(_FLAT), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(
                f"There is no command {args[0]!r}.{hint} See: cipherbox --help", ctx
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, commands in COMMANDS.items():
            with formatter.section(section):
                formatter.write_dl([(name, entry[2]) for name, entry in commands.items()])


def _prepare(command: click.Command) -> None:
    """Lets --home and --password-file also stand after the command, where people put them;
    unseen in its help.
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
    """A section's commands, a group before what it holds; a context's `info_name` is the name in
    full.
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
    """Runs one command and ends the process with its code; an error becomes plain words, never a
    traceback.
    """
    from cipherbox.cli.stdout import drop_unread_errors, guard_output
    from cipherbox.portable import standard_files

    closed = standard_files()
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    guard_output(closed)
    code = _unprinted(_run(arguments))
    drop_unread_errors()
    sys.exit(code)


def _run(arguments: list[str] | None) -> int:
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
    """The code, or `OUTPUT` when all went well but for what should have been printed."""
    from cipherbox.cli.stdout import output_failure

    failure = output_failure()
    if failure is None or code not in (Exit.OK, Exit.OUTPUT):
        return int(code)
    from cipherbox.cli.output import fail

    # a reader who has seen enough, like head, needs no explanation
    if failure.errno != errno.EPIPE:
        fail(f"the work is done, but its result could not be printed: {failure.strerror}")
    return int(Exit.OUTPUT)


def leaf(error: BaseException) -> BaseException:
    """The one error that says most of a group: ours before others, a refusal before a cut line."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [leaf(inner) for inner in error.exceptions]
    for kind in (KeyboardInterrupt, SystemExit):
        if found := [e for e in leaves if isinstance(e, kind)]:
            return found[0]
    strangers = [e for e in leaves if not isinstance(e, CipherBoxError)]
    return strangers[0] if strangers else min(leaves, key=lambda e: exit_code(e) == Exit.NETWORK)


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

    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if code == Exit.BUG:
        text = f"CipherBox made a mistake ({type(error).__name__}: {text})"
        fail(safe(text), "Please report it with what this shows: cipherbox --debug ...")
    else:
        lines = [safe(line) for line in sentence(text).splitlines()[:_LINES]]
        # QUEUED: nothing failed, it is safe here, and is going to be sent
        (keep if code == Exit.QUEUED else fail)("\n".join(lines), advice(error))
    return code


def _wants_traceback(arguments: list[str]) -> bool:
    return "--debug" in arguments or os.environ.get(DEBUG_VARIABLE, "").lower() in (
        "1",
        "true",
        "yes",
        "on",
    )


def sentence(text: str) -> str:
    """The text as a sentence begins: with a capital, unless it begins with a path, an address or
    a code word.
    """
    first = text.split(" ", 1)[0]
    return text[:1].upper() + text[1:] if first.replace("'", "").isalpha() else text

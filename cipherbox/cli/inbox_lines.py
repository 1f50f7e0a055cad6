"""`inbox export`, `rotate` and `lock`: the readable lines and files in the inbox."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cipherbox.cli.home import home_of
from cipherbox.cli.inbox import inbox, inspect_inbox, sender_option, since_ms, since_option


@inbox.command("export")
@click.argument("target", type=click.Path(path_type=Path), required=False)
@since_option
@sender_option
@click.pass_context
def inbox_export(
    ctx: click.Context, target: Path | None, since: float | None, sender: str | None
) -> None:
    """Export the lines of received_messages.jsonl to the new file TARGET, or to standard output.

    They come from the inbox: use it if the file was lost, or under a password, where it is not
    written.
    """
    from cipherbox.cli.output import print_raw, say
    from cipherbox.client.inbox.places import open_new
    from cipherbox.errors import FileError

    with inspect_inbox(ctx) as inspection:
        entries = inspection.shelf.oldest(since_ms(since), sender or "")
        if target is None:
            for entry in entries:
                print_raw(entry.line)
            return
        if target.exists():
            raise FileError(f"{target} exists already", remedy="name a new file")
        count = 0
        with open(open_new(target.absolute()), "wb") as file:
            for entry in entries:
                file.write(entry.line)
                count += 1
    say(f"{count} line(s) written to {target.absolute()}")


@inbox.command("rotate")
@click.pass_context
def inbox_rotate(ctx: click.Context) -> None:
    """Rename received_messages.jsonl with a timestamp; receivers, also running ones, start a new
    file.
    """
    from cipherbox.cli.output import say
    from cipherbox.client.inbox.lines_file import rotate
    from cipherbox.client.inbox.schema import LINES
    from cipherbox.errors import FileError

    path = home_of(ctx) / LINES
    try:
        target = rotate(path)
    except OSError as error:
        raise FileError(
            f"{path} cannot be renamed: {error.strerror}",
            remedy="stop the programs that read it, or the receiver",
        ) from None
    say(f"There is no {path}." if target is None else str(target))


@inbox.command("lock")
@click.pass_context
def inbox_lock(ctx: click.Context) -> None:
    """Encrypt readable lines and files that were received before this home had a password.

    Requires a password, and no [inbox] plain. Each is encrypted under the home's key and verified;
    then the readable one is removed. inbox show, save and export open them. Files that you moved or
    copied elsewhere stay as they are. Stop the agent or receiver first.
    """
    from cipherbox.cli.home import load_here
    from cipherbox.cli.output import say, warn
    from cipherbox.client.inbox.encrypting import lock_all
    from cipherbox.errors import InvalidRequest

    home = load_here(ctx)
    if not home.sealed:
        raise InvalidRequest(
            "this home has no password, so its key would lie beside the encrypted data",
            remedy="set one first: cipherbox keys password",
        )
    if home.config.inbox.plain:
        raise InvalidRequest(
            "[inbox] plain = true in client.toml keeps received messages and files readable",
            remedy="remove it first",
        )
    done = lock_all(home)
    for text in done.left:
        warn(text)
    say(f"{done.lines} line(s) and {done.files} file(s) are encrypted.")
    sys.stdout.flush()

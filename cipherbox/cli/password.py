"""The password of a client's keys: from a file, a systemd credential, or the terminal without echo.

Never from arguments or the environment: other users of the machine, and every program started from
here, see those.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cipherbox.cli.commands import PASSWORD_FILE
from cipherbox.cli.exits import sentence

if TYPE_CHECKING:
    pass

CHOICES = 5  # of a new password: some are refused, some are mistyped


def prompt_for(home: Path) -> str:
    """Return the prompt for an existing password."""
    return f"Password of the keys in {home}"


def named_password(ctx: click.Context) -> bytes | None:
    """Return the contents of --password-file; None if it was not given."""
    from cipherbox.client.keys.local_key import read_password

    named: Path | None = ctx.meta.get(PASSWORD_FILE)
    return read_password(named.absolute()) if named is not None else None


def new_password(instead: str, about: Sequence[str] = ()) -> bytes:
    """Prompt for a new password, twice to catch mistakes; ``instead`` names the option that needs
    no prompt.

    One that is easy to guess is refused, with the reason, before it is typed again.  ``about``: see
    `check_strength`.
    """
    from cipherbox.cli.output import warn
    from cipherbox.client.keys.strength import check_strength
    from cipherbox.errors import PasswordError, WeakPassword

    missing = click.UsageError(f"Cannot prompt for a new password (not a terminal); pass {instead}")
    for _ in range(CHOICES):
        typed = ask("New password", missing)
        if not typed:
            warn("An empty password protects nothing.")
            continue
        try:
            good = check_strength(typed, about)
        except WeakPassword as weak:
            warn(f"{sentence(str(weak))}.")
            continue
        if typed == ask("The same again", missing):
            return good
        warn("The passwords differ.")
    raise PasswordError("no password was set")


def chosen_password(file: Path, about: Sequence[str] = ()) -> bytes:
    """Return a new password from a file.  Raise WeakPassword if it is easy to guess."""
    from cipherbox.client.keys.local_key import read_password
    from cipherbox.client.keys.strength import check_strength

    return check_strength(read_password(file.absolute()), about, str(file))


def ask(prompt: str, no_terminal: Exception) -> str:
    """Prompt without echo and return what is typed.  Raise ``no_terminal`` without a terminal."""
    import getpass
    import warnings

    from cipherbox.errors import PasswordError
    from cipherbox.portable import can_ask

    if not can_ask():
        raise no_terminal
    try:
        with warnings.catch_warnings():
            # otherwise getpass only warns, and echoes what is typed
            warnings.simplefilter("error", getpass.GetPassWarning)
            return getpass.getpass(f"{prompt}: ")
    except getpass.GetPassWarning:
        raise no_terminal from None
    except EOFError:
        raise click.Abort from None
    except UnicodeError:  # its text would quote what was typed
        raise PasswordError("the input is not valid text in this terminal's encoding") from None

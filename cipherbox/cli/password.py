"""The password of a client's keys: where it comes from, and `keys password`, which sets, changes
and removes it.

It comes from a file, from what systemd hands over, or from the terminal, where it is not shown.
Never from arguments or the environment: other users of the machine, and every program started from
here, see those.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cipherbox.cli.main import PASSWORD_FILE, sentence
from cipherbox.cli.options import home_of, sure, yes_option

if TYPE_CHECKING:
    from cipherbox.client.home import Home
    from cipherbox.config.settings import ClientConfig

TRIES = 3
CHOICES = 5  # of a new password: some are refused, some are mistyped
_HOME = "cipherbox.home"


def load_here(ctx: click.Context, *, renews: bool = False) -> Home:
    """This command's home with its keys; a password is asked for once, however often the home is
    needed.

    ``renews``: the command lives long enough to renew the certificate; others say when it is due.
    """
    from cipherbox.cli.keys.life import warn_of_end
    from cipherbox.client.home import home_with
    from cipherbox.config.settings import load_client_config

    if _HOME not in ctx.meta:
        config = load_client_config(home_of(ctx))
        ctx.meta[_HOME] = home_with(config, unlock(ctx, config))
        if not renews and ctx.info_name != "renew":
            warn_of_end(ctx, ctx.meta[_HOME])
    home: Home = ctx.meta[_HOME]
    return home


def unlock(ctx: click.Context, config: ClientConfig) -> bytes:
    """The local key.  On a terminal somebody may mistype; what a file says is final."""
    from cipherbox.cli.output import warn
    from cipherbox.client.home import unlocked
    from cipherbox.client.keys.local_key import is_sealed
    from cipherbox.errors import PasswordError, PasswordNeeded

    if not is_sealed(config.home):
        return unlocked(config)
    try:
        return unlocked(config, named_password(ctx), warn)
    except PasswordNeeded as error:
        nobody = error
    for left in reversed(range(TRIES)):
        typed = ask(prompt_for(config.home), nobody)
        try:
            return unlocked(config, typed, warn)
        except PasswordError as error:
            if not left:
                raise
            warn(f"{sentence(str(error))}.")
    raise AssertionError("the loop returns or raises")


def prompt_for(home: Path) -> str:
    """The question for a password that is set."""
    return f"Password of the keys in {home}"


def named_password(ctx: click.Context) -> bytes | None:
    """What --password-file holds; None when it was not given."""
    from cipherbox.client.keys.local_key import read_password

    named: Path | None = ctx.meta.get(PASSWORD_FILE)
    return read_password(named.absolute()) if named is not None else None


def new_password(instead: str, about: Sequence[str] = ()) -> bytes:
    """A password typed for the first time: twice, so that it is the one that was meant; ``instead``
    needs nobody.

    One that is easy to guess is refused, with the reason, before it is typed again.  ``about``: see
    `check_strength`.
    """
    from cipherbox.cli.output import warn
    from cipherbox.client.keys.strength import check_strength
    from cipherbox.errors import PasswordError, WeakPassword

    nobody = click.UsageError(f"Nobody can be asked for a new password here: say {instead}")
    for _ in range(CHOICES):
        typed = ask("New password", nobody)
        if not typed:
            warn("An empty password protects nothing.")
            continue
        try:
            good = check_strength(typed, about)
        except WeakPassword as weak:
            warn(f"{sentence(str(weak))}.")
            continue
        if typed == ask("The same again", nobody):
            return good
        warn("These were two different passwords.")
    raise PasswordError("no password was set")


def chosen_password(file: Path, about: Sequence[str] = ()) -> bytes:
    """The password in a file that protects something from now on; WeakPassword if it is easy to
    guess.
    """
    from cipherbox.client.keys.local_key import read_password
    from cipherbox.client.keys.strength import check_strength

    return check_strength(read_password(file.absolute()), about, str(file))


def ask(prompt: str, nobody: Exception) -> str:
    """What somebody types at the terminal, unseen; raises ``nobody`` where there is none."""
    import getpass
    import warnings

    from cipherbox.errors import PasswordError
    from cipherbox.portable import can_ask

    if not can_ask():
        raise nobody
    try:
        with warnings.catch_warnings():
            # it would go on and show what is typed
            warnings.simplefilter("error", getpass.GetPassWarning)
            return getpass.getpass(f"{prompt}: ")
    except getpass.GetPassWarning:
        raise nobody from None
    except EOFError:
        raise click.Abort from None
    except UnicodeError:  # its text would quote what was typed
        raise PasswordError("what was typed is no text in this terminal's encoding") from None


@click.command()
@click.option(
    "--new-password-file",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Read the new password from this file instead of asking for it.",
)
@click.option("--remove", is_flag=True, help="Keep the keys under no password; asks first.")
@yes_option
@click.pass_context
def password(ctx: click.Context, file: Path | None, remove: bool, yes: bool) -> None:
    """Set, change or remove the password your keys are under.

    With a password nobody who copies your directory can use its keys; every command then asks for
    it.  The file local.key is sealed under it, with Argon2id; nothing else changes, and programs
    that run go on.  A forgotten password cannot be recovered: nothing sealed to these keys can be
    opened then.

    What was copied before, a backup for example, is as open as it was: after a suspicion join again
    with new keys.
    """
    from cipherbox.cli.output import next_step, say
    from cipherbox.client.home import home_with
    from cipherbox.client.keys.local_key import configured_password, is_sealed, put_local_key
    from cipherbox.config.settings import load_client_config

    if remove and file is not None:
        raise click.UsageError("Either --remove or --new-password-file.")
    config = load_client_config(home_of(ctx))
    sealed = is_sealed(config.home)
    if remove:
        if not sealed:
            say(f"The keys in {config.home} are under no password.")
            return
        sure(f"Remove the password? Who can read {config.home} can use its keys then.", yes)
    local_key = unlock(ctx, config)
    home_with(config, local_key)  # a home that does not open is left as it is
    if remove:
        put_local_key(config.home, local_key, None)
        say(f"The keys in {config.home} are under no password any more.")
        return
    about = [config.client_id]
    new = (
        chosen_password(file, about)
        if file is not None
        else new_password("--new-password-file FILE", about)
    )
    put_local_key(config.home, local_key, new)
    say(
        f"The keys in {config.home} are under {'the new' if sealed else 'your'} password from "
        "now on."
    )
    held_ready = configured_password(config)
    if held_ready is not None:
        next_step(f"put it into {held_ready} too: commands and agents of this home read it there")
    elif not sealed:
        next_step(
            "an agent or another service of this home needs it at its next start: cipherbox "
            "manual security"
        )

"""`keys password`: set, change or remove the password of a client's keys."""

from __future__ import annotations

from pathlib import Path

import click

from cipherbox.cli.home import home_of, unlock
from cipherbox.cli.options import sure, yes_option
from cipherbox.cli.password import chosen_password, new_password


@click.command()
@click.option(
    "--new-password-file",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Read the new password from this file instead of asking for it.",
)
@click.option("--remove", is_flag=True, help="Remove the password; asks first.")
@yes_option
@click.pass_context
def password(ctx: click.Context, file: Path | None, remove: bool, yes: bool) -> None:
    """Set, change or remove the password of your keys.

    With a password, a copy of your directory is useless without it, and every command asks for it.
    It encrypts the file local.key, with Argon2id; nothing else changes, and running programs
    continue. A forgotten password cannot be recovered: nothing sealed to these keys can then be
    opened.

    Earlier copies, such as backups, are not protected: if one may have leaked, join again with new
    keys.
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
        sure(f"Remove the password? Anyone who can read {config.home} can then use its keys.", yes)
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
    configured = configured_password(config)
    if configured is not None:
        next_step(f"write it to {configured} too: commands and agents of this home read it there")
    elif not sealed:
        next_step(
            "an agent or another service of this home needs it at its next start: cipherbox "
            "manual security"
        )

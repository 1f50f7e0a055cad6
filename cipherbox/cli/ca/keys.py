"""`ca take-off`, `ca bring-back`, `ca renew`: the CA's private keys, on HQ's machine and off it.

These work on HQ's directory, as the user HQ runs as; HQ may run meanwhile.  The keys in the other
directory are encrypted with `ca.key`, which may itself be encrypted under a password: typed, or
read from the file given with --password-file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cipherbox.cli.options import HQ_DIRECTORY, hq_settings, yes_option

if TYPE_CHECKING:
    from cipherbox.server.ca.offline import OfflineCa

CA_DIRECTORY = click.Path(path_type=Path, exists=True, file_okay=False)
_SIZE = 32


def vault_at(ctx: click.Context, directory: Path) -> OfflineCa:
    """Open a CA's directory, and ask for its password if it has one."""
    from cipherbox.portable import read_private
    from cipherbox.server.ca.offline import CA_KEY, OfflineCa

    return OfflineCa(directory, _open(ctx, directory, read_private(directory / CA_KEY)))


def _open(ctx: click.Context, directory: Path, data: bytes, password: bytes | None = None) -> bytes:
    """Return the 32-byte key of a `ca.key`, decrypted if it is under a password."""
    from cipherbox.cli.password import ask, named_password
    from cipherbox.client.keys.local_key import password_bytes
    from cipherbox.errors import ConfigError, CredentialsError, PasswordNeeded, WrongPassword
    from cipherbox.sealing import key_file as keyfile

    if len(data) == _SIZE:
        return data
    path = directory / "ca.key"
    if not keyfile.is_key_file(data):
        raise ConfigError(
            f"{path} is not a key: it has {len(data)} bytes",
            remedy="use your second copy of this directory",
        )
    given = password or named_password(ctx)
    if given is None:
        missing = PasswordNeeded(f"{path} is encrypted under a password, and none was given")
        given = password_bytes(ask(f"Password of the CA in {directory}", missing))
    try:
        key = keyfile.decrypt(data, password=given)
    except WrongPassword:
        raise WrongPassword(f"wrong password for {path}") from None
    except CredentialsError as error:
        raise ConfigError(f"{path}: {error}") from None
    if len(key) != _SIZE:
        raise ConfigError(f"{path} does not hold a CA's key")
    return key


@click.command("take-off")
@click.argument("hq", type=HQ_DIRECTORY)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--all",
    "whole",
    is_flag=True,
    help="The issuing CA's key too: HQ's CA is then offline.",
)
@click.option(
    "--password",
    "protect",
    is_flag=True,
    help="Encrypt the copy under a password; asks for it twice.",
)
@yes_option
@click.pass_context
def take_off(
    ctx: click.Context, hq: Path, directory: Path, whole: bool, protect: bool, yes: bool
) -> None:
    """Move the root's private key from HQ's data directory HQ to DIRECTORY, for example on a USB
    stick.

    The key is removed here only after the copy was written, synced, read back and tested. HQ does
    not need it until the issuing CA is renewed. With --all, certificates are then signed where
    DIRECTORY is: cipherbox ca export, sign, import.
    """
    from cipherbox.cli.options import sure
    from cipherbox.cli.output import next_step, say, warn
    from cipherbox.cli.password import named_password, new_password
    from cipherbox.client.keys.strength import check_strength
    from cipherbox.portable import read_private
    from cipherbox.sealing import key_file as keyfile
    from cipherbox.server.ca import authority

    config = hq_settings(hq)
    directory, password = directory.absolute(), named_password(ctx)
    if directory.is_relative_to(config.directory):
        raise click.UsageError(
            f"{directory} is in HQ's own directory: choose one that can be carried away."
        )
    what = "the CA's private keys" if whole else "the root's private key"
    sure(f"Move {what} to {directory} and remove them from this machine?", yes)
    if (directory / "ca.key").exists():
        key_file = read_private(directory / "ca.key")
        if protect and len(key_file) == _SIZE:
            raise click.UsageError(
                f"{directory} holds a CA's key without a password; choose another directory."
            )
    else:
        if protect and password is None:
            password = new_password("cipherbox --password-file FILE ca take-off")
        elif password is not None:
            check_strength(password)
        key = os.urandom(_SIZE)
        key_file = keyfile.encrypt(key, password=password) if password is not None else key
    opened = _open(ctx, directory, key_file, password)
    keys = {key_file: opened}

    def open_key(data: bytes) -> bytes:
        return keys[data] if data in keys else _open(ctx, directory, data, password)

    removed = authority.take_off(config, directory, key_file, open_key, whole=whole)
    for path in removed:
        say(f"{path}: removed here; its copy in {directory} was read back and tested.")
    warn(f"Keep {directory} safe, and a second copy of it elsewhere: nothing can replace it.")
    if len(key_file) == _SIZE:
        warn("Its keys have no password: anyone holding the directory controls the CA.")
    if whole:
        next_step(
            "make HQ reload: cipherbox reload",
            "within 3 days, sign a new revocation list: cipherbox ca export "
            f"requests.json; cipherbox ca sign requests.json signed.json --ca {directory}; "
            "cipherbox ca import signed.json",
        )


@click.command("bring-back")
@click.argument("hq", type=HQ_DIRECTORY)
@click.argument("directory", type=CA_DIRECTORY)
@click.option(
    "--all",
    "whole",
    is_flag=True,
    help="The issuing CA's key too: HQ then signs automatically.",
)
@click.pass_context
def bring_back(ctx: click.Context, hq: Path, directory: Path, whole: bool) -> None:
    """Copy the root's private key from DIRECTORY back into HQ's data directory HQ.

    Not needed to renew the issuing CA: cipherbox ca renew HQ --root DIRECTORY
    """
    from cipherbox.cli.output import next_step, say
    from cipherbox.server.ca import authority

    config = hq_settings(hq)
    for path in authority.bring_back(config, vault_at(ctx, directory.absolute()), whole=whole):
        say(f"{path} is restored; the copy in {directory} stays there.")
    if whole:
        next_step("make HQ reload: cipherbox reload")


@click.command("renew")
@click.argument("directory", type=HQ_DIRECTORY)
@click.option(
    "--root", type=CA_DIRECTORY, help="Where the root's key is, if it was taken off this machine."
)
@click.pass_context
def renew(ctx: click.Context, directory: Path, root: Path | None) -> None:
    """Renew the issuing CA for ten years. DIRECTORY is HQ's data directory, or that of an offline
    CA.

    Its name and key stay, so everything it signed stays valid and clients need no change. HQ renews
    its own certificate automatically.
    """
    from cipherbox.cli.output import next_step, say
    from cipherbox.server.ca import authority
    from cipherbox.server.ca.offline import CA_KEY

    if os.path.exists(directory / CA_KEY):  # not Path.exists, which fails where it may not look
        if root is not None:
            raise click.UsageError("An offline CA's directory holds its root key; omit --root.")
        renewed = vault_at(ctx, directory.absolute()).renew_issuing()
        step = "HQ gets it with the next response: cipherbox ca export, ca sign, ca import"
    else:
        config = hq_settings(directory)
        if config.ca.organization:
            _ask_organization(directory)
            return
        renewed = authority.renew(
            config, vault_at(ctx, root.absolute()) if root is not None else None
        )
        step = "make HQ reload: cipherbox reload"
    say(f"The issuing CA is renewed until {renewed.not_valid_after_utc:%Y-%m-%d}.")
    next_step(step)


def _ask_organization(directory: Path) -> None:
    from cipherbox.cli.output import next_step, say
    from cipherbox.errors import ConfigError
    from cipherbox.server.ca.authority import ask_organization

    config = hq_settings(directory)
    if config.ca.offline:
        raise ConfigError(
            "the issuing CA is the organization's, which renews it with its own tools and the same "
            "key",
            remedy="then run: cipherbox ca import CHAIN.pem",
        )
    say(f"The request is in {ask_organization(config)}: let the organization sign it.")
    next_step(
        "then, with the new certificate and those up to the root: cipherbox ca import CHAIN.pem"
    )

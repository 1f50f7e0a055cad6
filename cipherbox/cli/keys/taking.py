"""`keys import`: another client's key bundle received in person, or one's own RSA private key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cipherbox import clock
from cipherbox.cli.exits import Exit
from cipherbox.cli.keys.rsa import import_private
from cipherbox.cli.options import sure, yes_option
from cipherbox.errors import BundleError, BundleMalformed, InvalidRequest
from cipherbox.limits import LIMITS

if TYPE_CHECKING:
    from cipherbox.client.keys.pins import Pin
    from cipherbox.envelope.bundle import KeyBundle


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option(
    "--pem-password-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Read the password of an encrypted private key from this file instead of asking for it.",
)
@click.option("--fingerprint", "heard", help="The fingerprint that its owner reads to you.")
@yes_option
@click.pass_context
def keys_import(
    ctx: click.Context, file: Path, pem_password_file: Path | None, heard: str | None, yes: bool
) -> int:
    """Import FILE: another client's key bundle, or an RSA private key of your own.

    A key bundle that its owner gave you in person (keys export) is pinned as compared. It must be
    certified by this HQ's root; its fingerprint is shown before it is pinned. If other keys are
    pinned and did not sign those in FILE, its owner must read you the fingerprint; --yes is not
    enough.

    An RSA private key, a PEM file from OpenSSL, becomes your RSA key, as with `keys generate
    --rsa`.
    """
    from cipherbox.envelope.bundle import MAGIC
    from cipherbox.sealing.rsa import PEM_BYTES, is_pem

    with file.open("rb") as opened:
        data = opened.read(max(LIMITS.bundle_bytes, PEM_BYTES) + 1)
    if data[: len(MAGIC)] == MAGIC:
        if pem_password_file is not None:
            raise click.UsageError("A key bundle holds no secret, so it has no password.")
        return _import_bundle(ctx, data, heard, yes)
    if not is_pem(data):
        raise BundleMalformed(
            f"{file} is neither a key bundle (keys export) nor a private key as PEM"
        )
    import_private(ctx, file, data, pem_password_file)
    return Exit.OK


def _import_bundle(ctx: click.Context, data: bytes, heard: str | None, yes: bool) -> int:
    """Pin another client's key bundle as compared, once a person has confirmed it."""
    from cipherbox.cli.home import load_here
    from cipherbox.cli.output import say
    from cipherbox.client.keys.pins import PERSON, Pins
    from cipherbox.client.sessions.superseded import retire_sessions
    from cipherbox.envelope.bundle import check_bundle, check_succession, decode_bundle

    home = load_here(ctx)
    bundle = decode_bundle(data)
    check_bundle(bundle, bundle.client_id, home.root, clock.now_ms())
    pins, name = Pins(home.path), bundle.client_id
    pin = pins.get(name)
    if pin is not None and pin.bundle.sequence > bundle.sequence:
        raise InvalidRequest(
            f"bundle {pin.bundle.sequence} of {name} is pinned, and this one is older"
        )
    broken = False  # other keys are pinned, and they did not sign these
    if pin is not None:
        try:
            check_succession(pin.bundle, [bundle])
        except BundleError:
            broken = True
    agreed = _compared(pin, bundle, heard) if broken and pin else _confirmed(bundle, heard, yes)
    if not agreed:
        return Exit.REFUSED
    if pin is not None and pin.bundle.hash == bundle.hash:
        pins.mark_verified(name)
    else:
        pins.accept(bundle, PERSON)
        if broken:
            retire_sessions(home.path, name)
    say(f"The keys of {name} are pinned as compared.")
    return Exit.OK


def _compared(pin: Pin, bundle: KeyBundle, heard: str | None) -> bool:
    """Return whether the owner's fingerprint matches keys that the pinned ones did not sign."""
    from cipherbox.cli.output import fail, say
    from cipherbox.client.keys.changes import change_of
    from cipherbox.client.keys.comparing import digits
    from cipherbox.envelope.bundle import fingerprint

    name = bundle.client_id
    say(change_of(pin, [bundle]).text.replace("HQ shows: ", "This file:"))
    if heard is None:
        heard = click.prompt(
            f"The fingerprint that {name} reads to you (bundle {bundle.sequence})", err=True
        )
    if digits(heard) == digits(fingerprint(bundle)):
        return True
    fail(
        f"They differ. The file has {fingerprint(bundle)} for {name}.",
        f"Nothing was pinned. Ask {name}.",
    )
    return False


def _confirmed(bundle: KeyBundle, heard: str | None, yes: bool) -> bool:
    """Return whether these are the owner's keys: by the given fingerprint, or by a yes."""
    from cipherbox.cli.output import fail, say
    from cipherbox.client.keys.comparing import digits
    from cipherbox.envelope.bundle import fingerprint

    name = bundle.client_id
    say(f"{name}, bundle {bundle.sequence}: {fingerprint(bundle)}")
    if heard is not None and digits(heard) != digits(fingerprint(bundle)):
        fail(
            "They differ: the file has another fingerprint than you gave.",
            f"Nothing was pinned. Ask {name}.",
        )
        return False
    sure(f"Did {name} give you this file, or say this fingerprint?", yes or heard is not None)
    return True

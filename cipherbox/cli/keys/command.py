"""`keys`: pinned keys of other clients and how to compare them, and this client's own keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cipherbox.cli.home import command_here, home_of, with_client
from cipherbox.cli.keys.life import renew, rotate
from cipherbox.cli.keys.password import password
from cipherbox.cli.keys.rsa import export_public, keys_generate
from cipherbox.cli.keys.taking import keys_import
from cipherbox.cli.keys.verify import verify
from cipherbox.cli.options import CLIENT_ID, json_option
from cipherbox.errors import NotFound

if TYPE_CHECKING:
    from cipherbox.client.client import Client
    from cipherbox.envelope.bundle import KeyBundle


@click.group()
def keys() -> None:
    """List, show, compare and pin others' keys; generate, export, rotate and renew your own; set
    your password.
    """


for _command in (password, keys_generate, keys_import, rotate, renew, verify):
    keys.add_command(_command)


@keys.command("list")
@json_option
@click.pass_context
def keys_list(ctx: click.Context, as_json: bool) -> None:
    """List the pinned keys: owner, time, and how they were verified."""
    from cipherbox.cli.output import next_step, print_json, table, time_text
    from cipherbox.client.keys.pins import Pins

    pins = Pins(home_of(ctx)).entries()
    if as_json:
        print_json(
            [
                {
                    "client_id": pin.bundle.client_id,
                    "fingerprint": pin.fingerprint,
                    "sequence": pin.bundle.sequence,
                    "how": pin.pinned_by,
                    "pinned_at": pin.pinned_at,
                    "verified_at": pin.compared_at,
                    "ends_at": pin.bundle.ends_at,
                }
                for pin in pins
            ]
        )
        return
    table(
        ("client", "fingerprint", "bundle", "pinned", "by", "compared", "ends"),
        [
            (
                pin.bundle.client_id,
                pin.fingerprint,
                pin.bundle.sequence,
                time_text(pin.pinned_at),
                pin.pinned_by,
                time_text(pin.compared_at) if pin.compared_at else "no",
                time_text(pin.bundle.ends_at),
            )
            for pin in pins
        ],
        empty="no key is pinned yet: the first message to a client pins its key, or: cipherbox "
        "keys pin CLIENT_ID",
        drop=("bundle", "ends", "by", "pinned"),
    )
    if any(not pin.compared_at for pin in pins):
        next_step(f"compare by telephone what matters: {command_here(ctx)} keys verify CLIENT_ID")


@keys.command("show")
@click.argument("client_id", type=CLIENT_ID, required=False)
@json_option
@click.pass_context
def keys_show(ctx: click.Context, client_id: str | None, as_json: bool) -> None:
    """Show the keys pinned for CLIENT_ID, or your own: fingerprint, types, validity. Nothing
    secret.
    """
    from cipherbox.cli.output import print_json, record, rows_table, say
    from cipherbox.client.keys.pins import Pins
    from cipherbox.client.log.bundle_proofs import entry_of
    from cipherbox.envelope.bundle import fingerprint
    from cipherbox.envelope.stanza_types import STANZAS
    from cipherbox.envelope.suites import SIGN_KEYS

    home = home_of(ctx)
    pin = Pins(home).get(client_id) if client_id is not None else None
    if client_id is not None and pin is None:
        raise NotFound(
            f"no keys of {client_id} are pinned here",
            remedy=f"fetch them with: cipherbox keys pin {client_id}",
        )
    bundle = pin.bundle if pin is not None else _own(ctx)
    thing: dict[str, object] = {
        "client": bundle.client_id,
        "fingerprint": fingerprint(bundle),
        "bundle": bundle.sequence,
        "created_at": bundle.created_at,
        "ends_at": bundle.ends_at,
    }
    if pin is not None:
        thing |= {
            "pinned_at": pin.pinned_at,
            "pinned_by": pin.pinned_by,
            "compared_at": pin.compared_at,
        }
        thing["log_entry"] = entry_of(Pins(home).proof(bundle.client_id))
    kinds = {number: row.name for number, row in STANZAS.items()}
    signs = {number: row.name for number, row in SIGN_KEYS.items()}
    parts: list[dict[str, object]] = [
        {
            "use": "open",
            "kind": kinds.get(k.algorithm, f"unknown ({k.algorithm})"),
            "key_id": k.key_id.hex(),
        }
        for k in bundle.encrypt_keys
    ]
    parts += [
        {"use": "sign", "kind": signs.get(kind, f"unknown ({kind})"), "key_id": "-"}
        for kind in bundle.sign_keys
    ]
    if as_json:
        print_json({**thing, "keys": parts})
        return
    record(thing)
    say()
    rows_table(parts)


@keys.command("export")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--rsa", is_flag=True, help="Write your RSA public key as PEM instead, for other programs."
)
@click.pass_context
def keys_export(ctx: click.Context, file: Path, rsa: bool) -> None:
    """Write your public key bundle to FILE, to give to a partner in person. Nothing secret."""
    from cipherbox.cli.output import next_step, say
    from cipherbox.envelope.bundle import fingerprint
    from cipherbox.portable import write_atomic

    bundle = _own(ctx)
    if rsa:
        export_public(bundle, file)
        return
    write_atomic(file, bundle.raw)
    say(f"The public keys of {bundle.client_id} are in {file}: {fingerprint(bundle)}")
    next_step(f"the other runs: cipherbox keys import {file}")


@keys.command("fingerprint")
@click.argument("client_id", type=CLIENT_ID, required=False)
@click.pass_context
def keys_fingerprint(ctx: click.Context, client_id: str | None) -> None:
    """Print the fingerprint of CLIENT_ID's keys, or your own, to be read out by telephone.

    It identifies one key bundle: `keys rotate`, a renewed certificate or another RSA key creates a
    new one.
    """
    from cipherbox.cli.output import say, warn
    from cipherbox.client.keys.changes import day
    from cipherbox.client.keys.pins import Pins
    from cipherbox.envelope.bundle import fingerprint

    home = home_of(ctx)
    pin = Pins(home).get(client_id) if client_id is not None else None
    if client_id is None:
        bundle = _own(ctx)
    else:
        bundle = (
            pin.bundle
            if pin is not None
            else with_client(ctx, lambda client: _offered(client, client_id))
        )
    say(fingerprint(bundle))
    warn(
        f"This is the number of key bundle {bundle.sequence} of {bundle.client_id}, made on "
        f"{day(bundle.created_at)}."
    )


@keys.command("pin")
@click.argument("client_id", type=CLIENT_ID)
@click.pass_context
def keys_pin(ctx: click.Context, client_id: str) -> None:
    """Fetch CLIENT_ID's keys from HQ and pin them, or follow a change that the pinned keys signed.

    A change that the old keys did not sign is refused: see `keys verify`.
    """
    from cipherbox.cli.output import next_step, say
    from cipherbox.client.keys.pins import Pins

    async def work(client: Client) -> None:
        await client.directory.recipients([client_id])

    with_client(ctx, work)
    pin = Pins(home_of(ctx)).get(client_id)
    assert pin is not None
    say(f"Pinned for {client_id}: {pin.fingerprint}")
    if not pin.compared_at:
        here = command_here(ctx)
        next_step(
            f"first contact is as good as HQ's word; compare by telephone: {here} keys verify "
            f"{client_id}"
        )


def _own(ctx: click.Context) -> KeyBundle:
    from cipherbox.cli.home import load_here
    from cipherbox.client.home import keyless

    identity = load_here(ctx).identity
    if identity is None or identity.bundle is None:
        raise keyless("an admin has no keys of its own to show or compare, since it opens nothing")
    return identity.bundle


async def _offered(client: Client, client_id: str) -> KeyBundle:
    return await client.directory.newest_at_hq(client_id)

"""What CipherBox does not protect, shown: the other half of the threat model, so that nobody
promises it by mistake.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import trio

from cipherbox.client.client import open_client
from cipherbox.client.home import load_home
from cipherbox.envelope.prefix import decode_prefix
from cipherbox.envelope.stanza_types import POST_QUANTUM, StanzaType

TEXT = "Sample 17 is ready"


def stored(hq: Any) -> list[bytes]:
    """The envelopes that lie in HQ's database."""
    with closing(sqlite3.connect(hq.directory / "cipherbox.sqlite3")) as database:
        return [
            bytes(data)
            for (data,) in database.execute("SELECT data FROM bodies WHERE data IS NOT NULL")
        ]


async def test_hq_sees_who_writes_to_whom_when_how_much_and_by_which_route(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        await lab.publish(TEXT, to="CA-RC")
    (envelope,) = stored(hq)
    seen = decode_prefix(envelope)  # no key is needed for this
    assert (seen.sender, seen.recipient_ids, seen.message_count) == ("FL-LAB", ("CA-RC",), 1)
    assert seen.sealed_at > 0
    assert seen.body_length > len(TEXT)
    assert TEXT.encode() not in envelope


async def test_a_copy_of_a_home_without_a_password_is_that_client(hq: Any, tmp_path: Path) -> None:
    async with hq.client("FL-LAB") as lab:
        await lab.publish(TEXT, to="CA-RC")
    stolen = tmp_path / "stolen"
    shutil.copytree(hq.home("CA-RC"), stolen)
    async with open_client(stolen) as thief:
        with trio.fail_after(60):
            (delivery,) = await thief.fetch()
        assert [bytes(one.content) for one in delivery.messages] == [TEXT.encode()]
        await thief.publish("not from the center", to="FL-LAB")


async def test_encryption_keys_and_the_bytes_at_hq_are_enough_to_read(
    hq: Any, tmp_path: Path
) -> None:
    from cipherbox.sealing.open import open_envelope, parse_envelope

    async with hq.client("FL-LAB") as lab:
        await lab.publish(TEXT, to="CA-RC")
    (envelope,) = stored(hq)
    sender = load_home(hq.home("FL-LAB")).identity
    center = load_home(hq.home("CA-RC")).identity
    assert sender is not None
    assert sender.bundle is not None
    assert center is not None
    opened = open_envelope(parse_envelope(envelope), center, sender.bundle)
    assert [bytes(message.content) for message in opened] == [TEXT.encode()]


def test_classical_stanzas_fall_to_a_quantum_computer_and_the_program_knows() -> None:
    assert (
        frozenset({StanzaType.HPKE_X25519, StanzaType.RSA_OAEP})
        == frozenset(StanzaType) - POST_QUANTUM
    )

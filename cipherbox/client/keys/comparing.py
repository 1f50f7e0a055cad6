"""Compare another client's keys with the number its owner reads out or shows, and pin them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

from cipherbox.client.home import Home
from cipherbox.client.keys.changes import Change, change_of
from cipherbox.client.keys.directory import Directory
from cipherbox.client.keys.pins import PERSON, Pins
from cipherbox.client.outbox.sender import OutboxSender
from cipherbox.client.sessions.superseded import retire_sessions
from cipherbox.envelope.bundle import KeyBundle, decode_bundle, fingerprint
from cipherbox.wire import frames

SENT = 1000  # envelopes examined for the advice to reseal
_MARK = "CipherBox"  # the first word of a scanned code


class ComparingClient(Protocol):
    """What comparing needs of a client."""

    @property
    def home(self) -> Home: ...

    @property
    def directory(self) -> Directory: ...

    @property
    def outbox_sender(self) -> OutboxSender | None: ...


class Offer(NamedTuple):
    """The keys that HQ serves for a client, and the state known here."""

    bundle: KeyBundle  # the newest
    earlier: list[KeyBundle]  # the others, which a person may still read from a screen
    proof: bytes
    own: KeyBundle | None
    change: Change
    unopened: int


async def offer_of(client: ComparingClient, client_id: str) -> Offer:
    """Ask HQ for a client's keys, and return them beside what is pinned here."""
    directory = client.directory
    bundle = await directory.newest_at_hq(client_id)
    proof = directory.log.bundle_proofs.proof(bundle)
    pin = directory.pins.get(client_id)
    (answer,) = await directory.ask(
        [(client_id, pin.bundle.sequence if pin is not None else frames.NEWEST)]
    )
    found = [decode_bundle(raw) for raw in answer.bundles]
    change = (
        change_of(pin, [*found, bundle], directory.log.bundle_proofs.entry(bundle))
        if pin is not None
        else Change()
    )
    unopened = 0
    if client.outbox_sender is not None:
        rows = await client.outbox_sender.store(
            client.outbox_sender.outbox.unopened_by, client_id, SENT
        )
        unopened = len(rows)
    own = client.home.identity.bundle if client.home.identity is not None else None
    earlier = [
        b for b in (*found, *([pin.bundle] if pin is not None else [])) if b.hash != bundle.hash
    ]
    return Offer(bundle, earlier, proof, own, change, unopened)


def accept_offer(home: Path, offer: Offer, pins: Pins | None = None) -> None:
    """Pin the keys of an offer as compared by a person.  ``pins``: those of a client that runs."""
    pins, bundle = pins or Pins(home), offer.bundle
    pin = pins.get(bundle.client_id)
    if pin is not None and pin.bundle.hash == bundle.hash:
        pins.mark_verified(bundle.client_id)
        return
    pins.accept(bundle, PERSON, proof=offer.proof)
    # anyone who copied the previous keys may follow the sessions begun with them
    if offer.change.broken:
        retire_sessions(home, bundle.client_id)


def agrees(heard: str, bundle: KeyBundle) -> bool:
    """Return whether what a person typed, or what a scanner read, is a bundle's fingerprint.  A
    scanned code must also name the client.
    """
    words = heard.split()
    if words[:1] == [_MARK]:
        if words[1:2] != [bundle.client_id]:
            return False
        heard = "".join(words[3:])
    return digits(heard) == digits(fingerprint(bundle))


def scan_text(bundle: KeyBundle) -> str:
    """Return the text of the QR code that its owner shows: client, bundle number, fingerprint."""
    return f"{_MARK} {bundle.client_id} {bundle.sequence} {fingerprint(bundle)}"


def digits(text: str) -> str:
    """Return the digits in a typed text."""
    return "".join(c for c in text if c.isascii() and c.isdigit())

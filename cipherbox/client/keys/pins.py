"""Pins: the key bundle of each other party that this machine trusts, since when, and why.

``certs/<ID>.bundle`` is the pinned bundle and alone decides; ``certs/pins.json`` records how it was
pinned, whether a person compared fingerprints, and which older bundles were accepted before it
(they still verify old messages). ``certs/<ID>_public.key`` is the bare encryption key, for other
programs; nothing here reads it. ``certs/<ID>.proof`` is HQ's proof that its signed log names the
bundle, ``certs/hq-log.key`` the key of that log.

First contact pins the bundle that HQ's CA certified ("first use"). Later a bundle is accepted only
if the keys of the one before signed it ("succession"), or if a person accepted it ("person").
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import orjson

from cipherbox import clock
from cipherbox.classes import frozen
from cipherbox.client.local_database import translated
from cipherbox.envelope.bundle import VERSION, KeyBundle, decode_bundle, fingerprint
from cipherbox.errors import (
    BundleError,
    BundleForAnother,
    BundleRolledBack,
    CipherBoxError,
    NotFound,
)
from cipherbox.limits import check_client_id
from cipherbox.portable import private_dir, write_atomic

LOG_KEY = "hq-log.key"
FIRST_USE, SUCCESSION, PERSON = "first use", "succession", "person"


@frozen
class Pin:
    """The trusted bundle of one party; times are ms since 1970, 0: never."""

    bundle: KeyBundle
    pinned_by: str
    pinned_at: int
    verified_at: int
    accepted: frozenset[bytes]  # hashes of this bundle and of those accepted before it

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.bundle)

    @property
    def compared_at(self) -> int:
        """When a person compared its fingerprint; 0: never, or only a fingerprint that covered the
        signing keys alone.
        """
        return self.verified_at if self.bundle.version >= VERSION else 0


class Pins:
    """The pins of one home."""

    def __init__(self, home: Path) -> None:
        self._directory = Path(home) / "certs"
        self._cache: dict[str, Pin] = {}

    def get(self, client_id: str) -> Pin | None:
        """Return the pin of a party, or None before first contact."""
        if client_id not in self._cache:
            found = self._load(client_id)
            if found is None:
                return None
            self._cache[client_id] = found
        return self._cache[client_id]

    def entries(self) -> list[Pin]:
        """Return all pins, ordered by client id."""
        names = sorted(path.stem for path in self._directory.glob("*.bundle"))
        return [pin for pin in map(self._load, names) if pin is not None]

    def log_key(self) -> bytes:
        """Return the key of HQ's log as first seen, or nothing before."""
        try:
            return self._log_key_file.read_bytes()
        except FileNotFoundError:
            return b""

    def remember_log_key(self, key: bytes) -> None:
        """Pin the key of HQ's log: from now on another key is an error."""
        with translated(self._log_key_file):
            private_dir(self._directory)
            write_atomic(self._log_key_file, key)

    @property
    def _log_key_file(self) -> Path:
        return self._directory / LOG_KEY

    def proof(self, client_id: str) -> bytes:
        """Return the proof stored with a party's pin, or nothing."""
        try:
            return (self._directory / f"{check_client_id(client_id)}.proof").read_bytes()
        except FileNotFoundError:
            return b""

    def accept(
        self, bundle: KeyBundle, pinned_by: str, also: tuple[bytes, ...] = (), proof: bytes = b""
    ) -> Pin:
        """Pin a bundle that the caller has checked, and return the pin. A lower sequence is always
        refused.

        ``also`` has the hashes of bundles between the former pin and this one; ``proof`` is HQ's
        proof that its signed log names it.
        """
        before = self._load(bundle.client_id)
        if before is not None and bundle.sequence < before.bundle.sequence:
            raise BundleRolledBack(
                f"key bundle {bundle.sequence} of {bundle.client_id} is older than number "
                f"{before.bundle.sequence}, which is pinned here"
            )
        now = clock.now_ms()
        verified = now if pinned_by == PERSON else 0
        if before is not None and pinned_by == SUCCESSION:
            verified = before.compared_at  # the compared keys signed the new ones
        accepted = frozenset([bundle.hash, *also]) | (before.accepted if before else frozenset())
        pin = Pin(bundle, pinned_by, now, verified, accepted)
        with translated(self._directory):
            private_dir(self._directory)
            write_atomic(self._directory / f"{bundle.client_id}.bundle", bundle.raw)
            write_atomic(self._directory / f"{bundle.client_id}.proof", proof)
            keys = bundle.encrypt_keys
            if keys:
                write_atomic(self._directory / f"{bundle.client_id}_public.key", keys[0].public)
        self._note(pin)
        return pin

    def mark_verified(self, client_id: str) -> Pin:
        """Record that a person compared the pinned bundle's fingerprint. Raise NotFound without a
        pin.
        """
        pin = self._load(client_id)
        if pin is None:
            raise NotFound(f"no keys of {client_id} are pinned here")
        pin = attrs.evolve(pin, pinned_by=PERSON, verified_at=clock.now_ms())
        self._note(pin)
        return pin

    def _load(self, client_id: str) -> Pin | None:
        path = self._directory / f"{check_client_id(client_id)}.bundle"
        try:
            bundle = decode_bundle(path.read_bytes())
        except FileNotFoundError:
            return None
        except CipherBoxError as error:
            raise BundleError(
                f"{path} is damaged ({error})", remedy="compare fingerprints, then pin it again"
            ) from None
        if bundle.client_id != client_id:
            raise BundleForAnother(f"{path} holds the keys of {bundle.client_id}")
        note = self._notes().get(client_id, {})
        try:
            known = note.get("hash") == bundle.hash.hex()
            return Pin(
                bundle,
                str(note["how"]) if known else FIRST_USE,
                int(note["pinned_at"]) if known else 0,
                int(note["verified_at"]) if known else 0,
                frozenset([bundle.hash, *(bytes.fromhex(h) for h in note.get("accepted", []))]),
            )
        except (KeyError, TypeError, ValueError):
            return Pin(bundle, FIRST_USE, 0, 0, frozenset([bundle.hash]))

    def _notes(self) -> dict[str, Any]:
        try:
            document = orjson.loads((self._directory / "pins.json").read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):
            # the bundles themselves are the pins; losing a note only loses the "verified" mark
            return {}
        return document if isinstance(document, dict) else {}

    def _note(self, pin: Pin) -> None:
        notes = self._notes()
        notes[pin.bundle.client_id] = {
            "sequence": pin.bundle.sequence,
            "hash": pin.bundle.hash.hex(),
            "fingerprint": pin.fingerprint,
            "how": pin.pinned_by,
            "pinned_at": pin.pinned_at,
            "verified_at": pin.verified_at,
            "accepted": sorted(h.hex() for h in pin.accepted),
        }
        with translated(self._directory):
            write_atomic(
                self._directory / "pins.json", orjson.dumps(notes, option=orjson.OPT_INDENT_2)
            )
        self._cache[pin.bundle.client_id] = pin

"""Pins: which key bundle of each other party this machine believes, since when, and on whose word.

``certs/<ID>.bundle`` is the pinned bundle and the only thing that decides; ``certs/pins.json`` says
how it was pinned, whether a person compared fingerprints, and which older bundles were accepted
before it (they still open old messages).  ``certs/<ID>_public.key`` is the bare encryption key, for
other programs; nothing here reads it.  ``certs/<ID>.proof`` is HQ's proof that its signed log names
the bundle, ``certs/hq-log.key`` the key of that log.

First contact pins what HQ's CA certified ("first use").  From then on a bundle is taken only if the
keys of the one before signed it ("succession"), or if a person said so ("person").
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import orjson

from cipherbox import clock
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


@attrs.frozen
class Pin:
    """What is believed of one party; times are ms since 1970, 0: never."""

    bundle: KeyBundle
    how: str
    pinned_at: int
    verified_at: int
    accepted: frozenset[bytes]  # hashes of this bundle and of those accepted before it

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.bundle)

    @property
    def compared_at(self) -> int:
        """When a person compared its number; 0: never, or with a number that bound the signing
        keys alone.
        """
        return self.verified_at if self.bundle.version >= VERSION else 0


class Pins:
    """The pins of one home."""

    def __init__(self, home: Path) -> None:
        self._directory = Path(home) / "certs"
        self._cache: dict[str, Pin] = {}

    def get(self, client_id: str) -> Pin | None:
        """The pin of a party, or None before first contact."""
        if client_id not in self._cache:
            found = self._load(client_id)
            if found is None:
                return None
            self._cache[client_id] = found
        return self._cache[client_id]

    def entries(self) -> list[Pin]:
        """All pins, by client id."""
        names = sorted(path.stem for path in self._directory.glob("*.bundle"))
        return [pin for pin in map(self._load, names) if pin is not None]

    def log_key(self) -> bytes:
        """The key of HQ's log as it was first seen; empty before."""
        try:
            return self._log_key_file.read_bytes()
        except FileNotFoundError:
            return b""

    def remember_log_key(self, key: bytes) -> None:
        """From now on another key of HQ's log is an error."""
        with translated(self._log_key_file):
            private_dir(self._directory)
            write_atomic(self._log_key_file, key)

    @property
    def _log_key_file(self) -> Path:
        return self._directory / LOG_KEY

    def proof(self, client_id: str) -> bytes:
        """The proof kept beside the pin of a party; empty if there is none."""
        try:
            return (self._directory / f"{check_client_id(client_id)}.proof").read_bytes()
        except FileNotFoundError:
            return b""

    def accept(
        self, bundle: KeyBundle, how: str, also: tuple[bytes, ...] = (), proof: bytes = b""
    ) -> Pin:
        """Pins a bundle that the caller has checked; a lower number is refused, whoever says so.

        ``also``: hashes of bundles between the former pin and it.  ``proof``: HQ's, that its signed
        log names it.
        """
        before = self._load(bundle.client_id)
        if before is not None and bundle.sequence < before.bundle.sequence:
            raise BundleRolledBack(
                f"key bundle {bundle.sequence} of {bundle.client_id} is older than number "
                f"{before.bundle.sequence}, which is pinned here"
            )
        now = clock.now_ms()
        verified = now if how == PERSON else 0
        if before is not None and how == SUCCESSION:
            verified = before.compared_at  # the compared keys signed for the new ones
        accepted = frozenset([bundle.hash, *also]) | (before.accepted if before else frozenset())
        pin = Pin(bundle, how, now, verified, accepted)
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
        """A person compared the fingerprint of the pinned bundle.  NotFound if there is none."""
        pin = self._load(client_id)
        if pin is None:
            raise NotFound(f"no keys of {client_id} are pinned here")
        pin = attrs.evolve(pin, how=PERSON, verified_at=clock.now_ms())
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
                f"{path} is damaged ({error})", remedy="compare fingerprints, then pin anew"
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
            # the bundles themselves are the pins; a lost note only loses the "verified" mark
            return {}
        return document if isinstance(document, dict) else {}

    def _note(self, pin: Pin) -> None:
        notes = self._notes()
        notes[pin.bundle.client_id] = {
            "sequence": pin.bundle.sequence,
            "hash": pin.bundle.hash.hex(),
            "fingerprint": pin.fingerprint,
            "how": pin.how,
            "pinned_at": pin.pinned_at,
            "verified_at": pin.verified_at,
            "accepted": sorted(h.hex() for h in pin.accepted),
        }
        with translated(self._directory):
            write_atomic(
                self._directory / "pins.json", orjson.dumps(notes, option=orjson.OPT_INDENT_2)
            )
        self._cache[pin.bundle.client_id] = pin

"""Private prekeys in the inbox's database, and the offers made from them for HQ.

A *signed* prekey is replaced after a week, together with all one-time prekeys at HQ; the private
keys are kept some weeks longer, for first contacts in transit. A one-time prekey is deleted once a
first message that used it has been decrypted. Prekeys that HQ serves for a client that was offline
for long still work: only replaced keys are ever deleted.

All prekeys at HQ are replaced immediately if they are known to be wrong: the signing keys have
changed, HQ was restored (it would serve used prekeys again), or this home was restored (a first
contact names a higher number than any known here).
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from cipherbox.classes import frozen
from cipherbox.client.hq_time import deletion_ms, stamp_ms
from cipherbox.client.local_database import transaction, translated
from cipherbox.errors import KeyMissing
from cipherbox.limits import LIMITS
from cipherbox.sealing.identity import Identity
from cipherbox.sealing.local_secret_box import SecretBox
from cipherbox.sealing.ratchet.double_ratchet import KEY, public
from cipherbox.sealing.ratchet.handshake import Secrets
from cipherbox.sealing.ratchet.prekeys import Pair, offer, offer_once, session_key_id
from cipherbox.sealing.ratchet.settings import SessionSettings

IDENTITY, SIGNED, ONCE = range(3)
_PLAUSIBLE = 1_000_000  # numbers lost to a restored backup; a larger jump is ignored
_EXHAUSTED = 0xF0000000


@frozen
class Offer:
    """An offer of prekeys for HQ. ``replace``: it replaces all prekeys there; ``prekey_id`` is the
    signed prekey's.
    """

    prekey_id: int
    signed: bytes = attrs.field(repr=False)
    once: tuple[bytes, ...] = attrs.field(repr=False)
    replace: bool


class SessionKeys:
    """This home's private prekeys. It shares the database connection of `Sessions`."""

    def __init__(
        self,
        db: sqlite3.Connection,
        path: Path,
        box: SecretBox,
        identity: Identity,
        settings: SessionSettings,
        clock_ms: Callable[[], int],
        home: Path,
    ) -> None:
        from cipherbox.concurrency import Signal  # with trio: reading an inbox needs neither

        self._db, self._path, self._box, self._identity = db, path, box, identity
        self._settings, self._clock_ms, self._home = settings, clock_ms, home
        # numbers that are in use, though not recorded in this file
        self._unknown: dict[str, int] = {}
        self.unknown = Signal()  # a first contact used a prekey that this file does not have

    def identity(self) -> bytes:
        """Return the private session identity key, created on first use."""
        raw = self._secret(IDENTITY, 1)
        if raw is None:
            with self._transaction():
                raw = self._secret(IDENTITY, 1)
                if raw is None:
                    raw = os.urandom(KEY)
                    self._put(IDENTITY, 1, raw)
        return raw

    def secrets(self, key_id: bytes, signed_id: int, once_id: int) -> Secrets:
        """Return the private keys that a handshake names. Raise KeyMissing if they are missing or
        deleted.
        """
        identity = self._secret(IDENTITY, 1)
        if identity is None or session_key_id(public(identity)) != key_id:
            raise KeyMissing(
                "the session was begun with an identity key that this home does not have"
            )
        signed = self._secret(SIGNED, signed_id)
        self._note_number("signed_id", signed_id)
        self._note_number("once_id", once_id)
        if signed is None:
            raise KeyMissing("the session was begun with a prekey that was deleted here")
        one = Pair.decode(signed)
        if not once_id:
            return Secrets(identity, one.dh, one.kem)
        once = self._secret(ONCE, once_id)
        if once is None:
            raise KeyMissing("the session was begun with a one-time prekey that is already used")
        two = Pair.decode(once)
        return Secrets(identity, one.dh, two.kem, two.dh)

    def _note_number(self, name: str, number: int) -> None:
        if 0 < number - int.from_bytes(self._fact(name) or b"", "big") <= _PLAUSIBLE:
            self._unknown[name] = number
            self.unknown.notify()

    def spent(self, once_id: int) -> tuple[str, tuple[int, int]]:
        """Return the statement that deletes a one-time prekey once its first message has been
        decrypted.
        """
        return "DELETE FROM secrets WHERE kind = ? AND id = ?", (ONCE, once_id)

    # -- offers ------------------------------------------------------------------------------------

    @property
    def checked_at(self) -> int:
        """When HQ was last asked for the number of one-time prekeys, in ms since 1970."""
        return int.from_bytes(self._fact("checked") or b"", "big")

    def must_replace(self, history: bytes = b"") -> bool:
        """Return whether all prekeys at HQ must be replaced; ``history`` is HQ's store incarnation
        id.
        """
        offered = self._fact("offered")
        if offered is None or self._unknown or self._fact("signer") != self._signer():
            return True
        if history and self._fact("history") != history:
            return True
        row = self._db.execute(
            "SELECT made_at FROM secrets WHERE kind = ? AND id = ?",
            (SIGNED, int.from_bytes(offered, "big")),
        ).fetchone()
        return row is None or self._clock_ms() - row[0] > self._settings.signed_prekey_s * 1000

    def replacement(self) -> Offer:
        """Return a new signed prekey and a full set of one-time prekeys; they count once HQ has
        them (`offered`).
        """
        return self._make(self._most, replace=True)

    def refill(self, left: int) -> Offer:
        """Return one-time prekeys to replace used ones; none while at least half, ``left``, remain
        at HQ.
        """
        return self._make(max(0, self._most - left) if left * 2 < self._most else 0, replace=False)

    @property
    def _most(self) -> int:
        return min(self._settings.one_time_prekeys, LIMITS.prekeys_per_client)

    def offered(self, done: Offer, history: bytes = b"") -> None:
        """Record that HQ has this offer."""
        now = self._clock_ms()
        with self._transaction():
            db = self._db
            if done.replace:
                first = int.from_bytes(self._fact("first_once") or b"", "big")
                db.execute(
                    "UPDATE secrets SET replaced_at = ? WHERE replaced_at = 0 AND"
                    " ((kind = ? AND id <> ?) OR (kind = ? AND id < ?))",
                    (stamp_ms(self._home, self._clock_ms()), SIGNED, done.prekey_id, ONCE, first),
                )
                self._put_fact("offered", done.prekey_id.to_bytes(4, "big"))
                self._put_fact("signer", self._signer())
                self._put_fact("history", history)
                self._unknown.clear()
            self._put_fact("checked", now.to_bytes(8, "big"))
            dead = (
                deletion_ms(self._home, self._clock_ms())
                - self._settings.signed_prekey_kept_s * 1000
            )
            db.execute("DELETE FROM secrets WHERE replaced_at > 0 AND replaced_at < ?", (dead,))

    def _make(self, count: int, *, replace: bool) -> Offer:
        if replace and any(
            int.from_bytes(self._fact(n) or b"", "big") > _EXHAUSTED
            for n in ("signed_id", "once_id")
        ):
            # numbers were driven up by a peer: use another identity key, and restart numbers from 1
            with self._transaction():
                self._db.execute("DELETE FROM secrets")
                self._db.execute(
                    "DELETE FROM facts WHERE name IN ('signed_id', 'once_id', 'first_once')"
                )
                self._unknown.clear()
        own = self.identity()
        with self._transaction():
            if replace:
                for name, number in self._unknown.items():
                    self._put_fact(name, number.to_bytes(4, "big"))
                prekey_id, pair = self._next("signed_id"), Pair.generate()
                self._put(SIGNED, prekey_id, pair.encode())
                first = int.from_bytes(self._fact("once_id") or b"", "big") + 1
                self._put_fact("first_once", first.to_bytes(4, "big"))
            else:
                prekey_id = int.from_bytes(self._fact("offered") or b"", "big")
                pair = Pair.decode(self._secret(SIGNED, prekey_id) or b"")
            once = []
            for _ in range(count):
                once_id, one = self._next("once_id"), Pair.generate()
                self._put(ONCE, once_id, one.encode())
                once.append(offer_once(self._identity, own, once_id, one))
            signed = offer(self._identity, own, prekey_id, pair, self._clock_ms())
        return Offer(prekey_id, signed, tuple(once), replace)

    # -- internals ---------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Run a synced transaction: prekeys offered to others must still decrypt later."""
        self._db.execute("PRAGMA synchronous = FULL")
        try:
            with transaction(self._db, self._path):
                yield
        finally:
            self._db.execute("PRAGMA synchronous = NORMAL")

    def _signer(self) -> bytes:
        keys = sorted(self._identity.sign_keys.items())
        return hashlib.sha256(b"".join(bytes([kind]) + key for kind, key in keys)).digest()

    def _secret(self, kind: int, number: int) -> bytes | None:
        row = self._db.execute(
            "SELECT secret FROM secrets WHERE kind = ? AND id = ?", (kind, number)
        ).fetchone()
        return self._box.decrypt(row[0], _place(kind, number)) if row is not None else None

    def _put(self, kind: int, number: int, secret: bytes) -> None:
        row = (kind, number, self._clock_ms(), self._box.encrypt(secret, _place(kind, number)))
        self._db.execute("INSERT INTO secrets VALUES (?, ?, ?, 0, ?)", row)

    def any(self) -> bool:
        """Return whether this home has any prekeys or sessions."""
        with translated(self._path):
            (found,) = self._db.execute(
                "SELECT EXISTS (SELECT 1 FROM secrets) OR EXISTS (SELECT 1 FROM sessions)"
            ).fetchone()
        return bool(found)

    def _fact(self, name: str) -> bytes | None:
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return bytes(row[0]) if row is not None else None

    def _put_fact(self, name: str, value: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def _next(self, name: str) -> int:
        number = int.from_bytes(self._fact(name) or b"", "big") + 1
        self._put_fact(name, number.to_bytes(4, "big"))
        return number


def _place(kind: int, number: int) -> bytes:
    return b"secret" + bytes([kind]) + number.to_bytes(4, "big")

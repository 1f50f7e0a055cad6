"""Private prekeys in the inbox's database, and the offers for HQ.

A *signed* prekey is replaced after a week, with all one-time prekeys at HQ; the private ones are
kept some weeks more, for first contacts under way.  A one-time prekey goes when a first message
that used it has opened.  What HQ hands out of a client that was away for long still opens: only
what was replaced is ever dropped.

All prekeys at HQ are replaced at once when they cannot be right any more: other keys sign now, HQ
was set back (it would hand out again what was used), or this home was (a first contact names a
higher number than any known here).
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from cipherbox.client.local_database import transaction, translated
from cipherbox.concurrency import Signal
from cipherbox.errors import KeyMissing
from cipherbox.limits import LIMITS
from cipherbox.sealing.identity import Identity
from cipherbox.sealing.local_secret_box import SecretBox
from cipherbox.sealing.ratchet.double_ratchet import KEY, public
from cipherbox.sealing.ratchet.handshake import Secrets
from cipherbox.sealing.ratchet.prekeys import Pair, offer, offer_once, session_key_id
from cipherbox.sealing.ratchet.settings import SessionSettings

IDENTITY, SIGNED, ONCE = range(3)
_PLAUSIBLE = 1_000_000  # numbers lost to a restored backup; a jump beyond is somebody's nonsense
_USED_UP = 0xF0000000


@attrs.frozen
class Offer:
    """What goes to HQ.  ``replace``: in place of all that is there; ``prekey_id`` is the signed
    prekey's.
    """

    prekey_id: int
    signed: bytes = attrs.field(repr=False)
    once: tuple[bytes, ...] = attrs.field(repr=False)
    replace: bool


class SessionKeys:
    """See the module.  Shares the connection of `Sessions`."""

    def __init__(
        self,
        db: sqlite3.Connection,
        path: Path,
        box: SecretBox,
        identity: Identity,
        settings: SessionSettings,
        clock_ms: Callable[[], int],
    ) -> None:
        self._db, self._path, self._box, self._identity = db, path, box, identity
        self._settings, self._clock_ms = settings, clock_ms
        # numbers that were given out, though not as far as this file knows
        self._unknown: dict[str, int] = {}
        self.unknown = Signal()  # somebody used a prekey that this file does not know

    def identity(self) -> bytes:
        """The private session identity key, made when first asked for."""
        raw = self._secret(IDENTITY, 1)
        if raw is None:
            with self._transaction():
                raw = self._secret(IDENTITY, 1)
                if raw is None:
                    raw = os.urandom(KEY)
                    self._put(IDENTITY, 1, raw)
        return raw

    def secrets(self, key_id: bytes, signed_id: int, once_id: int) -> Secrets:
        """The private keys a handshake names; KeyMissing if they are not here (any more)."""
        identity = self._secret(IDENTITY, 1)
        if identity is None or session_key_id(public(identity)) != key_id:
            raise KeyMissing("the session was begun with an identity key that is not here")
        signed = self._secret(SIGNED, signed_id)
        self._look_at("signed_id", signed_id)
        self._look_at("once_id", once_id)
        if signed is None:
            raise KeyMissing("the session was begun with a prekey that is not here any more")
        one = Pair.decode(signed)
        if not once_id:
            return Secrets(identity, one.dh, one.kem)
        once = self._secret(ONCE, once_id)
        if once is None:
            raise KeyMissing("the session was begun with a one-time prekey that was used before")
        two = Pair.decode(once)
        return Secrets(identity, one.dh, two.kem, two.dh)

    def _look_at(self, name: str, number: int) -> None:
        if 0 < number - int.from_bytes(self._fact(name) or b"", "big") <= _PLAUSIBLE:
            self._unknown[name] = number
            self.unknown.notify()

    def spent(self, once_id: int) -> tuple[str, tuple[int, int]]:
        """The statement for when a first message with this one-time prekey has opened."""
        return "DELETE FROM secrets WHERE kind = ? AND id = ?", (ONCE, once_id)

    # -- offers ------------------------------------------------------------------------------------

    @property
    def checked_at(self) -> int:
        """When HQ was last asked how many there are, ms since 1970."""
        return int.from_bytes(self._fact("checked") or b"", "big")

    def must_replace(self, history: bytes = b"") -> bool:
        """Whether all prekeys at HQ are due; ``history`` is what HQ calls its own."""
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

    def fresh(self) -> Offer:
        """A new signed prekey and a full set of one-time prekeys; they count when HQ has them
        (`offered`).
        """
        return self._make(self._most, replace=True)

    def more(self, left: int) -> Offer:
        """One-time prekeys for those that were used, ``left`` being still there; few of them,
        and it brings none.
        """
        return self._make(max(0, self._most - left) if left * 2 < self._most else 0, replace=False)

    @property
    def _most(self) -> int:
        return min(self._settings.one_time_prekeys, LIMITS.prekeys_per_client)

    def offered(self, done: Offer, history: bytes = b"") -> None:
        """HQ has them."""
        now = self._clock_ms()
        with self._transaction():
            db = self._db
            if done.replace:
                first = int.from_bytes(self._fact("first_once") or b"", "big")
                db.execute(
                    "UPDATE secrets SET replaced_at = ? WHERE replaced_at = 0 AND"
                    " ((kind = ? AND id <> ?) OR (kind = ? AND id < ?))",
                    (now, SIGNED, done.prekey_id, ONCE, first),
                )
                self._know("offered", done.prekey_id.to_bytes(4, "big"))
                self._know("signer", self._signer())
                self._know("history", history)
                self._unknown.clear()
            self._know("checked", now.to_bytes(8, "big"))
            dead = now - self._settings.signed_prekey_kept_s * 1000
            db.execute("DELETE FROM secrets WHERE replaced_at > 0 AND replaced_at < ?", (dead,))

    def _make(self, count: int, *, replace: bool) -> Offer:
        if replace and any(
            int.from_bytes(self._fact(n) or b"", "big") > _USED_UP for n in ("signed_id", "once_id")
        ):
            # somebody drove the numbers up: another identity key, and numbers from 1
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
                    self._know(name, number.to_bytes(4, "big"))
                prekey_id, pair = self._next("signed_id"), Pair.generate()
                self._put(SIGNED, prekey_id, pair.encode())
                first = int.from_bytes(self._fact("once_id") or b"", "big") + 1
                self._know("first_once", first.to_bytes(4, "big"))
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

    # -- inside ------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Durable: what was offered to others must open later."""
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
        """Whether there are any, or sessions."""
        with translated(self._path):
            (found,) = self._db.execute(
                "SELECT EXISTS (SELECT 1 FROM secrets) OR EXISTS (SELECT 1 FROM sessions)"
            ).fetchone()
        return bool(found)

    def _fact(self, name: str) -> bytes | None:
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return bytes(row[0]) if row is not None else None

    def _know(self, name: str, value: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def _next(self, name: str) -> int:
        number = int.from_bytes(self._fact(name) or b"", "big") + 1
        self._know(name, number.to_bytes(4, "big"))
        return number


def _place(kind: int, number: int) -> bytes:
    return b"secret" + bytes([kind]) + number.to_bytes(4, "big")

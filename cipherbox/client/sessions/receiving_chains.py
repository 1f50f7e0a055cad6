"""The receiving halves of this home's sessions, in the inbox's database, encrypted under its local
key.

Decrypting an envelope changes its session. That change is written in the transaction that records
the envelope: a crash loses both or neither, and HQ redelivers.

1. `decrypt` keeps the next states in memory; `take_received` returns them to the caller that
   records the messages and calls `write` in the same transaction. `recorded` or `discard` reports
   the result.
2. `open` is for programs that record nothing here: the states are written immediately, with the
   envelope's content key (*held*, encrypted), which is deleted once HQ has confirmed the
   acknowledgement. After a crash in between HQ redelivers, and the held key decrypts the envelope.
3. Several processes, and several parts of one, may decrypt in one session. A state only replaces
   the very version it was derived from; if that is gone, the messages are decrypted again on top of
   the current one. The same happens to states in memory that fail to decrypt a message.
4. An envelope that fails to open, for any reason beyond the session too, changes nothing.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from cipherbox.classes import define, frozen
from cipherbox.client.hq_time import deletion_ms, shown_ms, stamp_ms
from cipherbox.client.local_database import transaction, translated
from cipherbox.client.sessions.keys import SessionKeys
from cipherbox.envelope.bundle import KeyBundle
from cipherbox.errors import CipherBoxError, DecryptionFailed, KeyMissing
from cipherbox.limits import LIMITS
from cipherbox.sealing.body import Messages
from cipherbox.sealing.identity import Identity
from cipherbox.sealing.local_secret_box import SecretBox
from cipherbox.sealing.open import ParsedEnvelope, open_envelope
from cipherbox.sealing.primitives import CONTENT_KEY_BYTES
from cipherbox.sealing.ratchet import handshake, session
from cipherbox.sealing.ratchet.session import Parsed, Session
from cipherbox.sealing.ratchet.settings import SessionSettings

STEP = """
CREATE TABLE sessions (
    peer TEXT NOT NULL, session_id BLOB NOT NULL, made_at INTEGER NOT NULL, since INTEGER NOT NULL,
    turn INTEGER NOT NULL, retired INTEGER NOT NULL, used_at INTEGER NOT NULL, version INTEGER NOT NULL,
    state BLOB NOT NULL, start BLOB, PRIMARY KEY (peer, session_id)
) WITHOUT ROWID;
CREATE TABLE secrets (
    kind INTEGER NOT NULL, id INTEGER NOT NULL, made_at INTEGER NOT NULL, replaced_at INTEGER NOT NULL,
    secret BLOB NOT NULL, PRIMARY KEY (kind, id)
) WITHOUT ROWID;
CREATE TABLE held (envelope_hash BLOB PRIMARY KEY, held_at INTEGER NOT NULL, content_key BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""  # noqa: E501
_NO_ROW = 0  # the version of a session without a row
Place = tuple[str, bytes]  # peer, session id


@define(eq=False)
class _Pending:
    """A session with the messages decrypted in it since ``version`` was stored."""

    session: Session
    version: int
    log: list[tuple[Parsed, bytes]] = attrs.Factory(list)  # messages and their bindings, in order
    # envelope hash -> content key, unrecorded
    keys: dict[bytes, bytes] = attrs.field(factory=dict, repr=False)
    once_id: int = 0
    passed: int = 0  # a stored version that failed too


@frozen(eq=False)
class ReceivedSteps:
    """Next states for `ReceivingChains.write`. ``next_version`` is the version that each written
    row gets.
    """

    pending: dict[Place, _Pending]
    next_version: int


class ReceivingChains:
    """The sessions' receiving halves. Methods block on the disk; only `write` may be called from
    another thread.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        path: Path,
        box: SecretBox,
        identity: Identity,
        keys: SessionKeys,
        settings: SessionSettings,
        clock_ms: Callable[[], int],
        home: Path,
    ) -> None:
        self.keys = keys
        self._db, self._path, self._box, self._identity = db, path, box, identity
        self._settings, self._clock_ms, self._home = settings, clock_ms, home
        self._pending: dict[Place, _Pending] = {}
        self._newest: dict[str, Session | None] = {}
        self._newest_of = -1  # the file's data_version that it was read from
        self._held = {bytes(h) for (h,) in db.execute("SELECT envelope_hash FROM held")}

    # -- opening -----------------------------------------------------------------------------------

    def decrypt(self, parsed: ParsedEnvelope, sender: KeyBundle) -> Messages:
        """Decrypt as `open_envelope`, with this home's sessions; the next states stay in memory
        until `take_received`.
        """
        digest = parsed.hashes.envelope_hash
        taken: list[tuple[Place, _Pending, Session, tuple[Parsed, bytes], bytes]] = []

        def in_session(key_id: bytes, stanza: bytes, binding: bytes) -> bytes:
            message = session.parse(stanza)
            place = sender.client_id, message.session_id
            try:
                pending, following, content_key = self._next(place, message, binding, key_id)
            except (KeyMissing, DecryptionFailed) as error:
                kept = self._held_key(place, digest)
                if kept is not None:
                    return kept
                # The sender did seal this (its signature is valid), so the two ends disagree; a new
                # session repairs it.
                raise KeyMissing(f"{error}; the sender is asked to begin another session") from None
            if len(content_key) != CONTENT_KEY_BYTES:
                raise DecryptionFailed("the stanza does not hold a content key")
            taken.append((place, pending, following, (message, binding), content_key))
            return content_key

        with translated(self._path):
            messages = open_envelope(parsed, self._identity, sender, in_session)
        for place, pending, following, step, content_key in taken:
            self._keep_next(place, pending, following, step)
            pending.keys[digest] = content_key
        return messages

    def open(self, parsed: ParsedEnvelope, sender: KeyBundle) -> Messages:
        """Decrypt and write the states immediately; the content key is held until
        `acknowledged`.
        """
        messages = self.decrypt(parsed, sender)
        self._commit()
        return messages

    def receive_step(self, peer: str, parsed: Parsed, binding: bytes) -> None:
        """Receive an empty message that only carries a ratchet step. Raise KeyMissing for an
        unknown session.
        """
        place = peer, parsed.session_id
        with translated(self._path):
            pending, following, _ = self._next(place, parsed, binding)
        self._keep_next(place, pending, following, (parsed, binding))
        self._commit()

    def acknowledged(self, envelope_hashes: Sequence[bytes]) -> None:
        """Delete the held keys of envelopes whose acknowledgement HQ has confirmed."""
        gone = self._held.intersection(envelope_hashes)
        if gone:
            with self._transaction():
                self._db.executemany(
                    "DELETE FROM held WHERE envelope_hash = ?", [(h,) for h in gone]
                )
            self._held -= gone

    # -- writing -----------------------------------------------------------------------------------

    def take_received(self) -> ReceivedSteps:
        """Return the states that are not written yet: to be written, then `recorded`, or all
        discarded.
        """
        following = _new_version()
        taken: dict[Place, _Pending] = {}
        for place, pending in self._pending.items():
            if pending.log:
                taken[place] = attrs.evolve(pending)
                pending.version, pending.log, pending.keys = following, [], {}
                pending.session = _without_start(pending.session)
        return ReceivedSteps(taken, following)

    def write(self, db: sqlite3.Connection, received: ReceivedSteps, *, hold: bool = False) -> None:
        """Write states within the transaction of ``db`` that records the envelopes. ``hold`` also
        stores the content keys, if nothing here records the envelopes.
        """
        for place, pending in received.pending.items():
            if not self._put(db, place, pending.session, pending.version, received.next_version):
                self._put_on_top(db, place, pending)
            if pending.once_id:
                db.execute(*self.keys.spent(pending.once_id))
            if pending.version == _NO_ROW:
                self._drop_old(db, place[0])
            if hold:
                now = stamp_ms(self._home, self._clock_ms())
                rows = [
                    (h, now, self._box.encrypt(key, b"held" + h)) for h, key in pending.keys.items()
                ]
                db.executemany("INSERT OR REPLACE INTO held VALUES (?, ?, ?)", rows)

    def recorded(self, received: ReceivedSteps) -> None:
        """Drop states that are written, and that nothing has changed since."""
        for place in received.pending:
            pending = self._pending.get(place)
            if pending is not None and not pending.log and pending.version == received.next_version:
                del self._pending[place]

    def discard(self) -> None:
        """Discard all states that are not written: HQ redelivers those envelopes."""
        self._pending.clear()

    def _commit(self) -> None:
        received = self.take_received()
        try:
            with self._transaction():
                self.write(self._db, received, hold=True)
        except BaseException:
            self.discard()
            raise
        self._held.update(
            digest for pending in received.pending.values() for digest in pending.keys
        )
        self.recorded(received)

    def _put_on_top(self, db: sqlite3.Connection, place: Place, pending: _Pending) -> None:
        """Decrypt again on top of a row that has changed, and write it as a version that no state
        in memory derives from.
        """
        # it may have been dropped for newer sessions
        found, before = self._read(db, place) or (pending.session, _NO_ROW)
        self._put(
            db, place, self._on_top(found, pending) if before else found, before, _new_version()
        )

    def _on_top(self, found: Session, pending: _Pending) -> Session:
        for parsed, binding in pending.log:
            with suppress(KeyMissing, DecryptionFailed):  # decrypted by the other process too
                found, _ = self._opened(found, parsed, binding)
        return found

    def _put(
        self, db: sqlite3.Connection, place: Place, found: Session, before: int, version: int
    ) -> bool:
        """Replace version ``before`` and return True, or return False if it is gone."""
        peer, session_id = place
        state = found.state
        # Increasing even if the clock is set back: the session used now is dropped last.
        latest = "SELECT coalesce(MAX(used_at), 0) FROM sessions WHERE peer = ?"
        now = max(self._clock_ms(), db.execute(latest, (peer,)).fetchone()[0] + 1)
        locked = self._box.encrypt(session.encode(_without_start(found)), _bound(place))
        start = self._box.encrypt(state.start, _bound(place) + b"start") if state.start else None
        if before == _NO_ROW:
            sql = "INSERT OR IGNORE INTO sessions VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?, ?)"
            row = (*place, found.made_at, found.since, state.turn, now, version, locked, start)
            return db.execute(sql, row).rowcount == 1
        written = db.execute(
            "UPDATE sessions SET turn = ?, used_at = ?, version = ?, state = ?, start = "
            "coalesce(?, start) WHERE peer = ? AND session_id = ? AND version = ?",
            (state.turn, now, version, locked, start, peer, session_id, before),
        )
        return written.rowcount == 1

    # -- existing sessions -------------------------------------------------------------------------

    def begin(self, peer: str, made: Callable[[int], Session]) -> None:
        """Write a session that this end begins; ``made`` gets the least time its handshake may
        have.
        """
        with self._transaction():
            # Above all existing sessions, or a clock that was set back would begin one that is
            # never used. But not above one that the peer refused because the clock was far ahead:
            # it would refuse all later ones.
            (latest,) = self._db.execute(
                "SELECT MAX(made_at) FROM sessions WHERE peer = ? AND NOT (retired AND made_at > "
                "?)",
                (peer, self._clock_ms() + LIMITS.clock_ahead_ms // 2),
            ).fetchone()
            found = made((latest or 0) + 1)
            self._put(self._db, (peer, found.session_id), found, _NO_ROW, 1)
            self._drop_old(self._db, peer)

    def newest(self, peer: str) -> Session | None:
        """Return the session to send in, with the first key of a chain that is not in use yet.

        A session with unreadable state is retired.
        """
        with translated(self._path):
            (state_of_file,) = self._db.execute("PRAGMA data_version").fetchone()
            if state_of_file != self._newest_of:
                self._newest.clear()
                self._newest_of = state_of_file
            if peer not in self._newest:
                self._newest[peer] = self._read_newest(peer)
            return self._newest[peer]

    def _read_newest(self, peer: str) -> Session | None:
        while True:
            row = self._db.execute(
                "SELECT session_id, state, start FROM sessions WHERE peer = ? AND turn > 0 AND "
                "retired = 0 ORDER BY made_at DESC, session_id DESC LIMIT 1",
                (peer,),
            ).fetchone()
            if row is None:
                return None
            place = peer, bytes(row[0])
            with suppress(CipherBoxError):
                found = session.decode(self._box.decrypt(row[1], _bound(place)))
                start = (
                    self._box.decrypt(row[2], _bound(place) + b"start")
                    if row[2] is not None
                    else b""
                )
                return attrs.evolve(found, state=attrs.evolve(found.state, start=start))
            self.retire(place)

    def clear_start(self, place: Place, turn: int) -> None:
        """Delete a chain's first key, from which all others derive, once the outbox has the
        chain.
        """
        with self._transaction():
            self._db.execute(
                "UPDATE sessions SET start = NULL WHERE peer = ? AND session_id = ? AND turn = ?",
                (*place, turn),
            )

    def retire(self, place: Place) -> None:
        """Stop sending in a session."""
        with self._transaction():
            self._db.execute(
                "UPDATE sessions SET retired = 1 WHERE peer = ? AND session_id = ?", place
            )

    # -- internals ---------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with transaction(self._db, self._path):
            yield
        self._newest.clear()

    def _keep_next(
        self, place: Place, pending: _Pending, following: Session, step: tuple[Parsed, bytes]
    ) -> None:
        pending.session = following
        pending.log.append(step)
        self._pending[place] = pending

    def _next(
        self, place: Place, parsed: Parsed, binding: bytes, key_id: bytes | None = None
    ) -> tuple[_Pending, Session, bytes]:
        """Return the session's known state, its next state, and the plaintext. With ``key_id`` a
        handshake may begin the session.
        """
        pending = self._pending.get(place)
        if pending is not None:
            try:
                return pending, *self._opened(pending.session, parsed, binding)
            except (KeyMissing, DecryptionFailed):
                pending = self._caught_up(place, pending)
                if pending is None:
                    raise
        else:
            found = self._read(self._db, place)
            pending = (
                _Pending(*found) if found is not None else self._answer(place[0], key_id, parsed)
            )
        return pending, *self._opened(pending.session, parsed, binding)

    def _opened(self, found: Session, parsed: Parsed, binding: bytes) -> tuple[Session, bytes]:
        return session.decrypt(found, parsed, binding, max_skipped=self._settings.max_skipped)

    def _caught_up(self, place: Place, pending: _Pending) -> _Pending | None:
        """Return the state rebuilt on top of what another process has written, or None if nothing
        new was written since the last call.
        """
        found, version = self._read(self._db, place) or (None, _NO_ROW)
        if found is None or version in (pending.version, pending.passed):
            return None
        pending.passed = version
        return attrs.evolve(pending, session=self._on_top(found, pending), version=version)

    def _read(self, db: sqlite3.Connection, place: Place) -> tuple[Session, int] | None:
        row = db.execute(
            "SELECT state, version FROM sessions WHERE peer = ? AND session_id = ?", place
        ).fetchone()
        return (
            None
            if row is None
            else (session.decode(self._box.decrypt(row[0], _bound(place))), row[1])
        )

    def _held_key(self, place: Place, digest: bytes) -> bytes | None:
        pending = self._pending.get(place)
        if pending is not None and digest in pending.keys:
            return pending.keys[digest]
        row = self._db.execute(
            "SELECT content_key FROM held WHERE envelope_hash = ?", (digest,)
        ).fetchone()
        if row is None:
            return None
        self._held.add(digest)
        return self._box.decrypt(row[0], b"held" + digest)

    def _answer(self, peer: str, key_id: bytes | None, parsed: Parsed) -> _Pending:
        hello = parsed.handshake
        if hello is None or key_id is None:
            raise KeyMissing(f"the session with {peer} is not known here")
        now = self._clock_ms()
        if hello.made_at > max(now, shown_ms(self._home)) + LIMITS.clock_ahead_ms:
            raise KeyMissing(
                "the session was begun in the future", remedy=f"check the clock of {peer}"
            )
        if hello.once_id and any(
            pending.once_id == hello.once_id for pending in self._pending.values()
        ):
            raise KeyMissing("the session was begun with a one-time prekey that is already used")
        secrets = self.keys.secrets(key_id, hello.signed_id, hello.once_id)
        agreed = handshake.answer(secrets, hello, handshake.parties(peer, self._identity.client_id))
        return _Pending(
            session.answered(hello, agreed, secrets.signed, now),
            _NO_ROW,
            once_id=hello.once_id,
        )

    def _drop_old(self, db: sqlite3.Connection, peer: str) -> None:
        before_ms = deletion_ms(self._home, self._clock_ms()) - LIMITS.watermark_ms
        _drop_old(db, peer, self._settings.sessions_per_peer, before_ms)


def _drop_old(db: sqlite3.Connection, peer: str, most: int, held_before_ms: int) -> None:
    db.execute(
        "DELETE FROM sessions WHERE peer = ? AND session_id NOT IN (SELECT session_id FROM "
        "sessions WHERE peer = ? ORDER BY used_at DESC, made_at DESC LIMIT ?)",
        (peer, peer, most),
    )
    # Of envelopes that were never acknowledged from here; HQ has dropped them by then.
    db.execute("DELETE FROM held WHERE held_at < ?", (held_before_ms,))


def _new_version() -> int:
    return int.from_bytes(os.urandom(7), "big") + 1


def _bound(place: Place) -> bytes:
    return place[0].encode() + b"\x00" + place[1]


def _without_start(found: Session) -> Session:
    if not found.state.start:
        return found
    return attrs.evolve(found, state=attrs.evolve(found.state, start=b""))

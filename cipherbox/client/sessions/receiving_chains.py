"""The halves of this home's sessions that hear, in the inbox's database, each encrypted under the
home's local key.

What opens an envelope changes the session it came through.  That change is written in the
transaction that records the envelope: a crash loses both or neither, and HQ delivers again.

1. `hear` opens and keeps the next states in memory; `heard` takes them, for whoever records the
   messages to `write` them in the same transaction.  `recorded` or `forget` says what came of it.
2. `open` is for programs that record nothing here: the states are written at once, with the
   envelope's content key (*held*, encrypted), which goes when HQ has confirmed the ack.  After a
   crash in between HQ delivers again, and the held key opens it.
3. Several processes, and several parts of one, may hear in one session.  A state is written over
   the very one it was made from; when that is not there any more, what was heard is heard again on
   top of the one that is.  So is what is in memory, when something does not open in it.
4. What does not open, for whatever reason behind the session's own too, changes nothing.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

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
_NOT_THERE = 0  # the version of a session that has no row yet
Place = tuple[str, bytes]  # peer, session id


@attrs.define(eq=False)
class _Ear:
    """A session with what was heard in it since ``version`` of it was on the disk."""

    session: Session
    version: int
    log: list[tuple[Parsed, bytes]] = attrs.Factory(list)  # messages and what binds them, in order
    # envelope hash -> content key, not recorded yet
    keys: dict[bytes, bytes] = attrs.field(factory=dict, repr=False)
    once_id: int = 0
    passed: int = 0  # a version on the disk that did not help either


@attrs.frozen(eq=False)
class Heard:
    """Next states, for `ReceivingChains.write`.  ``next_version``: which one the row of each
    place gets.
    """

    ears: dict[Place, _Ear]
    next_version: int


class ReceivingChains:
    """See the module.  Methods block on the disk; `write` alone may be called from another
    thread.
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
    ) -> None:
        self.keys = keys
        self._db, self._path, self._box, self._identity = db, path, box, identity
        self._settings, self._clock_ms = settings, clock_ms
        self._ears: dict[Place, _Ear] = {}
        self._newest: dict[str, Session | None] = {}
        self._newest_of = -1  # the state of the file that it was read from
        self._held = {bytes(h) for (h,) in db.execute("SELECT envelope_hash FROM held")}

    # -- opening -----------------------------------------------------------------------------------

    def hear(self, parsed: ParsedEnvelope, sender: KeyBundle) -> Messages:
        """As `open_envelope`, with this home's sessions; the next state stays in memory until
        `heard`.
        """
        digest = parsed.hashes.envelope_hash
        taken: list[tuple[Place, _Ear, Session, tuple[Parsed, bytes], bytes]] = []

        def in_session(key_id: bytes, stanza: bytes, binding: bytes) -> bytes:
            message = session.parse(stanza)
            place = sender.client_id, message.session_id
            try:
                ear, following, content_key = self._next(place, message, binding, key_id)
            except (KeyMissing, DecryptionFailed) as error:
                kept = self._held_key(place, digest)
                if kept is not None:
                    return kept
                # The sender did seal this (its signature holds), so the two ends disagree; a fresh
                # session mends it.
                raise KeyMissing(f"{error}; the sender is asked to begin another session") from None
            if len(content_key) != CONTENT_KEY_BYTES:
                raise DecryptionFailed("the stanza holds no content key")
            taken.append((place, ear, following, (message, binding), content_key))
            return content_key

        with translated(self._path):
            messages = open_envelope(parsed, self._identity, sender, in_session)
        for place, ear, following, step, content_key in taken:
            self._took(place, ear, following, step)
            ear.keys[digest] = content_key
        return messages

    def open(self, parsed: ParsedEnvelope, sender: KeyBundle) -> Messages:
        """`hear`, and the states are written; the content key is held until `acknowledged`."""
        messages = self.hear(parsed, sender)
        self._commit()
        return messages

    def take_turn(self, peer: str, parsed: Parsed, binding: bytes) -> None:
        """An empty message of a session that is known here; KeyMissing."""
        place = peer, parsed.session_id
        with translated(self._path):
            ear, following, _ = self._next(place, parsed, binding)
        self._took(place, ear, following, (parsed, binding))
        self._commit()

    def acknowledged(self, envelope_hashes: Sequence[bytes]) -> None:
        """HQ has confirmed the acks: these envelopes do not come again, and their keys go."""
        gone = self._held.intersection(envelope_hashes)
        if gone:
            with self._transaction():
                self._db.executemany(
                    "DELETE FROM held WHERE envelope_hash = ?", [(h,) for h in gone]
                )
            self._held -= gone

    # -- writing -----------------------------------------------------------------------------------

    def heard(self) -> Heard:
        """What was heard and not written yet: to be written, then `recorded`, or all is to be
        forgotten.
        """
        following = _fresh_version()
        taken: dict[Place, _Ear] = {}
        for place, ear in self._ears.items():
            if ear.log:
                taken[place] = attrs.evolve(ear)
                ear.version, ear.log, ear.keys = following, [], {}
                ear.session = _without_start(ear.session)
        return Heard(taken, following)

    def write(self, db: sqlite3.Connection, heard: Heard, *, hold: bool = False) -> None:
        """Within the transaction of ``db`` that records the envelopes; ``hold``: nothing here
        records them.
        """
        for place, ear in heard.ears.items():
            if not self._put(db, place, ear.session, ear.version, heard.next_version):
                self._put_on_top(db, place, ear)
            if ear.once_id:
                db.execute(*self.keys.spent(ear.once_id))
            if ear.version == _NOT_THERE:
                self._forget_old(db, place[0])
            if hold:
                now = self._clock_ms()
                rows = [
                    (h, now, self._box.encrypt(key, b"held" + h)) for h, key in ear.keys.items()
                ]
                db.executemany("INSERT OR REPLACE INTO held VALUES (?, ?, ?)", rows)

    def recorded(self, heard: Heard) -> None:
        """It is on the disk."""
        for place in heard.ears:
            ear = self._ears.get(place)
            if ear is not None and not ear.log and ear.version == heard.next_version:
                del self._ears[place]

    def forget(self) -> None:
        """What was heard and not written counts as not heard: those envelopes come again."""
        self._ears.clear()

    def _commit(self) -> None:
        heard = self.heard()
        try:
            with self._transaction():
                self.write(self._db, heard, hold=True)
        except BaseException:
            self.forget()
            raise
        self._held.update(digest for ear in heard.ears.values() for digest in ear.keys)
        self.recorded(heard)

    def _put_on_top(self, db: sqlite3.Connection, place: Place, ear: _Ear) -> None:
        """The row is another by now.  The version is one that nothing in memory was made from."""
        # it may be forgotten, for newer sessions
        found, before = self._read(db, place) or (ear.session, _NOT_THERE)
        self._put(
            db, place, self._on_top(found, ear) if before else found, before, _fresh_version()
        )

    def _on_top(self, found: Session, ear: _Ear) -> Session:
        for parsed, binding in ear.log:
            with suppress(KeyMissing, DecryptionFailed):  # heard by the other, too
                found, _ = self._opened(found, parsed, binding)
        return found

    def _put(
        self, db: sqlite3.Connection, place: Place, found: Session, before: int, version: int
    ) -> bool:
        """Writes over version ``before``; False when that is not there."""
        peer, session_id = place
        state = found.state
        # In order, whatever the clock does: what is used now is the last to be forgotten.
        latest = "SELECT coalesce(MAX(used_at), 0) FROM sessions WHERE peer = ?"
        now = max(self._clock_ms(), db.execute(latest, (peer,)).fetchone()[0] + 1)
        locked = self._box.encrypt(session.encode(_without_start(found)), _bound(place))
        start = self._box.encrypt(state.start, _bound(place) + b"start") if state.start else None
        if before == _NOT_THERE:
            sql = "INSERT OR IGNORE INTO sessions VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?, ?)"
            row = (
                peer,
                session_id,
                found.made_at,
                found.since,
                state.turn,
                now,
                version,
                locked,
                start,
            )
            return db.execute(sql, row).rowcount == 1
        written = db.execute(
            "UPDATE sessions SET turn = ?, used_at = ?, version = ?, state = ?, start = "
            "coalesce(?, start) WHERE peer = ? AND session_id = ? AND version = ?",
            (state.turn, now, version, locked, start, peer, session_id, before),
        )
        return written.rowcount == 1

    # -- sessions that are there -------------------------------------------------------------------

    def begin(self, peer: str, made: Callable[[int], Session]) -> None:
        """Writes a session that begins here; ``made`` gets the least time it may have in its
        handshake.
        """
        with self._transaction():
            # Above all sessions there are, or a clock that was set back would begin one that nobody
            # speaks in.  But not above one that the peer did not take because the clock was far
            # ahead: it would take no later one.
            (latest,) = self._db.execute(
                "SELECT MAX(made_at) FROM sessions WHERE peer = ? AND NOT (retired AND made_at > "
                "?)",
                (peer, self._clock_ms() + LIMITS.clock_ahead_ms // 2),
            ).fetchone()
            found = made((latest or 0) + 1)
            self._put(self._db, (peer, found.session_id), found, _NOT_THERE, 1)
            self._forget_old(self._db, peer)

    def newest(self, peer: str) -> Session | None:
        """The session to speak in, with the first key of a chain that was not spoken in yet.

        One whose state cannot be read is nothing to speak in.
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

    def started(self, place: Place, turn: int) -> None:
        """The outbox has the chain of this turn: its first key, which makes all others, goes
        here.
        """
        with self._transaction():
            self._db.execute(
                "UPDATE sessions SET start = NULL WHERE peer = ? AND session_id = ? AND turn = ?",
                (*place, turn),
            )

    def retire(self, place: Place) -> None:
        """Nothing more is said in it."""
        with self._transaction():
            self._db.execute(
                "UPDATE sessions SET retired = 1 WHERE peer = ? AND session_id = ?", place
            )

    # -- inside ------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with transaction(self._db, self._path):
            yield
        self._newest.clear()

    def _took(
        self, place: Place, ear: _Ear, following: Session, step: tuple[Parsed, bytes]
    ) -> None:
        ear.session = following
        ear.log.append(step)
        self._ears[place] = ear

    def _next(
        self, place: Place, parsed: Parsed, binding: bytes, key_id: bytes | None = None
    ) -> tuple[_Ear, Session, bytes]:
        """The session as it is known, its next state, the plaintext.  ``key_id``: a handshake
        may begin it.
        """
        ear = self._ears.get(place)
        if ear is not None:
            try:
                return ear, *self._opened(ear.session, parsed, binding)
            except (KeyMissing, DecryptionFailed):
                ear = self._caught_up(place, ear)
                if ear is None:
                    raise
        else:
            found = self._read(self._db, place)
            ear = _Ear(*found) if found is not None else self._answer(place[0], key_id, parsed)
        return ear, *self._opened(ear.session, parsed, binding)

    def _opened(self, found: Session, parsed: Parsed, binding: bytes) -> tuple[Session, bytes]:
        return session.decrypt(found, parsed, binding, max_skipped=self._settings.max_skipped)

    def _caught_up(self, place: Place, ear: _Ear) -> _Ear | None:
        """The same on top of what another process has written; None: it has not, since this was
        asked before.
        """
        found, version = self._read(self._db, place) or (None, _NOT_THERE)
        if found is None or version in (ear.version, ear.passed):
            return None
        ear.passed = version
        return attrs.evolve(ear, session=self._on_top(found, ear), version=version)

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
        ear = self._ears.get(place)
        if ear is not None and digest in ear.keys:
            return ear.keys[digest]
        row = self._db.execute(
            "SELECT content_key FROM held WHERE envelope_hash = ?", (digest,)
        ).fetchone()
        if row is None:
            return None
        self._held.add(digest)
        return self._box.decrypt(row[0], b"held" + digest)

    def _answer(self, peer: str, key_id: bytes | None, parsed: Parsed) -> _Ear:
        shaken = parsed.handshake
        if shaken is None or key_id is None:
            raise KeyMissing(f"a session with {peer} that is not known here")
        now = self._clock_ms()
        if shaken.made_at > now + LIMITS.clock_ahead_ms:
            raise KeyMissing(f"the session was begun in the future; is the clock of {peer} right?")
        if shaken.once_id and any(ear.once_id == shaken.once_id for ear in self._ears.values()):
            raise KeyMissing("the session was begun with a one-time prekey that was used before")
        secrets = self.keys.secrets(key_id, shaken.signed_id, shaken.once_id)
        agreed = handshake.answer(
            secrets, shaken, handshake.parties(peer, self._identity.client_id)
        )
        return _Ear(
            session.answered(shaken, agreed, secrets.signed, now),
            _NOT_THERE,
            once_id=shaken.once_id,
        )

    def _forget_old(self, db: sqlite3.Connection, peer: str) -> None:
        db.execute(
            "DELETE FROM sessions WHERE peer = ? AND session_id NOT IN (SELECT session_id FROM "
            "sessions WHERE peer = ? ORDER BY used_at DESC, made_at DESC LIMIT ?)",
            (peer, peer, self._settings.sessions_per_peer),
        )
        # Of envelopes that never were acknowledged from here; HQ has given them up by then.
        dead = self._clock_ms() - LIMITS.watermark_ms
        db.execute("DELETE FROM held WHERE held_at < ?", (dead,))


def _fresh_version() -> int:
    return int.from_bytes(os.urandom(7), "big") + 1


def _bound(place: Place) -> bytes:
    return place[0].encode() + b"\x00" + place[1]


def _without_start(found: Session) -> Session:
    if not found.state.start:
        return found
    return attrs.evolve(found, state=attrs.evolve(found.state, start=b""))

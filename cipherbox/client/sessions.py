"""This home's sessions and private prekeys: one database, every secret in it encrypted under the home's local key.

Inbox and outbox are files of their own, and SQLite does not commit two files as one.  So the order does it, and no step
depends on two commits happening together:

1. Sealing: the session's next state is committed before the envelope is made, and on stable storage (`sync`) before
   the envelope is in the outbox, and so before it can leave.  A crash in between loses a message number, which the
   other end skips; no message key is used twice.
2. Opening: the next state and the opened envelope's content key (*held*, encrypted) are written together.  The held key
   goes when HQ has confirmed the ack, so after the inbox, or the program, has recorded the messages.  A crash in
   between: HQ delivers again, and the held key opens it.  This commit need not be on stable storage before anything
   else: an older state opens the same message again.
3. What does not open, for whatever reason behind the session's own too, is rolled back.

Several processes of one home use the same sessions, so nothing is kept in memory between steps.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from cipherbox.client.localdb import open_database, transaction, translated
from cipherbox.client.sessionkeys import SessionKeys
from cipherbox.config import ClientConfig
from cipherbox.envelope.bundle import KeyBundle
from cipherbox.envelope.kinds import StanzaType, label
from cipherbox.envelope.layout import stanza as stanza_of
from cipherbox.errors import DecryptionFailed, InvalidRequest, KeyMissing, StoreError
from cipherbox.limits import LIMITS
from cipherbox.portable import sync_directory, sync_file
from cipherbox.sealing.body import Messages
from cipherbox.sealing.identity import Identity
from cipherbox.sealing.kept import Vault
from cipherbox.sealing.open import Sighted, inspect, open_envelope
from cipherbox.sealing.primitives import CONTENT_KEY_BYTES
from cipherbox.sealing.sessions import handshake, session
from cipherbox.sealing.sessions.handshake import Prekeys
from cipherbox.sealing.sessions.prekeys import session_key_id
from cipherbox.sealing.sessions.session import Parsed, Session
from cipherbox.sealing.sessions.settings import SessionSettings

DATABASE = "sessions.sqlite3"
STEP_TYPE = "application/vnd.cipherbox.session-step"  # a message of a session that turns its ratchet, beside receipts
_STEP = label("session-step")
_STEPS = (
    """
CREATE TABLE sessions (
    peer TEXT NOT NULL, session_id BLOB NOT NULL, made_at INTEGER NOT NULL, since INTEGER NOT NULL,
    speaks INTEGER NOT NULL, retired INTEGER NOT NULL, used_at INTEGER NOT NULL, state BLOB NOT NULL,
    PRIMARY KEY (peer, session_id)
) WITHOUT ROWID;
CREATE TABLE secrets (
    kind INTEGER NOT NULL, id INTEGER NOT NULL, made_at INTEGER NOT NULL, replaced_at INTEGER NOT NULL,
    secret BLOB NOT NULL, PRIMARY KEY (kind, id)
) WITHOUT ROWID;
CREATE TABLE held (envelope_hash BLOB PRIMARY KEY, held_at INTEGER NOT NULL, content_key BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
""",
)


def settings_of(config: ClientConfig) -> SessionSettings:
    """What `[sessions]` of client.toml says."""
    return SessionSettings(**attrs.asdict(config.sessions))


class _Speaker:
    """A session of the transaction that is open; see `seal.Speaker`."""

    def __init__(self, found: Session) -> None:
        self.session = found
        self.key_id = session_key_id(found.peer_identity)
        self.stanza_bytes = found.size(CONTENT_KEY_BYTES)

    def wrap(self, content_key: bytes, binding: bytes) -> bytes:
        self.session, raw = session.seal(self.session, content_key, binding)
        return raw


class Sessions:
    """See the module.  Methods block on the disk; the database is made when it is first needed."""

    def __init__(
        self, home: Path, vault: Vault, identity: Identity, settings: SessionSettings,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:  # fmt: skip
        self.settings = settings
        self._path = home / DATABASE
        self._vault, self._identity, self._clock_ms = vault, identity, clock_ms
        self._me = identity.client_id
        self._opened: sqlite3.Connection | None = None
        self._unsynced = False
        self._keys: SessionKeys | None = None

    @property
    def _db(self) -> sqlite3.Connection:
        if self._opened is None:
            self._opened = open_database(self._path, _STEPS)
            sync_directory(self._path.parent)
            self._opened.execute("PRAGMA secure_delete = ON")
            self._opened.execute("PRAGMA synchronous = NORMAL")
        return self._opened

    @property
    def exists(self) -> bool:
        """Whether this home ever had a session or prekeys."""
        return self._opened is not None or self._path.exists()

    @property
    def keys(self) -> SessionKeys:
        """Private prekeys."""
        if self._keys is None:
            self._keys = SessionKeys(self._db, self._path, self._vault, self._identity, self.settings, self._clock_ms)
        return self._keys

    def close(self) -> None:
        if self._opened is not None:
            with suppress(StoreError):
                self.sync()
            self._opened.close()
            self._opened = self._keys = None

    @contextmanager
    def _step(self) -> Iterator[None]:
        with transaction(self._db, self._path):
            yield

    def sync(self) -> None:
        """Puts everything committed so far on stable storage: what is said in a session leaves after this.

        One sync for whatever was sealed meanwhile, and from any thread.  What a checkpoint has moved on is synced by
        the checkpoint; the rest is in the WAL.
        """
        if not self._unsynced:
            return
        self._unsynced = False
        try:
            with translated(self._path), suppress(FileNotFoundError):  # the last to close it has synced and removed it
                sync_file(self._path.with_name(f"{DATABASE}-wal"))
        except BaseException:
            self._unsynced = True
            raise

    # -- speaking -----------------------------------------------------------------------------------------------

    def due(self, peer: str) -> bool:
        """Whether a fresh session should be begun: there is none to speak in, or it is old.

        One whose state cannot be read is nothing to speak in.
        """
        while (row := self._newest(peer)) is not None:
            since, session_id, state = row
            try:
                self._load(peer, session_id, state)
            except (DecryptionFailed, StoreError):
                self._retire(peer, session_id)
                continue
            return self._clock_ms() - since > self.settings.rotation_s * 1000
        return True

    def speaks_with(self, peer: str) -> bool:
        """Whether there is a session to speak in, old or not."""
        return self._newest(peer) is not None

    def begin(self, peer: str, prekeys: Prekeys) -> None:
        """Begins a session as its initiator; the handshake goes with the messages.  BundleMalformed."""
        now = self._clock_ms()
        parties = handshake.parties(self._me, peer)
        own = self.keys.identity()
        with self._step():
            # Above all sessions there are, or a clock that was set back would begin one that nobody speaks in.
            (latest,) = self._db.execute("SELECT MAX(made_at) FROM sessions WHERE peer = ?", (peer,)).fetchone()
            shaken, agreed = handshake.begin(own, prekeys, max(now, (latest or 0) + 1), parties)
            self._save(peer, session.started(shaken, agreed, prekeys, now))
            self._forget_old(peer)

    def retire(self, peer: str, raw: bytes) -> None:
        """The sender's own envelope did not open at the peer: nothing more is said in the session it went through."""
        sighted = inspect(raw)
        for index, entry in enumerate(sighted.layout.prefix.recipients):
            if entry.client_id == peer and entry.stanza_type == StanzaType.RATCHET:
                session_id = session.parse(stanza_of(raw, sighted.layout, index)).session_id
                self._retire(peer, session_id)

    def _retire(self, peer: str, session_id: bytes) -> None:
        with self._step():
            self._db.execute("UPDATE sessions SET retired = 1 WHERE peer = ? AND session_id = ?", (peer, session_id))

    @contextmanager
    def speakers(self, peers: Sequence[str]) -> Iterator[list[_Speaker]]:
        """A session with each peer to seal in.  Leaving the block commits their next states; `sync` comes after it."""
        self._unsynced = True
        with self._step():
            found = []
            for peer in peers:
                row = self._newest(peer)
                if row is None:
                    raise InvalidRequest(f"there is no session with {peer}; send again, and one is begun")
                found.append(_Speaker(self._load(peer, row[1], row[2])))
            yield found
            for peer, speaker in zip(peers, found, strict=True):
                self._save(peer, speaker.session)

    def turn(self, peer: str) -> bytes | None:
        """An empty message of the session, to go beside receipts: it carries this end's new ratchet key, so that the
        session heals though nobody answers.  `sync` before it leaves.  None: the peer has spoken in no session."""
        if not self.exists:
            return None
        self._unsynced = True
        with self._step():
            row = self._newest(peer)
            if row is None:
                return None
            found = self._load(peer, row[1], row[2])
            if found.handshake:
                return None
            found, raw = session.seal(found, b"", _STEP)
            self._save(peer, found)
        return raw

    # -- hearing ------------------------------------------------------------------------------------------------

    def take_turn(self, peer: str, raw: bytes) -> None:
        """Takes in what `turn` made at the other end; EnvelopeError if it is of no session known here."""
        if not self.exists:
            raise KeyMissing("there are no sessions here")
        parsed = session.parse(raw)
        with self._step():
            row = self._row(peer, parsed.session_id)
            if row is None:
                raise KeyMissing("there is no such session here")
            found = self._load(peer, parsed.session_id, row)
            found, _ = session.open_(found, parsed, _STEP, max_skipped=self.settings.max_skipped)
            self._save(peer, found)

    def open(self, sighted: Sighted, sender: KeyBundle) -> Messages:
        """As `open_envelope`, with this home's sessions; what does not open changes nothing."""
        digest = sighted.hashes.envelope_hash

        def in_session(key_id: bytes, stanza: bytes, binding: bytes) -> bytes:
            held = self._db.execute("SELECT content_key FROM held WHERE envelope_hash = ?", (digest,)).fetchone()
            if held is not None:
                return self._vault.unlock(held[0], b"held" + digest)
            try:
                content_key = self._hear(sender.client_id, key_id, session.parse(stanza), binding)
            except DecryptionFailed as error:
                # The sender did seal this (its signature holds), so the two ends disagree; a fresh session mends it.
                raise KeyMissing(f"{error}; the sender is asked to begin another session") from None
            if len(content_key) != CONTENT_KEY_BYTES:
                raise DecryptionFailed("the stanza holds no content key")
            row = (digest, self._clock_ms(), self._vault.lock(content_key, b"held" + digest))
            self._db.execute("INSERT INTO held VALUES (?, ?, ?)", row)
            return content_key

        with self._step():
            return open_envelope(sighted, self._identity, sender, in_session)

    def acknowledged(self, envelope_hashes: Sequence[bytes]) -> None:
        """HQ has confirmed the acks: these envelopes do not come again, and their keys go."""
        if envelope_hashes and self.exists:
            with self._step():
                self._db.executemany("DELETE FROM held WHERE envelope_hash = ?", [(h,) for h in envelope_hashes])

    # -- inside -------------------------------------------------------------------------------------------------

    def _hear(self, peer: str, key_id: bytes, parsed: Parsed, binding: bytes) -> bytes:
        row = self._row(peer, parsed.session_id)
        found = self._answer(peer, key_id, parsed) if row is None else self._load(peer, parsed.session_id, row)
        found, plain = session.open_(found, parsed, binding, max_skipped=self.settings.max_skipped)
        self._save(peer, found)
        if row is None:
            assert parsed.handshake is not None
            self.keys.used(parsed.handshake.once_id)
            self._forget_old(peer)
        return plain

    def _answer(self, peer: str, key_id: bytes, parsed: Parsed) -> Session:
        shaken = parsed.handshake
        if shaken is None:
            raise KeyMissing(f"a session with {peer} that is not known here; the sender is asked to begin another")
        now = self._clock_ms()
        if shaken.made_at > now + LIMITS.clock_ahead_ms:
            raise KeyMissing(f"the session was begun in the future; is the clock of {peer} right?")
        secrets = self.keys.secrets(key_id, shaken.signed_id, shaken.once_id)
        agreed = handshake.answer(secrets, shaken, handshake.parties(peer, self._me))
        return session.answered(shaken, agreed, secrets.signed, now)

    def _newest(self, peer: str) -> tuple[int, bytes, bytes] | None:
        """(since, session id, state) of the session to speak in."""
        found: tuple[int, bytes, bytes] | None = None
        if self.exists:
            found = self._db.execute(
                "SELECT since, session_id, state FROM sessions WHERE peer = ? AND speaks = 1 AND retired = 0"
                " ORDER BY made_at DESC, session_id DESC LIMIT 1",
                (peer,),
            ).fetchone()
        return found

    def _row(self, peer: str, session_id: bytes) -> bytes | None:
        query = "SELECT state FROM sessions WHERE peer = ? AND session_id = ?"
        row = self._db.execute(query, (peer, session_id)).fetchone()
        return bytes(row[0]) if row is not None else None

    def _load(self, peer: str, session_id: bytes, locked: bytes) -> Session:
        return session.decode(self._vault.unlock(locked, peer.encode() + b"\x00" + session_id))

    def _save(self, peer: str, s: Session) -> None:
        locked = self._vault.lock(session.encode(s), peer.encode() + b"\x00" + s.session_id)
        self._db.execute(
            "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, 0, ?, ?) ON CONFLICT (peer, session_id)"
            " DO UPDATE SET speaks = excluded.speaks, used_at = excluded.used_at, state = excluded.state",
            (peer, s.session_id, s.made_at, s.since, s.can_send, self._clock_ms(), locked),
        )

    def _forget_old(self, peer: str) -> None:
        self._db.execute(
            "DELETE FROM sessions WHERE peer = ? AND session_id NOT IN (SELECT session_id FROM sessions WHERE peer = ?"
            " ORDER BY used_at DESC, made_at DESC LIMIT ?)",
            (peer, peer, self.settings.sessions_per_peer),
        )
        # Of envelopes that never were acknowledged from here; HQ has given them up by then.
        dead = self._clock_ms() - LIMITS.watermark_ms
        self._db.execute("DELETE FROM held WHERE held_at < ?", (dead,))


def in_sessions(sighted: Sighted) -> bool:
    """Whether an envelope has a stanza of a session."""
    return any(entry.stanza_type == StanzaType.RATCHET for entry in sighted.layout.prefix.recipients)


__all__ = ["STEP_TYPE", "Sessions", "in_sessions", "settings_of"]

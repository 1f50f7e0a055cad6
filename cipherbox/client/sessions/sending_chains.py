"""The sending halves of this home's sessions: sending chains, in the outbox's database, encrypted
under its local key.

Each envelope sealed in a session advances its chain by one. The new position is written in the
transaction that adds the envelope to the outbox, so a crash loses both or neither, and no message
key is used for two envelopes that were sent. Until then it is in memory.

Another process of this home may have advanced the same chain meanwhile, or a step in between may
not have been written. So a batch is written only if its steps are contiguous from the chain's
position; otherwise its envelopes are not sent, and are sealed again (SessionMoved).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from operator import attrgetter

from cipherbox import clock
from cipherbox.classes import frozen
from cipherbox.limits import LIMITS
from cipherbox.sealing.local_secret_box import SecretBox
from cipherbox.sealing.ratchet import session
from cipherbox.sealing.ratchet.double_ratchet import Chain

STEP = """
CREATE TABLE chains (
    session_id BLOB PRIMARY KEY, turn INTEGER NOT NULL, sent INTEGER NOT NULL, used_at INTEGER NOT NULL,
    state BLOB NOT NULL
) WITHOUT ROWID;
"""  # noqa: E501
At = tuple[int, int]  # root step, messages sent in it
_BEGINNING: At = (0, 0)


@frozen(eq=False)
class RatchetStep:
    """A message sealed in a session: its chain's position before, and the chain after it."""

    peer: str
    session_id: bytes
    before: At
    after: Chain

    @property
    def begins(self) -> bool:
        """Whether this was the first message of its chain."""
        return self.before[0] != self.after.turn


def at(chain: Chain | None) -> At:
    """Return a chain's position."""
    return _BEGINNING if chain is None else (chain.turn, chain.sent)


class SendingChains:
    """Reads and writes the chains' table; the caller owns the connection."""

    def __init__(self, box: SecretBox) -> None:
        self._box = box

    def read(self, db: sqlite3.Connection, session_id: bytes) -> Chain | None:
        """Return the chain as stored, or None. Raise DecryptionFailed or Damaged if it is
        unreadable.
        """
        row = db.execute("SELECT state FROM chains WHERE session_id = ?", (session_id,)).fetchone()
        return (
            None
            if row is None
            else session.decode_chain(self._box.decrypt(row[0], b"chain" + session_id))
        )

    def write(self, db: sqlite3.Connection, steps: Iterable[RatchetStep]) -> set[bytes]:
        """Write steps within a transaction; return the ids of sessions whose steps are not
        contiguous, for which nothing is written.
        """
        by_session: dict[bytes, list[RatchetStep]] = {}
        for step in steps:
            by_session.setdefault(step.session_id, []).append(step)
        moved = set()
        for name, several in by_session.items():
            row = db.execute(
                "SELECT turn, sent FROM chains WHERE session_id = ?", (name,)
            ).fetchone()
            place = row or _BEGINNING
            for step in sorted(several, key=attrgetter("before")):
                if step.before != place:
                    moved.add(name)
                    break
                chain = step.after
                place = at(chain)
            if name in moved:
                continue
            now = clock.now_ms()
            if row is None:  # rare enough to also delete chains that are too old to be in use
                db.execute("DELETE FROM chains WHERE used_at < ?", (now - LIMITS.watermark_ms,))
            locked = self._box.encrypt(session.encode_chain(chain), b"chain" + name)
            db.execute(
                "INSERT OR REPLACE INTO chains VALUES (?, ?, ?, ?, ?)",
                (name, *at(chain), now, locked),
            )
        return moved

"""The halves of this home's sessions that speak: sending chains, in the outbox's database, under
the local key.

Each envelope that is sealed in a session turns its chain by one.  Where the chain stands then is
written in the transaction that puts the envelope into the outbox, so a crash loses both or neither,
and no message key is used for two envelopes that left.  Until then it stands in memory.

Another process of this home may have turned the same chain meanwhile, or a step between may not
have been written.  So a batch is written only if its steps follow one on the other from where the
chain stands; otherwise its envelopes do not leave, and are sealed again (SessionMoved).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from operator import attrgetter

import attrs

from cipherbox import clock
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
At = tuple[int, int]  # turn of the root, messages sent in it
_BEGINNING: At = (0, 0)


@attrs.frozen(eq=False)
class RatchetStep:
    """A message sealed in a session: where its chain stood before, and the chain after it."""

    peer: str
    session_id: bytes
    before: At
    after: Chain

    @property
    def begins(self) -> bool:
        """Whether this was the first of its chain."""
        return self.before[0] != self.after.turn


def at(chain: Chain | None) -> At:
    """Where a chain stands."""
    return _BEGINNING if chain is None else (chain.turn, chain.sent)


class SendingChains:
    """Reads and writes the table; the connection is the caller's."""

    def __init__(self, box: SecretBox) -> None:
        self._box = box

    def read(self, db: sqlite3.Connection, session_id: bytes) -> Chain | None:
        """As far as it was written; DecryptionFailed or Damaged when it cannot be read."""
        row = db.execute("SELECT state FROM chains WHERE session_id = ?", (session_id,)).fetchone()
        return (
            None
            if row is None
            else session.decode_chain(self._box.decrypt(row[0], b"chain" + session_id))
        )

    def write(self, db: sqlite3.Connection, steps: Iterable[RatchetStep]) -> set[bytes]:
        """Within a transaction; the ids of sessions whose steps do not follow: nothing of these
        is written.
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
            if row is None:  # rarely: sessions that nobody can have spoken in for so long go
                db.execute("DELETE FROM chains WHERE used_at < ?", (now - LIMITS.watermark_ms,))
            locked = self._box.encrypt(session.encode_chain(chain), b"chain" + name)
            db.execute(
                "INSERT OR REPLACE INTO chains VALUES (?, ?, ?, ?, ?)",
                (name, *at(chain), now, locked),
            )
        return moved

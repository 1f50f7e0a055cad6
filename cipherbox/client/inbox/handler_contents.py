"""Contents that wait for a handler, encrypted in the inbox's database under the home's local key.

A row is an envelope; a byte of its ``states`` is a message. A message that is a file waits until
the file is complete.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from typing import Any

import orjson

from cipherbox.client.inbox.lines import Received
from cipherbox.sealing.body import Message, Messages, pack, unpack
from cipherbox.sealing.local_secret_box import SecretBox

WAITING, DONE, PARKED, NOT_WHOLE = range(4)
STEP = """
ALTER TABLE contents ADD COLUMN locked INTEGER NOT NULL DEFAULT 0;
ALTER TABLE contents ADD COLUMN files TEXT NOT NULL DEFAULT '';
"""
_MAX_TIME = (1 << 62) - 1  # senders' clocks are untrusted, and SQLite's integers are limited


class Contents:
    """Writes contents within the inbox's transaction."""

    def __init__(self, db: sqlite3.Connection, box: SecretBox | None) -> None:
        self._db, self._box = db, box

    def keep(self, number: int, received: Received, files: Collection[int]) -> None:
        """Store all messages of an envelope; ``files`` are those that are incomplete."""
        states = bytes(
            NOT_WHOLE if index in files else WAITING for index in range(len(received.messages))
        )
        plain = pack(list(received.messages))
        self._insert(
            number, received.sender, received.envelope_id, received.sealed_at, plain, states, ""
        )

    def files(
        self,
        number: int,
        envelope_id: bytes,
        whole: Sequence[tuple[str, int, str, int, dict[str, Any]]],
    ) -> None:
        """Mark files of one envelope as complete, so that they wait for the handler.

        ``whole`` has sender, message, content type, time of sending and the handler's description
        of each.
        """
        row = self._db.execute(
            "SELECT states, files FROM contents WHERE number = ?", (number,)
        ).fetchone()
        if row is None and (len(whole) > 1 or whole[0][1]):
            return  # its messages arrived while no handler was configured
        if row is None:
            ((sender, _, content_type, sent_at, about),) = whole
            plain = pack([Message(b"", content_type)])
            files = orjson.dumps({"0": about}).decode()
            self._insert(number, sender, envelope_id, sent_at, plain, bytes([WAITING]), files)
            return
        states, files = bytearray(row[0]), orjson.loads(row[1] or "{}")
        for _, index, _, _, about in whole:
            states[index], files[str(index)] = WAITING, about
        self._db.execute(
            "UPDATE contents SET states = ?, files = ? WHERE number = ?",
            (bytes(states), orjson.dumps(files).decode(), number),
        )

    def drop(self, number: int, index: int) -> None:
        """Record that a file will not become complete, so no handler waits for it."""
        row = self._db.execute("SELECT states FROM contents WHERE number = ?", (number,)).fetchone()
        if row is None:
            return
        states = bytearray(row[0])
        states[index] = DONE
        if set(states) == {DONE}:
            self._db.execute("DELETE FROM contents WHERE number = ?", (number,))
        else:
            self._db.execute(
                "UPDATE contents SET states = ? WHERE number = ?", (bytes(states), number)
            )

    def _insert(
        self,
        number: int,
        sender: str,
        envelope_id: bytes,
        sealed_at: int,
        plain: bytes,
        states: bytes,
        files: str,
    ) -> None:
        locked = self._box is not None
        if self._box is not None:
            plain = self._box.encrypt(plain, _place(sender, envelope_id))
        self._db.execute(
            "INSERT INTO contents (number, sealed_at, plain, states, locked, files) VALUES (?, "
            "?, ?, ?, ?, ?)",
            (number, min(sealed_at, _MAX_TIME), plain, states, locked, files),
        )


def lock_contents(db: sqlite3.Connection, box: SecretBox) -> None:
    """Encrypt contents that versions before 0.6.0 stored in clear, within a transaction."""
    rows = db.execute(
        "SELECT c.number, e.sender, e.envelope_id, c.plain FROM contents c JOIN envelopes e ON "
        "e.number = c.number WHERE NOT c.locked"
    ).fetchall()
    for number, sender, envelope_id, plain in rows:
        locked = box.encrypt(plain, _place(sender, envelope_id))
        db.execute("UPDATE contents SET plain = ?, locked = 1 WHERE number = ?", (locked, number))


def opened(
    box: SecretBox,
    plain: bytes,
    locked: bool,
    sender: str,
    envelope_id: bytes,
    count: int,
    sealed_at: int,
) -> Messages:
    """Return the messages of a row."""
    if locked:
        plain = box.decrypt(plain, _place(sender, envelope_id))
    return unpack(plain, count, sealed_at)


def _place(sender: str, envelope_id: bytes) -> bytes:
    return b"contents" + envelope_id + sender.encode()

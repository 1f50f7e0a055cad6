"""What was received, kept in the inbox's database under the home's local key: the lines of each
envelope, and of each file when it is whole.

The readable file is written beside it in the same transaction.  From here it can be listed,
searched and written again, whatever became of that file, and under a password this is the only
place.  What is older than ``keep_days`` goes.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import orjson
import zstandard

from cipherbox.client.inbox.lines import is_text
from cipherbox.client.local_database import translated
from cipherbox.envelope.ids import split_message_id
from cipherbox.sealing.local_secret_box import SecretBox

STEP = """
CREATE TABLE lines (
  place INTEGER PRIMARY KEY, sender TEXT NOT NULL, envelope_id BLOB NOT NULL, at INTEGER NOT NULL, data BLOB NOT NULL
);
CREATE INDEX lines_by_envelope ON lines (envelope_id);
CREATE INDEX lines_by_time ON lines (at);
"""  # noqa: E501
_PAGE = 256  # envelopes
_MOST = 64 * 1024 * 1024  # of one envelope's lines: a body, and what JSON adds


@attrs.frozen
class Entry:
    """One message or file as it was received; times are ms since 1970.

    ``line`` is its line as bytes.  ``file``: where it lies, or the name of what is kept under the
    local key.
    """

    message_id: str
    sender_id: str
    received_at: int
    content_type: str
    size: int
    suite: int  # of the signature that was verified
    filename: str
    file: str
    kept: str
    line: bytes = attrs.field(repr=False)
    document: dict[str, Any] = attrs.field(repr=False)

    @property
    def text(self) -> str | None:
        """The content of a message; None for a file."""
        content = self.document.get("content")
        return content if isinstance(content, str) else None


class EncryptedLines:
    """Writes inside the inbox's transaction."""

    def __init__(self, db: sqlite3.Connection, box: SecretBox) -> None:
        self._db, self._box = db, box
        self._compressor = zstandard.ZstdCompressor(1)

    def write(
        self, sender: str, envelope_id: bytes, at: int, lines: bytes, types: list[str], suite: int
    ) -> None:
        """The lines of one envelope, or of one of its files; one type stands for all."""
        head = orjson.dumps({"types": types, "suite": suite}, option=orjson.OPT_APPEND_NEWLINE)
        # joined, both would be there twice
        stream = self._compressor.compressobj(size=len(head) + len(lines))
        packed = b"".join((stream.compress(head), stream.compress(lines), stream.flush()))
        data = self._box.encrypt(packed, _place(sender, envelope_id))
        self._db.execute(
            "INSERT INTO lines (sender, envelope_id, at, data) VALUES (?, ?, ?, ?)",
            (sender, envelope_id, at, data),
        )

    def forget(self, before_ms: int) -> int:
        """Drops what was received before that time; how many envelopes and files."""
        return self._db.execute("DELETE FROM lines WHERE at < ?", (before_ms,)).rowcount


class Shelf:
    """Reads what was kept; ``path`` is the inbox's database, for errors.  Blocks on the disk:
    StoreError.
    """

    def __init__(self, db: sqlite3.Connection, path: Path, box: SecretBox) -> None:
        self._db, self._path, self._box = db, path, box

    def newest(self, since_ms: int = 0, sender: str = "") -> Iterator[Entry]:
        """Newest first."""
        return self._entries("DESC", since_ms, sender)

    def oldest(self, since_ms: int = 0, sender: str = "") -> Iterator[Entry]:
        """Oldest first."""
        return self._entries("ASC", since_ms, sender)

    def after(self, place: int) -> tuple[int, list[Entry]]:
        """What was recorded behind a place (0: the beginning), some at a time; and the place to
        go on from.
        """
        with translated(self._path):
            rows = self._db.execute(
                "SELECT place, sender, envelope_id, at, data FROM lines WHERE place > ? ORDER BY "
                "place LIMIT ?",
                (place, _PAGE),
            ).fetchall()
        return (rows[-1][0] if rows else place), [one for row in rows for one in self._of_row(row)]

    def end(self) -> int:
        """The place behind everything that is recorded now."""
        with translated(self._path):
            (place,) = self._db.execute("SELECT coalesce(max(place), 0) FROM lines").fetchone()
        return int(place)

    def find(self, message_id: uuid.UUID) -> list[Entry]:
        """What came under this id: of several senders in the worst case, since ids are the
        senders' choice.
        """
        envelope_id, _ = split_message_id(message_id)
        with translated(self._path):
            rows = self._db.execute(
                "SELECT place, sender, envelope_id, at, data FROM lines WHERE envelope_id = ? "
                "ORDER BY place",
                (envelope_id,),
            ).fetchall()
        return [
            one for row in rows for one in self._of_row(row) if one.message_id == str(message_id)
        ]

    def drop(self, message_id: uuid.UUID, sender: str) -> None:
        """Forgets the row of one file, which has a row of its own; inside a transaction."""
        envelope_id, _ = split_message_id(message_id)
        rows = self._db.execute(
            "SELECT place, sender, envelope_id, at, data FROM lines WHERE envelope_id = ? AND "
            "sender = ?",
            (envelope_id, sender),
        ).fetchall()
        for row in rows:
            if [one.message_id for one in self._of_row(row)] == [str(message_id)]:
                self._db.execute("DELETE FROM lines WHERE place = ?", (row[0],))

    def _entries(self, order: str, since_ms: int, sender: str) -> Iterator[Entry]:
        sign, place = ("<", 1 << 62) if order == "DESC" else (">", 0)
        while True:
            with translated(self._path):
                rows = self._db.execute(
                    f"SELECT place, sender, envelope_id, at, data FROM lines WHERE place {sign} "
                    f"? AND at >= ? AND (? = '' OR sender = ?) ORDER BY place {order} LIMIT ?",
                    (place, since_ms, sender, sender, _PAGE),
                ).fetchall()
            if not rows:
                return
            for row in rows:
                found = list(self._of_row(row))
                yield from reversed(found) if order == "DESC" else found
            place = rows[-1][0]

    def _of_row(self, row: tuple[int, str, bytes, int, bytes]) -> Iterator[Entry]:
        _, sender, envelope_id, at, data = row
        packed = self._box.decrypt(data, _place(sender, envelope_id))
        raw = zstandard.ZstdDecompressor().decompress(packed, max_output_size=_MOST)
        head, _, lines = raw.partition(b"\n")
        about = orjson.loads(head)
        types, suite = about["types"], about["suite"]
        for index, line in enumerate(lines.splitlines(keepends=True)):
            yield _entry(line, at, types[index if len(types) > 1 else 0], suite)


def _entry(line: bytes, at: int, content_type: str, suite: int) -> Entry:
    document = orjson.loads(line)
    content = document["content"]
    about = content if isinstance(content, dict) else {}
    size = about["size"] if about else len(content.encode())
    return Entry(
        document["message_id"],
        document["sender_id"],
        at,
        content_type,
        size,
        suite,
        about.get("filename", ""),
        about.get("file", ""),
        about.get("kept", ""),
        line,
        document,
    )


def matches(entry: Entry, wanted: str) -> bool:
    """Whether a text, a header or a file's name holds ``wanted``, whatever its case."""
    needle = wanted.casefold()
    places = [entry.text or "", entry.filename, entry.message_id, entry.sender_id]
    places += [str(value) for value in entry.document.get("headers", {}).values()]
    return any(needle in place.casefold() for place in places)


def readable(entry: Entry) -> bool:
    """Whether its content can be shown on a screen."""
    return entry.text is not None or is_text(entry.content_type)


def _place(sender: str, envelope_id: bytes) -> bytes:
    return b"lines" + envelope_id + sender.encode()

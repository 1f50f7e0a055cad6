"""The lines of received messages and files, encrypted in the inbox's database under the home's
local key.

The readable file is written in the same transaction. These rows are used to list, search and export
messages, whatever happens to that file; under a password they are the only copy. Rows older than
``keep_days`` are deleted.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import orjson
import zstandard

from cipherbox.classes import frozen
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
PAGE_BYTES = 8 * 1024 * 1024  # of lines that a page parses, and the one that exceeds it
START = 1 << 62, 1 << 62  # the mark above every entry
_MAX_BYTES = 64 * 1024 * 1024  # of one envelope's lines: a body, and JSON's overhead


@frozen
class Entry:
    """One received message or file; times are ms since 1970.

    ``line`` is its line as bytes. ``file`` is its path, or ``kept`` the name under which it is
    stored encrypted.
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
        """The text of a message, or None for a file."""
        content = self.document.get("content")
        return content if isinstance(content, str) else None


class EncryptedLines:
    """Writes encrypted lines within the inbox's transaction."""

    def __init__(self, db: sqlite3.Connection, box: SecretBox) -> None:
        self._db, self._box = db, box
        self._compressor = zstandard.ZstdCompressor(1)

    def write(
        self, sender: str, envelope_id: bytes, at: int, lines: bytes, types: list[str], suite: int
    ) -> None:
        """Write the lines of one envelope or file; a single type applies to all."""
        head = orjson.dumps({"types": types, "suite": suite}, option=orjson.OPT_APPEND_NEWLINE)
        # joining them first would double the memory
        stream = self._compressor.compressobj(size=len(head) + len(lines))
        packed = b"".join((stream.compress(head), stream.compress(lines), stream.flush()))
        data = self._box.encrypt(packed, _place(sender, envelope_id))
        self._db.execute(
            "INSERT INTO lines (sender, envelope_id, at, data) VALUES (?, ?, ?, ?)",
            (sender, envelope_id, at, data),
        )

    def forget(self, before_ms: int) -> int:
        """Delete rows received before that time, and return their number."""
        return self._db.execute("DELETE FROM lines WHERE at < ?", (before_ms,)).rowcount


class Shelf:
    """Reads encrypted lines. ``path`` is the inbox's database, for errors. Methods block on the
    disk and raise StoreError.
    """

    def __init__(self, db: sqlite3.Connection, path: Path, box: SecretBox) -> None:
        self._db, self._path, self._box = db, path, box

    def newest(self, since_ms: int = 0, sender: str = "") -> Iterator[Entry]:
        """Yield entries, newest first."""
        return self._entries("DESC", since_ms, sender)

    def oldest(self, since_ms: int = 0, sender: str = "") -> Iterator[Entry]:
        """Yield entries, oldest first."""
        return self._entries("ASC", since_ms, sender)

    def after(self, place: int) -> tuple[int, list[Entry]]:
        """Return a page of entries recorded after a place (0: the start), and the place to continue
        from.
        """
        with translated(self._path):
            rows = self._db.execute(
                "SELECT place, sender, envelope_id, at, data FROM lines WHERE place > ? ORDER BY "
                "place LIMIT ?",
                (place, _PAGE),
            ).fetchall()
        return (rows[-1][0] if rows else place), [one for row in rows for one in self._of_row(row)]

    def page(
        self, most: int, before: tuple[int, int] = START, sender: str = ""
    ) -> tuple[tuple[int, int] | None, list[Entry]]:
        """Return the newest entries before a mark, newest first, and the mark of the next page, or
        None at the end.

        A mark is (place, index): one row may have thousands of messages, of which only those shown
        are parsed.  A page ends early after `PAGE_BYTES`.
        """
        found: list[Entry] = []
        size = 0
        place, index = before
        query = (
            "SELECT place, sender, envelope_id, at, data FROM lines WHERE place <= ? AND "
            "(? = '' OR sender = ?) ORDER BY place DESC"
        )
        # closed at the end of the page: a statement that is not read to its end holds a snapshot
        with (
            translated(self._path),
            closing(self._db.execute(query, (place, sender, sender))) as rows,
        ):
            for row in rows:
                lines, types, suite = self._lines_of_row(row)
                end = min(index, len(lines)) if row[0] == place else len(lines)
                for at in reversed(range(end)):
                    if len(found) == most or size > PAGE_BYTES:
                        return (row[0], at + 1), found
                    size += len(lines[at])
                    kind = types[at if len(types) > 1 else 0]
                    found.append(_entry(lines[at], row[3], kind, suite))
        return None, found

    def end(self) -> int:
        """Return the place after the last recorded entry."""
        with translated(self._path):
            (place,) = self._db.execute("SELECT coalesce(max(place), 0) FROM lines").fetchone()
        return int(place)

    def find(self, message_id: uuid.UUID) -> list[Entry]:
        """Return the entries with this id; several senders may have chosen the same id."""
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
        """Delete the row of one file, within a transaction."""
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
        lines, types, suite = self._lines_of_row(row)
        for index, line in enumerate(lines):
            yield _entry(line, row[3], types[index if len(types) > 1 else 0], suite)

    def _lines_of_row(
        self, row: tuple[int, str, bytes, int, bytes]
    ) -> tuple[list[bytes], list[str], int]:
        _, sender, envelope_id, _, data = row
        packed = self._box.decrypt(data, _place(sender, envelope_id))
        raw = zstandard.ZstdDecompressor().decompress(packed, max_output_size=_MAX_BYTES)
        head, _, lines = raw.partition(b"\n")
        about = orjson.loads(head)
        return lines.splitlines(keepends=True), about["types"], about["suite"]


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
    """Return whether text, headers or file name contain ``wanted``, ignoring case."""
    needle = wanted.casefold()
    places = [entry.text or "", entry.filename, entry.message_id, entry.sender_id]
    places += [str(value) for value in entry.document.get("headers", {}).values()]
    return any(needle in place.casefold() for place in places)


def readable(entry: Entry) -> bool:
    """Return whether the content can be shown on a terminal."""
    return entry.text is not None or is_text(entry.content_type)


def _place(sender: str, envelope_id: bytes) -> bytes:
    return b"lines" + envelope_id + sender.encode()

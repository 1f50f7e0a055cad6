"""What the outbox records in the same transaction as an envelope: its idempotency key, and the
files it was made of.

Both answer a question that would otherwise be asked of a process's memory: was this published
already?  They live as long as the envelope's row.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import orjson

from cipherbox.errors import InvalidRequest
from cipherbox.sealing.body import Message

KEY_BYTES = 255  # an MSH-10 has 199 at most, a UUID 36
TAKEN, SENT, REFUSED, OVER = range(4)  # OVER: final, and not sent
STEP = """
CREATE TABLE publish_keys (
    route TEXT NOT NULL, key TEXT NOT NULL, digest BLOB NOT NULL, envelope_id BLOB NOT NULL, PRIMARY KEY (route, key)
) WITHOUT ROWID;
CREATE INDEX publish_keys_by_envelope ON publish_keys (envelope_id);
CREATE TABLE folder_files (
    number INTEGER PRIMARY KEY, file TEXT NOT NULL, path TEXT NOT NULL, recipients TEXT NOT NULL,
    size INTEGER NOT NULL, modified_ns INTEGER NOT NULL, changed_ns INTEGER NOT NULL, inode INTEGER NOT NULL,
    envelope_id BLOB, message INTEGER NOT NULL DEFAULT 0, transfer INTEGER, state INTEGER NOT NULL DEFAULT 0,
    place TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '', taken_at INTEGER NOT NULL,
    changed_at INTEGER NOT NULL
);
CREATE INDEX folder_files_taken ON folder_files (number) WHERE state = 0;
CREATE INDEX folder_files_refused ON folder_files (number) WHERE state = 2;
CREATE INDEX folder_files_by_envelope ON folder_files (envelope_id);
CREATE INDEX outcomes_refused ON outcomes (number) WHERE outcome <> 0;
"""  # noqa: E501


# A handler may take some messages of an envelope and give up others.
MESSAGES_STEP = "ALTER TABLE outcomes ADD COLUMN messages BLOB NOT NULL DEFAULT x'';\n"


class Once(NamedTuple):
    """An idempotency key, valid for one ``route``, with the ``digest`` of its content."""

    route: str
    key: str
    digest: bytes

    @classmethod
    def of(
        cls,
        key: str,
        to: Sequence[str] | None,
        exchange: str,
        routing_key: str,
        messages: Sequence[Message],
    ) -> Once:
        """Return the key of a publish; raise InvalidRequest if it cannot be recorded."""
        try:
            size = len(key.encode())
        except (UnicodeEncodeError, AttributeError):
            raise InvalidRequest(
                "an idempotency key is text that can be written as UTF-8"
            ) from None
        if not 1 <= size <= KEY_BYTES:
            raise InvalidRequest(
                f"an idempotency key has 1 to {KEY_BYTES} bytes, this one has {size}"
            )
        digest = hashlib.sha256()
        for message in messages:
            about = [
                message.content_type,
                sorted(message.headers.items()),
                message.sent_at,
                len(message.content),
            ]
            try:
                head = orjson.dumps(about)
            except TypeError:
                raise InvalidRequest(
                    "a content type or a header cannot be written as UTF-8"
                ) from None
            digest.update(len(head).to_bytes(4, "big") + head + message.content)
        route = orjson.dumps(
            [sorted(to) if to is not None else None, exchange, routing_key]
        ).decode()
        return cls(route, key, digest.digest())


class FolderFile(NamedTuple):
    """A file of the agent's folder as it was when it was taken; ``message``: its place in the
    envelope.
    """

    file: str
    path: tuple[str, ...]
    recipients: tuple[str, ...]
    size: int
    modified_ns: int
    changed_ns: int
    inode: int
    message: int = 0


class Origins(NamedTuple):
    """What an envelope was made from, recorded together with it."""

    once: Once | None = None
    files: tuple[FolderFile, ...] = ()


class HasOrigins(Protocol):
    """What is needed here of an outbox entry."""

    @property
    def envelope_id(self) -> bytes: ...

    @property
    def replaces(self) -> bytes | None: ...

    @property
    def origins(self) -> Origins | None: ...


def insert(db: sqlite3.Connection, fresh: Sequence[HasOrigins], now: int) -> set[bytes]:
    """Inside the outbox's transaction: the ids of envelopes whose key another envelope has; those
    must not be written.

    An envelope that takes another's place takes over its key and its files.
    """
    taken: set[bytes] = set()
    for item in fresh:
        if item.origins is None:
            continue
        if item.origins.once is not None and not _claim(
            db, item.origins.once, item.envelope_id, item.replaces
        ):
            taken.add(item.envelope_id)
            continue
        if item.replaces is not None:
            db.execute("DELETE FROM folder_files WHERE envelope_id = ?", (item.replaces,))
        for file in item.origins.files:
            insert_file(db, file, now, envelope_id=item.envelope_id)
    return taken


def insert_file(
    db: sqlite3.Connection,
    file: FolderFile,
    now: int,
    *,
    envelope_id: bytes | None = None,
    transfer: int | None = None,
) -> None:
    """Record, inside a transaction, that a file is in an envelope or a transfer."""
    db.execute(
        "INSERT INTO folder_files (file, path, recipients, size, modified_ns, changed_ns, inode, "
        "envelope_id, message, transfer, taken_at, changed_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, "
        "?, ?, ?, ?)",
        (
            file.file,
            orjson.dumps(file.path).decode(),
            orjson.dumps(file.recipients).decode(),
            file.size,
            file.modified_ns,
            file.changed_ns,
            file.inode,
            envelope_id,
            file.message,
            transfer,
            now,
            now,
        ),
    )


def _claim(db: sqlite3.Connection, once: Once, envelope_id: bytes, replaces: bytes | None) -> bool:
    row = db.execute(
        "SELECT envelope_id FROM publish_keys WHERE route = ? AND key = ?", (once.route, once.key)
    ).fetchone()
    if row is None:
        db.execute("INSERT INTO publish_keys VALUES (?, ?, ?, ?)", (*once, envelope_id))
        return True
    if row[0] != replaces:
        return False
    db.execute(
        "UPDATE publish_keys SET digest = ?, envelope_id = ? WHERE route = ? AND key = ?",
        (once.digest, envelope_id, once.route, once.key),
    )
    return True


def forget(db: sqlite3.Connection) -> None:
    """Delete, inside a transaction, keys and files of envelopes that no longer exist."""
    for table in ("publish_keys", "folder_files"):
        db.execute(
            f"DELETE FROM {table} WHERE envelope_id IS NOT NULL "
            "AND envelope_id NOT IN (SELECT envelope_id FROM envelopes)"
        )

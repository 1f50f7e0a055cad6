"""Hidden files: storage of files' bytes until they get their names, or permanently under the local
key.

Each file has one, named by its transfer, in its sender's hidden directory. Small files of one batch
share one (`SHARED`) until each is copied to its own, so that one sync makes all of them durable.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import attrs
import orjson

from cipherbox.classes import frozen
from cipherbox.client.inbox.lines import FILENAME, Received, line_id
from cipherbox.client.inbox.places import open_new
from cipherbox.client.inbox.transfers import CHECKING, Row
from cipherbox.client.publishing.parts import manifest_message, manifest_of
from cipherbox.limits import LIMITS
from cipherbox.sealing.body import apart
from cipherbox.sealing.encrypted_file import ClearFile, EncryptedFile, RandomAccessFile
from cipherbox.sealing.local_secret_box import SecretBox

PARTIAL, KEPT = ".partial", "data/kept"
# of a file in parts; one that arrived as a message has the message's id and a letter
TRANSFER_BYTES = 16
# larger files have a hidden file of their own from the start
SHARED, SHARED_BYTES = ".shared", 256 * 1024
ALONE = -1
_PIECE = 1024 * 1024  # of a shared file, written in one step


def kept_name(sender: str, name: str) -> bytes:
    """Return the id of a file that is stored under the local key."""
    return f"{sender}/{name}".encode()


class Shared:
    """A hidden file that several files share, written sequentially; ``opens`` opens it on the first
    write.
    """

    def __init__(self, name: str, opens: Callable[[], RandomAccessFile]) -> None:
        self.name, self._opens = name, opens
        self.size = 0
        self._stored: RandomAccessFile | None = None
        self._pending: list[bytes | memoryview] = []
        self._written = 0

    def add(self, data: bytes | memoryview) -> int:
        """Append data and return its offset."""
        at = self.size
        self._pending.append(data)
        self.size += len(data)
        if self.size - self._written >= _PIECE:
            self._write()
        return at

    def sync(self) -> None:
        """Sync the appended data."""
        if self._pending:
            self._write()
        if self._stored is not None:
            self._stored.sync(self.size)

    def close(self) -> None:
        if self._stored is not None:
            self._stored.close()

    def _write(self) -> None:
        if self._stored is None:
            self._stored = self._opens()
        self._stored.write(b"".join(self._pending), self._written)
        self._pending.clear()
        self._written = self.size


class Hidden:
    """The hidden files of one inbox. ``locked``: new ones are stored under the local key, in
    ``home``.
    """

    def __init__(self, home: Path, incoming: Path, box: SecretBox | None, locked: bool) -> None:
        self._home, self._incoming, self._box, self._locked = home, incoming, box, locked
        self._partial = str(incoming / PARTIAL)

    def new(self, sender: str, transfer: bytes) -> Row:
        """Return the row of a file of which nothing has arrived."""
        # called for each part; a `Path` would cost 0.1 ms
        hidden = "" if self._locked else os.path.join(self._partial, sender, transfer.hex())
        return Row(sender, transfer, partial=hidden, locked=self._locked)

    def place(self, row: Row) -> Path:
        """Return the path of a file's bytes; rows from before 0.6.0 do not have it."""
        if row.locked:
            return self._home / KEPT / row.sender / row.transfer.hex()
        if row.partial:
            return Path(row.partial)
        tops = (self._incoming, self._home / "data/incoming", self._home / "incoming")
        places = [top / PARTIAL / row.sender / row.transfer.hex() for top in tops]
        if row.file:
            places.append(
                self._home / "data" / row.file
            )  # it had its name when the machine crashed
        return next((place for place in places if place.exists()), places[0])

    def open(self, row: Row) -> RandomAccessFile:
        """Open it for reading and writing, creating it if missing."""
        fd = open_new(self.place(row))
        if not row.locked:
            return ClearFile(fd)
        assert self._box is not None
        return EncryptedFile(fd, self._box, kept_name(row.sender, row.transfer.hex()))

    def write_messages(self, batch: Sequence[tuple[Received, Sequence[int]]]) -> list[Beside]:
        """Write and sync the messages of a batch that are files, given by index; return their
        rows.
        """
        found: list[Beside] = []
        many = sum(len(indexes) for _, indexes in batch) > 1
        new = self.new(SHARED, os.urandom(TRANSFER_BYTES))
        shared = Shared(new.transfer.hex(), partial(self.open, new))
        try:
            for received, indexes in batch:
                places = array("q")
                for index in indexes:
                    _, content = apart(received.messages, index)
                    together = many and len(content) <= SHARED_BYTES
                    places.append(shared.add(content) if together else self._write(received, index))
                found.append(Beside(self, received, indexes, shared.name, places))
            shared.sync()
        finally:
            shared.close()
        return found

    def _write(self, received: Received, index: int) -> int:
        """Write a hidden file of its own."""
        _, content = apart(received.messages, index)
        stored = self.open(self.row(received, index))
        try:
            stored.write(content, 0)
            stored.sync(len(content))
        finally:
            stored.close()
        return ALONE

    def row(self, received: Received, index: int) -> Row:
        """Return the row of a message that is a file."""
        message, content = apart(received.messages, index)
        headers = message.headers
        path = [one for one in headers.get(FILENAME, "").split("/") if one not in ("", ".", "..")]
        path = path[-LIMITS.path_names - 1 :] or [line_id(received.envelope_id, index)]
        modified = headers.get("modified_at", "")
        row = self.new(received.sender, message_transfer(received.envelope_id, index))
        manifest = manifest_of(
            row.transfer[:TRANSFER_BYTES],
            path,
            content,
            message.content_type,
            int(modified) if modified.isdecimal() and len(modified) < 16 else 0,
        )
        return attrs.evolve(
            row,
            state=CHECKING,
            manifest=manifest_message(manifest).content,
            message=index,
            headers=orjson.dumps(headers).decode() if headers else "",
            sent_at=message.sent_at if message.sent_at is not None else received.sealed_at,
        )


@frozen
class Beside:
    """The files of one envelope that were written to hidden files: rows for `Transfers.add`, each
    created on access. ``places`` has the offset of each in their shared file, or `ALONE`.
    """

    hidden: Hidden
    received: Received
    indexes: Sequence[int]
    shared: str
    places: Sequence[int]

    def __len__(self) -> int:
        return len(self.indexes)

    def __iter__(self) -> Iterator[Row]:
        for index, at in zip(self.indexes, self.places, strict=True):
            row = self.hidden.row(self.received, index)
            yield row if at == ALONE else attrs.evolve(row, shared=self.shared, at=at)


def shared_of(row: Row) -> Row:
    """Return the row of the hidden file that it shares with others."""
    place = str(Path(row.partial).parents[1] / SHARED / row.shared) if row.partial else ""
    return Row(SHARED, bytes.fromhex(row.shared), partial=place, locked=row.locked)


def message_transfer(envelope_id: bytes, index: int) -> bytes:
    """Return the transfer id of a file that arrived as a message."""
    return envelope_id[:14] + index.to_bytes(2, "big") + b"m"


def as_message(row: Row) -> bool:
    """Return whether the file arrived as a message."""
    return len(row.transfer) > TRANSFER_BYTES

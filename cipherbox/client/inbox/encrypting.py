"""Encrypt data that is stored in clear in a home that has a password now: lines, files, and
contents that wait for a handler.

The order loses nothing in a crash: first the encrypted copy, synced and read back; then the row
that names it; only then is the clear copy deleted. Running it again resumes.
"""

from __future__ import annotations

import hashlib
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import orjson

from cipherbox.classes import define
from cipherbox.client.home import LOCK, Home
from cipherbox.client.inbox.encrypted_lines import EncryptedLines, Shelf
from cipherbox.client.inbox.handler_contents import lock_contents
from cipherbox.client.inbox.hidden import KEPT, kept_name
from cipherbox.client.inbox.places import open_new
from cipherbox.client.inbox.schema import DATABASE, LINES, open_inbox
from cipherbox.client.local_database import transaction
from cipherbox.envelope.ids import id_time_ms, split_message_id
from cipherbox.errors import CipherBoxError, StoreError
from cipherbox.portable import lock_file, sync_directory
from cipherbox.sealing.encrypted_file import EncryptedFile
from cipherbox.sealing.local_secret_box import SecretBox

_STEP = 4 * 1024 * 1024
_OLD_PLACES = ("data/files", "data/incoming")  # of versions before 0.6.0


@define
class Locked:
    """The result; ``left`` lists what is still in clear, and why."""

    lines: int = 0
    files: int = 0
    left: list[str] = attrs.Factory(list)


def lock_all(home: Home) -> Locked:
    """Encrypt everything and return the result. Raise StoreLocked while a receiver runs."""
    done = Locked()
    with lock_file(home.path / LOCK, f"the inbox in {home.path}"):
        db = open_inbox(home.path)
        try:
            one = _Locking(home.path, db, home.secret_box.content_box, done)
            one.lines()
            with transaction(db, home.path / DATABASE):
                lock_contents(db, home.secret_box.content_box)
        finally:
            db.close()
    for place in _OLD_PLACES:
        if any(path.is_file() for path in (home.path / place).rglob("*")):
            done.left.append(
                f"{home.path / place} still has files that no line names; remove them manually"
            )
    copies = home.path / "outbox" / "copies"
    if copies.is_dir() and any(copies.iterdir()):
        done.left.append(
            f"{copies} has copies of files in transit, deleted once recipients have opened them"
        )
    return done


class _Locking:
    def __init__(self, home: Path, db: sqlite3.Connection, box: SecretBox, done: Locked) -> None:
        self._home, self._db, self._box, self._done = home, db, box, done
        self._path = home / DATABASE
        self._stored_lines, self._shelf = EncryptedLines(db, box), Shelf(db, self._path, box)

    def lines(self) -> None:
        """Encrypt every line of the readable files, and the files they name."""
        for path in sorted((self._home / LINES).parent.glob("received_messages*.jsonl")):
            try:
                for line in _lines(path):
                    self._line(line)
            except (
                CipherBoxError,
                OSError,
                ValueError,
                KeyError,
                TypeError,
                AttributeError,
            ) as error:
                self._done.left.append(f"{path} is unchanged: {type(error).__name__}: {error}")
                continue
            path.unlink()
            sync_directory(path.parent)
        with transaction(self._db, self._path):
            self._db.execute("UPDATE state SET value = -1 WHERE name = 'length'")

    def _line(self, line: bytes) -> None:
        document: dict[str, Any] = orjson.loads(line)
        wanted = uuid.UUID(document["message_id"])
        sender = document["sender_id"]
        known = next((one for one in self._shelf.find(wanted) if one.sender_id == sender), None)
        content = document["content"]
        readable = self._readable(content) if isinstance(content, dict) else None
        if (
            isinstance(content, dict)
            and content.get("files")
            and Path(str(content.get("file", ""))).is_dir()
        ):
            self._done.left.append(f"{content['file']} is a directory and stays in clear")
        if known is None or (readable is not None and not known.kept):
            types = (
                [content.get("content_type", "")] if isinstance(content, dict) else ["text/plain"]
            )
            if readable is not None:
                content["kept"] = self._file(sender, wanted, readable)
                content.pop("file", None)
            envelope_id, _ = split_message_id(wanted)
            at = known.received_at if known is not None else id_time_ms(envelope_id)
            suite = known.suite if known is not None else 0
            fresh = orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)
            with transaction(self._db, self._path):
                if known is not None:
                    self._shelf.drop(wanted, sender)
                self._stored_lines.write(sender, envelope_id, at, fresh, types, suite)
            self._done.lines += 1
        if readable is not None:
            readable.unlink()
            self._done.files += 1

    def _readable(self, content: dict[str, Any]) -> Path | None:
        """Return the file that a line names, if it is still there; lines before 0.6.0 have relative
        paths.
        """
        named = content.get("file")
        path = self._home / "data" / str(named)  # an absolute path replaces the prefix
        return path if named and path.is_file() and not path.is_symlink() else None

    def _file(self, sender: str, message: uuid.UUID, source: Path) -> str:
        """Encrypt a file, verify it by reading it back, and return its stored name."""
        name = f"{message.hex}6d"  # as for a file that arrived as a message
        path = self._home / KEPT / sender / name
        with suppress(FileNotFoundError):
            path.unlink()
        locked = EncryptedFile(open_new(path), self._box, kept_name(sender, name))
        try:
            before, size = hashlib.sha256(), 0
            with source.open("rb") as file:
                while data := file.read(_STEP):
                    locked.write(data, size)
                    before.update(data)
                    size += len(data)
            locked.sync(size)
            after = hashlib.sha256()
            for at in range(0, size, _STEP):
                after.update(locked.read(min(_STEP, size - at), at))
        finally:
            locked.close()
        sync_directory(path.parent)
        if before.digest() != after.digest():
            raise StoreError(f"{path} differs from what was written")
        return f"{sender}/{name}"


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield line

"""The lines of a conversation in the inbox's readable file: the last ones, then new ones.

Any program of this home appends to the file.  After a crash its end may be truncated and written
again, and a person may move it away: so the ids of the lines shown last are kept, and a new file is
read from its beginning.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import attrs
import orjson

from cipherbox.apps.chat.conversation import HEADER
from cipherbox.classes import frozen
from cipherbox.client.home import Home
from cipherbox.client.inbox.inspect import InboxInspection
from cipherbox.client.inbox.schema import LINES

LAST = 20
BLOCK = 1024 * 1024
LOOK_BACK = 64 * BLOCK
_KEPT_IDS = 4096
_MARK = b'"headers":'


@frozen
class ReceivedLine:
    """A line from another client, which chose every text in it."""

    message_id: str
    sender_id: str
    sent_timestamp: str
    text: str
    to: str  # as its sender states


class EncryptedChatLines:
    """As `ChatLines`, for a home that encrypts what it receives and has no readable file."""

    def __init__(self, home: Home, senders: Iterable[str] | None) -> None:
        self._look = InboxInspection(home)
        self._senders = None if senders is None else frozenset(senders)
        self._place = 0

    def last(self, most: int = LAST) -> list[ReceivedLine]:
        """Return the last lines, oldest first; `new` continues after them."""
        self._place = self._look.shelf.end()
        found: list[ReceivedLine] = []
        for entry in islice(self._look.shelf.newest(), _KEPT_IDS):
            said = parse_line(entry.document, self._senders)
            if said is not None:
                found.append(said)
            if len(found) >= most:
                break
        return found[::-1]

    def new(self) -> list[ReceivedLine]:
        """Return the lines added since."""
        self._place, entries = self._look.shelf.after(self._place)
        return [
            said
            for entry in entries
            if (said := parse_line(entry.document, self._senders)) is not None
        ]


def open_lines(home: Home, senders: Iterable[str] | None) -> ChatLines | EncryptedChatLines:
    """Return the lines of a home from these senders; None: from all."""
    return (
        ChatLines(home.path, senders) if home.hides is None else EncryptedChatLines(home, senders)
    )


class ChatLines:
    """See the module.  ``senders``: show their lines only; None: all."""

    def __init__(self, home: Path, senders: Iterable[str] | None) -> None:
        self._path = home / LINES
        self._senders = None if senders is None else frozenset(senders)
        self._at = 0
        self._file_id: tuple[int, int] | None = None
        self._skipping = False
        self._shown: dict[str, None] = {}

    def last(self, most: int = LAST) -> list[ReceivedLine]:
        """Return the last lines, oldest first; `new` continues after them."""
        try:
            with self._path.open("rb") as file:
                self._file_id, end = _identity(file)
                return self._back(file, end, most)
        except FileNotFoundError:
            return []

    def new(self) -> list[ReceivedLine]:
        """Return the lines added since."""
        try:
            with self._path.open("rb") as file:
                file_id, size = _identity(file)
                if file_id != self._file_id:
                    self._file_id, self._at = file_id, 0
                self._at = min(self._at, size)
                file.seek(self._at)
                data = file.read(BLOCK)
        except FileNotFoundError:
            return []
        end = data.rfind(b"\n") + 1
        if not end and len(data) == BLOCK:  # too long to have been typed
            self._skipping = True
            self._at += len(data)
            return []
        self._at += end
        lines = data[:end].split(b"\n")[:-1]
        if self._skipping and lines:
            self._skipping = False
            del lines[0]
        return self._said(lines)

    # -- inside ------------------------------------------------------------------------------------

    def _back(self, file: BinaryIO, size: int, most: int) -> list[ReceivedLine]:
        found: list[ReceivedLine] = []
        rest = b""
        start = size
        while start > 0 and size - start < LOOK_BACK and len(found) < most:
            begin = max(0, start - BLOCK)
            file.seek(begin)
            data = file.read(start - begin) + rest
            if start == size:  # an incomplete line is being written
                data = data[: data.rfind(b"\n") + 1]
                self._at = begin + len(data)
            start = begin
            cut = data.find(b"\n") + 1 if start else 0
            if start and not cut:
                rest = data
                continue
            rest, whole = data[:cut], data[cut:]
            found = self._said(whole.split(b"\n")) + found
        return found[max(0, len(found) - most) :]

    def _said(self, lines: Iterable[bytes]) -> list[ReceivedLine]:
        found = []
        for raw in lines:
            if (
                _MARK in raw
                and (said := self._one(raw)) is not None
                and said.message_id not in self._shown
            ):
                self._shown[said.message_id] = None
                found.append(said)
        while len(self._shown) > _KEPT_IDS:
            del self._shown[next(iter(self._shown))]
        return found

    def _one(self, raw: bytes) -> ReceivedLine | None:
        try:
            return parse_line(orjson.loads(raw), self._senders)
        except ValueError:
            return None


def parse_line(line: dict[str, Any], senders: frozenset[str] | None) -> ReceivedLine | None:
    """Return a line if it belongs to a conversation with ``senders``."""
    try:
        to, text, sender = line["headers"][HEADER], line["content"], line["sender_id"]
        said = ReceivedLine(line["message_id"], sender, line["sent_timestamp"], text, to)
    except (KeyError, TypeError):
        return None
    mine = senders is None or sender in senders
    return said if mine and all(isinstance(part, str) for part in attrs.astuple(said)) else None


def _identity(file: BinaryIO) -> tuple[tuple[int, int], int]:
    stat = os.fstat(file.fileno())
    return (stat.st_dev, stat.st_ino), stat.st_size

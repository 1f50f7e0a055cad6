"""Received messages: the list by time, by person, by search; one message; its file."""

from __future__ import annotations

import time
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.responses import Response

from cipherbox.apps.page.streaming import Streamed, from_thread
from cipherbox.apps.page.view import View
from cipherbox.classes import frozen
from cipherbox.client.file_names import safe_name
from cipherbox.client.home import Home
from cipherbox.client.inbox.decrypted_files import open_kept
from cipherbox.client.inbox.encrypted_lines import START, Entry, matches
from cipherbox.client.inbox.inspect import InboxInspection, find
from cipherbox.envelope.suites import SUITE_NAMES
from cipherbox.errors import FileError, NotFound
from cipherbox.sealing.encrypted_file import RandomAccessFile

PAGE = 50  # messages
PREVIEW = 2000  # characters of a text in the list
WHOLE = 1_000_000  # of a text on its own page; the rest is in the saved file
SEARCH_S = 1.5  # of one page of a search; it continues where it stopped
_STEP = 1024 * 1024
Mark = tuple[int, int]


@frozen
class Received:
    """One received message as the page shows it."""

    entry: Entry
    text: str
    cut: bool  # the text goes on
    name: str  # of a file
    signature: str
    receipt: int | None  # when it was signed; 0: none will be, None: pending

    @property
    def url(self) -> str:
        return f"/messages/{self.entry.message_id}?sender={quote(self.entry.sender_id)}"

    @property
    def save_url(self) -> str:
        return f"/messages/{self.entry.message_id}/content?sender={quote(self.entry.sender_id)}"


@frozen
class Found:
    """A page of the list, and the mark of the next one; ``stopped``: a search ran out of time."""

    rows: list[Received]
    following: Mark | None
    stopped: bool = False


async def listing(view: View) -> Response:
    """Return the list: newest first, of everybody or one sender, of everything or what matches."""
    sender, wanted = view.query.get("sender", ""), view.query.get("q", "").strip()
    before = mark_of(view.query.get("before", ""))
    found = await view.desk.inbox(page_of, before, sender, wanted)
    senders = [one.name for one in await view.desk.people() if one.pinned]
    return await view.page(
        "messages.html",
        found=found,
        sender=sender,
        wanted=wanted,
        senders=senders,
        first=before == START,
    )


async def one(view: View) -> Response:
    """Return one message with all that is known of it."""
    entry = await _entry(view)
    shown = await view.desk.inbox(_shown, entry, WHOLE)
    headers = entry.document.get("headers", {})
    return await view.page(
        "message.html",
        one=shown,
        headers=sorted(headers.items()) if isinstance(headers, dict) else [],
        files=[(_safe_path(one["name"]), int(one["size"])) for one in _files(entry)[:500]],
    )


async def content(view: View) -> Response:
    """Return the content of a message or file as an attachment, never as a page."""
    entry = await _entry(view)
    home = view.desk.client.home
    name = safe_name(entry.filename) if entry.filename else f"{entry.message_id}.txt"
    files = _files(entry)
    if files:
        name = f"{name}.zip"
    make = partial(_packed, home, entry, files) if files else partial(_content, home, entry)
    stream = make()
    first = await view.desk.inbox(lambda _: next(stream, b""))  # an error here is a page
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}"}
    return Streamed(from_thread(first, stream), "application/octet-stream", headers)


def mark_of(text: str) -> Mark:
    """Return the mark that a link names, or the one above everything."""
    place, _, index = text.partition(".")
    if place.isdigit() and index.isdigit() and max(len(place), len(index)) <= 18:
        return int(place), int(index)
    return START


def page_of(
    inbox: InboxInspection, before: Mark, sender: str, wanted: str, most: int = PAGE
) -> Found:
    """Return a page of the list; it is bounded in time, too."""
    rows: list[Received] = []
    until, mark = time.monotonic() + SEARCH_S, before
    while True:
        following, entries = inbox.shelf.page(most if not wanted else 200, mark, sender)
        for at, entry in enumerate(entries):
            if wanted and not matches(entry, wanted):
                continue
            rows.append(_shown(inbox, entry, PREVIEW))
            if len(rows) == most and wanted and at + 1 < len(entries):
                # the mark of the entry after this one, found again by its own page
                following, _ = inbox.shelf.page(at + 1, mark, sender)
                return Found(rows, following)
        if following is None or len(rows) >= most or not wanted:
            return Found(rows, following)
        if time.monotonic() > until:
            return Found(rows, following, stopped=True)
        mark = following


def _shown(inbox: InboxInspection, entry: Entry, most: int) -> Received:
    text = entry.text or ""
    return Received(
        entry,
        text[:most],
        len(text) > most,
        safe_name(entry.filename) if entry.filename else "",
        SUITE_NAMES.get(entry.suite, ""),
        inbox.receipt_at(entry.sender_id, uuid.UUID(entry.message_id)),
    )


async def _entry(view: View) -> Entry:
    try:
        wanted = uuid.UUID(view.given("message_id"))
    except ValueError:
        raise NotFound("there is no such message") from None
    entry = await view.desk.inbox(find, wanted, view.query.get("sender", ""))
    if entry is None:
        raise NotFound("this message is not in the inbox, or older than [inbox] keep_days")
    return entry


def _files(entry: Entry) -> list[dict[str, Any]]:
    """Return the files of a received directory."""
    found = entry.document["content"].get("files") if entry.text is None else None
    return list(found) if isinstance(found, list) else []


def _safe_path(name: object) -> str:
    return "/".join(safe_name(part) for part in str(name).split("/"))


def _content(home: Home, entry: Entry) -> Iterator[bytes]:
    if entry.text is not None:
        yield entry.text.encode()
    elif entry.kept:
        with closing(open_kept(home.path, home.secret_box.content_box, entry.kept)) as source:
            yield from _part(source, 0, entry.size)
    else:
        yield from _plain(Path(entry.file))


def _plain(path: Path) -> Iterator[bytes]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise FileError(
            f"{path} cannot be read: {error.strerror}", remedy="it was moved or deleted"
        ) from None
    with file:
        while data := file.read(_STEP):
            yield data


class _Pieces:
    """A file that collects what is written to it, for `zipfile`."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Do nothing: what is written is taken."""

    def take(self) -> bytes:
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data


def _packed(home: Home, entry: Entry, files: list[dict[str, Any]]) -> Iterator[bytes]:
    """Yield a received directory as a ZIP file, uncompressed, as it is read."""
    pieces, top = _Pieces(), safe_name(entry.filename)
    with zipfile.ZipFile(pieces, "w") as archive:  # type: ignore[call-overload]
        for name, chunks in _members(home, entry, files):
            with archive.open(f"{top}/{name}", "w", force_zip64=True) as out:
                for data in chunks:
                    out.write(data)
                    yield pieces.take()
    yield pieces.take()


def _members(
    home: Home, entry: Entry, files: list[dict[str, Any]]
) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield the files of a directory: from the disk, or from where it is kept encrypted."""
    if not entry.kept:
        folder = Path(entry.file)
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(folder).as_posix(), _plain(path)
        return
    with closing(open_kept(home.path, home.secret_box.content_box, entry.kept)) as source:
        at = 0
        for one in files:
            yield _safe_path(one["name"]), _part(source, at, int(one["size"]))
            at += int(one["size"])


def _part(source: RandomAccessFile, at: int, size: int) -> Iterator[bytes]:
    for inside in range(0, size, _STEP):
        yield source.read(min(_STEP, size - inside), at + inside)

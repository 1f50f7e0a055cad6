"""Encode and decode parts and manifests of files; the manual page `files` has the bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import attrs
import orjson

from cipherbox.classes import frozen
from cipherbox.errors import MalformedEnvelope
from cipherbox.limits import LIMITS
from cipherbox.sealing.body import Message

PART = "application/vnd.cipherbox.part"
MANIFEST = "application/vnd.cipherbox.manifest"
ZSTD = "zstd"
DIRECTORY = "inode/directory"  # the content type of a directory that is sent as a unit
# all names on the way to all files: bounds how many directories are made
NAMES_OF_ENTRIES = LIMITS.entries * 4
VERSION = 2  # of manifests that have entries; without them they are as in version 1


@frozen
class Part:
    """One part as received; ``data`` is already decompressed."""

    transfer: bytes
    number: int
    part_bytes: int
    data: bytes | memoryview = attrs.field(repr=False)


@frozen
class Entry:
    """A file of a directory, or with size -1 an empty directory; ``path`` is relative to the
    directory, with slashes.
    """

    path: str
    size: int
    modified_at: int


@frozen
class Manifest:
    """The description of a whole file; ``hashes`` are SHA-256 of its parts, ``modified_at`` is ms
    since 1970.

    With ``entries`` it is a directory, whose files follow one another in the parts.
    """

    transfer: bytes
    path: tuple[str, ...]
    size: int
    part_bytes: int
    hashes: tuple[bytes, ...] = attrs.field(repr=False)
    modified_at: int
    content_type: str
    entries: tuple[Entry, ...] = attrs.field(default=(), repr=False)

    @property
    def digest(self) -> str:
        """Return SHA-256 over the hashes of the parts, hexadecimal: the name of this content."""
        return hashlib.sha256(b"".join(self.hashes)).hexdigest()


def part_message(
    transfer: bytes, number: int, part_bytes: int, data: bytes, *, compress: bool
) -> Message:
    """Return a part as a message, compressed only if that makes it smaller."""
    headers = {"transfer": transfer.hex(), "part": str(number), "part_bytes": str(part_bytes)}
    if compress:
        import zstandard

        small = zstandard.ZstdCompressor().compress(data)
        if len(small) < len(data):
            return Message(small, PART, {**headers, "encoding": ZSTD})
    return Message(data, PART, headers)


def read_part(message: Message, content: bytes | memoryview | None = None) -> Part:
    """Return the part in a message, whose ``content`` may be apart (`body.apart`); raise
    MalformedEnvelope if it is invalid.
    """
    headers = message.headers
    try:
        transfer = _transfer(headers["transfer"])
        number, part_bytes = int(headers["part"]), int(headers["part_bytes"])
    except (KeyError, ValueError):
        raise MalformedEnvelope("this message is not a part of a file") from None
    if not (0 <= number < LIMITS.parts and 0 < part_bytes <= LIMITS.part_bytes_most):
        raise MalformedEnvelope("the part has a number or a size that is not allowed")
    data: bytes | memoryview = message.content if content is None else content
    encoding = headers.get("encoding", "")
    if encoding == ZSTD:
        data = _expanded(data, part_bytes)
    elif encoding:
        raise MalformedEnvelope(
            f"the part is encoded as {encoding[:40]!r}, which this program does not know"
        )
    if not 0 < len(data) <= part_bytes:
        raise MalformedEnvelope("the part is empty or larger than it says")
    return Part(transfer, number, part_bytes, data)


def _expanded(data: bytes | memoryview, most: int) -> bytes:
    import zstandard

    try:
        found = (
            zstandard.ZstdDecompressor(max_window_size=LIMITS.part_bytes_most)
            .stream_reader(data)
            .read(most + 1)
        )
    except (zstandard.ZstdError, MemoryError):
        raise MalformedEnvelope("the part does not expand") from None
    return bytes(found)


def manifest_message(manifest: Manifest) -> Message:
    """Return a manifest as a message."""
    document = {
        "transfer": manifest.transfer.hex(),
        "path": list(manifest.path),
        "size": manifest.size,
        "part_bytes": manifest.part_bytes,
        "parts": b"".join(manifest.hashes).hex(),
        "modified_at": manifest.modified_at,
        "content_type": manifest.content_type,
    }
    if manifest.entries:
        document["version"] = VERSION
        document["entries"] = [[one.path, one.size, one.modified_at] for one in manifest.entries]
    return Message(orjson.dumps(document), MANIFEST)


def manifest_of(
    transfer: bytes,
    path: Sequence[str],
    content: bytes | memoryview,
    content_type: str,
    modified_at: int,
) -> Manifest:
    """Return the manifest of a file that arrived as one message."""
    size = LIMITS.part_bytes
    view = memoryview(content)
    hashes = tuple(
        hashlib.sha256(view[at : at + size]).digest() for at in range(0, len(view), size)
    )
    return Manifest(transfer, tuple(path), len(content), size, hashes, modified_at, content_type)


def read_manifest(content: bytes) -> Manifest:
    """Return the manifest in a message's content; raise MalformedEnvelope if it is invalid or
    inconsistent.
    """
    try:
        document: dict[str, Any] = orjson.loads(content)
        if document.get("version", 1) not in (1, VERSION):
            raise MalformedEnvelope("the manifest is of a newer program", remedy="update this one")
        raw = bytes.fromhex(document["parts"])
        manifest = Manifest(
            _transfer(document["transfer"]),
            tuple(document["path"]),
            document["size"],
            document["part_bytes"],
            tuple(raw[at : at + 32] for at in range(0, len(raw), 32)),
            document["modified_at"],
            document["content_type"],
            tuple(Entry(*one) for one in document.get("entries", ())),
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise MalformedEnvelope("this message is not the manifest of a file") from None
    numbers = (manifest.size, manifest.part_bytes, manifest.modified_at)
    texts: Sequence[object] = (*manifest.path, manifest.content_type)
    if not all(type(n) is int and n >= 0 for n in numbers) or not all(
        type(t) is str for t in texts
    ):
        raise MalformedEnvelope("the manifest has a value of the wrong kind")
    if (
        not 1 <= len(manifest.path) <= LIMITS.path_names + 1
        or not 0 < manifest.part_bytes <= LIMITS.part_bytes_most
    ):
        raise MalformedEnvelope("the manifest has a path or a part size that is not allowed")
    if len(manifest.content_type.encode()) > LIMITS.content_type_bytes:
        raise MalformedEnvelope("the manifest has a content type that is too long")
    _check_entries(manifest)
    if len(raw) % 32 or len(manifest.hashes) != -(-manifest.size // manifest.part_bytes):
        raise MalformedEnvelope("the manifest names another number of parts than its size needs")
    return manifest


def _check_entries(manifest: Manifest) -> None:
    entries = manifest.entries
    if not entries:
        return
    for one in entries:
        numbers = (
            type(one.size) is int
            and type(one.modified_at) is int
            and one.size >= -1
            and one.modified_at >= 0
        )
        if (
            not numbers
            or type(one.path) is not str
            or not 1 <= one.path.count("/") + 1 <= LIMITS.path_names + 1
        ):
            raise MalformedEnvelope(
                "the manifest names a file of a directory in a way that is not allowed"
            )
    if sum(one.path.count("/") + 1 for one in entries) > NAMES_OF_ENTRIES:
        raise MalformedEnvelope("the manifest names too many directories")
    if len(entries) > LIMITS.entries or sum(max(one.size, 0) for one in entries) != manifest.size:
        raise MalformedEnvelope("the manifest names other files than its size needs, or too many")


def _transfer(text: str) -> bytes:
    raw = bytes.fromhex(text)
    if len(raw) != 16:
        raise ValueError(text)
    return raw

"""Format received messages as readable JSON lines: ``message_id, sender_id, sent_timestamp,
content``, and ``headers`` if any. A message sent as a file, or with content that is not text,
becomes a file instead; its line is written when it is complete, and names it.

A batch has thousands of messages of one type without headers, and formatting them is a receiver's
largest cost. Such a batch is not split into messages: its contents are encoded as JSON in one step,
and if that changed nothing, which is usual, each line is assembled from the common parts, its
number and its slice of the contents.
"""

from __future__ import annotations

import codecs
import io
import time
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, pairwise, repeat
from typing import Any, NamedTuple

import orjson

from cipherbox.errors import MalformedEnvelope
from cipherbox.limits import LIMITS
from cipherbox.sealing.body import Message, Messages, apart

_TEXT_TYPES = frozenset(
    [
        "application/json",
        "application/jsonl",
        "application/x-ndjson",
        "application/xml",
        "application/hl7-v2",
        "application/yaml",
        "application/toml",
        "application/javascript",
        "application/sql",
    ]
)
_TEXT_ENDINGS = ("+json", "+xml", "+yaml")
_YEAR_10000 = 253_402_300_800_000
_numbers: list[bytes] = []  # b"0000", b"0001", ... made on first use

# of many texts encoded in one step, which may become six times as long
_AT_ONCE = 2 * LIMITS.batch_bytes
# of one envelope: twice the texts' size, and 64 KiB for lines; more is refused
LINES_BYTES = 48 * 1024 * 1024
_PIECE = 256 * 1024  # of a text encoded in one step: the whole would be in memory four times
FILENAME = "filename"  # the header that makes a message a file


class Received(NamedTuple):
    """One opened envelope to be recorded. ``sealed_at`` and ``accepted_at`` are ms since 1970."""

    sender: str
    envelope_id: bytes
    generation: int
    queue: str
    accepted_at: int
    sealed_at: int
    messages: Sequence[Message]
    envelope_hash: bytes = bytes(32)
    commitment: bytes = b""  # to the plaintext; empty in envelopes of version 1
    suite: int = 0  # of the signature that was verified
    log_entry: int = 0  # the entry of HQ's log that names its acceptance, as HQ stated
    prompt_receipt: bool = False  # the sender waits for the receipt


class MessageLines(NamedTuple):
    """The lines of an envelope's texts, each with its line end, their types, and the indexes of
    messages that are files. A single type applies to all.
    """

    data: bytes
    types: list[str]
    files: list[int]


def lines_of(received: Received) -> MessageLines:
    """Return the lines of an envelope's texts; see `MessageLines`. Raise MalformedEnvelope if
    control characters make them too long.
    """
    messages = received.messages
    if isinstance(messages, Messages) and len(messages) > 1:
        made = _of_one_type(received, messages)
        if made is not None:
            return MessageLines(made, [messages.same_type or ""], [])
    # JSON may be six times the text's size, so it is not joined from pieces
    lines, types, files = io.BytesIO(), [], []
    sealed = timestamp(received.sealed_at)
    for index in range(len(messages)):
        message, content = apart(messages, index)
        sent = message.sent_at
        line: dict[str, Any] = {
            "message_id": line_id(received.envelope_id, index),
            "sender_id": received.sender,
            "sent_timestamp": sealed
            if sent is None or sent == received.sealed_at
            else timestamp(sent),
            "content": "",
        }
        if message.headers:
            line["headers"] = message.headers
        if (
            FILENAME not in message.headers
            and is_text(message.content_type)
            and _write(lines, line, content)
        ):
            types.append(message.content_type)
        else:
            files.append(index)
        if lines.tell() > LINES_BYTES:
            lines.close()  # the error's traceback would keep it
            raise MalformedEnvelope(f"its lines would take more than {LINES_BYTES >> 20} MiB")
    if len(set(types)) == 1:
        del types[1:]
    return MessageLines(lines.getvalue(), types, files)


def _write(out: io.BytesIO, line: dict[str, Any], content: bytes | memoryview) -> bool:
    """Write the line with the content as its text. Return False, writing nothing, if the content is
    not text.

    That is: not UTF-8, or long and full of control characters, each of which takes six bytes in
    JSON.
    """
    start = out.tell()
    try:
        if len(content) <= _PIECE:
            line["content"] = str(content, "utf-8")
            out.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            return True
        head, mark, tail = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE).partition(
            b'"content":"'
        )
        out.write(head + mark)
        at = 0
        while at < len(content):
            last = at + _PIECE >= len(content)
            piece, size = codecs.utf_8_decode(content[at : at + _PIECE], "strict", last)
            out.write(memoryview(orjson.dumps(piece))[1:-1])
            at += size  # less than a piece, if it would end inside a character
            if out.tell() - start > _PIECE + 2 * len(content):
                raise ValueError
        out.write(tail)
    except ValueError:
        out.seek(start)
        out.truncate()
        return False
    return True


def file_line(
    sender: str,
    message_id: str,
    sent_ms: int,
    content: dict[str, Any],
    headers: dict[str, str] | None = None,
) -> bytes:
    """Return the line of a complete file."""
    line = {
        "message_id": message_id,
        "sender_id": sender,
        "sent_timestamp": timestamp(sent_ms),
        "content": content,
    }
    if headers:
        line["headers"] = headers
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def line_id(envelope_id: bytes, index: int) -> str:
    """Return a message's id as used in lines."""
    return f"{_stem(envelope_id)}{index:04x}"


def _of_one_type(received: Received, messages: Messages) -> bytes | None:
    kind = messages.same_type
    if kind is None or not is_text(kind) or len(messages.contents) > _AT_ONCE:
        return None
    try:
        text = str(messages.contents, "utf-8")
    except UnicodeDecodeError:
        return None
    if not text.isascii():
        return None
    whole = orjson.dumps(text)
    if len(whole) != len(text) + 2:  # something was escaped
        return None
    stem = _stem(received.envelope_id).encode()
    sender, sealed = received.sender.encode(), timestamp(received.sealed_at).encode()
    head, tail = b'{"message_id":"' + stem, b'"}\n'
    middle = b'","sender_id":"' + sender + b'","sent_timestamp":"' + sealed + b'","content":"'
    contents = [whole[start + 1 : end + 1] for start, end in pairwise(messages.bounds)]
    pieces = list(
        chain.from_iterable(zip(repeat(tail + head), _hex_numbers(), repeat(middle), contents))
    )
    pieces[0] = head
    pieces.append(tail)
    return b"".join(pieces)


def _hex_numbers() -> list[bytes]:
    if not _numbers:
        _numbers.extend(b"%04x" % number for number in range(65_536))
    return _numbers


def _stem(envelope_id: bytes) -> str:
    raw = envelope_id.hex()
    return f"{raw[:8]}-{raw[8:12]}-{raw[12:16]}-{raw[16:20]}-{raw[20:28]}"


@lru_cache(maxsize=64)
def is_text(content_type: str) -> bool:
    """Return whether content of this type is included in the line."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind.startswith("text/") or kind in _TEXT_TYPES or kind.endswith(_TEXT_ENDINGS)


def timestamp(ms: int) -> str:
    """Return a time as ISO 8601 in UTC with milliseconds: 2025-10-08T07:03:00.123Z."""
    if ms >= _YEAR_10000:
        return f"{ms} ms"  # a sender's clock is untrusted
    return f"{_second(ms // 1000)}.{ms % 1000:03d}Z"


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))

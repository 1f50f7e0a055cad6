"""The prefix: the part of an envelope that HQ reads, all of it in clear.

Decoding is total: any bytes give a Prefix, MalformedEnvelope or UnknownVersion, and counts are
checked against the bytes present before anything is allocated.  HQ decodes a prefix for every
envelope it accepts, so checked names are cached (bounded).  The manual page `envelope` has the byte
table.

Version 2 is written.  Recipients still read version 1 (0.5.0 and older), for envelopes waiting at
HQ.  A reader ignores unknown flags among the low four and refuses unknown ones among the high four.
Bytes between the last recipient and the prefix's end belong to unknown flags; without one there are
none.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

from cipherbox.envelope.ids import is_envelope_id
from cipherbox.envelope.stanza_types import STANZA_BOUNDS
from cipherbox.envelope.suites import BodyCipher, HashSuite, SignatureSuite
from cipherbox.errors import InvalidRequest, MalformedEnvelope, UnknownVersion
from cipherbox.limits import LIMITS, check_client_id, check_name

MAGIC = b"CBXE"
VERSION, FIRST_VERSION = 2, 1
CRITICAL_FLAGS = 0xF0
PROMPT_RECEIPT = 0x01  # the sender waits for the receipt: sign it now, not with the next ones
_FLAGS_WITHOUT_BYTES = PROMPT_RECEIPT
TAG_BYTES = 16
COMMITMENT_BYTES = 32
FIXED = struct.Struct(">4sBBIIQQ16sIIBBB32s32s32sHBBB")
# the same without magic, version, flags and hash suite: the first fields of `Prefix`, in its order
_READ = struct.Struct(">6xIIQQ16sIIBBx32s32s32s")
_READ_1 = struct.Struct(">6xIIQQ16sIIBB32s32s")  # of version 1, without plain_commitment
# then the number of recipients, and the lengths of sender, exchange and routing key
_COUNTS = struct.Struct(">HBBB")
_COUNTS_BYTES = _COUNTS.size
_FIXED_BYTES, _FIXED_BYTES_1 = _READ.size + _COUNTS_BYTES, _READ_1.size + _COUNTS_BYTES
_HASH_SUITE_AT = 56
BUNDLE_HASH = slice(57, 89)  # of a prefix's bytes
RECIPIENT = struct.Struct(">16sBHB")
_CIPHERS = frozenset(map(int, BodyCipher))
_SUITES = frozenset(map(int, SignatureSuite))
_SHA256 = int(HashSuite.SHA256)
_FIRST_CRITICAL_FLAG = CRITICAL_FLAGS & -CRITICAL_FLAGS
_MOST_BYTES, _MOST_MESSAGES = LIMITS.prefix_bytes, LIMITS.messages
# longer prefixes are not cached, which bounds the cache to a few MB
_KNOWN_BYTES = 1024
_new = tuple.__new__  # a NamedTuple's own constructor takes three times as long


class Recipient(NamedTuple):
    """One recipient's entry: its client id and key, and the type and length of its stanza."""

    key_id: bytes
    stanza_type: int
    stanza_length: int
    client_id: str


class Prefix(NamedTuple):
    """The decoded prefix; times are ms since 1970, lengths are bytes.

    The fields up to ``plain_commitment`` are in the order of the bytes.
    """

    prefix_length: int
    body_length: int
    sealed_at: int
    expires_at: int
    envelope_id: bytes
    generation: int
    message_count: int
    body_cipher: int
    signature_suite: int
    bundle_hash: bytes
    commitment: bytes  # to the content key
    plain_commitment: bytes  # to the plaintext, the same in every generation; empty in version 1
    version: int
    flags: int
    sender: str
    exchange: str
    routing_key: str
    recipients: tuple[Recipient, ...]
    recipient_ids: tuple[str, ...]
    stanzas_length: int

    @property
    def prompt_receipt(self) -> bool:
        """Return whether the sender waits for the receipt."""
        return bool(self.flags & PROMPT_RECEIPT)


class Parties(NamedTuple):
    """The variable end of a prefix, equal in a sender's envelopes for the same recipients."""

    sender: str
    exchange: str
    routing_key: str
    recipients: tuple[Recipient, ...]
    recipient_ids: tuple[str, ...]
    stanzas_length: int


@lru_cache(maxsize=16_384)
def _client_id(raw: bytes) -> str:
    try:
        return check_client_id(raw.decode("ascii"))
    except (UnicodeDecodeError, InvalidRequest):
        raise MalformedEnvelope("the prefix contains an invalid client id") from None


@lru_cache(maxsize=16_384)
def _name(raw: bytes) -> str:
    try:
        return check_name(raw.decode("utf-8"), "name") if raw else ""
    except (UnicodeDecodeError, InvalidRequest):
        raise MalformedEnvelope("the exchange or routing key is not a valid name") from None


def encode_prefix(
    *,
    body_length: int,
    sealed_at: int,
    expires_at: int,
    envelope_id: bytes,
    generation: int,
    message_count: int,
    body_cipher: int,
    signature_suite: int,
    bundle_hash: bytes,
    commitment: bytes,
    plain_commitment: bytes,
    sender: str,
    exchange: str,
    routing_key: str,
    recipients: tuple[Recipient, ...],
    flags: int = 0,
) -> bytes:
    """Return the prefix's bytes; raise InvalidRequest if a value does not fit into its field.

    All other checks are in `decode_prefix`.
    """
    try:
        names = sender.encode(), exchange.encode(), routing_key.encode()
        tail = list(names)
        for entry in recipients:
            name = entry.client_id.encode()
            tail.append(
                RECIPIENT.pack(entry.key_id, entry.stanza_type, entry.stanza_length, len(name))
            )
            tail.append(name)
        length = FIXED.size + sum(map(len, tail))
        head = FIXED.pack(
            MAGIC,
            VERSION,
            flags,
            length,
            body_length,
            sealed_at,
            expires_at,
            envelope_id,
            generation,
            message_count,
            body_cipher,
            signature_suite,
            HashSuite.SHA256,
            bundle_hash,
            commitment,
            plain_commitment,
            len(recipients),
            *map(len, names),
        )
    except (struct.error, UnicodeEncodeError):
        raise InvalidRequest(
            "a name, a time or a number of the envelope does not fit into its field"
        ) from None
    return head + b"".join(tail)


def peek_version(raw: bytes) -> int:
    """Return the version in an envelope's first bytes; 0 if they are not an envelope's."""
    return raw[4] if len(raw) > 4 and raw[:4] == MAGIC else 0


def decode_prefix(buf: bytes) -> Prefix:
    """Return the prefix at the start of ``buf``.

    Raise MalformedEnvelope or UnknownVersion, and no other error.
    """
    if len(buf) < _FIXED_BYTES_1 or buf[:4] != MAGIC:
        raise MalformedEnvelope("these bytes are not an envelope")
    version, flags = buf[4], buf[5]
    if version != VERSION:
        fixed, values = _FIXED_BYTES_1, (*_READ_1.unpack_from(buf), b"")
        known = version == FIRST_VERSION and not flags
    elif len(buf) < _FIXED_BYTES:
        raise MalformedEnvelope("the prefix does not fit into the bytes")
    else:
        fixed, values = _FIXED_BYTES, _READ.unpack_from(buf)
        known = flags < _FIRST_CRITICAL_FLAG and buf[_HASH_SUITE_AT] == _SHA256
    if not known:
        raise UnknownVersion(
            f"the envelope is of version {version} with flags {flags}", remedy="update this program"
        )
    length, body_length, sealed_at, expires_at, envelope_id, _, count, cipher, suite = values[:9]
    if not fixed < length <= _MOST_BYTES or length > len(buf):
        raise MalformedEnvelope("the prefix does not fit into the bytes")
    if cipher not in _CIPHERS or suite not in _SUITES:
        raise UnknownVersion(
            f"the envelope uses body cipher {cipher} and signature suite {suite}",
            remedy="update this program",
        )
    if (
        not 1 <= count <= _MOST_MESSAGES
        or body_length < TAG_BYTES
        or not is_envelope_id(envelope_id)
    ):
        raise MalformedEnvelope("the prefix's id, message count or body length is not allowed")
    if expires_at and expires_at <= sealed_at:
        raise MalformedEnvelope("the envelope expires before it was sealed")
    read = _known_parties if length <= _KNOWN_BYTES else _parties
    parties = read(buf[fixed - _COUNTS_BYTES : length], flags > _FLAGS_WITHOUT_BYTES)
    return _new(Prefix, (*values, version, flags, *parties))


def _parties(raw: bytes, more: bool) -> Parties:
    """Return the parties, whose counts precede them; ``more``: bytes of an unknown flag may
    follow.
    """
    recipient_count, sender_size, exchange_size, key_size = _COUNTS.unpack_from(raw)
    if not 1 <= recipient_count <= LIMITS.recipients:
        raise MalformedEnvelope(f"an envelope has 1 to {LIMITS.recipients} recipients")
    at = _COUNTS_BYTES + sender_size
    sender = _client_id(raw[_COUNTS_BYTES:at])
    exchange = _name(raw[at : at + exchange_size])
    at += exchange_size
    routing_key = _name(raw[at : at + key_size])
    at += key_size
    recipients = []
    for _ in range(recipient_count):
        if at + RECIPIENT.size > len(raw):
            raise MalformedEnvelope("the prefix ends inside its recipients")
        key_id, stanza_type, stanza_length, id_size = RECIPIENT.unpack_from(raw, at)
        at += RECIPIENT.size
        bounds = STANZA_BOUNDS.get(stanza_type)
        if bounds is None:
            raise UnknownVersion(
                f"the envelope uses stanza type {stanza_type}", remedy="update this program"
            )
        if not bounds[0] <= stanza_length <= bounds[1]:
            raise MalformedEnvelope(
                f"a stanza of type {stanza_type} does not have {stanza_length} bytes"
            )
        recipients.append(
            Recipient(key_id, stanza_type, stanza_length, _client_id(raw[at : at + id_size]))
        )
        at += id_size
    if at > len(raw) or (at < len(raw) and not more):
        raise MalformedEnvelope("the prefix does not have the length it states")
    ids = tuple(r.client_id for r in recipients)
    if recipient_count > 1 and len({name.casefold() for name in ids}) != recipient_count:
        raise MalformedEnvelope("a recipient is named twice")
    return Parties(
        sender,
        exchange,
        routing_key,
        tuple(recipients),
        ids,
        sum(r.stanza_length for r in recipients),
    )


_known_parties = lru_cache(maxsize=4096)(_parties)

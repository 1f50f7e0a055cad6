"""Open an envelope: verify and decrypt it into messages.

The order of the checks is part of the format; each failure has its own error.

1. the layout (MalformedEnvelope, UnknownVersion)
2. the sender's bundle is the one named
3. the signature (SignatureInvalid)
4. a stanza for this client (NotRecipient, KeyMissing)
5. the stanza decrypts (DecryptionFailed)
6. the key commitment (CommitmentMismatch)
7. the body decrypts (DecryptionFailed)
8. the plaintext commitment (PlaintextMismatch)
9. the plaintext is well formed (MalformedEnvelope)
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from typing import NamedTuple

import attrs
from cryptography.exceptions import InvalidTag

from cipherbox.envelope import layout as layouts
from cipherbox.envelope import signature
from cipherbox.envelope.bundle import KeyBundle
from cipherbox.envelope.layout import Hashes, Layout, Octets
from cipherbox.envelope.prefix import VERSION
from cipherbox.envelope.stanza_types import StanzaType
from cipherbox.errors import (
    CommitmentMismatch,
    DecryptionFailed,
    KeyMissing,
    MalformedEnvelope,
    NotRecipient,
    PlaintextMismatch,
    SignatureInvalid,
)
from cipherbox.sealing import stanzas
from cipherbox.sealing.body import FIRST_LAYOUT, LAYOUT, Messages, unpack
from cipherbox.sealing.identity import Identity
from cipherbox.sealing.primitives import ContentKeys, aead, commit_to, derive
from cipherbox.sealing.seal import SIGNATURE_USE

# Opens a stanza of type `ratchet`: (key id, stanza, binding) -> content key.  KeyMissing if no
# session can.
OpenInSession = Callable[[bytes, bytes, bytes], bytes]


class ParsedEnvelope(NamedTuple):
    """An envelope whose layout was read and hashes computed; nothing is verified yet."""

    raw: Octets
    layout: Layout
    hashes: Hashes


def parse_envelope(raw: Octets) -> ParsedEnvelope:
    """Return an envelope's layout and hashes: enough to look it up before opening it."""
    layout = layouts.split(raw)
    return ParsedEnvelope(raw, layout, layouts.hashes(raw, layout))


def verify(parsed: ParsedEnvelope, sender: KeyBundle) -> None:
    """Check the sender's signature against the bundle that the prefix names, which the caller has
    checked.
    """
    prefix = parsed.layout.prefix
    if sender.client_id != prefix.sender or not hmac.compare_digest(
        sender.hash, prefix.bundle_hash
    ):
        raise SignatureInvalid("the envelope names other sender's keys than these")
    signed = bytes(parsed.raw[parsed.layout.signatures_at :])
    signature.verify(
        sender.sign_keys,
        prefix.signature_suite,
        SIGNATURE_USE,
        parsed.hashes.envelope_hash,
        signed,
    )


def is_signed_by(raw: Octets, sender: KeyBundle) -> bool:
    """Return whether these keys signed an envelope, whatever bundle of theirs it names."""
    parsed = parse_envelope(raw)
    try:
        verify(parsed, attrs.evolve(sender, hash=parsed.layout.prefix.bundle_hash))
    except SignatureInvalid:
        return False
    return True


def content_key(parsed: ParsedEnvelope, identity: Identity) -> bytes:
    """Return the content key from this client's stanza, after checking the commitment."""
    return _content_key(parsed, identity)[0]


def _content_key(
    parsed: ParsedEnvelope, identity: Identity, in_session: OpenInSession | None = None
) -> tuple[bytes, ContentKeys]:
    prefix = parsed.layout.prefix
    index = _index_of(identity.client_id, prefix.recipient_ids)
    entry = prefix.recipients[index]
    prefix_hash = hashlib.sha256(parsed.raw[: prefix.prefix_length]).digest()
    stanza = layouts.stanza(parsed.raw, parsed.layout, index)
    if entry.stanza_type == StanzaType.RATCHET and in_session is not None:
        unwrapped = in_session(entry.key_id, stanza, stanzas.session_binding(prefix_hash, index))
    else:
        key = identity.decrypt_key(entry.key_id)
        if key is None or key.algorithm != entry.stanza_type:
            raise KeyMissing(
                f"the envelope was sealed to key {entry.key_id.hex()}, which is not here"
            )
        unwrapped = stanzas.unwrap(entry.stanza_type, key.private, stanza, prefix_hash, index)
    keys = derive(unwrapped)
    if not hmac.compare_digest(keys.commitment, prefix.commitment):
        raise CommitmentMismatch
    return unwrapped, keys


def _index_of(client_id: str, recipients: Sequence[str]) -> int:
    if client_id in recipients:
        return recipients.index(client_id)
    wanted = client_id.casefold()
    for index, name in enumerate(recipients):
        if name.casefold() == wanted:
            return index
    raise NotRecipient


def open_plain(parsed: ParsedEnvelope, key: bytes) -> bytes:
    """Return the body's plaintext as `body.pack` made it; senders seal it again."""
    return _plain(parsed, derive(key))


def _open_body(parsed: ParsedEnvelope, keys: ContentKeys) -> Messages:
    prefix = parsed.layout.prefix
    plain = _plain(parsed, keys)
    layout = FIRST_LAYOUT
    if prefix.version == VERSION:
        layout = LAYOUT
        if not hmac.compare_digest(commit_to(plain, prefix.sealed_at), prefix.plain_commitment):
            raise PlaintextMismatch
    if plain[:1] != bytes([layout]):
        raise MalformedEnvelope("the body's layout does not match the envelope's version")
    return unpack(plain, prefix.message_count, prefix.sealed_at)


def _plain(parsed: ParsedEnvelope, keys: ContentKeys) -> bytes:
    layout = parsed.layout
    body = memoryview(parsed.raw)[layout.body_at : layout.signatures_at]
    try:
        return aead(layout.prefix.body_cipher, keys.body_key).decrypt(
            keys.nonce, body, parsed.hashes.header_hash
        )
    except (InvalidTag, OverflowError):  # OverflowError: above the cipher's limit, 2 GiB
        raise DecryptionFailed("the body was changed") from None


def open_envelope(
    parsed: ParsedEnvelope,
    identity: Identity,
    sender: KeyBundle,
    in_session: OpenInSession | None = None,
) -> Messages:
    """Return the messages after all checks, in their order. Without ``in_session``, a stanza of a
    session raises KeyMissing.
    """
    verify(parsed, sender)
    _, keys = _content_key(parsed, identity, in_session)
    return _open_body(parsed, keys)

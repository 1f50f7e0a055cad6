"""Seal messages into an envelope.

The format fixes the order: content key and what is derived from it; the prefix, which commits to
both the key and the plaintext; one stanza for each recipient, bound to the prefix; the body, with
the hash of everything before it as associated data; the signature over the hash of everything. A
content key seals only one body: sealing again takes a fresh key.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol, TypeVar

import attrs

from cipherbox.classes import frozen
from cipherbox.envelope.bundle import BundleKey, KeyBundle, best_key
from cipherbox.envelope.layout import Octets
from cipherbox.envelope.prefix import (
    PROMPT_RECEIPT,
    TAG_BYTES,
    Recipient,
    decode_prefix,
    encode_prefix,
)
from cipherbox.envelope.stanza_types import POST_QUANTUM, StanzaType, key_id
from cipherbox.envelope.suites import SIGNATURE_SIZES, BodyCipher
from cipherbox.errors import (
    BundleError,
    BundleMalformed,
    EnvelopeError,
    InvalidRequest,
    TooLarge,
    UnsafeMix,
)
from cipherbox.limits import LIMITS
from cipherbox.sealing import stanzas
from cipherbox.sealing.body import LAYOUT
from cipherbox.sealing.identity import Identity
from cipherbox.sealing.primitives import CONTENT_KEY_BYTES, ContentKeys, aead, commit_to, derive

SIGNATURE_USE = "envelope-signature"
_IN_PLACE_BYTES = 64 * 1024  # a smaller body is copied faster than a view is made
T = TypeVar("T")


@frozen
class Sealed:
    """An envelope as its sender stores it."""

    raw: Octets = attrs.field(repr=False)  # a view, if it is large
    envelope_id: bytes
    envelope_hash: bytes
    commitment: bytes  # to the plaintext
    count: int
    content_key: bytes = attrs.field(repr=False)


class SendingChain(Protocol):
    """A session's sending chain, which wraps the content key for one recipient."""

    @property
    def key_id(self) -> bytes: ...

    @property
    def stanza_bytes(self) -> int: ...

    def wrap(self, content_key: bytes, binding: bytes) -> bytes: ...


def choose_keys(
    recipients: Sequence[KeyBundle], *, stanza: int | None = None, allow_mixed: bool = False
) -> list[BundleKey]:
    """Return one encryption key for each recipient: its preferred one, or the one of type
    ``stanza``.

    Raise UnsafeMix if some recipients have post-quantum keys and some do not, unless
    ``allow_mixed``.
    """
    if not 1 <= len(recipients) <= LIMITS.recipients:
        raise InvalidRequest(
            f"an envelope has 1 to {LIMITS.recipients} recipients, not {len(recipients)}"
        )
    if stanza is not None and stanza not in stanzas.SCHEMES:
        raise InvalidRequest(f"unknown stanza type {stanza}")
    keys = [
        best_key(bundle, frozenset({StanzaType(stanza)}) if stanza else None)
        for bundle in recipients
    ]
    safe = [StanzaType(key.algorithm) in POST_QUANTUM for key in keys]
    if not allow_mixed and any(safe) and not all(safe):
        weak = ", ".join(b.client_id for b, ok in zip(recipients, safe, strict=True) if not ok)
        raise UnsafeMix(
            f"{weak} only has classical keys, others have post-quantum keys",
            remedy="allow it by name, or send separately",
        )
    return keys


def _entries(
    recipients: Sequence[KeyBundle],
    keys: Sequence[BundleKey],
    sending_chains: Sequence[SendingChain] | None,
) -> tuple[Recipient, ...]:
    if sending_chains is not None:
        return tuple(
            Recipient(
                chain.key_id,
                StanzaType.RATCHET,
                chain.stanza_bytes,
                bundle.client_id,
            )
            for bundle, chain in zip(recipients, sending_chains, strict=True)
        )
    return tuple(
        _usable(bundle, _entry, key, bundle.client_id)
        for bundle, key in zip(recipients, keys, strict=True)
    )


@lru_cache(maxsize=1024)  # a busy sender names the same recipients in every envelope
def _entry(stanza_type: int, public_key: bytes, client_id: str) -> Recipient:
    size = stanzas.size(stanza_type, public_key)
    return Recipient(key_id(stanza_type, public_key), stanza_type, size, client_id)


def _check(prefix: bytes) -> None:
    """Check the prefix here, in microseconds, which saves a refusal by HQ or a dead letter."""
    try:
        decode_prefix(prefix)
    except EnvelopeError as error:
        raise InvalidRequest(f"cannot seal this envelope: {error}") from None


def _usable(bundle: KeyBundle, call: Callable[..., T], key: BundleKey, *more: object) -> T:
    try:
        return call(key.algorithm, key.public, *more)
    except BundleMalformed as error:
        raise BundleMalformed(f"cannot seal for {bundle.client_id}: {error}") from None


def seal(
    identity: Identity,
    recipients: Sequence[KeyBundle],
    plain: bytes,
    count: int,
    *,
    envelope_id: bytes,
    sealed_at: int,
    exchange: str = "",
    routing_key: str = "",
    generation: int = 0,
    expires_at: int = 0,
    cipher: BodyCipher = BodyCipher.AES_256_GCM,
    keys: Sequence[BundleKey] | None = None,
    allow_mixed: bool = False,
    sending_chains: Sequence[SendingChain] | None = None,
    prompt_receipt: bool = False,
) -> Sealed:
    """Seal ``plain`` (`body.pack`) of ``count`` messages for ``recipients``, whose bundles the
    caller has checked, and return the envelope.

    ``keys`` are those `choose_keys` returned for the same recipients, which refuses an unsafe mix;
    without it the keys are chosen here. ``sending_chains``, of a session with each recipient,
    replace the keys and make stanzas of type `ratchet`. ``prompt_receipt``: the caller waits for
    the receipts. Raise InvalidRequest for an envelope that a reader would refuse.
    """
    if identity.bundle is None:
        raise BundleError("this client has not published its keys yet")
    keys = _checked_keys(recipients, keys, sending_chains, allow_mixed)
    if plain[:1] != bytes([LAYOUT]) or plain[2:6] != count.to_bytes(4, "big"):
        raise InvalidRequest(f"the body does not have {count} messages")
    content_key = os.urandom(CONTENT_KEY_BYTES)
    derived = derive(content_key)
    plain_commitment = _commitment(plain, sealed_at)
    prefix = encode_prefix(
        body_length=len(plain) + TAG_BYTES,
        sealed_at=sealed_at,
        expires_at=expires_at,
        envelope_id=envelope_id,
        generation=generation,
        message_count=count,
        body_cipher=cipher,
        signature_suite=identity.suite,
        bundle_hash=identity.bundle.hash,
        commitment=derived.commitment,
        plain_commitment=plain_commitment,
        sender=identity.client_id,
        exchange=exchange,
        routing_key=routing_key,
        recipients=_entries(recipients, keys, sending_chains),
        flags=PROMPT_RECEIPT if prompt_receipt else 0,
    )
    _check(prefix)
    wrapped = _wrapped(prefix, content_key, recipients, keys, sending_chains)
    raw, envelope_hash = _signed(identity, [prefix, *wrapped], plain, cipher, derived)
    if len(raw) > LIMITS.envelope_bytes:
        raise TooLarge(
            f"the envelope has {len(raw)} bytes; at most {LIMITS.envelope_bytes} are allowed"
        )
    return Sealed(raw, envelope_id, envelope_hash, plain_commitment, count, content_key)


def _checked_keys(
    recipients: Sequence[KeyBundle],
    keys: Sequence[BundleKey] | None,
    sending_chains: Sequence[SendingChain] | None,
    allow_mixed: bool,
) -> Sequence[BundleKey]:
    """Return a key for each recipient, or none when sessions replace the keys."""
    if sending_chains is not None:
        keys = ()
    elif keys is None:
        keys = choose_keys(recipients, allow_mixed=allow_mixed)
    if len(keys if sending_chains is None else sending_chains) != len(recipients) or any(
        k not in b.keys for b, k in zip(recipients, keys, strict=False)
    ):
        raise InvalidRequest("an envelope needs one key of each recipient's own bundle")
    return keys


def _commitment(plain: bytes, sealed_at: int) -> bytes:
    try:
        return commit_to(plain, sealed_at)
    except OverflowError:
        raise InvalidRequest(
            "the time of sealing must be in milliseconds since 1970, from 0 to 2^64 - 1"
        ) from None


def _wrapped(
    prefix: bytes,
    content_key: bytes,
    recipients: Sequence[KeyBundle],
    keys: Sequence[BundleKey],
    sending_chains: Sequence[SendingChain] | None,
) -> list[bytes]:
    """Return the stanzas, in the order of the recipients."""
    prefix_hash = hashlib.sha256(prefix).digest()
    if sending_chains is not None:
        return [
            chain.wrap(content_key, stanzas.session_binding(prefix_hash, index))
            for index, chain in enumerate(sending_chains)
        ]
    return [
        _usable(bundle, stanzas.wrap, key, content_key, prefix_hash, index)
        for index, (bundle, key) in enumerate(zip(recipients, keys, strict=True))
    ]


def _signed(
    identity: Identity, header: list[bytes], plain: bytes, cipher: BodyCipher, keys: ContentKeys
) -> tuple[Octets, bytes]:
    """Return the envelope and its envelope hash. ``header`` is the prefix and all stanzas.

    A large body is encrypted into its place in the envelope, since joining would copy it.
    """
    head = b"".join(header)
    running = hashlib.sha256(head)
    lock = aead(cipher, keys.body_key)
    if len(plain) < _IN_PLACE_BYTES:
        body = lock.encrypt(keys.nonce, plain, running.digest())
        running.update(body)
        envelope_hash = running.digest()
        return b"".join([head, body, identity.sign(SIGNATURE_USE, envelope_hash)]), envelope_hash
    end = len(head) + len(plain) + TAG_BYTES
    raw = bytearray(end + SIGNATURE_SIZES[identity.suite])
    view = memoryview(raw)
    view[: len(head)] = head
    lock.encrypt_into(keys.nonce, plain, running.digest(), view[len(head) : end])
    running.update(view[len(head) : end])
    envelope_hash = running.digest()
    view[end:] = identity.sign(SIGNATURE_USE, envelope_hash)
    return view.toreadonly(), envelope_hash

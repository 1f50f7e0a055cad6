"""The Double Ratchet (Signal, "The Double Ratchet Algorithm", revision 4, without header
encryption).

Two ratchets. Each message advances a *chain*: HMAC-SHA256 derives the message key (constant 1) and
the next chain key (constant 2), so a stolen chain key reveals no earlier message. Each change of
direction advances the *root*: a fresh X25519 pair, its shared secret and HKDF-SHA256 derive new
chains, so stolen state reveals no message after the next ratchet step of both sides.

One end's state has two halves, since its sending and its receiving side are stored in two places.
`Ratchet` decrypts and advances the root, which starts a sending chain; `Chain` is that sending
chain from then on. Encrypting changes the chain alone.

Rules.
1. A state never changes: `encrypt` and `decrypt` return the next one. A failed call changes
   nothing.
2. A message key is used once. Key and nonce are derived from it together with the hash of all
   associated data, so that a state restored from a backup, which derives the same message key
   again, still never reuses a key and nonce.
3. Keys of skipped messages are kept up to a number; the oldest are dropped first.
4. Nothing here decides about trust or storage.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple

import attrs
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cipherbox.classes import frozen
from cipherbox.envelope.labels import label
from cipherbox.errors import DecryptionFailed, InvalidRequest, KeyMissing
from cipherbox.sealing.primitives import hkdf
from cipherbox.sealing.ratchet.settings import SETTINGS

KEY = 32
TAG = 16
HEADER = struct.Struct(">32sII")
ROOT_INFO, MESSAGE_INFO = label("ratchet-root"), label("ratchet-message")
_MAX_MESSAGES = 0xFFFFFFFF
Random = Callable[[int], bytes]


class Header(NamedTuple):
    """A message's header, in clear: the sender's ratchet key, the length of its previous chain, and
    the message's number in its chain.
    """

    key: bytes
    previous: int
    number: int

    def encode(self) -> bytes:
        """Return the header's 40 bytes."""
        return HEADER.pack(*self)


@frozen(repr=False)
class Chain:
    """The sending half: the sending chain of one root step.

    ``key`` is this end's public ratchet key, ``previous`` the number of messages in the previous
    chain.
    """

    turn: int
    key: bytes
    chain: bytes
    sent: int = 0
    previous: int = 0

    def __repr__(self) -> str:
        return f"Chain(turn={self.turn}, sent={self.sent})"


@frozen(repr=False)
class Ratchet:
    """The receiving half. ``receiving`` is a chain key, empty before the first chain.

    ``turn`` counts the sending chains begun; ``start`` is the newest one's first chain key until a
    `Chain` takes it. ``skipped`` maps (ratchet key, number) to message key, oldest first.
    """

    root: bytes
    own: bytes  # private ratchet key
    peer: bytes  # the peer's ratchet key; empty before the first message from it
    receiving: bytes = b""
    received: int = 0
    turn: int = 0
    start: bytes = b""
    skipped: Mapping[tuple[bytes, int], bytes] = attrs.Factory(dict)

    def __repr__(self) -> str:
        return f"Ratchet(turn={self.turn}, received={self.received}, {len(self.skipped)} skipped)"


def public(private: bytes) -> bytes:
    """Return the X25519 public key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def shared(private: bytes, peer: bytes) -> bytes:
    """Return the X25519 shared secret (RFC 7748). Raise DecryptionFailed if it is all zeros."""
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(
            X25519PublicKey.from_public_bytes(peer)
        )
    except ValueError:
        raise DecryptionFailed("a key of the session is invalid") from None


def kdf_rk(root: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """Return the next root key and a chain key: Signal's KDF_RK."""
    made = hkdf(secret, ROOT_INFO, 2 * KEY, root)
    return made[:KEY], made[KEY:]


def kdf_ck(chain: bytes) -> tuple[bytes, bytes]:
    """Return the next chain key and a message key: Signal's KDF_CK."""
    return _hmac(chain, b"\x02"), _hmac(chain, b"\x01")


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def bound(associated: bytes, header: Header) -> bytes:
    """Return all associated data of a message in one unambiguous encoding: Signal's CONCAT."""
    return len(associated).to_bytes(4, "big") + associated + header.encode()


def _cipher(message_key: bytes, data: bytes) -> tuple[AESGCM, bytes]:
    made = hkdf(message_key, MESSAGE_INFO + hashlib.sha256(data).digest(), KEY + 12)
    return AESGCM(made[:KEY]), made[KEY:]


def seal_message(message_key: bytes, plaintext: bytes, data: bytes) -> bytes:
    """Return ciphertext and tag: Signal's ENCRYPT. ``data`` is what `bound` returned."""
    aead, nonce = _cipher(message_key, data)
    return aead.encrypt(nonce, plaintext, data)


def open_message(message_key: bytes, ciphertext: bytes, data: bytes) -> bytes:
    """Return the plaintext: Signal's DECRYPT. Raise DecryptionFailed."""
    aead, nonce = _cipher(message_key, data)
    try:
        return aead.decrypt(nonce, ciphertext, data)
    except InvalidTag:
        raise DecryptionFailed("the message does not decrypt in this session") from None


def initiator(root: bytes, peer: bytes, random: Random = os.urandom) -> Ratchet:
    """Return the initiator's state; ``peer`` is the responder's first ratchet key, its signed
    prekey.
    """
    own = random(KEY)
    root, start = kdf_rk(root, shared(own, peer))
    return Ratchet(root, own, peer, turn=1, start=start)


def responder(root: bytes, own: bytes) -> Ratchet:
    """Return the responder's state; ``own`` is the private signed prekey."""
    return Ratchet(root, own, b"")


def sending(state: Ratchet, before: Chain | None) -> Chain:
    """Return the chain to encrypt with; ``before`` is the last one used. Raise InvalidRequest if
    this end cannot send (yet).
    """
    if before is not None and before.turn == state.turn:
        return before
    if not state.start:
        raise InvalidRequest(
            "the responder of a session cannot send before it has received the first message"
        )
    if before is not None and before.turn > state.turn:
        raise InvalidRequest(
            "the session's state is older than its last message", remedy="begin another session"
        )
    previous = before.sent if before is not None and before.turn == state.turn - 1 else 0
    return Chain(state.turn, public(state.own), state.start, 0, previous)


def encrypt(chain: Chain, plaintext: bytes, associated: bytes) -> tuple[Chain, Header, bytes]:
    """Return the next chain, the header and the ciphertext. Raise InvalidRequest if the chain is
    exhausted.
    """
    if chain.sent >= _MAX_MESSAGES:
        raise InvalidRequest("the session's chain is exhausted", remedy="begin another session")
    following, key = kdf_ck(chain.chain)
    header = Header(chain.key, chain.previous, chain.sent)
    ciphertext = seal_message(key, plaintext, bound(associated, header))
    return (
        Chain(chain.turn, chain.key, following, chain.sent + 1, chain.previous),
        header,
        ciphertext,
    )


def skip(chain: Chain) -> Chain:
    """Return the chain after its next message, for a caller that encrypts that message later."""
    return Chain(chain.turn, chain.key, kdf_ck(chain.chain)[0], chain.sent + 1, chain.previous)


def decrypt(
    state: Ratchet,
    header: Header,
    ciphertext: bytes,
    associated: bytes,
    *,
    max_skipped: int = SETTINGS.max_skipped,
    random: Random = os.urandom,
) -> tuple[Ratchet, bytes]:
    """Return the next state and the plaintext.

    Raise KeyMissing if the message's key was used or dropped, or if too many messages before it are
    missing; DecryptionFailed if it was changed on the way or belongs to another session.
    """
    data = bound(associated, header)
    at = (header.key, header.number)
    kept = state.skipped.get(at)
    if kept is not None:
        plaintext = open_message(kept, ciphertext, data)
        return attrs.evolve(
            state, skipped={k: v for k, v in state.skipped.items() if k != at}
        ), plaintext
    skipped = state.skipped
    if header.key != state.peer or header.number != state.received:
        skipped = dict(skipped)
        if header.key != state.peer:
            state = (
                _skip(state, header.previous, skipped, max_skipped) if state.receiving else state
            )
            state = _step(state, header.key, random)
        elif header.number < state.received:
            raise KeyMissing("the message's key in the session was used already, or dropped")
        state = _skip(state, header.number, skipped, max_skipped)
        for old in list(skipped)[: max(0, len(skipped) - max_skipped)]:
            del skipped[old]
    chain, key = kdf_ck(state.receiving)
    plaintext = open_message(key, ciphertext, data)
    number = state.received + 1
    return Ratchet(
        state.root, state.own, state.peer, chain, number, state.turn, state.start, skipped
    ), plaintext


def _skip(
    state: Ratchet, until: int, skipped: dict[tuple[bytes, int], bytes], most: int
) -> Ratchet:
    if until - state.received > most:
        raise KeyMissing(
            f"{until - state.received} messages of the session are missing, more than {most}"
        )
    chain, number = state.receiving, state.received
    while number < until:
        chain, skipped[(state.peer, number)] = kdf_ck(chain)
        number += 1
    return attrs.evolve(state, receiving=chain, received=number)


def _step(state: Ratchet, peer: bytes, random: Random) -> Ratchet:
    root, receiving = kdf_rk(state.root, shared(state.own, peer))
    own = random(KEY)
    root, start = kdf_rk(root, shared(own, peer))
    return Ratchet(root, own, peer, receiving, 0, state.turn + 1, start, state.skipped)

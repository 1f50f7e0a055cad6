"""The Double Ratchet (Signal, "The Double Ratchet Algorithm", revision 4, without header
encryption).

Two ratchets.  Each message turns a *chain*: HMAC-SHA256 makes the message's key (constant 1) and
the next chain key (constant 2), so who steals a chain key learns nothing of messages before.  Each
change of direction turns the *root*:  a fresh X25519 pair, its shared secret and HKDF-SHA256 make
new chains, so who stole everything learns nothing of messages after the next turn on both sides.

One end's state has two halves, since what it says and what it hears is kept in two places.
`Ratchet` hears, and turns the root, which starts a sending chain; `Chain` is that chain from then
on.  Saying changes the chain alone.

Rules.
1. A state never changes: `encrypt` and `decrypt` return the next one.  What fails has changed
   nothing.
2. A message key is used once.  Key and nonce come from it by HKDF together with the hash of all
   associated data, so that a state set back by a restored backup, which makes the same message key
   again, still uses no key twice.
3. Keys of messages that did not come yet are kept up to a number; the oldest are dropped first.
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

from cipherbox.envelope.labels import label
from cipherbox.errors import DecryptionFailed, InvalidRequest, KeyMissing
from cipherbox.sealing.primitives import hkdf
from cipherbox.sealing.ratchet.settings import SETTINGS

KEY = 32
TAG = 16
HEADER = struct.Struct(">32sII")
ROOT_INFO, MESSAGE_INFO = label("ratchet-root"), label("ratchet-message")
_MOST = 0xFFFFFFFF
Random = Callable[[int], bytes]


class Header(NamedTuple):
    """What stands before a message, in clear: the sender's ratchet key, how many messages its
    chain before had, and this one's number in its chain.
    """

    key: bytes
    previous: int
    number: int

    def encode(self) -> bytes:
        """40 bytes."""
        return HEADER.pack(*self)


@attrs.frozen(repr=False)
class Chain:
    """The half that speaks: the sending chain of one turn of the root.

    ``key`` is this end's public ratchet key, ``previous`` how many messages the chain before had.
    """

    turn: int
    key: bytes
    chain: bytes
    sent: int = 0
    previous: int = 0

    def __repr__(self) -> str:
        return f"Chain(turn={self.turn}, sent={self.sent})"


@attrs.frozen(repr=False)
class Ratchet:
    """The half that hears.  ``receiving`` is a chain key, empty where there is no chain yet.

    ``turn`` counts the sending chains begun so far; ``start`` is the newest one's first chain key,
    until a `Chain` has it.  ``skipped``: (ratchet key, number) -> message key, oldest first.
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
    """The X25519 public key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def shared(private: bytes, peer: bytes) -> bytes:
    """X25519 (RFC 7748); DecryptionFailed for a point that makes zeros."""
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(
            X25519PublicKey.from_public_bytes(peer)
        )
    except ValueError:
        raise DecryptionFailed("a key of the session is not one") from None


def turn_root(root: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """KDF_RK: the next root key and a chain key."""
    made = hkdf(secret, ROOT_INFO, 2 * KEY, root)
    return made[:KEY], made[KEY:]


def turn_chain(chain: bytes) -> tuple[bytes, bytes]:
    """KDF_CK: the next chain key and a message key."""
    return _hmac(chain, b"\x02"), _hmac(chain, b"\x01")


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def bound(associated: bytes, header: Header) -> bytes:
    """CONCAT: all associated data of a message, in one way only."""
    return len(associated).to_bytes(4, "big") + associated + header.encode()


def _cipher(message_key: bytes, data: bytes) -> tuple[AESGCM, bytes]:
    made = hkdf(message_key, MESSAGE_INFO + hashlib.sha256(data).digest(), KEY + 12)
    return AESGCM(made[:KEY]), made[KEY:]


def seal_message(message_key: bytes, plaintext: bytes, data: bytes) -> bytes:
    """ENCRYPT: ciphertext and tag; ``data`` as `bound` made it."""
    aead, nonce = _cipher(message_key, data)
    return aead.encrypt(nonce, plaintext, data)


def open_message(message_key: bytes, ciphertext: bytes, data: bytes) -> bytes:
    """DECRYPT; DecryptionFailed."""
    aead, nonce = _cipher(message_key, data)
    try:
        return aead.decrypt(nonce, ciphertext, data)
    except InvalidTag:
        raise DecryptionFailed("the message does not open in this session") from None


def first(root: bytes, peer: bytes, random: Random = os.urandom) -> Ratchet:
    """The state of who speaks first; ``peer`` is the other's first ratchet key, its signed
    prekey.
    """
    own = random(KEY)
    root, start = turn_root(root, shared(own, peer))
    return Ratchet(root, own, peer, turn=1, start=start)


def second(root: bytes, own: bytes) -> Ratchet:
    """The state of who answers; ``own`` is the private signed prekey."""
    return Ratchet(root, own, b"")


def sending(state: Ratchet, before: Chain | None) -> Chain:
    """The chain to speak in; ``before`` is the last one that was spoken in.  InvalidRequest: it
    cannot speak (yet).
    """
    if before is not None and before.turn == state.turn:
        return before
    if not state.start:
        raise InvalidRequest(
            "this end of the session speaks second; it waits for the first message"
        )
    if before is not None and before.turn > state.turn:
        raise InvalidRequest(
            "the session was set back behind what was said in it", remedy="begin another session"
        )
    previous = before.sent if before is not None and before.turn == state.turn - 1 else 0
    return Chain(state.turn, public(state.own), state.start, 0, previous)


def encrypt(chain: Chain, plaintext: bytes, associated: bytes) -> tuple[Chain, Header, bytes]:
    """The next state, the header and the ciphertext.  InvalidRequest when the chain is used up."""
    if chain.sent >= _MOST:
        raise InvalidRequest("the session's chain is used up", remedy="begin another session")
    following, key = turn_chain(chain.chain)
    header = Header(chain.key, chain.previous, chain.sent)
    ciphertext = seal_message(key, plaintext, bound(associated, header))
    return (
        Chain(chain.turn, chain.key, following, chain.sent + 1, chain.previous),
        header,
        ciphertext,
    )


def skip(chain: Chain) -> Chain:
    """The chain after its next message, for who keeps the one before to say that message in."""
    return Chain(chain.turn, chain.key, turn_chain(chain.chain)[0], chain.sent + 1, chain.previous)


def decrypt(
    state: Ratchet,
    header: Header,
    ciphertext: bytes,
    associated: bytes,
    *,
    max_skipped: int = SETTINGS.max_skipped,
    random: Random = os.urandom,
) -> tuple[Ratchet, bytes]:
    """The next state and the plaintext.

    KeyMissing: its key was used before, was dropped, or too many messages before it did not come.
    DecryptionFailed:  changed on the way, or of another session.
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
            raise KeyMissing("the message's key in the session was used before, or dropped")
        state = _skip(state, header.number, skipped, max_skipped)
        for old in list(skipped)[: max(0, len(skipped) - max_skipped)]:
            del skipped[old]
    chain, key = turn_chain(state.receiving)
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
            f"{until - state.received} messages of the session are missing; at most {most} may be"
        )
    chain, number = state.receiving, state.received
    while number < until:
        chain, skipped[(state.peer, number)] = turn_chain(chain)
        number += 1
    return attrs.evolve(state, receiving=chain, received=number)


def _step(state: Ratchet, peer: bytes, random: Random) -> Ratchet:
    root, receiving = turn_root(state.root, shared(state.own, peer))
    own = random(KEY)
    root, start = turn_root(root, shared(own, peer))
    return Ratchet(root, own, peer, receiving, 0, state.turn + 1, start, state.skipped)

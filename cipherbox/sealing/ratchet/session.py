"""A session between two clients: its handshake, its ratchet, and the bytes of its messages and of
its state at rest.

    kind u8 (1, or 2 with a handshake) | session id 16 | [handshake 1,168] | ratchet header 40 |
    ciphertext, tag 16

The initiator sends the handshake with every message until it has received one, so that any of them
may arrive first. Everything before the ciphertext is associated data, together with the hash of
what both ends agreed on, and the caller's binding.

Of several sessions with one peer (both initiated simultaneously, or one was renewed) both ends send
in the newest by the time in its handshake, then by its id: both know these, so they choose the
same.
"""

from __future__ import annotations

import hmac
import os
import struct

import attrs

from cipherbox.classes import frozen
from cipherbox.errors import Damaged, KeyMissing, MalformedEnvelope, StoreError
from cipherbox.sealing.ratchet import double_ratchet as ratchet
from cipherbox.sealing.ratchet import handshake as shake
from cipherbox.sealing.ratchet.double_ratchet import HEADER, TAG, Chain, Header, Random, Ratchet
from cipherbox.sealing.ratchet.handshake import Agreed, Handshake
from cipherbox.sealing.ratchet.settings import SETTINGS

PLAIN, FIRST = 1, 2
ID = 16
_HEAD = 1 + ID
_VERSION = 2
_STATE = struct.Struct(">BB16sQQ32s32sH32s32s32s")
_REST = struct.Struct(">32sIII32s")
_REST_1 = struct.Struct(">32s32sIIII")  # version 1 had one state for both directions
_SENDING = struct.Struct(">I32s32sII")
_ENTRY = struct.Struct(">I32s")
_CHAIN = struct.Struct(">32sI")
_HAS_START, _HAS_RECEIVING, _HAS_PEER, _HAS_CHAIN = 1, 2, 4, 8


@frozen
class Session:
    """One session's state. ``since`` is when this end made or first saw it; ``handshake`` is empty
    once the peer has answered.

    ``chain`` is the sending half. A caller that stores the halves apart leaves it out, and calls
    `encrypt` with its own.
    """

    session_id: bytes
    made_at: int
    since: int
    peer_identity: bytes
    associated: bytes = attrs.field(repr=False)
    handshake: bytes = attrs.field(repr=False)
    state: Ratchet
    chain: Chain | None = None

    def size(self, plaintext: int) -> int:
        """Return the size of its next message for a plaintext of this size."""
        return _HEAD + len(self.handshake) + HEADER.size + plaintext + TAG


@frozen
class Parsed:
    """A parsed message of a session; ``head`` is everything before the ratchet header."""

    session_id: bytes
    handshake: Handshake | None
    header: Header
    head: bytes = attrs.field(repr=False)
    ciphertext: bytes = attrs.field(repr=False)


def started(
    handshake: Handshake,
    agreed: Agreed,
    peer: shake.Prekeys,
    now_ms: int,
    random: Random = os.urandom,
) -> Session:
    """Return the initiator's session."""
    state = ratchet.initiator(agreed.root, peer.signed, random)
    return Session(
        agreed.session_id,
        handshake.made_at,
        now_ms,
        peer.identity,
        agreed.associated,
        handshake.encode(),
        state,
    )


def answered(handshake: Handshake, agreed: Agreed, signed: bytes, now_ms: int) -> Session:
    """Return the responder's session; ``signed`` is the private signed prekey."""
    state = ratchet.responder(agreed.root, signed)
    return Session(
        agreed.session_id,
        handshake.made_at,
        now_ms,
        handshake.identity,
        agreed.associated,
        b"",
        state,
    )


def parse(raw: bytes) -> Parsed:
    """Return a session's message, parsed. Raise MalformedEnvelope for anything else."""
    if len(raw) < _HEAD + HEADER.size + TAG or raw[0] not in (PLAIN, FIRST):
        raise MalformedEnvelope("not a message of a session")
    at, handshake = _HEAD, None
    if raw[0] == FIRST:
        if len(raw) < _HEAD + shake.SIZE + HEADER.size + TAG:
            raise MalformedEnvelope("the session's handshake ends too early")
        at += shake.SIZE
        handshake = shake.decode(raw[_HEAD:at])
    header = Header(*HEADER.unpack_from(raw, at))
    return Parsed(raw[1:_HEAD], handshake, header, raw[:at], raw[at + HEADER.size :])


def encrypt(
    session: Session, chain: Chain, plaintext: bytes, binding: bytes
) -> tuple[Chain, bytes]:
    """Return the chain's next state, and the message, which only decrypts with the same
    ``binding``.

    ``chain`` is what `double_ratchet.sending` returned.
    """
    head = bytes([FIRST if session.handshake else PLAIN]) + session.session_id + session.handshake
    chain, header, ciphertext = ratchet.encrypt(
        chain, plaintext, session.associated + head + binding
    )
    return chain, head + header.encode() + ciphertext


def seal(session: Session, plaintext: bytes, binding: bytes) -> tuple[Session, bytes]:
    """Encrypt with both halves in one session, and return its next state and the message."""
    chain, raw = encrypt(session, ratchet.sending(session.state, session.chain), plaintext, binding)
    return attrs.evolve(session, state=attrs.evolve(session.state, start=b""), chain=chain), raw


def decrypt(
    session: Session,
    parsed: Parsed,
    binding: bytes,
    *,
    max_skipped: int = SETTINGS.max_skipped,
    random: Random = os.urandom,
) -> tuple[Session, bytes]:
    """Return the next state and the plaintext. Raise DecryptionFailed or KeyMissing, changing
    nothing.
    """
    if not hmac.compare_digest(parsed.session_id, session.session_id):
        raise KeyMissing("the message belongs to another session")
    associated = session.associated + parsed.head + binding
    state, plaintext = ratchet.decrypt(
        session.state,
        parsed.header,
        parsed.ciphertext,
        associated,
        max_skipped=max_skipped,
        random=random,
    )
    return Session(
        session.session_id,
        session.made_at,
        session.since,
        session.peer_identity,
        session.associated,
        b"",
        state,
        session.chain,
    ), plaintext


def encode(session: Session) -> bytes:
    """Return a session's state as bytes. They are secret: encrypt them."""
    state, chain = session.state, session.chain
    flags = (
        _HAS_START * bool(state.start)
        | _HAS_RECEIVING * bool(state.receiving)
        | _HAS_PEER * bool(state.peer)
        | _HAS_CHAIN * (chain is not None)
    )
    fixed = _STATE.pack(
        _VERSION,
        flags,
        session.session_id,
        session.made_at,
        session.since,
        session.peer_identity,
        session.associated,
        len(session.handshake),
        state.root,
        state.own,
        state.peer,
    ) + _REST.pack(state.receiving, state.received, state.turn, len(state.skipped), state.start)
    chains: list[tuple[bytes, list[bytes]]] = []
    for (key, number), message_key in state.skipped.items():
        if not chains or chains[-1][0] != key:
            chains.append((key, []))
        chains[-1][1].append(_ENTRY.pack(number, message_key))
    skipped = b"".join(
        _CHAIN.pack(key, len(entries)) + b"".join(entries) for key, entries in chains
    )
    return fixed + session.handshake + (encode_chain(chain) if chain is not None else b"") + skipped


def decode(raw: bytes) -> Session:
    """Return the session that `encode` encoded, in this version or an earlier one.

    Raise StoreError for a later version, Damaged for anything else.
    """
    try:
        return _decode(raw)
    except struct.error:
        raise Damaged("a session's state is damaged") from None


def _decode(raw: bytes) -> Session:
    (version, flags, session_id, made_at, since, identity, associated, length, root, own, peer) = (
        _STATE.unpack_from(raw)
    )
    chain = None
    if version == 1:
        at = _STATE.size + _REST_1.size
        sends, receiving, sent, received, previous, count = _REST_1.unpack_from(raw, _STATE.size)
        turn, start = flags & _HAS_START, b""
        if turn:
            chain = Chain(turn, ratchet.public(own), sends, sent, previous)
    elif version == _VERSION:
        at = _STATE.size + _REST.size
        receiving, received, turn, count, start = _REST.unpack_from(raw, _STATE.size)
    else:
        raise StoreError(
            f"the session was written in version {version}", remedy="update this program"
        )
    if length not in (0, shake.SIZE):
        raise Damaged("a session's state is damaged")
    handshake = raw[at : at + length]
    at += length
    if version == _VERSION and flags & _HAS_CHAIN:
        chain = decode_chain(raw[at : at + _SENDING.size])
        at += _SENDING.size
    state = Ratchet(
        root,
        own,
        peer if flags & _HAS_PEER else b"",
        receiving if flags & _HAS_RECEIVING else b"",
        received,
        turn,
        start if flags & _HAS_START else b"",
        _skipped(raw, at, count),
    )
    return Session(session_id, made_at, since, identity, associated, handshake, state, chain)


def _skipped(raw: bytes, at: int, count: int) -> dict[tuple[bytes, int], bytes]:
    found: dict[tuple[bytes, int], bytes] = {}
    while at < len(raw):
        key, entries = _CHAIN.unpack_from(raw, at)
        at += _CHAIN.size
        for _ in range(entries):
            number, message_key = _ENTRY.unpack_from(raw, at)
            found[(key, number)] = message_key
            at += _ENTRY.size
    if at != len(raw) or len(found) != count:
        raise Damaged("a session's state is damaged")
    return found


def encode_chain(chain: Chain) -> bytes:
    """Return the sending half as 76 bytes. They are secret."""
    return _SENDING.pack(chain.turn, chain.key, chain.chain, chain.sent, chain.previous)


def decode_chain(raw: bytes) -> Chain:
    """Return the chain that `encode_chain` encoded. Raise Damaged for anything else."""
    if len(raw) != _SENDING.size:
        raise Damaged("a session's state is damaged")
    return Chain(*_SENDING.unpack(raw))

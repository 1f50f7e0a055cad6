"""A session between two clients: its handshake, its ratchet, what its messages look like, its bytes
at rest.

    kind u8 (1, or 2 with a handshake) | session id 16 | [handshake 1,168] | ratchet header 40 |
    ciphertext, tag 16

The initiator sends the handshake with every message until one came back, so that it does not matter
which of them arrives first.  All that stands before the ciphertext is associated data of it, with
the hash of what both ends agreed on, and what the caller binds it to.

Of several sessions with one peer (both began at once, one was renewed) both ends speak in the
newest by the time in its handshake, then by its id: what both know, so they choose the same.
"""

from __future__ import annotations

import hmac
import os
import struct

import attrs

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
_STATE = struct.Struct(">BB16sQQ32s32sH32s32s32s32sIII32s")
_STATE_1 = struct.Struct(">BB16sQQ32s32sH32s32s32s32s32sIIII")
_SAYING = struct.Struct(">I32s32sII")
_ENTRY = struct.Struct(">I32s")
_CHAIN = struct.Struct(">32sI")
_STARTS, _RECEIVES, _HEARD, _SAYS = 1, 2, 4, 8


@attrs.frozen
class Session:
    """``since``: when this end made it or first saw it; ``handshake`` is empty once the peer has
    answered.

    ``chain`` is the half that speaks, once it has.  Who keeps the halves apart leaves it out, and
    `encrypt`s with its own.
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
        """Bytes of its next message with so many bytes of plaintext."""
        return _HEAD + len(self.handshake) + HEADER.size + plaintext + TAG


@attrs.frozen
class Parsed:
    """A message of a session, taken apart; ``head`` is what stands before the ratchet header."""

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
    """The initiator's session."""
    state = ratchet.first(agreed.root, peer.signed, random)
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
    """The responder's session; ``signed`` is the private signed prekey."""
    state = ratchet.second(agreed.root, signed)
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
    """MalformedEnvelope for bytes that are no message of a session."""
    if len(raw) < _HEAD + HEADER.size + TAG or raw[0] not in (PLAIN, FIRST):
        raise MalformedEnvelope("these bytes are no message of a session")
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
    """The chain's next state, and the message, which opens only with the same ``binding``;
    `ratchet.sending` has it.
    """
    head = bytes([FIRST if session.handshake else PLAIN]) + session.session_id + session.handshake
    chain, header, ciphertext = ratchet.encrypt(
        chain, plaintext, session.associated + head + binding
    )
    return chain, head + header.encode() + ciphertext


def seal(session: Session, plaintext: bytes, binding: bytes) -> tuple[Session, bytes]:
    """`encrypt` with both halves in one."""
    chain, raw = encrypt(session, ratchet.sending(session.state, session.chain), plaintext, binding)
    return attrs.evolve(session, state=attrs.evolve(session.state, start=b""), chain=chain), raw


def open_(
    session: Session,
    parsed: Parsed,
    binding: bytes,
    *,
    max_skipped: int = SETTINGS.max_skipped,
    random: Random = os.urandom,
) -> tuple[Session, bytes]:
    """The next state and the plaintext; DecryptionFailed or KeyMissing, and nothing has changed."""
    if not hmac.compare_digest(parsed.session_id, session.session_id):
        raise KeyMissing("the message is of another session")
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
    """A session's bytes at rest, all of them secret: encrypt them."""
    state, chain = session.state, session.chain
    flags = (
        _STARTS * bool(state.start) | _RECEIVES * bool(state.receiving) | _HEARD * bool(state.peer)
    )
    fixed = _STATE.pack(
        _VERSION,
        flags | _SAYS * (chain is not None),
        session.session_id,
        session.made_at,
        session.since,
        session.peer_identity,
        session.associated,
        len(session.handshake),
        state.root,
        state.own,
        state.peer,
        state.receiving,
        state.received,
        state.turn,
        len(state.skipped),
        state.start,
    )
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
    """What `encode` made, here or in an earlier version; StoreError: in a later one, Damaged: it
    is nothing of it.
    """
    try:
        if raw[:1] == b"\x01":
            return _decode_1(raw)
        (
            version,
            flags,
            session_id,
            made_at,
            since,
            identity,
            associated,
            length,
            root,
            own,
            peer,
            receiving,
            received,
            turn,
            count,
            start,
        ) = _STATE.unpack_from(raw)
        if version != _VERSION:
            raise StoreError(
                f"the session was written in version {version}", remedy="update this program"
            )
        at = _STATE.size + length
        handshake, chain = raw[_STATE.size : at], None
        if flags & _SAYS:
            chain = decode_chain(raw[at : at + _SAYING.size])
            at += _SAYING.size
        skipped = _skipped(raw, at, count)
    except struct.error:
        raise Damaged("a session's state is damaged") from None
    if length not in (0, shake.SIZE):
        raise Damaged("a session's state is damaged")
    state = Ratchet(
        root,
        own,
        peer if flags & _HEARD else b"",
        receiving if flags & _RECEIVES else b"",
        received,
        turn,
        start if flags & _STARTS else b"",
        skipped,
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


def _decode_1(raw: bytes) -> Session:
    """Version 1 had no halves."""
    (
        _,
        flags,
        session_id,
        made_at,
        since,
        identity,
        associated,
        length,
        root,
        own,
        peer,
        sends,
        receiving,
        sent,
        received,
        previous,
        count,
    ) = _STATE_1.unpack_from(raw)
    at = _STATE_1.size + length
    turn = flags & 1
    chain = Chain(turn, ratchet.public(own), sends, sent, previous) if turn else None
    state = Ratchet(
        root,
        own,
        peer if flags & _HEARD else b"",
        receiving if flags & _RECEIVES else b"",
        received,
        turn,
        b"",
        _skipped(raw, at, count),
    )
    return Session(
        session_id, made_at, since, identity, associated, raw[_STATE_1.size : at], state, chain
    )


def encode_chain(chain: Chain) -> bytes:
    """The speaking half at rest, 76 bytes; secret."""
    return _SAYING.pack(chain.turn, chain.key, chain.chain, chain.sent, chain.previous)


def decode_chain(raw: bytes) -> Chain:
    """What `encode_chain` made; Damaged for anything else."""
    if len(raw) != _SAYING.size:
        raise Damaged("a session's state is damaged")
    return Chain(*_SAYING.unpack(raw))

"""Sessions without HQ: two programs exchange a few bytes, then use a Double Ratchet.

    bob = HandshakeBuilder(bob_context).prologue(b"lab line 3")
    alice = HandshakeBuilder(alice_context).prologue(b"lab line 3").peer_key(bob_public)
    first, session_id = alice.begin(bob.offer())   # offer() goes to Alice, `first` goes to Bob
    assert bob.finish(first) == session_id
    sealed = alice_context.encrypt_message(session_id, b"text", b"associated")
    bob_context.decrypt_message(session_id, sealed, b"associated")

The handshake is that of sessions through HQ (PQXDH, `ratchet.handshake`), with prekeys made for
this one handshake and signed with Ed25519; the initiator signs too. Both ends are authenticated,
and messages stay secret even if the key pairs are stolen later, also from a quantum computer.
Without `peer_key` the other end may be anyone: compare `SecureSession.peer_key` with the key you
know before you trust it.

The state is saved before `encrypt_message` and `decrypt_message` return, so no message key is ever
used twice.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Callable, Iterator
from typing import Protocol

import attrs
import nacl.exceptions
import nacl.signing

from cipherbox import clock
from cipherbox.checks import checked
from cipherbox.classes import frozen
from cipherbox.envelope.labels import label
from cipherbox.errors import (
    DecryptionFailed,
    InvalidRequest,
    KeyMissing,
    MalformedEnvelope,
    SignatureInvalid,
)
from cipherbox.sealing.ratchet import handshake, session
from cipherbox.sealing.ratchet.double_ratchet import KEY, Random, public
from cipherbox.sealing.ratchet.handshake import Prekeys, Secrets
from cipherbox.sealing.ratchet.prekeys import Pair
from cipherbox.sealing.ratchet.session import ID, Session
from cipherbox.sealing.ratchet.settings import SETTINGS, SessionSettings

PUBLIC = 64
_OFFER, _FIRST = b"CBXS\x01\x01", b"CBXS\x01\x02"
_OFFER_LAYOUT = struct.Struct(">6s64s32s1184s64s")
_FIRST_HEAD = struct.Struct(">6s64s64s")
_CONFIRM = label("secure-confirm")


@frozen(repr=False)
class KeyPair:
    """A program's identity. ``private`` is an X25519 key and an Ed25519 seed, ``public`` their
    public keys; 64 bytes each.
    """

    private: bytes

    def __attrs_post_init__(self) -> None:
        if len(self.private) != PUBLIC:
            raise InvalidRequest(f"a private key must have {PUBLIC} bytes, not {len(self.private)}")

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public.hex()[:16]}…)"

    def __iter__(self) -> Iterator[bytes]:
        """Unpack as ``public, private = generate_keypair()``."""
        return iter((self.public, self.private))

    @property
    def public(self) -> bytes:
        return public(self.private[:KEY]) + bytes(
            nacl.signing.SigningKey(self.private[KEY:]).verify_key
        )

    def sign(self, use: str, data: bytes) -> bytes:
        """Return the Ed25519 signature (64 bytes) over a hash of ``data`` for one use."""
        return nacl.signing.SigningKey(self.private[KEY:]).sign(_signed(use, data)).signature


@checked
def generate_keypair(random: Random = os.urandom) -> KeyPair:
    """Return a fresh key pair."""
    return KeyPair(random(PUBLIC))


def _signed(use: str, data: bytes) -> bytes:
    return label(use) + hashlib.sha256(data).digest()


def _verify(peer: bytes, use: str, data: bytes, signature: bytes) -> None:
    try:
        nacl.signing.VerifyKey(peer[KEY:]).verify(_signed(use, data), signature)
    except (nacl.exceptions.CryptoError, nacl.exceptions.ValueError):
        raise SignatureInvalid(
            "the handshake's signature does not match the key it names"
        ) from None


def _slot(name: bytes) -> bytes:
    """Return the storage id of a named peer's key; session ids are random and shorter."""
    return label("secure-peer") + hashlib.sha256(name).digest()


class SessionStorage(Protocol):
    """Stores session states, which are secret. `save` returns once the state is durable."""

    def load(self, session_id: bytes) -> bytes | None: ...

    def save(self, session_id: bytes, state: bytes) -> None: ...

    def delete(self, session_id: bytes) -> None: ...


class MemoryStorage:
    """Sessions that end with the program."""

    def __init__(self) -> None:
        self._states: dict[bytes, bytes] = {}

    def load(self, session_id: bytes) -> bytes | None:
        return self._states.get(session_id)

    def save(self, session_id: bytes, state: bytes) -> None:
        self._states[session_id] = state

    def delete(self, session_id: bytes) -> None:
        self._states.pop(session_id, None)


@checked
class SecureContext:
    """A program's key pair and its sessions. ``storage`` None keeps them in memory;
    `SqliteSessions` stores them in a file.
    """

    def __init__(
        self,
        keypair: KeyPair | None = None,
        *,
        storage: SessionStorage | None = None,
        settings: SessionSettings = SETTINGS,
        random: Random = os.urandom,
        clock_ms: Callable[[], int] = clock.now_ms,
    ) -> None:
        self.keypair = keypair or generate_keypair(random)
        self.settings = settings
        self.random = random
        self.clock_ms = clock_ms
        self._storage: SessionStorage = storage if storage is not None else MemoryStorage()
        self._cache: dict[bytes, tuple[bytes, Session]] = {}

    def __repr__(self) -> str:
        return f"SecureContext({self.keypair!r})"

    @property
    def public_key(self) -> bytes:
        """This program's public key (64 bytes), to be given to the other end over a trusted way."""
        return self.keypair.public

    def create_session(self, peer: bytes | None = None) -> HandshakeBuilder:
        """Return a handshake to begin, which becomes the session.

        ``peer`` is the public key (64 bytes) of the only permitted peer, or any other bytes as your
        own name for it. The first peer to answer under a name is remembered with its key (trust on
        first use) and is the only one permitted under that name from then on; compare `peer_key` to
        verify it.
        """
        builder = HandshakeBuilder(self)
        if peer is None:
            return builder
        if len(peer) == PUBLIC:
            return builder.peer_key(peer)
        if not peer:
            raise InvalidRequest("the name of a peer must not be empty")
        return builder.named(peer)

    def session(self, session_id: bytes) -> SecureSession:
        """Return a session as an object. Raise KeyMissing if it does not exist."""
        self._load(session_id)
        return SecureSession(self, session_id)

    def key_of(self, name: bytes) -> bytes | None:
        """Return the public key (64 bytes) remembered under a name, or None."""
        return self._storage.load(_slot(name))

    def remember(self, name: bytes, key: bytes) -> None:
        """Store the key of the peer that answered under a name, unless the name has one."""
        if self.key_of(name) is None:
            self._storage.save(_slot(name), key)

    def encrypt_message(
        self, session_id: bytes, plaintext: bytes, associated_data: bytes = b""
    ) -> bytes:
        """Return the encrypted message. Raise KeyMissing if the session does not exist,
        InvalidRequest if the other end must send first.
        """
        peer, found = self._load(session_id)
        found, raw = session.seal(found, plaintext, associated_data)
        self._save(peer, found)
        return raw

    def decrypt_message(
        self, session_id: bytes, message: bytes, associated_data: bytes = b""
    ) -> bytes:
        """Return the plaintext. Raise DecryptionFailed, MalformedEnvelope or KeyMissing, leaving
        the session unchanged.
        """
        peer, found = self._load(session_id)
        found, plaintext = session.decrypt(
            found,
            session.parse(message),
            associated_data,
            max_skipped=self.settings.max_skipped,
            random=self.random,
        )
        self._save(peer, found)
        return plaintext

    def close_session(self, session_id: bytes) -> None:
        """Delete a session: its messages can no longer be decrypted."""
        self._cache.pop(session_id, None)
        self._storage.delete(session_id)

    def peer_key(self, session_id: bytes) -> bytes:
        """Return the public key (64 bytes) of the other end."""
        return self._load(session_id)[0]

    def keep(self, peer: bytes, made: Session) -> bytes:
        """Save a session that a handshake made, and return its id."""
        self._save(peer, made)
        return made.session_id

    def _load(self, session_id: bytes) -> tuple[bytes, Session]:
        if session_id not in self._cache:
            raw = self._storage.load(session_id)
            if raw is None:
                raise KeyMissing("this session does not exist", remedy="make another handshake")
            self._cache[session_id] = raw[:PUBLIC], session.decode(raw[PUBLIC:])
        return self._cache[session_id]

    def _save(self, peer: bytes, found: Session) -> None:
        self._storage.save(found.session_id, peer + session.encode(found))
        self._cache[found.session_id] = peer, found


@checked
@attrs.frozen  # complete, since `checked` reads its parameters
class SecureSession:
    """One session of a context."""

    context: SecureContext
    session_id: bytes

    @property
    def peer_key(self) -> bytes:
        """The public key (64 bytes) of the other end."""
        return self.context.peer_key(self.session_id)

    def encrypt(self, plaintext: bytes, associated_data: bytes = b"") -> bytes:
        """See `SecureContext.encrypt_message`."""
        return self.context.encrypt_message(self.session_id, plaintext, associated_data)

    def decrypt(self, message: bytes, associated_data: bytes = b"") -> bytes:
        """See `SecureContext.decrypt_message`."""
        return self.context.decrypt_message(self.session_id, message, associated_data)

    def close(self) -> None:
        """See `SecureContext.close_session`."""
        self.context.close_session(self.session_id)


@checked
class HandshakeBuilder:
    """One handshake: `offer` and `finish` at one end, `begin` at the other. The bytes may travel
    over any channel.
    """

    def __init__(self, context: SecureContext) -> None:
        self._context = context
        self._prologue = b""
        self._peer: bytes | None = None
        self._name = b""
        self._session: SecureSession | None = None
        self._pair: Pair | None = None
        self._offer = b""

    def prologue(self, data: bytes) -> HandshakeBuilder:
        """Set data that must be the same at both ends; it is not sent."""
        self._prologue = data
        return self

    def peer_key(self, key: bytes) -> HandshakeBuilder:
        """Permit only the peer with this public key (64 bytes)."""
        if len(key) != PUBLIC:
            raise InvalidRequest(f"a public key must have {PUBLIC} bytes, not {len(key)}")
        self._peer = key
        return self

    def named(self, name: bytes) -> HandshakeBuilder:
        """Set a name for the other end; see `SecureContext.create_session`."""
        self._name = bytes(name)
        self._peer = self._context.key_of(self._name)
        return self

    @property
    def session(self) -> SecureSession:
        """The session this handshake made. Raise InvalidRequest before `begin` or `finish`."""
        if self._session is None:
            raise InvalidRequest(
                "the handshake is not finished: exchange offer(), begin() and finish() with the "
                "other end first, or use SecureSocket, which does that"
            )
        return self._session

    def encrypt(self, plaintext: bytes, associated_data: bytes = b"") -> bytes:
        """See `SecureSession.encrypt`."""
        return self.session.encrypt(plaintext, associated_data)

    def decrypt(self, message: bytes, associated_data: bytes = b"") -> bytes:
        """See `SecureSession.decrypt`."""
        return self.session.decrypt(message, associated_data)

    def offer(self) -> bytes:
        """Return the bytes to send to the initiator, valid for one handshake."""
        context = self._context
        self._pair = Pair.generate(context.random)
        body = _OFFER + context.public_key + public(self._pair.dh) + self._pair.kem_public
        self._offer = body + context.keypair.sign("secure-offer", body)
        return self._offer

    def begin(self, offer: bytes) -> tuple[bytes, bytes]:
        """Return the bytes to send back, and the session's id. Raise SignatureInvalid,
        MalformedEnvelope or BundleMalformed.
        """
        if len(offer) != _OFFER_LAYOUT.size:
            raise MalformedEnvelope("not an offer of a handshake")
        magic, peer, prekey, kem, signature = _OFFER_LAYOUT.unpack(offer)
        if magic != _OFFER:
            raise MalformedEnvelope(
                "not an offer of a handshake of a version that this program supports"
            )
        self._expect(peer)
        _verify(peer, "secure-offer", offer[:-64], signature)
        context = self._context
        own = context.keypair
        prekeys = Prekeys(peer[:KEY], 0, prekey, kem)
        now = context.clock_ms()
        parties = self._parties(own.public, peer)
        initial, agreed = handshake.begin(own.private[:KEY], prekeys, now, parties, context.random)
        made = session.started(initial, agreed, prekeys, now, context.random)
        made, raw = session.seal(made, b"", _CONFIRM)
        self._made(peer, made)
        return _FIRST_HEAD.pack(
            _FIRST, own.public, own.sign("secure-first", offer + raw)
        ) + raw, made.session_id

    def finish(self, first: bytes) -> bytes:
        """Return the session's id, at the end that made the offer. A failure leaves the offer
        usable.
        """
        if self._pair is None:
            raise InvalidRequest(
                "this handshake has no offer, or is finished", remedy="make a new one"
            )
        if len(first) < _FIRST_HEAD.size:
            raise MalformedEnvelope("not an answer to an offer")
        magic, peer, signature = _FIRST_HEAD.unpack_from(first)
        raw = first[_FIRST_HEAD.size :]
        if magic != _FIRST:
            raise MalformedEnvelope(
                "not an answer to an offer of a version that this program supports"
            )
        self._expect(peer)
        _verify(peer, "secure-first", self._offer + raw, signature)
        parsed = session.parse(raw)
        if parsed.handshake is None or not hmac.compare_digest(
            parsed.handshake.identity, peer[:KEY]
        ):
            raise DecryptionFailed("the answer's handshake and signature are of different keys")
        context = self._context
        secrets = Secrets(context.keypair.private[:KEY], self._pair.dh, self._pair.kem)
        agreed = handshake.answer(
            secrets, parsed.handshake, self._parties(peer, context.public_key)
        )
        made = session.answered(parsed.handshake, agreed, self._pair.dh, context.clock_ms())
        made, _ = session.decrypt(made, parsed, _CONFIRM, random=context.random)
        self._pair = None
        return self._made(peer, made)

    def _made(self, peer: bytes, made: Session) -> bytes:
        if self._name:
            self._context.remember(self._name, peer)
        session_id = self._context.keep(peer, made)
        self._session = SecureSession(self._context, session_id)
        return session_id

    def _expect(self, peer: bytes) -> None:
        if self._peer is not None and not hmac.compare_digest(self._peer, peer):
            raise SignatureInvalid("the other end is not the expected peer")

    def _parties(self, initiator: bytes, responder: bytes) -> bytes:
        return handshake.parties(initiator.hex(), responder.hex(), self._prologue)


__all__ = [
    "ID",
    "PUBLIC",
    "HandshakeBuilder",
    "KeyPair",
    "MemoryStorage",
    "SecureContext",
    "SecureSession",
    "SessionStorage",
    "generate_keypair",
]

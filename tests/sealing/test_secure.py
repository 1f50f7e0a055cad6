"""The session API that needs no HQ, with the names of the predecessor, and its defects as tests."""

from __future__ import annotations

import pytest

from cipherbox.errors import (
    CipherBoxError,
    DecryptionFailed,
    InvalidRequest,
    KeyMissing,
    SignatureInvalid,
)
from cipherbox.sealing.ratchet.secure_session import (
    HandshakeBuilder,
    KeyPair,
    MemoryStorage,
    SecureContext,
    generate_keypair,
)
from cipherbox.sealing.ratchet.settings import SessionSettings


def pair(prologue: bytes = b"") -> tuple[SecureContext, SecureContext, bytes]:
    alice, bob = SecureContext(), SecureContext()
    theirs = bob.create_session(alice.public_key).prologue(prologue)
    first, session_id = (
        alice.create_session(bob.public_key).prologue(prologue).begin(theirs.offer())
    )
    assert theirs.finish(first) == session_id
    return alice, bob, session_id


def test_a_handshake_and_messages_both_ways() -> None:
    alice, bob, session_id = pair(b"line 3")
    assert (
        bob.decrypt_message(session_id, alice.encrypt_message(session_id, b"one", b"ad"), b"ad")
        == b"one"
    )
    for turn in range(5):
        sealed = bob.session(session_id).encrypt(b"back %d" % turn)
        assert alice.session(session_id).decrypt(sealed) == b"back %d" % turn
        assert bob.decrypt_message(session_id, alice.encrypt_message(session_id, b"on")) == b"on"
    assert alice.session(session_id).peer_key == bob.public_key
    assert bob.peer_key(session_id) == alice.public_key


def test_the_handshake_returns_no_literal() -> None:
    """The original's did: every run the same bytes, whoever was at the other end."""
    alice, bob = SecureContext(), SecureContext()
    offer = HandshakeBuilder(bob).offer()
    first, again = (HandshakeBuilder(alice).begin(offer)[0] for _ in range(2))
    assert first != again
    assert HandshakeBuilder(bob).offer() != offer


def test_associated_data_reaches_the_cipher() -> None:
    """In the original it never did."""
    alice, bob, session_id = pair()
    sealed = alice.encrypt_message(session_id, b"text", b"to the lab")
    for other in (b"", b"to the center", b"to the lab\x00"):
        with pytest.raises(DecryptionFailed):
            bob.decrypt_message(session_id, sealed, other)
    assert bob.decrypt_message(session_id, sealed, b"to the lab") == b"text"


def test_the_key_is_no_constant() -> None:
    """The original decrypted every message with one key."""
    alice, bob, session_id = pair()
    one, two = (alice.encrypt_message(session_id, b"same") for _ in range(2))
    assert one[-20:] != two[-20:]
    assert bob.decrypt_message(session_id, two) == b"same"
    assert bob.decrypt_message(session_id, one) == b"same"
    for again in (one, two):
        with pytest.raises(KeyMissing):
            bob.decrypt_message(session_id, again)


def test_who_is_not_expected_is_refused() -> None:
    alice, bob, mallory = SecureContext(), SecureContext(), SecureContext()
    with pytest.raises(SignatureInvalid, match="not the expected peer"):
        alice.create_session(bob.public_key).begin(HandshakeBuilder(mallory).offer())
    theirs = bob.create_session(alice.public_key)
    offer = theirs.offer()
    with pytest.raises(SignatureInvalid, match="not the expected peer"):
        theirs.finish(HandshakeBuilder(mallory).begin(offer)[0])
    # Mallory answers with Alice's name: it cannot sign as she does
    forged = HandshakeBuilder(mallory).begin(offer)[0]
    with pytest.raises(SignatureInvalid, match="does not match the key it names"):
        theirs.finish(forged[:6] + alice.public_key + forged[70:])
    first, session_id = alice.create_session(bob.public_key).begin(offer)
    assert theirs.finish(first) == session_id


def test_another_prologue_is_another_session() -> None:
    alice, bob = SecureContext(), SecureContext()
    theirs = HandshakeBuilder(bob).prologue(b"line 3")
    first, _ = HandshakeBuilder(alice).prologue(b"line 4").begin(theirs.offer())
    with pytest.raises(CipherBoxError):
        theirs.finish(first)


def test_an_offer_is_good_once() -> None:
    alice, bob = SecureContext(), SecureContext()
    theirs = HandshakeBuilder(bob)
    with pytest.raises(InvalidRequest):
        theirs.finish(b"")
    offer = theirs.offer()
    first, _ = HandshakeBuilder(alice).begin(offer)
    theirs.finish(first)
    for again in (first, HandshakeBuilder(alice).begin(offer)[0]):
        with pytest.raises(InvalidRequest):
            theirs.finish(again)


def test_every_byte_of_a_handshake_counts() -> None:
    alice, bob = SecureContext(), SecureContext()
    theirs = HandshakeBuilder(bob)
    offer = theirs.offer()
    for at in range(0, len(offer), 3):
        with pytest.raises(CipherBoxError):
            HandshakeBuilder(alice).begin(offer[:at] + bytes([offer[at] ^ 4]) + offer[at + 1 :])
        with pytest.raises(CipherBoxError):
            HandshakeBuilder(alice).begin(offer[:at])
    first, session_id = HandshakeBuilder(alice).begin(offer)
    for at in range(0, len(first), 3):
        with pytest.raises(CipherBoxError):
            theirs.finish(first[:at] + bytes([first[at] ^ 4]) + first[at + 1 :])
        with pytest.raises(CipherBoxError):
            theirs.finish(first[:at])
    assert theirs.finish(first) == session_id


def test_sessions_survive_a_restart_and_can_be_forgotten() -> None:
    mine, yours = MemoryStorage(), MemoryStorage()
    alice, bob = SecureContext(storage=mine), SecureContext(storage=yours)
    theirs = HandshakeBuilder(bob)
    first, session_id = HandshakeBuilder(alice).begin(theirs.offer())
    theirs.finish(first)
    sealed = alice.encrypt_message(session_id, b"before")
    alice = SecureContext(KeyPair(alice.keypair.private), storage=mine)
    bob = SecureContext(KeyPair(bob.keypair.private), storage=yours)
    assert bob.decrypt_message(session_id, sealed) == b"before"
    assert alice.decrypt_message(session_id, bob.encrypt_message(session_id, b"after")) == b"after"
    alice.session(session_id).close()
    with pytest.raises(KeyMissing):
        alice.encrypt_message(session_id, b"x")


def test_numbers_can_be_set_and_nothing_secret_is_shown() -> None:
    alice, bob, _ = pair()
    few = SecureContext(settings=SessionSettings(max_skipped=2))
    theirs = HandshakeBuilder(few)
    first, session_id = HandshakeBuilder(alice).begin(theirs.offer())
    theirs.finish(first)
    sent = [alice.encrypt_message(session_id, b"x") for _ in range(4)]
    with pytest.raises(KeyMissing, match="more than 2"):
        few.decrypt_message(session_id, sent[3])
    key = generate_keypair()
    assert key.private.hex() not in repr(key) + repr(SecureContext(key))
    with pytest.raises(InvalidRequest):
        KeyPair(b"short")
    with pytest.raises(InvalidRequest):
        HandshakeBuilder(bob).peer_key(b"short")


def test_a_peer_is_named_by_its_key_by_another_name_or_not_at_all() -> None:
    alice, bob, mallory = SecureContext(), SecureContext(), SecureContext()

    def met(name: bytes | None, peer: SecureContext) -> None:
        theirs = peer.create_session()
        first, session_id = alice.create_session(name).begin(theirs.offer())
        assert theirs.finish(first) == session_id

    met(None, bob)
    met(bob.public_key, bob)
    with pytest.raises(SignatureInvalid, match="not the expected peer"):
        met(bob.public_key, mallory)
    for name in (b"b", bytes(63), bytes(65)):
        met(name, bob)
        assert alice.key_of(name) == bob.public_key
        with pytest.raises(SignatureInvalid):
            met(name, mallory)
    with pytest.raises(InvalidRequest, match="must not be empty"):
        alice.create_session(b"")

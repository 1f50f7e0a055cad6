"""Our ratchet and handshake beside implementations by others: `DoubleRatchet` of the package index.

The Double Ratchet leaves KDFs, AEAD and header encoding to the application: with ours in their
place, an end of theirs and an end of ours must understand each other in any order, with loss, and
reach the same keys.
"""

from __future__ import annotations

import random as randoms
from typing import Any

import pytest
from doubleratchet import AEAD, DoubleRatchet, EncryptedMessage, Header
from doubleratchet.recommended import HashFunction, kdf_hkdf, kdf_separate_hmacs
from doubleratchet.recommended import diffie_hellman_ratchet_curve25519 as curve

from cipherbox.sealing.ratchet import double_ratchet as ratchet
from cipherbox.sealing.ratchet.double_ratchet import HEADER, ROOT_INFO, Chain, Ratchet, public


class RootKdf(kdf_hkdf.KDF):
    @staticmethod
    def _get_hash_function() -> HashFunction:
        return HashFunction.SHA_256

    @staticmethod
    def _get_info() -> bytes:
        return ROOT_INFO


class ChainKdf(kdf_separate_hmacs.KDF):
    @staticmethod
    def _get_hash_function() -> HashFunction:
        return HashFunction.SHA_256


class OurAead(AEAD):
    @staticmethod
    async def encrypt(plaintext: bytes, key: bytes, associated_data: bytes) -> bytes:
        return ratchet.seal_message(key, plaintext, associated_data)

    @staticmethod
    async def decrypt(ciphertext: bytes, key: bytes, associated_data: bytes) -> bytes:
        return ratchet.open_message(key, ciphertext, associated_data)


class Theirs(DoubleRatchet):
    @staticmethod
    def _build_associated_data(associated_data: bytes, header: Header) -> bytes:
        ours = ratchet.Header(
            header.ratchet_pub, header.previous_sending_chain_length, header.sending_chain_length
        )
        return len(associated_data).to_bytes(4, "big") + associated_data + HEADER.pack(*ours)


PARTS: dict[str, Any] = {
    "diffie_hellman_ratchet_class": curve.DiffieHellmanRatchet,
    "root_chain_kdf": RootKdf,
    "message_chain_kdf": ChainKdf,
    "message_chain_constant": b"\x02\x01",
    "dos_protection_threshold": 100,
    "max_num_skipped_message_keys": 100,
    "aead": OurAead,
}
ROOT, SIGNED = bytes(range(32)), bytes(range(100, 132))
Wire = tuple[ratchet.Header, bytes]


def to_theirs(wire: Wire) -> EncryptedMessage:
    header, ciphertext = wire
    return EncryptedMessage(Header(header.key, header.previous, header.number), ciphertext)


def to_ours(message: EncryptedMessage) -> Wire:
    h = message.header
    return ratchet.Header(
        h.ratchet_pub, h.previous_sending_chain_length, h.sending_chain_length
    ), message.ciphertext


class Ours:
    def __init__(self, state: Ratchet) -> None:
        self.state = state
        self.chain: Chain | None = None

    async def say(self, text: bytes) -> Wire:
        self.chain, header, ciphertext = ratchet.encrypt(
            ratchet.sending(self.state, self.chain), text, b"ad"
        )
        return header, ciphertext

    async def hear(self, wire: Wire) -> bytes:
        self.state, plain = ratchet.decrypt(self.state, *wire, b"ad")
        return plain


class Other:
    def __init__(self, state: Any) -> None:
        self.state = state

    async def say(self, text: bytes) -> Wire:
        return to_ours(await self.state.encrypt_message(text, b"ad"))

    async def hear(self, wire: Wire) -> bytes:
        return bytes(await self.state.decrypt_message(to_theirs(wire), b"ad"))


async def pair(we_begin: bool) -> list[Any]:
    if we_begin:
        ours = Ours(ratchet.initiator(ROOT, public(SIGNED)))
        state, plain = await Theirs.decrypt_initial_message(
            shared_secret=ROOT,
            own_ratchet_priv=SIGNED,
            message=to_theirs(await ours.say(b"hello")),
            associated_data=b"ad",
            **PARTS,
        )
    else:
        state, message = await Theirs.encrypt_initial_message(
            shared_secret=ROOT,
            recipient_ratchet_pub=public(SIGNED),
            message=b"hello",
            associated_data=b"ad",
            **PARTS,
        )
        ours = Ours(ratchet.responder(ROOT, SIGNED))
        plain = await ours.hear(to_ours(message))
    assert plain == b"hello"
    return [ours, Other(state)]


@pytest.mark.parametrize("we_begin", [True, False])
@pytest.mark.parametrize("seed", range(8))
async def test_the_same_transcript(we_begin: bool, seed: int) -> None:
    ends = await pair(we_begin)
    chance = randoms.Random(seed)
    line: list[tuple[int, bytes, Wire]] = []
    spoken = 0
    for step in range(120):
        if chance.random() < 0.5 or not line:
            who = chance.randrange(2)  # both have heard one message, so both may speak
            text = b"%d" % step
            line.append((1 - who, text, await ends[who].say(text)))
        else:
            to, text, wire = line.pop(chance.randrange(len(line)))
            if chance.random() < 0.9:
                assert await ends[to].hear(wire) == text
                spoken += 1
    assert spoken > 20


async def test_the_same_bytes() -> None:
    """Not only understood: with the same message key both make the same ciphertext."""
    ours, other = await pair(True)
    state, before = ours.state, ours.chain
    chain, key = ratchet.kdf_ck(before.chain)
    header = ratchet.Header(public(state.own), before.previous, before.sent)
    data = ratchet.bound(b"ad", header)
    assert await ours.say(b"x") == (header, await OurAead.encrypt(b"x", key, data))
    assert ours.chain.chain == chain
    assert await other.hear((header, ratchet.seal_message(key, b"x", data))) == b"x"
    made = await RootKdf.derive(ROOT, b"\x07" * 32, 64)
    assert ratchet.kdf_rk(ROOT, b"\x07" * 32) == (made[:32], made[32:])
    made = await ChainKdf.derive(ROOT, b"\x02\x01", 64)
    assert ratchet.kdf_ck(ROOT) == (made[:32], made[32:])

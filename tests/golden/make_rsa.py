"""Envelopes with `rsa-oaep` stanzas, damaged ones, and bundles with RSA keys: `python -m
tests.golden.make rsa`.

A file of its own, so that those of the other stanzas stay as they were first made.
"""

from __future__ import annotations

import hashlib
from functools import cache

import attrs
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cipherbox import pki
from cipherbox.envelope import layout as layouts
from cipherbox.envelope.bundle import KeyBundle
from cipherbox.envelope.ids import EnvelopeIds
from cipherbox.envelope.rsa import encode_public
from cipherbox.envelope.stanza_types import StanzaType
from cipherbox.sealing import rsa, stanzas
from cipherbox.sealing.body import pack
from cipherbox.sealing.identity import DecryptKey, Identity
from cipherbox.sealing.seal import choose_keys, seal
from tests.golden import files
from tests.golden.make_envelopes import MESSAGES, keys_of, opened_row, resigned, sealed
from tests.parties import Party, now_ms, party, world


@cache
def rsa_key(bits: int = 2048, copy: int = 0) -> DecryptKey:
    """The same arguments give the same key."""
    return DecryptKey.from_seed(StanzaType.RSA_OAEP, rsa.generate(bits))


@cache
def with_rsa(name: str, bits: int = 2048, *, alone: bool = False) -> Party:
    """`party(name)` with an RSA key behind its other keys, or instead of them, in its next
    bundle.
    """
    before = party(name)
    key = rsa_key(bits)
    current = [] if alone else [k.key_id for k in before.identity.current]
    identity = before.identity.with_key(key).with_current([*current, key.key_id])
    identity.bundle = identity.make_bundle(before.key, before.chain, now_ms(), before.bundle)
    return attrs.evolve(before, identity=identity)


def crafted(name: str, public: bytes) -> KeyBundle:
    """A bundle, rightly signed, with these bytes for an RSA key."""
    owner = party(name)
    key = attrs.evolve(rsa_key(), public=public)
    identity = Identity(name, owner.identity.seeds()[0], None, [*owner.identity.current, key])
    return identity.make_bundle(owner.key, owner.chain, now_ms())


def unusable() -> list[tuple[str, bytes]]:
    """(what, bytes in place of an RSA public key) nobody may seal for."""
    good = rsa_key().private.public_key()
    n, e = good.public_numbers().n, good.public_numbers().e
    odd = (1 << 2048) + (n | 1)  # 2,049 bits

    def numbers(modulus: int, exponent: int = e) -> bytes:
        return encode_public(RSAPublicNumbers(exponent, modulus).public_key())

    spki = encode_public(good)
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    return [
        ("1024 bits", numbers(n >> 1024 | 1 << 1023 | 1)),
        ("2040 bits", numbers(n >> 8 | 1)),
        ("2049 bits", numbers(odd)),
        ("4104 bits", numbers(1 << 4103 | n)),
        ("exponent 3", numbers(n, 3)),
        ("exponent 2^64 + 1", numbers(n, 2**64 + 1)),
        ("even modulus", numbers(n - 1)),
        ("PKCS#1", good.public_bytes(Encoding.DER, PublicFormat.PKCS1)),
        ("one byte more", spki + b"\x00"),
        ("one byte short", spki[:-1]),
        ("length in the long form", b"\x30\x83\x00" + spki[2:]),
        ("RSASSA-PSS", with_algorithm(spki, "300b06092a864886f70d01010a")),
        ("no parameters", with_algorithm(spki, "300b06092a864886f70d010101")),
        ("another algorithm", other.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)),
        ("empty", b""),
    ]


def with_algorithm(spki: bytes, algorithm: str) -> bytes:
    """The same key under another AlgorithmIdentifier."""
    inside = bytes.fromhex(algorithm) + spki[4 + 15 :]
    return b"\x30\x82" + len(inside).to_bytes(2, "big") + inside


def relengthened(raw: bytes, length: int, sender: Identity) -> bytes:
    """The same envelope, whose only stanza says and has another length."""
    at = layouts.split(raw)
    where = at.stanzas_at - len(at.prefix.recipients[0].client_id) - 3
    stanza = (raw[at.stanzas_at : at.body_at] + bytes(4096))[:length]
    changed = (
        raw[:where]
        + length.to_bytes(2, "big")
        + raw[where + 2 : at.stanzas_at]
        + stanza
        + raw[at.body_at :]
    )
    try:
        return resigned(changed, sender)
    except Exception:  # no layout to sign
        return changed


def dishonest(sender: Party, to: Party, other: Party) -> list[tuple[str, bytes, str]]:
    """(what, bytes, name of the failure), all rightly signed by the sender."""
    raw = sealed(sender, [to], MESSAGES, stanza=3)
    other_raw = sealed(sender, [to], MESSAGES, stanza=3)
    pair = sealed(sender, [to, other], MESSAGES, stanza=3)
    at, two = layouts.split(raw), layouts.split(pair)
    entry = at.prefix.recipients[0]
    prefix_hash = hashlib.sha256(raw[: at.stanzas_at]).digest()
    public = to.identity.current[-1].public
    middle = two.stanzas_at + two.prefix.recipients[0].stanza_length

    def flip(offset: int) -> bytes:
        return resigned(
            raw[:offset] + bytes([raw[offset] ^ 1]) + raw[offset + 1 :], sender.identity
        )

    def put(stanza: bytes) -> bytes:
        return resigned(raw[: at.stanzas_at] + stanza + raw[at.body_at :], sender.identity)

    def wrapped(key: bytes = bytes(range(32)), bound: bytes = prefix_hash, index: int = 0) -> bytes:
        return put(stanzas.wrap(entry.stanza_type, public, key, bound, index))

    crossed = (
        pair[: two.stanzas_at]
        + pair[middle : two.body_at]
        + pair[two.stanzas_at : middle]
        + pair[two.body_at :]
    )
    return [
        ("signed: RSA ciphertext", flip(at.stanzas_at), "decryption-failed"),
        ("signed: its last byte", flip(at.body_at - 49), "decryption-failed"),
        ("signed: wrapped key", flip(at.body_at - 48), "decryption-failed"),
        ("signed: its tag", flip(at.body_at - 1), "decryption-failed"),
        ("signed: stanza of zeros", put(bytes(at.body_at - at.stanzas_at)), "decryption-failed"),
        (
            "signed: stanza of ones",
            put(b"\xff" * (at.body_at - at.stanzas_at)),
            "decryption-failed",
        ),
        ("signed: generation", flip(49), "decryption-failed"),
        ("signed: key id", flip(158 + len(at.prefix.sender)), "key-missing"),
        ("signed: other content key", wrapped(), "commitment-mismatch"),
        ("signed: another prefix", wrapped(bound=bytes(32)), "decryption-failed"),
        ("signed: another index", wrapped(index=1), "decryption-failed"),
        (
            "signed: stanza of another envelope",
            put(other_raw[at.stanzas_at : at.body_at]),
            "decryption-failed",
        ),
        ("signed: stanzas crossed", resigned(crossed, sender.identity), "decryption-failed"),
        (
            "signed: stanza of a longer key",
            relengthened(raw, 305, sender.identity),
            "decryption-failed",
        ),
        ("stanza of 303 bytes", relengthened(raw, 303, sender.identity), "malformed-envelope"),
        ("stanza of 561 bytes", relengthened(raw, 561, sender.identity), "malformed-envelope"),
    ]


def mixed(sender: Party, to: list[Party]) -> bytes:
    """Each recipient's preferred key, post-quantum beside classical, as the sender allowed it."""
    bundles = [p.bundle for p in to]
    return seal(
        sender.identity,
        bundles,
        pack(MESSAGES),
        len(MESSAGES),
        envelope_id=EnvelopeIds(now_ms).next(),
        sealed_at=now_ms(),
        keys=choose_keys(bundles, allow_mixed=True),
    ).raw


def main() -> None:
    lab, ca, ny, sf = (
        party("FL-LAB"),
        with_rsa("CA-RC"),
        with_rsa("NY-RC", 3072),
        with_rsa("SF-RC", 4096, alone=True),
    )
    rows = [
        ("2,048 bits", sealed(lab, [ca], MESSAGES, stanza=3)),
        ("3,072 bits", sealed(lab, [ny], MESSAGES, stanza=3)),
        ("4,096 bits", sealed(lab, [sf], MESSAGES, stanza=3)),
        ("three sizes", sealed(lab, [ca, ny, sf], MESSAGES, stanza=3)),
        ("chacha20-poly1305", sealed(lab, [ca], MESSAGES, stanza=3, cipher=2)),
        ("beside a post-quantum recipient", mixed(lab, [ca, sf])),
    ]
    everybody = {p.identity.client_id: p for p in (ca, ny, sf)}
    files.write(
        "rsa",
        {
            "recipients": {name: keys_of(p.identity) for name, p in everybody.items()},
            "bundles": {lab.bundle.hash.hex(): lab.bundle.raw.hex()},
            "opens": [
                opened_row(
                    name,
                    raw,
                    lab,
                    MESSAGES,
                    everybody[layouts.split(raw).prefix.recipients[0].client_id],
                )
                for name, raw in rows
            ],
            "fails": [
                {
                    "name": name,
                    "error": error,
                    "recipient": "CA-RC",
                    "sender_bundle": lab.bundle.hash.hex(),
                    "envelope": raw.hex(),
                }
                for name, raw, error in dishonest(lab, ca, with_rsa("NY-RC"))
            ],
            "root": pki.der(world().root.certificate).hex(),
            "recipient_bundles": {name: p.bundle.raw.hex() for name, p in everybody.items()},
            "bad_bundles": [
                {
                    "name": name,
                    "error": "bundle-malformed",
                    "bundle": crafted("CA-RC", public).raw.hex(),
                }
                for name, public in unusable()
            ],
        },
    )


if __name__ == "__main__":
    main()

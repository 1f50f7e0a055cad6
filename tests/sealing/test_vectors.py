"""Published vectors for every primitive that sealing is made of."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import cryptography_vectors
import nacl.signing
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.bindings._rust import openssl as rust_openssl
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import mldsa
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt

from cipherbox.sealing import primitives, stanzas

rust_hpke: Any = rust_openssl.hpke


def hpke_vectors(name: str, kem: int, kdf: int, aead: int) -> list[dict[str, Any]]:
    path = Path(cryptography_vectors.__file__).parent / "HPKE" / name
    wanted = {"mode": 0, "kem_id": kem, "kdf_id": kdf, "aead_id": aead}
    return [v for v in json.loads(path.read_text()) if all(v[k] == x for k, x in wanted.items())]


def check_hpke(vector: dict[str, Any], suite: Any, private_key: Any) -> None:
    """The vectors use associated data, which the public call leaves empty; the library's own tests open them so too."""
    first = vector["encryptions"][0]
    sealed_key = bytes.fromhex(vector["enc"] + first["ct"])
    plain = rust_hpke._decrypt_with_aad(
        suite, sealed_key, private_key, bytes.fromhex(vector["info"]), bytes.fromhex(first["aad"])
    )
    assert plain.hex() == first["pt"]


def test_hpke_x25519_against_rfc_9180() -> None:
    (vector,) = hpke_vectors("test-vectors.json", 0x20, 1, 2)
    kind = stanzas.TYPES[2]
    seed = bytes.fromhex(vector["skRm"])
    assert kind.public(seed).hex() == vector["pkRm"]
    check_hpke(vector, kind.suite, kind.load_private(seed))


def test_x_wing_against_its_published_vectors() -> None:
    """The published private key is a seed; SHAKE-256 makes the two halves that we keep (X-Wing draft, section 5.2)."""
    vectors = hpke_vectors("hpke-pq-test-vectors.json", 25722, 1, 3)
    kind = stanzas.TYPES[1]
    assert vectors
    for vector in vectors:
        seed = hashlib.shake_256(bytes.fromhex(vector["skRm"])).digest(96)
        assert kind.public(seed).hex() == vector["pkRm"]
        suite = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
        check_hpke(vector, suite, kind.load_private(seed))


@pytest.mark.parametrize(("cipher", "key", "nonce", "aad", "plain", "sealed_text"), [
    # AES-256-GCM: McGrew and Viega, test case 16; ChaCha20-Poly1305: RFC 8439, section 2.8.2
    (1, "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308", "cafebabefacedbaddecaf888",
     "feedfacedeadbeeffeedfacedeadbeefabaddad2",
     "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525"
     "b16aedf5aa0de657ba637b39",
     "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838"
     "c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b"),
    (2, "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f", "070000004041424344454647",
     "50515253c0c1c2c3c4c5c6c7",
     b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen "
     b"would be it.".hex(),
     "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b"
     "1a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
     "3ff4def08e4b7a9de576d26586cec64b61161ae10b594f09e26a7e902ecbd0600691"),
])  # fmt: skip
def test_body_ciphers_against_published_vectors(
    cipher: int, key: str, nonce: str, aad: str, plain: str, sealed_text: str
) -> None:
    made = primitives.aead(cipher, bytes.fromhex(key)).encrypt(
        bytes.fromhex(nonce), bytes.fromhex(plain), bytes.fromhex(aad)
    )
    assert made.hex() == sealed_text


def test_ed25519_against_rfc_8032() -> None:
    """Section 7.1, test 2, through the library we verify with."""
    public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    signed = (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    nacl.signing.VerifyKey(bytes.fromhex(public)).verify(b"\x72", bytes.fromhex(signed))


def test_mldsa65_against_its_published_vectors() -> None:
    """Keys from seeds as key files hold them, and signatures; each holds for its own context alone (ours is empty)."""
    path = Path(cryptography_vectors.__file__).parent / "asymmetric" / "MLDSA" / "kat_MLDSA_65_det_pure.rsp"
    blocks = path.read_text().split("\n\n")[:5]
    for block in blocks:
        row = {name: bytes.fromhex(value) for name, value in re.findall(r"^(xi|pk|msg|ctx|sm) = (\w+)$", block, re.M)}
        key = mldsa.MLDSA65PrivateKey.from_seed_bytes(row["xi"]).public_key()
        assert key.public_bytes_raw() == row["pk"]
        key.verify(row["sm"][:3309], row["msg"], row["ctx"])
        with pytest.raises(InvalidSignature):
            key.verify(row["sm"][:3309], row["msg"])


def test_xchacha20_poly1305_against_its_draft() -> None:
    """draft-irtf-cfrg-xchacha, appendix A.3.1: the cipher of key files."""
    plain = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen "
        b"would be it."
    )
    made = crypto_aead_xchacha20poly1305_ietf_encrypt(
        plain, bytes.fromhex("50515253c0c1c2c3c4c5c6c7"), bytes(range(0x40, 0x58)), bytes(range(0x80, 0xA0))
    )
    assert made.hex() == (
        "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e39"
        "ae64c6708c54c216cb96b72e1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9"
        "21f9664c97637da9768812f615c68b13b52ec0875924c1c7987947deafd8780acf49"
    )


def test_content_keys_against_rfc_5869() -> None:
    """HKDF-SHA256, test case 1 of the RFC, through our one HKDF function."""
    ikm, salt = bytes.fromhex("0b" * 22), bytes.fromhex("000102030405060708090a0b0c")
    info = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9")
    wanted = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    assert primitives.hkdf(ikm, info, 42, salt).hex() == wanted


def test_derived_keys_are_apart() -> None:
    keys = primitives.derive(bytes(32))
    assert len({bytes(keys.body_key), bytes(keys.nonce), bytes(keys.commitment)}) == 3
    assert keys.body_key.hex() not in repr(keys)

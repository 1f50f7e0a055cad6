"""Published vectors for stanzas: HPKE with X25519 and with X-Wing, and the two key exchanges
they are made of.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.bindings._rust import openssl as rust_openssl
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from cipherbox.envelope.bundle import BundleKey, check_usable
from cipherbox.envelope.stanza_types import StanzaType
from cipherbox.envelope.suites import KeyUsage
from cipherbox.errors import BundleMalformed, DecryptionFailed
from cipherbox.sealing import stanzas
from cipherbox.sealing.identity import DecryptKey
from tests.published import ROOT, Row, flipped, rows

X_WING, X25519 = StanzaType.HPKE_MLKEM768_X25519, StanzaType.HPKE_X25519
KEM = {X_WING: 25722, X25519: 0x20}
FILES = {X_WING: "hpke-pq-test-vectors.json", X25519: "test-vectors.json"}
CONTENT_KEY, PREFIX_HASH, INDEX = bytes(range(32)), bytes(range(32, 64)), 259
AES_256_GCM, CHACHA20_POLY1305 = 2, 3
MLKEM = "asymmetric/MLKEM/kat_MLKEM_768.rsp"

rust_hpke: Any = rust_openssl.hpke


def published(kind: StanzaType, **wanted: int) -> list[dict[str, Any]]:
    """Vectors of base mode for the KEM of a stanza type."""
    wanted = {"mode": 0, "kem_id": KEM[kind], **wanted}
    found = [
        v
        for v in json.loads((ROOT / "HPKE" / FILES[kind]).read_text())
        if wanted.items() <= v.items()
    ]
    assert found
    return found


def key_pair(kind: StanzaType, vector: dict[str, Any]) -> DecryptKey:
    """An X-Wing private key is published as a seed; SHAKE-256 makes the two halves we keep (its
    draft, section 5.2).
    """
    seed = bytes.fromhex(vector["skRm"])
    key = DecryptKey.from_seed(kind, hashlib.shake_256(seed).digest(96) if kind == X_WING else seed)
    assert key.public.hex() == vector["pkRm"]
    return key


def schedule(kem: int, aead: int, shared_secret: bytes, info: bytes) -> tuple[bytes, bytes]:
    """Key and nonce of the first message in base mode with HKDF-SHA256: RFC 9180, section 5.1."""
    suite = b"HPKE" + struct.pack(">HHH", kem, 1, aead)

    def extract(salt: bytes, name: bytes, secret: bytes) -> bytes:
        return hmac.digest(salt, b"HPKE-v1" + suite + name + secret, "sha256")

    def expand(name: bytes, length: int) -> bytes:
        labeled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + name + context
        return HKDFExpand(hashes.SHA256(), length, labeled).derive(secret)

    context = b"\x00" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret = extract(shared_secret, b"secret", b"")
    return expand(b"key", 32), expand(b"base_nonce", 12)


@pytest.mark.parametrize(
    ("kind", "aead"),
    [(X25519, AES_256_GCM), (X25519, CHACHA20_POLY1305), (X_WING, CHACHA20_POLY1305)],
)
def test_hpke_opens_what_was_published(kind: StanzaType, aead: int) -> None:
    """The vectors have associated data, which the public call leaves empty; the library's own tests
    open them so too.

    X-Wing is published with ChaCha20-Poly1305 only; the next test brings it to our suite.
    """
    suite: Any = stanzas.SCHEMES[kind].suite
    if aead != AES_256_GCM:
        kem = hpke.KEM.X25519 if kind == X25519 else hpke.KEM.MLKEM768_X25519
        suite = hpke.Suite(kem, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
    for vector in published(kind, kdf_id=1, aead_id=aead):
        private, info = key_pair(kind, vector).private, bytes.fromhex(vector["info"])
        first = vector["encryptions"][0]
        sealed, aad = bytes.fromhex(vector["enc"] + first["ct"]), bytes.fromhex(first["aad"])
        assert rust_hpke._decrypt_with_aad(suite, sealed, private, info, aad).hex() == first["pt"]
        for bad in (
            (flipped(sealed), info, aad),
            (flipped(sealed, 0), info, aad),
            (sealed[:-1], info, aad),
            (sealed, flipped(info), aad),
            (sealed, info, flipped(aad)),
            (sealed, info, b""),
        ):
            with pytest.raises(InvalidTag):
                rust_hpke._decrypt_with_aad(suite, bad[0], private, *bad[1:])


@pytest.mark.parametrize("kind", [X25519, X_WING])
def test_stanzas_open_what_the_published_secrets_seal(kind: StanzaType) -> None:
    """Each vector has the KEM's shared secret, from which the key of any suite follows: of ours
    too, with our `info`.

    So `unwrap` is held to the vectors just as it is called, with nothing of the library's own
    sealing in it.
    """
    for vector in published(kind, kdf_id=1):
        if vector["aead_id"] in (AES_256_GCM, CHACHA20_POLY1305):
            shared, info = bytes.fromhex(vector["shared_secret"]), bytes.fromhex(vector["info"])
            wanted = (bytes.fromhex(vector["key"]), bytes.fromhex(vector["base_nonce"]))
            assert schedule(KEM[kind], vector["aead_id"], shared, info) == wanted
    vectors = published(kind)
    others = [key_pair(kind, v) for v in vectors]
    for vector, own in zip(vectors, others, strict=True):
        info = stanzas.SCHEMES[kind].info + PREFIX_HASH + INDEX.to_bytes(2, "big")
        key, nonce = schedule(KEM[kind], AES_256_GCM, bytes.fromhex(vector["shared_secret"]), info)
        stanza = bytes.fromhex(vector["enc"]) + AESGCM(key).encrypt(nonce, CONTENT_KEY, b"")
        assert stanzas.unwrap(kind, own.private, stanza, PREFIX_HASH, INDEX) == CONTENT_KEY
        bad = [
            (own, flipped(stanza), PREFIX_HASH, INDEX),
            (own, flipped(stanza, 0), PREFIX_HASH, INDEX),
            (own, stanza[:-1], PREFIX_HASH, INDEX),
            (own, stanza + b"\x00", PREFIX_HASH, INDEX),
            (own, stanza, flipped(PREFIX_HASH), INDEX),
            (own, stanza, PREFIX_HASH, INDEX + 1),
            *(
                (other, stanza, PREFIX_HASH, INDEX)
                for other in others
                if other.public != own.public
            ),
        ]
        for holder, changed, prefix_hash, index in bad:
            with pytest.raises(DecryptionFailed):
                stanzas.unwrap(kind, holder.private, changed, prefix_hash, index)


@pytest.mark.parametrize("kind", [X25519, X_WING])
def test_what_is_wrapped_for_a_published_key_opens_with_its_private_half(kind: StanzaType) -> None:
    for vector in published(kind):
        stanza = stanzas.wrap(kind, bytes.fromhex(vector["pkRm"]), CONTENT_KEY, PREFIX_HASH, INDEX)
        assert (
            stanzas.unwrap(kind, key_pair(kind, vector).private, stanza, PREFIX_HASH, INDEX)
            == CONTENT_KEY
        )


def test_x25519_against_rfc_7748() -> None:
    """Section 5.2; one row has a point whose unused bit is set, one multiplies the base point,
    as a public key does.
    """
    kind, base = stanzas.SCHEMES[X25519], bytes([9]) + bytes(31)
    found = rows("asymmetric/X25519/rfc7748.txt")
    assert any(row.raw("INPUT_U") == base for row in found)
    for row in found:
        private, point = kind.load_private(row.raw("INPUT_SCALAR")), row.raw("INPUT_U")
        assert private.exchange(kind.load_public(point)) == row.raw("OUTPUT_U")
        if point == base:
            assert kind.public(row.raw("INPUT_SCALAR")) == row.raw("OUTPUT_U")


@pytest.mark.parametrize(
    "u", [0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18], ids=["0", "1", "p-1", "p", "p+1"]
)
def test_points_of_small_order_are_no_keys(u: int) -> None:
    """RFC 7748, section 6.1: these make zeros with every private key.  No vectors: they follow
    from the prime.
    """
    point = u.to_bytes(32, "little")
    with pytest.raises(BundleMalformed):
        stanzas.wrap(X25519, point, CONTENT_KEY, PREFIX_HASH, INDEX)
    hybrid = bytes.fromhex(published(X_WING)[0]["pkRm"])[:-32] + point
    for entry in (
        BundleKey(KeyUsage.ENCRYPT, X25519, point),
        BundleKey(KeyUsage.ENCRYPT, X_WING, hybrid),
    ):
        with pytest.raises(BundleMalformed):
            check_usable(entry)


def mlkem_seed(row: Row) -> bytes:
    return row.raw("d") + row.raw("z") + bytes([1] * 32)


def test_ml_kem_768_against_its_published_vectors() -> None:
    """Keys from seeds as key files hold them, and both kinds of answer: the secret, or what a
    foreign text gets.
    """
    found = rows(MLKEM)
    for row in found:
        private, _ = stanzas.hybrid_parts(mlkem_seed(row))
        assert private.public_key().public_bytes_raw() == row.raw("pk")
        assert private.decapsulate(row.raw("ct")) == row.raw("ss")
        assert private.decapsulate(row.raw("ct_n")) == row.raw("ss_n")
    private, _ = stanzas.hybrid_parts(mlkem_seed(found[0]))
    for size in (0, 1087, 1089):
        with pytest.raises(ValueError, match=r"(?i)ciphertext|length"):
            private.decapsulate(bytes(size))


def test_ml_kem_768_keys_are_checked() -> None:
    """FIPS 203, section 7.2: a number of a key is below 3329; each of the published keys with a
    larger one is none.
    """
    x25519 = stanzas.SCHEMES[X25519].public(bytes([1] * 32))
    for row in rows(MLKEM)[:50]:
        key = row.raw("pk") + x25519
        assert key == stanzas.SCHEMES[X_WING].public(mlkem_seed(row))
        check_usable(BundleKey(KeyUsage.ENCRYPT, X_WING, key))
        assert len(stanzas.wrap(X_WING, key, CONTENT_KEY, PREFIX_HASH, INDEX)) == 1120 + 48
        for at in (0, 381, 1149):  # each three bytes hold two numbers
            large = key[:at] + b"\xff\xff\xff" + key[at + 3 :]
            with pytest.raises(BundleMalformed):
                stanzas.wrap(X_WING, large, CONTENT_KEY, PREFIX_HASH, INDEX)
            with pytest.raises(BundleMalformed):
                check_usable(BundleKey(KeyUsage.ENCRYPT, X_WING, large))

"""Published vectors for what encrypts, derives and hashes: body ciphers, HKDF, SHA-256, and the
parts of key files.
"""

from __future__ import annotations

import os
import struct

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt

from cipherbox.envelope.labels import label
from cipherbox.envelope.suites import BodyCipher
from cipherbox.errors import CredentialsError, DecryptionFailed, WrongPassword
from cipherbox.sealing import key_file as keyfile
from cipherbox.sealing import primitives
from cipherbox.sealing.local_secret_box import LocalSecretBox
from cipherbox.wire.token import secret_hash
from tests.published import flipped, rows

GCM_DECRYPT = "ciphers/AES/GCM/gcmDecrypt256.rsp"
TAG_BITS = (32, 64, 96, 104, 112, 120, 128)


def check_refusals(
    cipher: AESGCM | ChaCha20Poly1305, nonce: bytes, sealed: bytes, aad: bytes
) -> None:
    for bad in (
        (nonce, flipped(sealed), aad),
        (nonce, flipped(sealed, 0), aad),
        (flipped(nonce), sealed, aad),
        (nonce, sealed, aad + b"\x00"),
        (nonce, sealed[:-1], aad),
        (nonce, sealed[1:], aad),
        (nonce, b"", aad),
    ):
        with pytest.raises(InvalidTag):
            cipher.decrypt(*bad)


def test_aes_256_gcm_seals_as_published() -> None:
    found = rows("ciphers/AES/GCM/gcmEncryptExtIV256.rsp", "[IVlen = 96]", "[Taglen = 128]")
    for row in found:
        cipher = primitives.aead(BodyCipher.AES_256_GCM, row.raw("Key"))
        sealed = row.raw("CT") + row.raw("Tag")
        assert cipher.encrypt(row.raw("IV"), row.raw("PT"), row.raw("AAD")) == sealed
        assert cipher.decrypt(row.raw("IV"), sealed, row.raw("AAD")) == row.raw("PT")
        check_refusals(cipher, row.raw("IV"), sealed, row.raw("AAD"))


@pytest.mark.parametrize("bits", TAG_BITS)
def test_aes_256_gcm_opens_as_published(bits: int) -> None:
    """The rows marked FAIL have a wrong tag.  A tag shorter than ours is refused even where the
    file calls it right.
    """
    outcomes = set()
    for row in rows(GCM_DECRYPT, "[IVlen = 96]", f"[Taglen = {bits}]"):
        cipher = primitives.aead(BodyCipher.AES_256_GCM, row.raw("Key"))
        sealed, good = row.raw("CT") + row.raw("Tag"), "FAIL" not in row
        outcomes.add(good)
        if good and bits == 128:
            assert cipher.decrypt(row.raw("IV"), sealed, row.raw("AAD")) == row.raw("PT")
        else:
            with pytest.raises(InvalidTag):
                cipher.decrypt(row.raw("IV"), sealed, row.raw("AAD"))
    assert outcomes == {True, False}


def test_chacha20_poly1305_against_boringssl() -> None:
    """The first row is RFC 8439's own (section 2.8.2); the others are the paddings and the
    lengths.
    """
    for row in rows("ciphers/ChaCha20Poly1305/boringssl.txt"):
        cipher = primitives.aead(BodyCipher.CHACHA20_POLY1305, row.raw("KEY"))
        sealed = row.raw("CT") + row.raw("TAG")
        assert cipher.encrypt(row.raw("NONCE"), row.raw("IN"), row.raw("AD")) == sealed
        assert cipher.decrypt(row.raw("NONCE"), sealed, row.raw("AD")) == row.raw("IN")
        check_refusals(cipher, row.raw("NONCE"), sealed, row.raw("AD"))


def test_chacha20_poly1305_against_openssl() -> None:
    """One of these has a wrong tag."""
    found = rows("ciphers/ChaCha20Poly1305/openssl.txt")
    assert sum("Result" in row for row in found) == 1
    for row in found:
        cipher = primitives.aead(BodyCipher.CHACHA20_POLY1305, row.raw("Key"))
        sealed = row.raw("Ciphertext") + row.raw("Tag")
        if "Result" in row:
            with pytest.raises(InvalidTag):
                cipher.decrypt(row.raw("IV"), sealed, row.raw("AAD"))
        else:
            assert cipher.decrypt(row.raw("IV"), sealed, row.raw("AAD")) == row.raw("Plaintext")


@pytest.mark.parametrize("name", ["rfc-5869-HKDF-SHA256.txt", "hkdf-generated.txt"])
def test_hkdf_against_rfc_5869(name: str) -> None:
    for row in rows(f"KDF/{name}"):
        made = primitives.hkdf(row.raw("IKM"), row.raw("info"), int(row["L"]), row.raw("salt"))
        assert made == row.raw("OKM")
        for other in (
            primitives.hkdf(
                row.raw("IKM"), row.raw("info") + b"\x00", int(row["L"]), row.raw("salt")
            ),
            primitives.hkdf(
                row.raw("IKM"), row.raw("info"), int(row["L"]), row.raw("salt") + b"\x01"
            ),
            primitives.hkdf(
                flipped(row.raw("IKM")), row.raw("info"), int(row["L"]), row.raw("salt")
            ),
        ):
            assert other != made
    with pytest.raises(ValueError, match="larger"):
        primitives.hkdf(bytes(32), b"", 255 * 32 + 1)


def test_derived_keys_are_apart() -> None:
    keys = primitives.derive(bytes(32))
    assert len({bytes(keys.body_key), bytes(keys.nonce), bytes(keys.commitment)}) == 3
    assert keys.body_key.hex() not in repr(keys)


@pytest.mark.parametrize("name", ["SHA256ShortMsg.rsp", "SHA256LongMsg.rsp"])
def test_sha_256_against_its_published_vectors(name: str) -> None:
    for row in rows(f"hashes/SHA2/{name}", "[L = 32]"):
        assert secret_hash(row.raw("Msg")[: int(row["Len"]) // 8]) == row.raw("MD")


def test_xchacha20_poly1305_against_its_draft() -> None:
    """draft-irtf-cfrg-xchacha, appendix A.3.1: the cipher of key files."""
    plain = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the "
        b"future, sunscreen would be it."
    )
    made = crypto_aead_xchacha20poly1305_ietf_encrypt(
        plain,
        bytes.fromhex("50515253c0c1c2c3c4c5c6c7"),
        bytes(range(0x40, 0x58)),
        bytes(range(0x80, 0xA0)),
    )
    assert made.hex() == (
        "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e39"
        "ae64c6708c54c216cb96b72e1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9"
        "21f9664c97637da9768812f615c68b13b52ec0875924c1c7987947deafd8780acf49"
    )


def keystream(key: bytes, counter_and_nonce: bytes, data: bytes) -> bytes:
    return Cipher(ChaCha20(key, counter_and_nonce), None).encryptor().update(data)


def xchacha20_poly1305(key: bytes, nonce: bytes) -> tuple[ChaCha20Poly1305, bytes]:
    """The draft's section 2 from parts that have published vectors: its subkey is half of a
    ChaCha20 block, before the last addition; then follows ChaCha20-Poly1305 with the rest of the
    nonce.
    """
    first = b"expand 32-byte k", nonce[:16]
    block = keystream(key, nonce[:16], bytes(64))
    words = [
        (after - before) % 2**32
        for begin, part in zip((block[:16], block[48:]), first, strict=True)
        for after, before in zip(
            struct.unpack("<4I", begin), struct.unpack("<4I", part), strict=True
        )
    ]
    return ChaCha20Poly1305(struct.pack("<8I", *words)), bytes(4) + nonce[16:]


def test_chacha20_against_rfc_8439() -> None:
    for row in rows("ciphers/ChaCha20/rfc7539.txt"):
        start = int(row["INITIAL_BLOCK_COUNTER"]).to_bytes(4, "little") + row.raw("NONCE")
        assert keystream(row.raw("KEY"), start, row.raw("PLAINTEXT")) == row.raw("CIPHERTEXT")


def test_key_files_and_kept_keys_are_xchacha20_poly1305() -> None:
    """What is written at rest opens with a second implementation made of vetted parts, and what
    that seals is read.
    """
    for size in (0, 1, 15, 16, 17, 63, 64, 65, 4096):
        key, plain = os.urandom(32), os.urandom(size)
        made = keyfile.encrypt(plain, local_key=key)
        head, nonce, sealed = made[:6], made[6:30], made[30:]
        cipher, short = xchacha20_poly1305(key, nonce)
        assert cipher.decrypt(short, sealed, head) == plain
        assert (
            keyfile.decrypt(head + nonce + cipher.encrypt(short, plain, head), local_key=key)
            == plain
        )
        with pytest.raises(CredentialsError):
            keyfile.decrypt(head + nonce + flipped(sealed), local_key=key)
        with pytest.raises(CredentialsError):
            keyfile.decrypt(head + flipped(nonce) + sealed, local_key=key)
    local, envelope, content_key = os.urandom(32), os.urandom(16), os.urandom(32)
    kept = LocalSecretBox(local).wrap(content_key, envelope, 7)
    cipher, short = xchacha20_poly1305(primitives.hkdf(local, label("outbox"), 32), kept[:24])
    assert cipher.decrypt(short, kept[24:], envelope + bytes([0, 0, 0, 7])) == content_key
    with pytest.raises(DecryptionFailed):
        LocalSecretBox(local).unwrap(flipped(kept), envelope, 7)


def test_argon2id_against_rfc_9106() -> None:
    """No published row fits what libsodium computes (one lane, a salt of 16 bytes, at least 16
    bytes out, no secret).

    So the rows hold a second implementation to account, and that one ours, up to the cost of key
    files.
    """
    for row in rows("KDF/argon2id.txt"):
        if int(row["memcost"]) > 1024:
            continue  # 128 MiB
        made = Argon2id(
            salt=row.raw("salt"),
            length=int(row["length"]),
            iterations=int(row["iter"]),
            lanes=int(row["lanes"]),
            memory_cost=int(row["memcost"]),
            ad=row.raw("ad") if "ad" in row else None,
            secret=row.raw("secret") if "secret" in row else None,
        ).derive(row.raw("pass"))
        assert made == row.raw("output")
    costs = [(8, 1), (9, 2), (32, 3), (1024, 1), (4097, 16), (keyfile.MEMORY_KIB, keyfile.PASSES)]
    for memory, passes in costs:
        for password in (
            (b"", "Pässwort".encode(), os.urandom(200)) if memory < 2000 else (b"password",)
        ):
            salt = os.urandom(16)
            second = Argon2id(salt=salt, length=32, iterations=passes, lanes=1, memory_cost=memory)
            assert keyfile.stretch(password, salt, memory, passes) == second.derive(password)


def test_a_key_file_under_a_password_is_argon2id_and_xchacha20_poly1305() -> None:
    """A whole file, made without any of the calls that read it."""
    salt, nonce, memory, passes = os.urandom(16), os.urandom(24), 64, 3
    head = b"CBXK\x01\x02" + struct.pack(">II", memory, passes) + salt
    key = Argon2id(salt=salt, length=32, iterations=passes, lanes=1, memory_cost=memory).derive(
        b"password"
    )
    cipher, short = xchacha20_poly1305(key, nonce)
    made = head + nonce + cipher.encrypt(short, b"secret", head)
    assert keyfile.decrypt(made, password=b"password") == b"secret"
    for bad in (flipped(made), flipped(made, 9), flipped(made, 14)):
        with pytest.raises((CredentialsError, WrongPassword)):
            keyfile.decrypt(bad, password=b"password")

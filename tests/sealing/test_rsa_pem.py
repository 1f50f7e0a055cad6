"""RSA keys as PEM files: taken in every form OpenSSL writes, refused in plain words, and
published vectors.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cryptography_vectors
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519
from cryptography.hazmat.primitives.asymmetric import rsa as library
from cryptography.hazmat.primitives.asymmetric.rsa import (
    RSAPrivateKey,
    RSAPrivateNumbers,
    RSAPublicNumbers,
)
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from hypothesis import given
from hypothesis import strategies as st

from cipherbox.errors import CipherBoxError, ConfigError
from cipherbox.sealing import rsa
from tests.golden.make_rsa import rsa_key
from tests.parties import party

VECTORS = Path(cryptography_vectors.__file__).parent / "asymmetric"
KEY = rsa_key().private
RSA = rsa.RsaOaep()
PASSWORD = b"a password of somebody"


def never() -> bytes:
    raise AssertionError("no password is needed")


def pem(key: Any, form: PrivateFormat = PrivateFormat.PKCS8, password: bytes = b"") -> bytes:
    protection = BestAvailableEncryption(password) if password else NoEncryption()
    made: bytes = key.private_bytes(Encoding.PEM, form, protection)
    return made


def imported(data: bytes, where: str, password: bytes) -> tuple[bytes | None, str]:
    """The key, or the words why not; any other error comes through."""
    try:
        return rsa.import_pem(data, where, lambda: password), ""
    except ConfigError as error:
        return None, str(error)


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_private_keys_come_in_both_forms_with_and_without_a_password(form: PrivateFormat) -> None:
    plain, locked = pem(KEY, form), pem(KEY, form, PASSWORD)
    wanted = rsa_key().seed
    assert rsa.import_pem(plain, "f", never) == wanted
    assert rsa.import_pem(b"Private-Key: (2048 bit, 2 primes)\n" + plain, "f", never) == wanted
    assert rsa.import_pem(plain.replace(b"\n", b"\r\n"), "f", never) == wanted
    assert rsa.import_pem(locked, "f", lambda: PASSWORD) == wanted
    for wrong in (b"another", PASSWORD + b"\n", b"x" * 1025, b""):
        assert "password" in imported(locked, "f", wrong)[1]


def test_the_public_key_goes_out_as_openssl_writes_it() -> None:
    made = rsa.public_pem(rsa_key().public)
    assert made == KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert made.startswith(b"-----BEGIN PUBLIC KEY-----\n")
    assert load_pem_public_key(made) == KEY.public_key()


def of_primes(p: int, q: int, exponent: int = 65_537) -> RSAPrivateKey:
    d = pow(exponent, -1, (p - 1) * (q - 1))
    numbers = RSAPrivateNumbers(
        p,
        q,
        d,
        library.rsa_crt_dmp1(d, p),
        library.rsa_crt_dmq1(d, q),
        library.rsa_crt_iqmp(p, q),
        RSAPublicNumbers(exponent, p * q),
    )
    return numbers.private_key(unsafe_skip_rsa_key_validation=True)


def odd_size() -> RSAPrivateKey:
    """A sound key of 2,050 bits."""
    p, q = KEY.private_numbers().p, library.generate_private_key(65_537, 2052).private_numbers().q
    key = of_primes(p, q)
    assert key.key_size % 8
    return key


def broken() -> RSAPrivateKey:
    """One factor is no prime, so it opens nothing."""
    numbers = KEY.private_numbers()
    q = numbers.q - 2
    while True:
        try:
            return of_primes(numbers.p, q)
        except ValueError:
            q -= 2


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (
            lambda: library.generate_private_key(65_537, 1024),
            "2048 to 4096 bits, and this one has 1024",
        ),
        (lambda: library.generate_private_key(65_537, 4104), "this one has 4104"),
        (odd_size, "multiple of 8"),
        (lambda: library.generate_private_key(3, 2048), "exponent"),
        (broken, "are inconsistent"),
        (lambda: ec.generate_private_key(ec.SECP256R1()), "not an RSA key"),
        (ed25519.Ed25519PrivateKey.generate, "not an RSA key"),
        (lambda: dsa.generate_private_key(2048), "not an RSA key"),
    ],
    ids=["1024", "4104", "odd", "exponent 3", "broken", "EC", "Ed25519", "DSA"],
)
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_other_keys_are_refused_in_plain_words(key: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as found:
        rsa.import_pem(pem(key()), "key.pem", never)
    assert "key.pem" in str(found.value)


def test_what_is_no_private_key_is_refused_in_plain_words() -> None:
    good = pem(KEY)
    certificate = party("CA-RC").certificate.public_bytes(Encoding.PEM)
    with pytest.raises(ConfigError, match="public key"):
        rsa.import_pem(rsa.public_pem(rsa_key().public), "f", never)
    assert (
        rsa.import_pem(certificate + rsa.public_pem(rsa_key().public) + good, "f", never)
        == rsa_key().seed
    )
    with pytest.raises(ConfigError, match="too large"):
        rsa.import_pem(good + b"\n" * rsa.PEM_BYTES, "f", never)
    for junk in (
        b"",
        certificate,
        good[:500],
        good.replace(b"PRIVATE", b"SECRET"),
        good[100:],
        b"-----BEGIN ",
    ):
        with pytest.raises(ConfigError, match="no private key"):
            rsa.import_pem(junk, "f", never)
    assert not rsa.is_pem(b"CBXB")
    assert not rsa.is_pem(b"")


@given(st.integers(0, 1700), st.integers(1, 255), st.booleans())
def test_a_changed_byte_of_a_pem_file_is_refused_or_changes_nothing(
    at: int, flip: int, locked: bool
) -> None:
    data = LOCKED if locked else PLAIN
    at %= len(data)
    seed, words = imported(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :], "f", PASSWORD)
    assert KEY_TEXT not in words
    if seed is not None:
        assert rsa.public(seed) == rsa_key().public
        assert RSA.decrypt(
            RSA.encrypt(bytes(32), KEY.public_key(), b""), rsa.load_private(seed), b""
        ) == bytes(32)


PLAIN, LOCKED = pem(KEY), pem(KEY, password=PASSWORD)
KEY_TEXT = PLAIN.splitlines()[3].decode()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_pem_file_or_refused(raw: bytes) -> None:
    begin, end = b"-----BEGIN RSA PRIVATE KEY-----\n", b"\n-----END RSA PRIVATE KEY-----\n"
    for data in (
        raw,
        begin + raw + end,
        begin + b"Proc-Type: 4,ENCRYPTED\nDEK-Info: " + raw + b"\n\n" + raw + end,
    ):
        with pytest.raises(CipherBoxError):
            rsa.import_pem(data, "f", lambda: b"x")


PEM_VECTORS = sorted(
    path
    for name in ("PEM_Serialization", "PKCS8", "Traditional_OpenSSL_Serialization")
    for path in (VECTORS / name).glob("*.pem")
)


@pytest.mark.parametrize("path", PEM_VECTORS, ids=lambda path: path.name)
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_published_pem_files_are_read_or_refused_in_plain_words(path: Path) -> None:
    """Broken ones and odd ones on purpose; whatever the library says of them does not come
    through.
    """
    for password in (b"123456", b"foobar", b"password", b"x"):
        seed, words = imported(path.read_bytes(), path.name, password)
        assert (
            path.name in words if seed is None else 2048 <= rsa.load_private(seed).key_size <= 4096
        )


def test_what_was_made_here_is_a_sound_key() -> None:
    """Loaded with every check, which key files spare themselves."""
    key = load_pem_private_key(pem(rsa.load_private(rsa.generate(2048))), None)
    assert isinstance(key, RSAPrivateKey)
    assert (key.key_size, key.public_key().public_numbers().e) == (2048, 65_537)
    assert rsa.load_private(rsa.generate()).key_size == rsa.DEFAULT_BITS
    assert rsa.generate(2048) != rsa.generate(2048)


def test_oaep_is_that_of_the_published_vectors() -> None:
    """RSA-OAEP with SHA-256 for hash and MGF and an empty label: every vector of
    `cryptography_vectors`.
    """
    text = (VECTORS / "RSA" / "oaep-custom" / "oaep-sha256-sha256.txt").read_text()
    opened = 0
    for example in text.split("# Private key\n")[1:]:
        key, *messages = example.split("# Message:\n")
        n, e, d, p, q = (int(line, 16) for line in re.findall(r"^[0-9a-f]+$", key, re.M)[:5])
        made = RSAPrivateNumbers(
            p,
            q,
            d,
            library.rsa_crt_dmp1(d, p),
            library.rsa_crt_dmq1(d, q),
            library.rsa_crt_iqmp(p, q),
            RSAPublicNumbers(e, n),
        ).private_key()
        for block in messages:
            message, ciphertext = (
                bytes.fromhex(line) for line in re.findall(r"^[0-9a-f]+$", block, re.M)[:2]
            )
            assert made.decrypt(ciphertext, rsa.OAEP) == message
            opened += 1
    assert opened >= 10

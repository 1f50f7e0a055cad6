"""Private keys at rest: one file, encrypted under a 32-byte local key or under a password.

    magic "CBXK" | version u8 = 1 | method u8 | parameters | nonce 24 | XChaCha20-Poly1305
    ciphertext

Method 1, a local key: no parameters. Method 2, a password: memory in KiB u32 | passes u32 | salt
16, for Argon2id (RFC 9106); values above the caps are refused before any work, so a planted file
cannot exhaust the machine. All bytes before the nonce are associated data. The plaintext of
`keys.cbk` is a JSON document with secrets in hexadecimal; that of a `local.key` under a password is
its 32 bytes.

The file records its Argon2id cost, so that the cost can rise with faster machines: `is_cheap`
detects a file below today's cost, and the next program that opens it rewrites it.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import nacl.exceptions
import nacl.utils
import orjson
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)

from cipherbox import portable
from cipherbox.envelope.bundle import decode_bundle
from cipherbox.errors import (
    CipherBoxError,
    ConfigError,
    CredentialsError,
    PasswordError,
    WrongPassword,
)
from cipherbox.sealing.identity import DecryptKey, Identity

MAGIC = b"CBXK"
VERSION = 1
LOCAL_KEY, PASSWORD = 1, 2
MEMORY_KIB, PASSES = 64 * 1024, 4
MEMORY_KIB_CAP, PASSES_CAP = 1024 * 1024, 16
_HEAD = struct.Struct(">4sBB")
_ARGON = struct.Struct(">II16s")
_NONCE, _TAG, _KEY = 24, 16, 32
_RESTORE = (
    "restore it and its key from your backup: without them, nothing sealed to these keys can be "
    "opened"
)


def is_key_file(data: bytes) -> bool:
    """Return whether these bytes begin as a key file does."""
    return data[:4] == MAGIC


def is_cheap(data: bytes) -> bool:
    """Return whether a password's key file costs less than today's Argon2id parameters, and no more
    in either.
    """
    if len(data) < _HEAD.size + _ARGON.size or _HEAD.unpack_from(data) != (
        MAGIC,
        VERSION,
        PASSWORD,
    ):
        return False
    memory, passes, _ = _ARGON.unpack_from(data, _HEAD.size)
    return bool(
        memory <= MEMORY_KIB and passes <= PASSES and (memory, passes) != (MEMORY_KIB, PASSES)
    )


def encrypt(
    plain: bytes, *, local_key: bytes | None = None, password: bytes | None = None
) -> bytes:
    """Return the file's bytes, encrypted under ``local_key`` (32 bytes) or under ``password``."""
    if (local_key is None) == (password is None):
        raise ValueError("a key file needs either a local key or a password")
    if local_key is not None:
        if len(local_key) != _KEY:
            raise CredentialsError(f"a local key must have {_KEY} bytes, not {len(local_key)}")
        head, key = _HEAD.pack(MAGIC, VERSION, LOCAL_KEY), local_key
    else:
        if not password:
            raise PasswordError("an empty password protects nothing")
        salt = nacl.utils.random(16)
        head = _HEAD.pack(MAGIC, VERSION, PASSWORD) + _ARGON.pack(MEMORY_KIB, PASSES, salt)
        key = stretch(password, salt, MEMORY_KIB, PASSES)
    nonce = nacl.utils.random(_NONCE)
    return head + nonce + crypto_aead_xchacha20poly1305_ietf_encrypt(plain, head, nonce, key)


def decrypt(data: bytes, *, local_key: bytes | None = None, password: bytes | None = None) -> bytes:
    """Return the plaintext given to `encrypt`. Raise WrongPassword, or CredentialsError that says
    whether the file or the key is at fault.

    A changed file and a wrong password are indistinguishable, so both are WrongPassword.
    """
    if len(data) < _HEAD.size + _NONCE + _TAG or not is_key_file(data):
        raise CredentialsError("not a key file")
    _, version, method = _HEAD.unpack_from(data)
    if version != VERSION or method not in (LOCAL_KEY, PASSWORD):
        raise CredentialsError(
            f"unknown version {version} or method {method} of a key file",
            remedy="update this program",
        )
    at = _HEAD.size
    if method == LOCAL_KEY:
        if local_key is None:
            raise CredentialsError("this key file needs the local key, not a password")
        key = local_key
    else:
        if password is None:
            raise CredentialsError("this key file needs a password")
        if len(data) < at + _ARGON.size + _NONCE + _TAG:
            raise CredentialsError("not a key file")
        memory, passes, salt = _ARGON.unpack_from(data, at)
        at += _ARGON.size
        if not (8 <= memory <= MEMORY_KIB_CAP and 1 <= passes <= PASSES_CAP):
            raise CredentialsError(
                "the key file's memory or passes exceed the limits of this program"
            )
        key = stretch(password, salt, memory, passes)
    try:
        return crypto_aead_xchacha20poly1305_ietf_decrypt(
            data[at + _NONCE :], data[:at], data[at : at + _NONCE], key
        )
    except nacl.exceptions.CryptoError:
        if method == PASSWORD:
            raise WrongPassword from None
        raise CredentialsError("the key is wrong") from None


def stretch(password: bytes, salt: bytes, memory_kib: int, passes: int) -> bytes:
    from nacl.pwhash import argon2id

    try:
        return argon2id.kdf(_KEY, password, salt, opslimit=passes, memlimit=memory_kib * 1024)
    except nacl.exceptions.CryptoError:  # within the caps only memory can be missing
        raise CredentialsError(
            f"not enough memory: opening this key file takes {memory_kib // 1024} MiB"
        ) from None


def save(path: Path, identity: Identity, *, local_key: bytes) -> None:
    """Write the identity, its keys and its bundle atomically, with mode 0600."""
    document = _document(identity) | {
        "upcoming": _document(identity.upcoming) if identity.upcoming else None
    }
    portable.write_private(path, encrypt(orjson.dumps(document), local_key=local_key))


def _document(identity: Identity) -> dict[str, Any]:
    ed25519, mldsa65 = identity.seeds()
    return {
        "client_id": identity.client_id,
        "ed25519": ed25519.hex(),
        "mldsa65": mldsa65.hex() if mldsa65 else None,
        "current": [[k.algorithm, k.seed.hex()] for k in identity.current],
        "retired": [[k.algorithm, k.seed.hex(), k.retired_at] for k in identity.retired],
        "bundle": identity.bundle.raw.hex() if identity.bundle else None,
    }


def load(path: Path, *, local_key: bytes) -> Identity:
    """Return the identity that `save` wrote. Raise ConfigError naming the file if it is damaged or
    the key is wrong, BundleError if its bundle is invalid.
    """
    try:
        document = orjson.loads(decrypt(portable.read_private(path), local_key=local_key))
        identity = _identity(document)
        if document.get("upcoming"):
            identity.upcoming = _identity(document["upcoming"])
    except CredentialsError as error:
        raise ConfigError(f"{path}: {error}", remedy=_RESTORE) from None
    except CipherBoxError:
        raise
    except Exception:  # the error's own text could quote a secret
        raise ConfigError(f"{path} is not a complete key file", remedy=_RESTORE) from None
    return identity


def _identity(document: dict[str, Any]) -> Identity:
    identity = Identity(
        document["client_id"],
        bytes.fromhex(document["ed25519"]),
        bytes.fromhex(document["mldsa65"]) if document["mldsa65"] else None,
        [_key(*row) for row in document["current"]],
        [_key(*row) for row in document["retired"]],
    )
    identity.bundle = (
        decode_bundle(bytes.fromhex(document["bundle"])) if document["bundle"] else None
    )
    return identity


def _key(algorithm: int, seed: str, retired_at: int = 0) -> DecryptKey:
    return DecryptKey.from_seed(algorithm, bytes.fromhex(seed), retired_at)

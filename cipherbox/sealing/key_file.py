"""Private keys at rest: one file, encrypted under a local 32-byte key or under a password.

    magic "CBXK" | version u8 = 1 | method u8 | parameters | nonce 24 | XChaCha20-Poly1305
    ciphertext

Method 1, a local key: no parameters.  Method 2, a password: memory in KiB u32 | passes u32 | salt
16, for Argon2id (RFC 9106); values above the caps are refused before any work, so a planted file
cannot exhaust the machine.  All bytes before the nonce are associated data.  Inside `keys.cbk` is a
JSON document whose secrets are hexadecimal text, inside a `local.key` under a password are its 32
bytes.

What a password costs to guess is in the file, so that it can rise with the machines: `is_cheap`
tells a file that was made with less than is usual today, and whoever opens it writes it again.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import nacl.exceptions
import nacl.pwhash.argon2id
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
    "restore it and the key beside it from your backup: without them nothing sealed to these keys "
    "can be opened"
)


def is_key_file(data: bytes) -> bool:
    """Whether these bytes begin as a key file does."""
    return data[:4] == MAGIC


def is_cheap(data: bytes) -> bool:
    """Whether a password's key file costs less to guess than one of today, and in no way more."""
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
    """The file's bytes.  Exactly one of ``local_key`` (32 bytes) and ``password``."""
    if (local_key is None) == (password is None):
        raise ValueError("a key file is under a local key or under a password")
    if local_key is not None:
        if len(local_key) != _KEY:
            raise CredentialsError(f"a local key has {_KEY} bytes, this one has {len(local_key)}")
        head, key = _HEAD.pack(MAGIC, VERSION, LOCAL_KEY), local_key
    else:
        if not password:
            raise PasswordError("an empty password protects nothing")
        salt = nacl.utils.random(16)
        head = _HEAD.pack(MAGIC, VERSION, PASSWORD) + _ARGON.pack(MEMORY_KIB, PASSES, salt)
        key = _stretch(password, salt, MEMORY_KIB, PASSES)
    nonce = nacl.utils.random(_NONCE)
    return head + nonce + crypto_aead_xchacha20poly1305_ietf_encrypt(plain, head, nonce, key)


def decrypt(data: bytes, *, local_key: bytes | None = None, password: bytes | None = None) -> bytes:
    """What `encrypt` was given; WrongPassword, or CredentialsError that says whether the file or
    the key is at fault.

    A changed file and a wrong password cannot be told apart, so both are WrongPassword.
    """
    if len(data) < _HEAD.size + _NONCE + _TAG or not is_key_file(data):
        raise CredentialsError("this is not a key file")
    _, version, method = _HEAD.unpack_from(data)
    if version != VERSION or method not in (LOCAL_KEY, PASSWORD):
        raise CredentialsError(
            f"the key file is of version {version}, method {method}", remedy="update this program"
        )
    at = _HEAD.size
    if method == LOCAL_KEY:
        if local_key is None:
            raise CredentialsError("this key file opens with the local key, not with a password")
        key = local_key
    else:
        if password is None:
            raise CredentialsError("this key file opens with a password")
        if len(data) < at + _ARGON.size + _NONCE + _TAG:
            raise CredentialsError("this is not a key file")
        memory, passes, salt = _ARGON.unpack_from(data, at)
        at += _ARGON.size
        if not (8 <= memory <= MEMORY_KIB_CAP and 1 <= passes <= PASSES_CAP):
            raise CredentialsError(
                "the key file asks for more memory or passes than this program allows"
            )
        key = _stretch(password, salt, memory, passes)
    try:
        return crypto_aead_xchacha20poly1305_ietf_decrypt(
            data[at + _NONCE :], data[:at], data[at : at + _NONCE], key
        )
    except nacl.exceptions.CryptoError:
        if method == PASSWORD:
            raise WrongPassword from None
        raise CredentialsError("the key is wrong") from None


def _stretch(password: bytes, salt: bytes, memory_kib: int, passes: int) -> bytes:
    try:
        return nacl.pwhash.argon2id.kdf(
            _KEY, password, salt, opslimit=passes, memlimit=memory_kib * 1024
        )
    except nacl.exceptions.CryptoError:  # within the caps only memory can be missing
        raise CredentialsError(
            f"this password's key file needs {memory_kib // 1024} MiB of memory to open"
        ) from None


def save(path: Path, identity: Identity, *, local_key: bytes) -> None:
    """Writes the identity, its keys and its bundle; mode 0600, whole or not at all."""
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
    """Reads what `save` wrote; ConfigError names the file that is damaged, or does not belong to
    the key.

    BundleError: the bundle in it is none.
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
    except Exception:  # whatever is wrong inside, its text could quote a secret
        raise ConfigError(f"{path} is not a whole key file", remedy=_RESTORE) from None
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

"""The file `local.key` of a home: 32 random bytes, in clear or encrypted under a password.

`client.key`, `keys.cbk` and the content keys in `outbox.sqlite3` are encrypted under these bytes,
which never change. So setting, changing or removing a password is one atomic write of this small
file: after a crash the file is the former one or the new one, and either opens everything.

A write that was killed can leave a temporary file, which after removing a password holds the bare
key; the next program that opens the home deletes it. Writers hold a lock, so that no other process
deletes a file being written, and so that a file rewritten for its Argon2id cost never undoes a
change of password.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from cipherbox.config.settings import ClientConfig, secret
from cipherbox.errors import (
    CipherBoxError,
    ConfigError,
    CredentialsError,
    PasswordError,
    PasswordNeeded,
    StoreLocked,
)
from cipherbox.portable import credential, lock_file, read_private, write_private
from cipherbox.sealing import key_file as keyfile

LOCAL_KEY = "local.key"
PASSWORD_CREDENTIAL = "cipherbox-password"  # noqa: S105
SIZE = 32
LONGEST_PASSWORD = 1024  # far above any typed password: detects a wrong file
_LOCK = "local.key.lock"
_UNFINISHED = f".{LOCAL_KEY}.*"  # as `portable.write_atomic` names them
_RESTORE = (
    "restore the home from your backup: without it, nothing sealed to these keys can be opened"
)

Password = str | bytes
Say = Callable[[str], None]


def password_bytes(password: Password, where: str = "the password") -> bytes:
    """Return a password as the bytes to stretch: NFC, so that keyboards and editors agree."""
    raw = password.encode("utf-8", "surrogateescape") if isinstance(password, str) else password
    with suppress(UnicodeDecodeError):
        raw = unicodedata.normalize("NFC", raw.decode()).encode()
    if not raw:
        raise PasswordError(f"{where} must not be empty")
    if len(raw) > LONGEST_PASSWORD:
        raise PasswordError(f"{where} is longer than {LONGEST_PASSWORD} bytes")
    return raw


def read_password(path: Path) -> bytes:
    """Return the password in a file or credential, without its last line break. Raise ConfigError
    if other users may read it.
    """
    raw = secret(path)
    return password_bytes(raw.removesuffix(b"\n").removesuffix(b"\r"), str(path))


def configured_password(config: ClientConfig) -> Path | None:
    """Return the file that has this home's password, or None if a person must be asked."""
    return config.password_file or credential(PASSWORD_CREDENTIAL)


def is_sealed(home: Path) -> bool:
    """Return whether a password is needed to open the keys in ``home``."""
    return len(_read(home)) != SIZE


def open_local_key(home: Path, password: Password | None, say: Say | None = None) -> bytes:
    """Return the 32 bytes. Raise PasswordNeeded, WrongPassword, or ConfigError if the file is
    damaged.

    A file below the current Argon2id cost is rewritten, which ``say`` reports.
    """
    data = _read(home)
    _clean(home)
    if len(data) == SIZE:
        return data
    if password is None:
        raise PasswordNeeded(f"the keys in {home} are under a password, and none was given")
    raw = password_bytes(password)
    try:
        local_key = keyfile.decrypt(data, password=raw)
    except CredentialsError as error:
        raise ConfigError(f"{home / LOCAL_KEY}: {error}", remedy=_RESTORE) from None
    if len(local_key) != SIZE:
        raise ConfigError(f"{home / LOCAL_KEY} does not hold a local key", remedy=_RESTORE)
    if keyfile.is_cheap(data):
        _raise_cost(home, data, local_key, raw, say)
    return local_key


def local_key_file(local_key: bytes, password: Password | None) -> bytes:
    """Return the file's bytes: encrypted under ``password``, or the bare key without one."""
    return (
        local_key
        if password is None
        else keyfile.encrypt(local_key, password=password_bytes(password))
    )


def put_local_key(home: Path, local_key: bytes, password: Password | None) -> None:
    """Replace the file atomically; see `local_key_file`. Raise StoreLocked while another process
    does.
    """
    data = local_key_file(local_key, password)
    with _locked(home):
        write_private(home / LOCAL_KEY, data)


def _read(home: Path) -> bytes:
    data = read_private(home / LOCAL_KEY)
    if len(data) != SIZE and not keyfile.is_key_file(data):
        raise ConfigError(
            f"{home / LOCAL_KEY} is damaged: it must have {SIZE} bytes or be encrypted under a "
            f"password, and has {len(data)} bytes",
            remedy=_RESTORE,
        )
    return data


def _raise_cost(
    home: Path, data: bytes, local_key: bytes, password: bytes, say: Say | None
) -> None:
    try:
        sealed = keyfile.encrypt(local_key, password=password)
        with _locked(home):
            if read_private(home / LOCAL_KEY) != data:
                return
            write_private(home / LOCAL_KEY, sealed)
    except StoreLocked:
        return
    except (OSError, CipherBoxError) as error:  # the key is open: continue without rewriting it
        text = f"could not be rewritten with the current Argon2id cost: {error}"
    else:
        text = (
            "was rewritten with the current Argon2id cost: "
            f"{keyfile.MEMORY_KIB // 1024} MiB and {keyfile.PASSES} passes"
        )
    if say is not None:
        say(f"{home / LOCAL_KEY} {text}")


def _clean(home: Path) -> None:
    if next(home.glob(_UNFINISHED), None) is None:
        return
    with suppress(StoreLocked, OSError), _locked(home):
        for path in home.glob(_UNFINISHED):
            path.unlink(missing_ok=True)


def _locked(home: Path) -> AbstractContextManager[None]:
    return lock_file(home / _LOCK, f"the password of {home}")

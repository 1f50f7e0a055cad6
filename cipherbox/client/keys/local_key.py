"""`local.key` of a home: 32 random bytes, as they are or sealed under a password.

`client.key`, `keys.cbk` and the content keys in `outbox.sqlite3` are encrypted under these bytes,
which never change.  So to set, change or remove a password is one atomic write of this one small
file: whenever the machine dies, the file is the one before or the one after, and either opens
everything.

A write that was killed can leave its unfinished file behind, and after a removal that file holds
the bare key; the next who opens the home deletes it.  Writers hold a lock, so that nobody deletes
what is being written, and so that a file written again for its cost alone never undoes a change of
password.
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
LONGEST_PASSWORD = 1024  # far above what anybody types: a wrong file is noticed
_LOCK = "local.key.lock"
_UNFINISHED = f".{LOCAL_KEY}.*"  # as `portable.write_atomic` names them
_RESTORE = (
    "restore the home from your backup: without it nothing sealed to these keys can be opened"
)

Password = str | bytes
Say = Callable[[str], None]


def password_bytes(password: Password, where: str = "the password") -> bytes:
    """A password as it is stretched: the same for the same characters, however keyboard or
    editor composed them.
    """
    raw = password.encode("utf-8", "surrogateescape") if isinstance(password, str) else password
    with suppress(UnicodeDecodeError):
        raw = unicodedata.normalize("NFC", raw.decode()).encode()
    if not raw:
        raise PasswordError(f"{where} is empty, and an empty password protects nothing")
    if len(raw) > LONGEST_PASSWORD:
        raise PasswordError(f"{where} has more than {LONGEST_PASSWORD} bytes")
    return raw


def read_password(path: Path) -> bytes:
    """The password in a file or credential, without its last line break; ConfigError if others
    may read it.
    """
    raw = secret(path)
    return password_bytes(raw.removesuffix(b"\n").removesuffix(b"\r"), str(path))


def configured_password(config: ClientConfig) -> Path | None:
    """Where the password of this home is found without asking anybody; None if nowhere."""
    return config.password_file or credential(PASSWORD_CREDENTIAL)


def is_sealed(home: Path) -> bool:
    """Whether a password is needed to open the keys in ``home``."""
    return len(_read(home)) != SIZE


def open_local_key(home: Path, password: Password | None, say: Say | None = None) -> bytes:
    """The 32 bytes.  PasswordNeeded, WrongPassword, or ConfigError when the file is damaged.

    A file whose password costs less to guess than today's do is written again, which ``say`` is
    told.
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
        _write_dearer(home, data, local_key, raw, say)
    return local_key


def local_key_file(local_key: bytes, password: Password | None) -> bytes:
    """The file's bytes: sealed under ``password``, or for None the bare key."""
    return (
        local_key
        if password is None
        else keyfile.encrypt(local_key, password=password_bytes(password))
    )


def put_local_key(home: Path, local_key: bytes, password: Password | None) -> None:
    """Replaces the file, whole or not at all; see `local_key_file`.  StoreLocked while another
    process does.
    """
    data = local_key_file(local_key, password)
    with _locked(home):
        write_private(home / LOCAL_KEY, data)


def _read(home: Path) -> bytes:
    data = read_private(home / LOCAL_KEY)
    if len(data) != SIZE and not keyfile.is_key_file(data):
        raise ConfigError(
            f"{home / LOCAL_KEY}: a local key has {SIZE} bytes, or is sealed under a "
            f"password; this file has {len(data)} bytes and is neither",
            remedy=_RESTORE,
        )
    return data


def _write_dearer(
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
    except (OSError, CipherBoxError) as error:  # it opened: what was asked for goes on
        text = (
            "could not be written again, and its password stays cheaper to guess than need be: "
            f"{error}"
        )
    else:
        text = (
            "is written again with today's cost of guessing its password: "
            f"{keyfile.MEMORY_KIB // 1024} MiB and {keyfile.PASSES} passes of Argon2id"
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

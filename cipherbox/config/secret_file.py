"""Secrets that settings name: a file that only its user can read, or ``credential:NAME``, a
credential from systemd.
"""

from __future__ import annotations

from pathlib import Path

from cipherbox.errors import ConfigError

CREDENTIAL = "credential:"


def is_credential(path: Path) -> bool:
    """Return whether a setting names a credential from systemd rather than a file."""
    return str(path).startswith(CREDENTIAL)


def check_credential(where: str, path: Path | None) -> None:
    """Raise ConfigError if a setting names a credential by an invalid name."""
    if path is not None and is_credential(path):
        name = str(path).removeprefix(CREDENTIAL)
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise ConfigError(
                f"{where}: after {CREDENTIAL} comes the plain name of a credential, not {name!r}"
            )


def secret(path: Path) -> bytes:
    """Return the contents of the file or credential that a setting names; raise ConfigError if
    other users may read it.
    """
    from cipherbox.portable import credential, read_private

    if not is_credential(path):
        return read_private(path)
    name = str(path).removeprefix(CREDENTIAL)
    found = credential(name)
    if found is None:
        missing = (
            f"{path}: systemd handed over no credential of this name; its unit needs "
            f"LoadCredential={name}:FILE"
        )
        raise ConfigError(
            f"{missing}, or name a file instead of credential: (cipherbox manual operations)"
        )
    return read_private(found)


def secret_key(path: Path, size: int = 32) -> bytes:
    """Return the secret a setting names; raise ConfigError unless it has exactly ``size`` bytes and
    only its user can read it.
    """
    key = secret(path)
    if len(key) != size:
        raise ConfigError(
            f"{path}: a secret key has exactly {size} bytes, this file has {len(key)}"
        )
    return key

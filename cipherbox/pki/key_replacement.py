"""Replace the key of a certificate in three steps, each durable before the next begins.

    1. the next key is written beside the old one; an existing next key is reused, so that an answer
       to its request stays valid
    2. the caller writes the certificate of the next key
    3. the next key replaces the old one

A reader between steps 2 and 3, as after a crash, finds the key that belongs to the certificate and
performs step 3 itself.  Concurrent callers hold their own lock around the steps.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from cryptography import x509

from cipherbox.errors import ConfigError
from cipherbox.pki.certificates import PrivateKey, key_pem, load_key, new_key, spki, spki_of
from cipherbox.portable import read_private, sync_directory, write_private


class KeyReplacement:
    """The private key at ``path``, encrypted under ``secret`` (32 bytes), and its next one."""

    def __init__(self, path: Path, secret: bytes) -> None:
        self._path, self._secret = path, secret
        self._next = path.with_name(f"{path.name}.next")

    def next_key(self) -> PrivateKey:
        """Return the next key of a replacement in progress, or begin one (step 1)."""
        if self._next.exists():
            with suppress(ConfigError):  # an unreadable key can have no certificate
                return self._load(self._next)
        return self.begin()

    def begin(self) -> PrivateKey:
        """Create the next key, replacing an existing one (step 1)."""
        key = new_key()
        write_private(self._next, key_pem(key, self._secret))
        return key

    def newest(self) -> PrivateKey:
        """Return the next key, or the current one if no replacement is in progress."""
        return self._load(self._next if self._next.exists() else self._path)

    def key_of(self, certificate: x509.Certificate, *, settle: bool = True) -> PrivateKey | None:
        """Return the key that belongs to this certificate; None if neither key does.

        With ``settle`` complete the replacement if it is the next key.  Raise ConfigError for an
        unreadable key.
        """
        wanted = spki_of(certificate)
        if self._path.exists() or not self._next.exists():
            key = self._load(self._path)
            if spki(key.public_key()) == wanted:
                return key
        if self._next.exists():
            key = self._load(self._next)
            if spki(key.public_key()) == wanted:
                if settle:
                    self.finish()
                return key
        return None

    def finish(self) -> None:
        """Put the next key in place, unless another process has done so (step 3)."""
        with suppress(FileNotFoundError):
            os.replace(self._next, self._path)
        sync_directory(self._path.parent)

    def _load(self, path: Path) -> PrivateKey:
        return load_key(read_private(path), self._secret, str(path))

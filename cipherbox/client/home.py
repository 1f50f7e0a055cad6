"""The files of a client's home, created by `join` (or HQ's `init`, for the first admin).

    client.toml                         settings
    ca.crt issuing.crt client.crt       certificates; issuing.crl: the revocation list
    client.key local.key keys.cbk       secrets; local.key decrypts the rest
    certs/ allow.json                   the keys it trusts, the clients it permits
    inbox.sqlite3 data/                 what it received, with its receiving chains
    outbox.sqlite3 outbox/ routes.json  what it sent, with its sending chains
    lock keys.lock                      locks of its programs
    replaced.txt                        only if another home has this id now

Sessions are stored with the messages: sending chains in the outbox, the rest and the private
prekeys in the inbox, encrypted under local.key.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
from cryptography import x509

from cipherbox import pki
from cipherbox.classes import define
from cipherbox.client.keys.local_key import (
    Password,
    Say,
    configured_password,
    is_sealed,
    open_local_key,
    read_password,
)
from cipherbox.config.settings import ClientConfig, load_client_config
from cipherbox.errors import CipherBoxError, ConfigError, CredentialsError, Forbidden, Replaced
from cipherbox.pki.key_replacement import KeyReplacement
from cipherbox.portable import write_atomic
from cipherbox.sealing import key_file as keyfile
from cipherbox.sealing.identity import Identity
from cipherbox.sealing.local_secret_box import LocalSecretBox, SecretBox
from cipherbox.sealing.open import is_signed_by

if TYPE_CHECKING:
    import ssl

ROOT, ISSUING, CERTIFICATE, KEY = "ca.crt", "issuing.crt", "client.crt", "client.key"
IDENTITY, REVOCATIONS, LOCK = "keys.cbk", "issuing.crl", "lock"
FOLDER = "CipherBox"  # beside a hidden home: ~/CipherBox for ~/.cipherbox
NEXT_KEY = "client.key.next"  # of a certificate that is being renewed
REPLACED = "replaced.txt"  # HQ's message that another home has this id now


def keyless(
    text: str = "an admin's machine holds no keys that seal or open messages",
) -> Forbidden:
    """Return the error for an action that an admin's home cannot do."""
    return Forbidden(
        text,
        remedy="use a client's home (--home DIRECTORY), or enrol one: cipherbox enroll CLIENT_ID",
    )


def visible_folder(home: Path) -> Path:
    """Return the directory that a person works with: the home, or a visible one beside a hidden
    home.
    """
    if not home.name.startswith("."):
        return home
    name = home.name.lstrip(".")
    return home.with_name(FOLDER if name == FOLDER.lower() else name or FOLDER)


@define(eq=False)
class Home:
    """A loaded home. ``identity`` is None for an admin, whose machine opens no messages.

    A renewal changes ``chain`` and ``key`` while the client runs; the next connection uses them.
    """

    config: ClientConfig
    root: x509.Certificate
    issuing: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    key: pki.PrivateKey = attrs.field(repr=False)
    identity: Identity | None
    secret_box: LocalSecretBox
    # None: the home's files are not changed
    local_key: bytes | None = attrs.field(default=None, repr=False)
    sealed: bool = False  # its keys are encrypted under a password

    @property
    def path(self) -> Path:
        return self.config.home

    @property
    def hides(self) -> SecretBox | None:
        """The box that encrypts content before it is written here, or None if content is stored in
        clear.
        """
        return self.secret_box.content_box if self.sealed and not self.config.inbox.plain else None

    @property
    def folder(self) -> Path:
        """The directory that a person works with; see `visible_folder`."""
        return visible_folder(self.path)

    @property
    def incoming(self) -> Path:
        """The directory for received files, unless a command overrides it."""
        return self.config.inbox.incoming or self.folder / "incoming"

    def signed_now(self, raw: bytes) -> bool:
        """Return whether an envelope of this client is signed with its present keys. A client that
        rejoined has new ones, and recipients refuse what the old ones signed.
        """
        bundle = self.identity.bundle if self.identity is not None else None
        return bundle is None or is_signed_by(raw, bundle)

    def context(self) -> ssl.SSLContext:
        """Return a new TLS context with this client's certificate."""
        from cipherbox.net import tls  # and with it trio, which commands on local data do not need

        return tls.client_context(self.root, list(self.chain), self.key)


def load_home(
    path: Path | str | None = None, *, password: Password | None = None, say: Say | None = None
) -> Home:
    """Load a home. Raise ConfigError or CredentialsError naming the file at fault.

    ``password`` opens keys encrypted under one; None uses `[client] password_file` or a systemd
    credential. Raise PasswordNeeded or WrongPassword. ``say`` reports changes made while loading.
    """
    config = load_client_config(Path(path) if path is not None else None)
    return home_with(config, unlocked(config, password, say))


def unlocked(
    config: ClientConfig, password: Password | None = None, say: Say | None = None
) -> bytes:
    """Return the local key of a home; see `load_home`."""
    if password is None and is_sealed(config.home):
        file = configured_password(config)
        password = read_password(file) if file is not None else None
    return open_local_key(config.home, password, say)


def home_with(config: ClientConfig, local_key: bytes) -> Home:
    """Load a home as `load_home` does, with a given local key."""
    where = config.home
    chain, key = certificate_of(where, config.client_id, local_key)
    identity = None
    if config.role != "admin":
        identity = keyfile.load(where / IDENTITY, local_key=local_key)
        if identity.client_id != config.client_id:
            raise CredentialsError(f"{where / IDENTITY} holds the keys of {identity.client_id}")
    return Home(
        config,
        _certificates(where / ROOT)[0],
        _certificates(where / ISSUING)[0],
        chain,
        key,
        identity,
        LocalSecretBox(local_key),
        local_key,
        is_sealed(where),
    )


def note_replaced(home: Path, failure: CipherBoxError | None, connected: bool) -> None:
    """Record HQ's message when it replaced this home, for offline commands; delete it once HQ
    accepts this home. Disk errors are ignored.
    """
    with suppress(OSError):
        if isinstance(failure, Replaced):
            # terminals show it
            text = "".join(c if c.isprintable() else "?" for c in str(failure))
            write_atomic(home / REPLACED, f"{text}\n".encode())
        elif connected:
            (home / REPLACED).unlink(missing_ok=True)


def replaced(home: Path) -> str:
    """Return HQ's message when it replaced this home, or nothing."""
    try:
        return (home / REPLACED).read_text("utf-8").strip()
    except OSError:
        return ""


def key_replacement(where: Path, local_key: bytes) -> KeyReplacement:
    """Return the key replacement of this home's certificate."""
    return KeyReplacement(where / KEY, local_key)


def certificate_of(
    where: Path, client_id: str, local_key: bytes
) -> tuple[tuple[x509.Certificate, ...], pki.PrivateKey]:
    """Return the certificate chain and its key.

    A renewal that was interrupted before its last step is finished here; one in progress is read
    again.
    """
    for _ in range(2):
        chain = tuple(_certificates(where / CERTIFICATE))
        if pki.common_name(chain[0]) != client_id:
            raise CredentialsError(f"{where / CERTIFICATE} is not a certificate of {client_id}")
        _check_ecdsa(chain[0])
        key = key_replacement(where, local_key).key_of(chain[0])
        if key is not None:
            return chain, key
    raise CredentialsError(f"{where / KEY} does not belong to the certificate beside it")


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return pki.load_pem(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None


def _check_ecdsa(certificate: x509.Certificate) -> None:
    if not isinstance(certificate.public_key(), pki.PublicKey):
        raise CredentialsError("the certificate's key is not ECDSA")

"""`init`: create HQ's directory, its CA and its first admin.

The admin gets a certificate and no encryption keys: HQ's machine has nothing that opens a message.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from cryptography import x509

from cipherbox import clock, pki
from cipherbox.broker import model as m
from cipherbox.config.settings import (
    SERVER_FILE,
    CaSettings,
    ClientConfig,
    DatabaseSettings,
    ServerConfig,
    ServerSettings,
    parse_listen,
    write_client_config,
    write_server_config,
)
from cipherbox.errors import ConfigError, DiskFull, StoreError, StoreLocked, StoreUnavailable
from cipherbox.limits import check_client_id
from cipherbox.pki.revocation_lists import make_crl
from cipherbox.portable import (
    held,
    is_locked,
    private_dir,
    remove_parts,
    write_atomic,
    write_private,
)
from cipherbox.server.ca.credentials import next_key, put_server
from cipherbox.server.ca.offline import CA_KEY
from cipherbox.server.directory.trust import CRL_NUMBER_SETTING, CRL_SETTING
from cipherbox.server.operations.open_store import empty_for, open_store
from cipherbox.server.transparency_log import KEY_FILE, load_key
from cipherbox.store.port import CertificateRow

# Exists while `init` or a restore runs.  JSON: the names that were in HQ's directory before, and
# the incarnation that a restore gives to the database.
UNFINISHED = ".init-unfinished"


@attrs.frozen
class InitReport:
    """The result of `init`; the fingerprint is SHA-256 in hexadecimal."""

    directory: Path
    admin_home: Path
    root_fingerprint: str


def init_hq(
    directory: Path,
    *,
    address: str,
    name: str,
    listen: str,
    websocket_listen: str = "",
    offline_ca: Path | None = None,
    admin_id: str = "admin",
    admin_home: Path,
    database: DatabaseSettings | None = None,
) -> InitReport:
    """Create everything HQ needs in ``directory``; raise ConfigError if it already has an HQ, or
    the home a client.
    """
    check_free(directory, admin_id, admin_home)
    settings = ServerSettings(
        name=name, listen=listen, websocket_listen=websocket_listen, address=address
    )
    config = ServerConfig(
        directory=directory,
        server=settings,
        ca=CaSettings(offline=offline_ca is not None),
        database=database or DatabaseSettings(),
    )
    elsewhere = config.database.kind != "sqlite"
    with whole_or_nothing(
        directory, admin_home, *filter(None, [offline_ca]), others_database=elsewhere
    ):
        service_key = make_directory(config)
        root = pki.new_root(name)
        issuing = pki.new_issuing(name, root)
        _write_ca(directory / "ca", root, issuing, service_key, offline_ca)
        put_server(config, pki.issue_server(issuing, next_key(config).public_key(), name))
        admin_key = write_admin(admin_home, admin_id, near_address(settings))
        admin = pki.issue_client(issuing, admin_key.public_key(), admin_id)
        write_admin_certificates(admin_home, admin, [issuing.certificate], root.certificate)
        crl_days = pki.OFFLINE_CRL_DAYS if offline_ca else pki.CRL_DAYS
        fill_store(config, admin_id, admin, make_crl(issuing, [], 1, crl_days), 1)
        write_server_config(config)
    return InitReport(directory, admin_home, pki.fingerprint(root.certificate).hex())


def check_free(directory: Path, admin_id: str, admin_home: Path) -> None:
    """Raise ConfigError if the directory has an HQ or the home a client; remove the remains of a
    killed `init`.
    """
    check_client_id(admin_id)
    if (admin_home / "client.toml").exists() and is_unfinished(directory):
        _clear_admin(directory, admin_home)
    clear_unfinished(directory)
    if (directory / SERVER_FILE).exists() or (directory / "cipherbox.sqlite3").exists():
        raise ConfigError(
            f"{directory} already has an HQ", remedy=f"to run it: cipherbox serve {directory}"
        )
    if (admin_home / "client.toml").exists():
        raise ConfigError(
            f"{admin_home} already belongs to a client", remedy="choose another with --home"
        )


def make_directory(config: ServerConfig) -> bytes:
    """Create HQ's directory with its secrets, without certificates; return the service key."""
    directory = config.directory
    if config.database.kind != "sqlite":
        _try_store(config)  # before anything is made
    private_dir(directory)
    for part in ("ca", "tls", "secrets"):
        private_dir(directory / part)
    service_key = os.urandom(32)
    write_private(directory / "secrets" / "service.key", service_key)
    write_private(directory / "secrets" / "database.key", os.urandom(32))
    load_key(directory / "secrets" / KEY_FILE, service_key)
    return service_key


def is_unfinished(directory: Path) -> bool:
    """Return whether `init` or a restore into ``directory`` was killed, or is in progress."""
    return (directory / UNFINISHED).exists() and not (directory / SERVER_FILE).exists()


def clear_unfinished(directory: Path) -> None:
    """Remove what a killed `init` or restore left in HQ's directory; its mark stays until the next
    one has written its own.
    """
    remove_parts(directory, UNFINISHED)
    if is_locked(directory / UNFINISHED):
        raise StoreLocked(_busy(directory), remedy="wait for it, or end it")
    if is_unfinished(directory):
        kept = {UNFINISHED, *_marked(directory)["kept"]}
        _remove(path for path in directory.iterdir() if path.name not in kept)
    elif (directory / UNFINISHED).exists():
        (directory / UNFINISHED).unlink()


def unfinished_incarnation(directory: Path) -> bytes:
    """Return the incarnation that a killed restore into ``directory`` gave to its database; empty
    if there was none.
    """
    return bytes.fromhex(_marked(directory)["incarnation"]) if is_unfinished(directory) else b""


def _marked(directory: Path) -> dict[str, Any]:
    marked = json.loads((directory / UNFINISHED).read_text())
    if isinstance(marked, list):  # as 0.5.0 wrote it
        marked = {"kept": marked}
    return {"incarnation": "", **marked}


def _busy(directory: Path) -> str:
    return f"another command is creating an HQ in {directory}"


def _clear_admin(directory: Path, admin_home: Path) -> None:
    """Remove the settings of the admin that a killed `init` made, unless another HQ's client came
    into that home meanwhile.
    """
    known, root = admin_home / "ca.crt", directory / "ca" / "root.crt"
    if not (admin_home / "client.crt").exists() or (
        known.exists() and root.exists() and known.read_bytes() == root.read_bytes()
    ):
        (admin_home / "client.toml").unlink()


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def whole_or_nothing(
    directory: Path, *others: Path, others_database: bool = False, incarnation: bytes = b""
) -> Iterator[None]:
    """Remove everything new in the directories if the block fails: a partial HQ would look like
    one.

    A marker in HQ's directory, locked while this runs, lets the next one do the same after a kill;
    once the settings exist, it is an HQ.
    """
    mark = directory / UNFINISHED
    before = {
        path: set(path.iterdir()) - {mark} if path.exists() else None
        for path in (directory, *others)
    }
    try:
        names = sorted(path.name for path in before[directory] or ())
        marked = {"kept": names, "incarnation": incarnation.hex()}
        private_dir(directory)
        write_private(mark, json.dumps(marked).encode())
        with held(mark, _busy(directory)):
            yield
        mark.unlink(missing_ok=True)
    except BaseException as error:
        for path, kept in before.items():
            _remove(set(path.iterdir() if path.exists() else ()) - (kept or set()))
            if kept is None and path.exists():
                path.rmdir()
        full = isinstance(error, DiskFull) or (
            isinstance(error, OSError) and error.errno == errno.ENOSPC
        )
        if full:
            raise StoreError(
                f"the disk of {directory} is full", remedy="make room, then run it again"
            ) from error
        if isinstance(error, StoreUnavailable) and others_database:
            raise StoreError(
                f"{error.what}; the partial installation was removed",
                remedy="check that PostgreSQL runs and accepts this user, then run it again",
            ) from error
        if isinstance(error, StoreUnavailable):
            raise StoreError(
                f"{error.what}; the partial installation was removed",
                remedy="check the disk, then run it again",
            ) from error
        raise


def _write_ca(
    directory: Path,
    root: pki.Authority,
    issuing: pki.Authority,
    service_key: bytes,
    offline: Path | None,
) -> None:
    write_atomic(directory / "root.crt", pki.pem(root.certificate))
    write_atomic(directory / "issuing.crt", pki.pem(issuing.certificate))
    where, key = directory, service_key
    if offline is not None:
        where, key = private_dir(offline), os.urandom(32)
        write_private(where / CA_KEY, key)
        write_atomic(where / "root.crt", pki.pem(root.certificate))
        write_atomic(where / "issuing.crt", pki.pem(issuing.certificate))
    write_private(where / "root.key", pki.key_pem(root.key, key))
    write_private(where / "issuing.key", pki.key_pem(issuing.key, key))


def near_address(settings: ServerSettings) -> str:
    """Return HQ's addresses for an admin on its own machine: loopback first, if HQ listens there,
    then the public ones.
    """
    found: list[str] = []
    for listen, form in ((settings.listen, "{}:{}"), (settings.websocket_listen, "wss://{}:{}/")):
        for host, port in parse_listen(listen):
            near = {
                "0.0.0.0": "127.0.0.1",  # noqa: S104
                "::": "[::1]",
                "127.0.0.1": "127.0.0.1",
                "::1": "[::1]",
            }.get(host)
            if near is not None and port and not found:
                found.append(form.format(near, port))
    theirs = [part.strip() for part in settings.address.split(",")]
    return ",".join(dict.fromkeys([*found, *theirs]))


def write_admin(home: Path, admin_id: str, address: str) -> pki.PrivateKey:
    """Create the first admin's home without certificates; return the key for them."""
    private_dir(home)
    local_key, key = os.urandom(32), pki.new_key()
    write_private(home / "local.key", local_key)
    write_private(home / "client.key", pki.key_pem(key, local_key))
    write_client_config(ClientConfig(home=home, client_id=admin_id, address=address, role=m.ADMIN))
    return key


def write_admin_certificates(
    home: Path,
    certificate: x509.Certificate,
    chain: Sequence[x509.Certificate],
    root: x509.Certificate,
) -> None:
    """Add the certificates to the admin's home."""
    write_atomic(home / "ca.crt", pki.pem(root))
    write_atomic(home / "issuing.crt", pki.pem(*chain))
    write_atomic(home / "client.crt", pki.pem(certificate, *chain))


def _try_store(config: ServerConfig) -> None:
    """Raise ConfigError if the database already contains an HQ."""
    store = open_store(config, create=True)
    try:
        empty_for(store, b"", "choose another schema, or serve its own directory")
    finally:
        store.close()


def fill_store(
    config: ServerConfig, admin_id: str, certificate: x509.Certificate, crl: bytes, crl_number: int
) -> None:
    """Make the first commit: the admin, default_exchange, default_queue and default_key, open to
    all publishers.
    """
    store = open_store(config, create=True)
    try:
        changes = m.Changes(
            clients=[m.ClientRow(admin_id, m.ADMIN, clock.now_ms())],
            exchanges=[("default_exchange", int(m.ExchangeType.DIRECT))],
            queues=[m.QueueRow("default_queue", "", ())],
            bindings=[("default_exchange", "default_queue", "default_key")],
            grants=[(m.EVERYBODY, "publish", "default_exchange")],
        )
        if not store.load(1).clients:
            store.commit(changes, store.epoch)
        store.put_certificate(
            CertificateRow(
                pki.serial(certificate),
                admin_id,
                pki.ms(certificate.not_valid_before_utc),
                pki.ms(certificate.not_valid_after_utc),
                0,
                pki.der(certificate),
            )
        )
        store.put_setting(CRL_SETTING, crl)
        store.put_setting(CRL_NUMBER_SETTING, str(crl_number).encode())
    finally:
        store.close()

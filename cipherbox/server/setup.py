"""`init`: HQ's directory, its CA, its first admin.  And the offline CA's side of carried requests.

The admin gets a certificate and no encryption keys: HQ's machine holds nothing that opens a message.
"""

from __future__ import annotations

import base64
import os
from datetime import UTC, datetime
from pathlib import Path

import attrs
import orjson
from cryptography import x509

from cipherbox import pki
from cipherbox.broker import model as m
from cipherbox.config import (
    SERVER_FILE,
    CaSettings,
    ClientConfig,
    DatabaseSettings,
    ServerConfig,
    ServerSettings,
    secret_key,
    write_client_config,
    write_server_config,
)
from cipherbox.crl import make_crl
from cipherbox.errors import ConfigError, InvalidRequest
from cipherbox.limits import check_client_id
from cipherbox.portable import private_dir, read_private, write_atomic, write_private
from cipherbox.server.auditlog import KEY_FILE, load_key
from cipherbox.server.enrolment import CERTIFICATES_FORMAT, REQUESTS_FORMAT
from cipherbox.server.hq import now_ms
from cipherbox.server.storing import open_store
from cipherbox.server.trust import CRL_NUMBER_SETTING, CRL_SETTING
from cipherbox.store.port import CertificateRow

CA_KEY = "ca.key"  # encrypts the keys of an offline CA; carried away with them


@attrs.frozen
class InitReport:
    """What `init` made; the fingerprint is SHA-256 in hexadecimal."""

    directory: Path
    admin_home: Path
    root_fingerprint: str


@attrs.frozen
class Request:
    """A request that was carried to the offline CA."""

    client_id: str
    number: str
    csr: bytes


def init_hq(
    directory: Path, *, address: str, name: str, listen: str, websocket_listen: str = "",
    offline_ca: Path | None = None, admin_id: str = "admin", admin_home: Path, database: DatabaseSettings | None = None,
) -> InitReport:  # fmt: skip
    """Makes everything HQ needs in ``directory``; refuses a directory that has an HQ, or a home that has a client."""
    check_client_id(admin_id)
    if (directory / SERVER_FILE).exists() or (directory / "cipherbox.sqlite3").exists():
        raise ConfigError(f"{directory} holds an HQ already; to run it: cipherbox serve {directory}")
    if (admin_home / "client.toml").exists():
        raise ConfigError(f"{admin_home} belongs to a client already; choose another with --home")
    settings = ServerSettings(name=name, listen=listen, websocket_listen=websocket_listen, address=address)
    config = ServerConfig(
        directory=directory, server=settings, ca=CaSettings(offline=offline_ca is not None),
        database=database or DatabaseSettings(),
    )  # fmt: skip
    if config.database.kind != "sqlite":
        _try_store(config)  # before anything is made
    private_dir(directory)
    for part in ("ca", "tls", "secrets"):
        private_dir(directory / part)
    service_key = os.urandom(32)
    write_private(directory / "secrets" / "service.key", service_key)
    write_private(directory / "secrets" / "database.key", os.urandom(32))
    load_key(directory / "secrets" / KEY_FILE, service_key)
    root = pki.new_root(name)
    issuing = pki.new_issuing(name, root)
    _write_ca(directory / "ca", root, issuing, service_key, offline_ca)
    server_key = pki.new_key()
    server = pki.issue_server(issuing, server_key.public_key(), name)
    write_atomic(directory / "tls" / "server.crt", pki.pem(server))
    write_private(directory / "tls" / "server.key", pki.key_pem(server_key, service_key))
    admin = _write_admin(admin_home, admin_id, address, root, issuing)
    crl_days = pki.OFFLINE_CRL_DAYS if offline_ca else pki.CRL_DAYS
    _fill_store(config, admin_id, admin, make_crl(issuing, [], 1, crl_days))
    write_server_config(config)
    return InitReport(directory, admin_home, pki.fingerprint(root.certificate).hex())


def _write_ca(
    directory: Path, root: pki.Authority, issuing: pki.Authority, service_key: bytes, offline: Path | None
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


def _write_admin(
    home: Path, admin_id: str, address: str, root: pki.Authority, issuing: pki.Authority
) -> x509.Certificate:
    private_dir(home)
    local_key, key = os.urandom(32), pki.new_key()
    certificate = pki.issue_client(issuing, key.public_key(), admin_id)
    write_private(home / "local.key", local_key)
    write_private(home / "client.key", pki.key_pem(key, local_key))
    write_atomic(home / "client.crt", pki.pem(certificate, issuing.certificate))
    write_atomic(home / "ca.crt", pki.pem(root.certificate))
    write_atomic(home / "issuing.crt", pki.pem(issuing.certificate))
    write_client_config(ClientConfig(home=home, client_id=admin_id, address=address, role=m.ADMIN))
    return certificate


def _try_store(config: ServerConfig) -> None:
    """ConfigError when the database holds an HQ already."""
    store = open_store(config, create=True)
    try:
        if store.load(1).clients:
            raise ConfigError("this database holds an HQ already; choose another schema, or serve its own directory")
    finally:
        store.close()


def _fill_store(config: ServerConfig, admin_id: str, certificate: x509.Certificate, crl: bytes) -> None:
    """The first commit: the admin, default_exchange, default_queue and default_key, open to every publisher."""
    store = open_store(config, create=True)
    try:
        changes = m.Changes(
            clients=[m.ClientRow(admin_id, m.ADMIN, now_ms())],
            exchanges=[("default_exchange", int(m.ExchangeType.DIRECT))],
            queues=[m.QueueRow("default_queue", "", ())],
            bindings=[("default_exchange", "default_queue", "default_key")],
            grants=[(m.EVERYBODY, "publish", "default_exchange")],
        )
        store.commit(changes, store.epoch)
        store.put_certificate(
            CertificateRow(
                pki.serial(certificate), admin_id, pki.ms(certificate.not_valid_before_utc),
                pki.ms(certificate.not_valid_after_utc), 0, pki.der(certificate),
            )
        )
        store.put_setting(CRL_SETTING, crl)
        store.put_setting(CRL_NUMBER_SETTING, b"1")
    finally:
        store.close()


def read_requests(document: bytes) -> list[Request]:
    """The requests in a document HQ exported; InvalidRequest if it is none."""
    try:
        data = orjson.loads(document)
        if data["format"] != REQUESTS_FORMAT:
            raise InvalidRequest(f"this file is not of the format {REQUESTS_FORMAT}")
        return [
            Request(check_client_id(r["client_id"]), str(r["number"]), base64.b64decode(r["csr"], validate=True))
            for r in data["requests"]
        ]
    except (ValueError, KeyError, TypeError):
        raise InvalidRequest("this file holds no requests of an HQ") from None


def sign_offline(directory: Path, document: bytes) -> bytes:
    """Signs every request of the document with the CA in ``directory``, and a new revocation list."""
    requests = read_requests(document)
    password = secret_key(directory / CA_KEY)
    certificate = pki.load_pem((directory / "issuing.crt").read_bytes(), str(directory / "issuing.crt"))[0]
    root = pki.load_pem((directory / "root.crt").read_bytes(), str(directory / "root.crt"))[0]
    key = pki.load_key(read_private(directory / "issuing.key"), password, str(directory / "issuing.key"))
    issuing = pki.Authority(certificate, key)
    data = orjson.loads(document)
    if data["root"] != pki.fingerprint(root).hex():
        raise InvalidRequest("these requests are for another CA")
    signed = []
    for request in requests:
        leaf = pki.issue_client(issuing, pki.key_of_csr(request.csr), request.client_id)
        chain = [base64.b64encode(pki.der(c)).decode() for c in (leaf, certificate)]
        signed.append({"client_id": request.client_id, "chain": chain})
    revoked = [(str(serial), datetime.fromtimestamp(at / 1000, UTC)) for serial, at in data["revoked"]]
    crl = make_crl(issuing, revoked, int(data["crl_number"]), pki.OFFLINE_CRL_DAYS)
    answer = {"format": CERTIFICATES_FORMAT, "certificates": signed, "crl": base64.b64encode(crl).decode()}
    return orjson.dumps(answer, option=orjson.OPT_INDENT_2)

"""HQ under an organization's own CA: `init` writes requests, the organization signs them with its
own tools, `ca import --hq` completes the set-up.

Two variants, as the manual page `pki` describes:

    --org-ca ROOT.pem       the organization signs HQ's issuing CA; HQ then certifies clients
    --org-issues CHAIN.pem  the organization certifies HQ, the admin and all clients; HQ has no CA
                            key

Between the two steps everything exists except certificates: settings, keys, the admin's home, and
the requests in `ca/`.  HQ's certificate is written last, so after a crash the command can be
repeated.
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509

from cipherbox import clock, pki
from cipherbox.broker import model as m
from cipherbox.config.settings import (
    CaSettings,
    ClientConfig,
    DatabaseSettings,
    ServerConfig,
    ServerSettings,
    load_client_config,
    secret_key,
    write_server_config,
)
from cipherbox.errors import BundleNotCertified, ConfigError, StoreLocked
from cipherbox.pki.profile import check_root
from cipherbox.pki.revocation_lists import check_crl, make_crl
from cipherbox.portable import lock_file, write_atomic, write_private
from cipherbox.server.ca.credentials import (
    CA_REQUEST,
    Credentials,
    certificates_in,
    checked_issuing,
    key_at,
    next_key,
    put_server,
    server_key,
)
from cipherbox.server.ca.requests_document import HQ_NAME, HQ_ROLE, request_row, requests_document
from cipherbox.server.ca.signed_responses import Signed, for_hq, issuing_chain, read_signed
from cipherbox.server.operations.check import LOCK
from cipherbox.server.operations.setup import (
    check_free,
    fill_store,
    make_directory,
    near_address,
    whole_or_nothing,
    write_admin,
    write_admin_certificates,
)
from cipherbox.store.port import Enrolment

HQ_REQUEST, ADMIN_REQUEST = "ca/hq.csr", "ca/admin.csr"


def ask(
    directory: Path,
    *,
    address: str,
    name: str,
    listen: str,
    websocket_listen: str,
    org: Path,
    issues: bool,
    admin_id: str,
    admin_home: Path,
    database: DatabaseSettings | None,
) -> list[Path]:
    """Create HQ's directory with requests for the organization to sign; return their files.

    ``org`` has its root in PEM or, if it ``issues`` everything, the chain from the issuing CA to
    the root.
    """
    check_free(directory, admin_id, admin_home)
    root, chain = _given_cas(org, issues)
    settings = ServerSettings(
        name=name, listen=listen, websocket_listen=websocket_listen, address=address
    )
    config = ServerConfig(
        directory=directory,
        server=settings,
        ca=CaSettings(offline=issues, organization=True),
        database=database or DatabaseSettings(),
    )
    elsewhere = config.database.kind != "sqlite"
    with whole_or_nothing(directory, admin_home, others_database=elsewhere):
        service_key = make_directory(config)
        write_atomic(config.tls.root, pki.pem(root))
        key, admin_key = next_key(config), write_admin(admin_home, admin_id, near_address(settings))
        if issues:
            write_atomic(config.tls.issuing, pki.pem(*chain))
            found = {
                HQ_REQUEST: pki.make_csr(key, name),
                ADMIN_REQUEST: pki.make_csr(admin_key, admin_id),
            }
        else:
            issuing_key = pki.new_key()
            write_private(config.ca.issuing_key, pki.key_pem(issuing_key, service_key))
            found = {CA_REQUEST: pki.make_ca_csr(issuing_key, name)}
        for file, csr in found.items():
            write_atomic(directory / file, pki.csr_pem(csr))
        write_server_config(config)
    return [directory / file for file in found]


def _given_cas(org: Path, issues: bool) -> tuple[x509.Certificate, list[x509.Certificate]]:
    """Return the organization's root and, where it ``issues`` everything, the CAs below it."""
    given = certificates_in(org)
    root, chain = given[-1], given[:-1]
    if issues:
        if not chain:
            raise ConfigError(
                f"{org}: must contain the CA that certifies HQ and its clients, then those up to "
                "the root"
            )
        checked_issuing(chain, root, str(org), clock.now())
    elif chain:
        raise ConfigError(
            f"{org}: must contain only the root; intermediate CAs come with the answer"
        )
    _check_root(root, org)
    return root, chain


def _check_root(root: x509.Certificate, where: Path) -> None:
    try:
        check_root(root, clock.now())
    except BundleNotCertified as error:
        if root.subject == root.issuer:
            raise ConfigError(f"{where}: {error}") from None


def finish(config: ServerConfig, admin_home: Path, document: bytes) -> None:
    """Import the organization's answer, after which HQ can run; raise ConfigError or a BundleError,
    changing nothing, if it is invalid.
    """
    signed, root = read_signed(document), certificates_in(config.tls.root)[0]
    admin = load_client_config(admin_home)
    _check_admin(admin, root, config.server.address)
    admin_key = key_at(admin_home / "client.key", secret_key(admin_home / "local.key"))
    key = next_key(config)
    if config.ca.offline:
        chain = certificates_in(config.tls.issuing)
        server, person = _both(signed, chain, root, key, admin_key, admin.client_id)
        authority, crl = None, _list_of(signed, chain[0])
    else:
        authority, chain = _issuing(config, signed, root)
        server = pki.issue_server(authority, key.public_key(), config.server.name)
        person = pki.issue_client(authority, admin_key.public_key(), admin.client_id)
        crl = make_crl(authority, [], 1)
    Credentials(root, tuple(chain), server, key, authority).try_out()
    pki.verify_chain([person, *chain], root, clock.now())
    fill_store(config, admin.client_id, person, crl, check_crl(crl, chain[0], clock.now()).number)
    write_admin_certificates(admin_home, person, chain, root)
    write_atomic(config.tls.issuing, pki.pem(*chain))
    put_server(config, server)


def _check_admin(admin: ClientConfig, root: x509.Certificate, address: str) -> None:
    """Raise ConfigError unless the home is the one `init` made with this HQ: it will be
    overwritten.
    """
    known = admin.home / "ca.crt"
    if (
        admin.role != m.ADMIN
        or admin.address != address
        or (known.exists() and certificates_in(known) != [root])
    ):
        raise ConfigError(
            f"{admin.home} is the home of {admin.client_id} at {admin.address}, not of the admin "
            "that `cipherbox init` created with this HQ",
            remedy="name that home: cipherbox --home DIRECTORY ca import ...",
        )


def _issuing(
    config: ServerConfig, signed: Signed, root: x509.Certificate
) -> tuple[pki.Authority, list[x509.Certificate]]:
    key = key_at(config.ca.issuing_key, secret_key(config.encryption.service_key_file))
    chain = issuing_chain(signed, pki.spki(key.public_key()), root)
    if not chain:
        leaf = next(
            (c for c in signed.leaves if pki.spki_of(c) == pki.spki(key.public_key())), None
        )
        if leaf is not None:
            checked_issuing([leaf], root, "this file")
        raise ConfigError(
            f"this file has no certificate for the key in {config.directory / CA_REQUEST}"
        )
    return pki.Authority(chain[0], key), chain


def _both(
    signed: Signed,
    chain: list[x509.Certificate],
    root: x509.Certificate,
    key: pki.PrivateKey,
    admin_key: pki.PrivateKey,
    admin_id: str,
) -> tuple[x509.Certificate, x509.Certificate]:
    by_key = {pki.spki_of(leaf): leaf for leaf in signed.leaves}
    server = by_key.get(pki.spki(key.public_key()))
    person = by_key.get(pki.spki(admin_key.public_key()))
    for found, file in ((server, HQ_REQUEST), (person, ADMIN_REQUEST)):
        if found is None:
            raise ConfigError(
                f"no certificate for the key in {file}",
                remedy="import both certificates and the revocation list",
            )
    assert server is not None
    assert person is not None
    for found, file, purpose in (
        (server, HQ_REQUEST, pki.SERVER),
        (person, ADMIN_REQUEST, pki.CLIENT),
    ):
        try:
            pki.verify_chain([found, *chain], root, clock.now(), purpose)
        except BundleNotCertified as error:
            raise ConfigError(f"the answer to {file}: {error}") from None
    if not for_hq(server) or pki.common_name(person) != admin_id:
        raise ConfigError(f"the common name of the admin's certificate must be {admin_id}")
    return server, person


def _list_of(signed: Signed, issuing: x509.Certificate) -> bytes:
    if len(signed.lists) != 1:
        raise ConfigError("the issuing CA's revocation list (PEM) is missing: clients require one")
    check_crl(signed.lists[0], issuing, clock.now())
    return signed.lists[0]


def put_by_hand(config: ServerConfig, document: bytes) -> int:
    """Write HQ's own certificate, or the issuing CA's, into the files of an HQ that cannot be
    reached; return their number.
    """
    signed, root = read_signed(document), certificates_in(config.tls.root)[0]
    current, key = (
        certificates_in(config.tls.issuing),
        secret_key(config.encryption.service_key_file),
    )
    chain = issuing_chain(signed, pki.spki_of(current[0]), root) or current
    before = certificates_in(config.tls.certificate)[0]
    own = [leaf for leaf in signed.leaves if for_hq(leaf) and leaf != before]
    if not own and chain == current:
        return 0
    server = own[-1] if own else before
    pki.verify_chain([server, *chain], root, clock.now(), pki.SERVER)
    its_key = server_key(config, key, server, settle=False)
    Credentials(root, tuple(chain), server, its_key, None).try_out()
    if chain != current:
        write_atomic(config.tls.issuing, pki.pem(*chain))
    if own:
        put_server(config, server)
    return len(own) + (chain != current)


def own_row(config: ServerConfig) -> Enrolment:
    """Return HQ's own request, for its next key."""
    root = certificates_in(config.tls.root)[0]
    csr = pki.make_csr(next_key(config), config.server.name)
    return request_row(HQ_NAME, HQ_ROLE, csr, pki.fingerprint(root), clock.now_ms())


def own_request(config: ServerConfig) -> bytes:
    """Return a document with HQ's own request only, without asking for a list: for an HQ that
    cannot be reached.
    """
    fingerprint = pki.fingerprint(certificates_in(config.tls.root)[0])
    return requests_document([own_row(config)], config.server.name, fingerprint, [], 0)


def runs(config: ServerConfig) -> bool:
    """Return whether an HQ is running in this directory."""
    try:
        with lock_file(config.directory / LOCK, "HQ's directory"):
            return False
    except StoreLocked:
        return True

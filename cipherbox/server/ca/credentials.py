"""HQ's certificates and private keys, in files.

`ca/issuing.crt` has the issuing CA and any intermediate CAs up to an organization's root, each
followed by its issuer.  HQ's own certificate is replaced in the three steps of
`pki.key_replacement`, so that a crash leaves an HQ that starts.
"""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Sequence
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from cipherbox import pki
from cipherbox.config.settings import ServerConfig, secret_key
from cipherbox.errors import BundleNotCertified, CipherBoxError, ConfigError
from cipherbox.net.tls import client_context, server_context, shake_hands
from cipherbox.pki.key_replacement import KeyReplacement
from cipherbox.pki.profile import (
    CLOCK_LAG,
    check_ca,
    check_dates,
    extensions_of,
    signs_lists,
    verify_issuing,
)
from cipherbox.portable import read_private, unreadable, write_atomic

CA_REQUEST = "ca/issuing.csr"  # in HQ's directory: for an organization to sign
_CAS = 3  # of a chain of four
_CHAIN_BYTES = 7 * 1024  # key bundles, which are bounded, contain the chain
CLOCK = "if it is wrong, set it (timedatectl set-ntp true)"


def certificates_in(path: Path) -> list[x509.Certificate]:
    """Return all certificates of a PEM file; raise ConfigError, naming it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(unreadable(path, error)) from None
    try:
        found = pki.load_pem(data, str(path))
    except CipherBoxError as error:
        raise ConfigError(error.what) from None
    if not found or data.count(b"-----BEGIN") != len(found):
        raise ConfigError(f"{path} holds no certificate, or a damaged one")
    return found


def load_certificate(path: Path) -> x509.Certificate:
    """Return the first certificate of a PEM file; raise ConfigError, naming it."""
    return certificates_in(path)[0]


@attrs.frozen
class Credentials:
    """HQ's certificates and keys.  ``chain`` is the issuing CA and the CAs between it and the root;
    ``authority`` is None if the issuing CA's key is elsewhere.
    """

    root: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    server: x509.Certificate
    server_key: pki.PrivateKey = attrs.field(repr=False)
    authority: pki.Authority | None = attrs.field(repr=False)

    @property
    def issuing(self) -> x509.Certificate:
        return self.chain[0]

    def context(self) -> ssl.SSLContext:
        """Return the TLS context of the listeners."""
        return server_context([self.server, *self.chain], self.server_key, [self.root, *self.chain])

    def try_out(self) -> None:
        """Perform a handshake as a client would; raise the error a client would get."""
        shake_hands(self.context(), client_context(self.root))


def read_material(config: ServerConfig, *, settle: bool = True) -> Credentials:
    """Read the files that the settings name; raise ConfigError, naming an invalid one."""
    check_answered(config)
    service_key = secret_key(config.encryption.service_key_file)
    chain = certificates_in(config.tls.issuing)
    authority = None
    if not config.ca.offline:
        authority = pki.Authority(chain[0], key_at(config.ca.issuing_key, service_key))
        if not belongs(authority.key, chain[0]):
            raise ConfigError(f"{config.ca.issuing_key} is not the key of {config.tls.issuing}")
    server = load_certificate(config.tls.certificate)
    key = server_key(config, service_key, server, settle=settle)
    return Credentials(load_certificate(config.tls.root), tuple(chain), server, key, authority)


def is_waiting(config: ServerConfig) -> bool:
    """Whether the organization's answer to `init` is still missing."""
    return config.ca.organization and not config.tls.certificate.exists()


def check_answered(config: ServerConfig) -> None:
    """Raise ConfigError while it is."""
    if is_waiting(config):
        raise ConfigError(
            "the organization has not signed HQ's requests yet",
            remedy=(
                f"let it sign what `cipherbox init` wrote to {config.directory / 'ca'}, "
                f"then: cipherbox ca import FILE --hq {config.directory}"
            ),
        )


def key_at(path: Path, key: bytes) -> pki.PrivateKey:
    """Return the private key in a private file, encrypted under ``key``."""
    return pki.load_key(read_private(path), key, str(path))


def belongs(key: pki.PrivateKey, certificate: x509.Certificate) -> bool:
    """Return whether a certificate is for this key."""
    return pki.spki(key.public_key()) == pki.spki_of(certificate)


# -- HQ's own certificate --------------------------------------------------------------------------


def server_key(
    config: ServerConfig, service_key: bytes, certificate: x509.Certificate, *, settle: bool
) -> pki.PrivateKey:
    """Return the key of HQ's certificate; ``settle`` completes a replacement that a crash
    interrupted.
    """
    key = KeyReplacement(config.tls.key, service_key).key_of(certificate, settle=settle)
    if key is None:
        raise ConfigError(f"{config.tls.key} is not the key of {config.tls.certificate}")
    return key


def next_key(config: ServerConfig) -> pki.PrivateKey:
    """Return the key for HQ's next certificate, creating it if there is none."""
    service_key = secret_key(config.encryption.service_key_file)
    return KeyReplacement(config.tls.key, service_key).next_key()


def put_server(config: ServerConfig, certificate: x509.Certificate) -> None:
    """Replace HQ's certificate by the one for `next_key`; raise ConfigError for another key."""
    service_key = secret_key(config.encryption.service_key_file)
    server_key(config, service_key, certificate, settle=False)
    write_atomic(config.tls.certificate, pki.pem(certificate))
    server_key(config, service_key, certificate, settle=True)


# -- the issuing CA's chain ------------------------------------------------------------------------


def checked_issuing(
    found: Sequence[x509.Certificate],
    root: x509.Certificate,
    where: str,
    at: datetime.datetime | None = None,
) -> list[x509.Certificate]:
    """Return the chain from an issuing CA up to, without, the root; raise ConfigError if it is
    invalid.
    """
    chain = [c for c in found if c != root]
    if not chain:
        raise ConfigError(f"{where}: the issuing CA's certificate is missing")
    first = _text(chain[0])
    if not is_ca(chain[0]):
        raise ConfigError(
            f"{where}: {first} is not a CA certificate (CA:TRUE and keyCertSign are missing)"
        )
    if len(chain) > _CAS or sum(len(pki.der(c)) for c in chain) > _CHAIN_BYTES:
        raise ConfigError(
            f"{where}: more than {_CAS} CAs below the root, or more than {_CHAIN_BYTES} "
            "bytes of them",
            remedy="use a CA closer to the issuing CA as root",
        )
    try:
        verify_issuing(chain, root, at)
    except BundleNotCertified as error:
        raise ConfigError(f"{where}: {_why(chain, root, at) or error}") from None
    if not signs_lists(chain[0]):
        raise ConfigError(f"{where}: {first} may not sign revocation lists (cRLSign is missing)")
    return chain


def _why(
    chain: list[x509.Certificate], root: x509.Certificate, at: datetime.datetime | None
) -> str:
    """Return which certificates of a chain do not belong together, and why."""
    for depth, (child, parent) in enumerate(zip(chain, [*chain[1:], root], strict=True)):
        if not issued(child, parent):
            if any(issued(child, other) for other in (*chain, root)):
                return (
                    "the certificates are in the wrong order: the issuing CA first, each "
                    "followed by the one that issued it"
                )
            return f"{_text(child)} was not issued by {_text(parent)}"
        try:
            check_ca(child, depth)
            check_ca(parent, depth + 1, anchor=parent is root)
            if at is not None:
                check_dates([child, parent], at)
        except BundleNotCertified as error:
            return f"{_text(child)} below {_text(parent)}: {error}"
    return ""


def is_ca(certificate: x509.Certificate) -> bool:
    """Return whether a certificate may sign others."""
    try:
        found = extensions_of(certificate)
    except BundleNotCertified:
        return False
    basic, usage = found.get(ExtensionOID.BASIC_CONSTRAINTS), found.get(ExtensionOID.KEY_USAGE)
    return (
        basic is not None
        and usage is not None
        and bool(basic.value.ca and usage.value.key_cert_sign)
    )


def issued(child: x509.Certificate, parent: x509.Certificate) -> bool:
    """Return whether ``parent`` issued ``child``, by names and signature."""
    try:
        child.verify_directly_issued_by(parent)
    except Exception:  # names, keys and signatures fail in many ways, all of which mean no
        return False
    return True


def _text(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or f"serial {pki.serial(certificate)}"


def dates(material: Credentials, at: datetime.datetime) -> list[str]:
    """Return which certificates that HQ cannot renew itself are not valid yet or have expired, by
    this machine's clock.
    """
    named = [("the root", material.root)]
    named += [
        ("the issuing CA" if i == 0 else "a CA above it", c) for i, c in enumerate(material.chain)
    ]
    if material.authority is None:
        named.append(("HQ's certificate", material.server))
    found = []
    for what, one in named:
        first, last = one.not_valid_before_utc, one.not_valid_after_utc
        here = f"this machine's clock says {at:%Y-%m-%d %H:%M} UTC: {CLOCK}"
        if at + CLOCK_LAG < first:
            found.append(f"{what} begins only on {first:%Y-%m-%d %H:%M} UTC, and {here}")
        elif at > last:
            found.append(
                f"{what} ended on {last:%Y-%m-%d %H:%M} UTC, and {here}; else renew it "
                "(cipherbox manual pki)"
            )
    return found

"""The directory of an offline CA: on a USB stick, or on a machine of its own.

    root.crt issuing.crt     as at HQ
    root.key issuing.key     encrypted under ca.key; one of them if the other stayed at HQ
    ca.key                   32 random bytes, plain or under a password, as a client's `local.key`

The caller opens `ca.key`; nothing here asks for a password.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from pathlib import Path

import attrs
import orjson
from cryptography import x509

from cipherbox import pki
from cipherbox.errors import ConfigError, InvalidRequest
from cipherbox.limits import check_client_id
from cipherbox.pki.revocation_lists import make_crl
from cipherbox.portable import write_atomic
from cipherbox.server.ca.credentials import belongs, certificates_in, key_at, load_certificate
from cipherbox.server.ca.signed_responses import CERTIFICATES_FORMAT, REQUESTS_FORMAT

CA_KEY, ROOT, ISSUING = "ca.key", "root.crt", "issuing.crt"
ROOT_KEY, ISSUING_KEY = "root.key", "issuing.key"


@attrs.frozen
class Request:
    """A request for the offline CA; ``hq`` is HQ's name in its own request, else empty."""

    client_id: str
    number: str
    csr: bytes
    hq: str = ""


@attrs.frozen
class OfflineCa:
    """The directory of an offline CA, and the key in its `ca.key`."""

    directory: Path
    key: bytes = attrs.field(repr=False)

    def root(self) -> x509.Certificate:
        return load_certificate(self.directory / ROOT)

    def chain(self) -> list[x509.Certificate]:
        """Return the issuing CA and those between it and the root."""
        return certificates_in(self.directory / ISSUING)

    def authority(self, key: str, certificate: x509.Certificate) -> pki.Authority:
        """Return `ROOT_KEY` or `ISSUING_KEY` with its certificate; raise ConfigError if the key is
        missing or of another CA.
        """
        path = self.directory / key
        if not path.exists():
            raise ConfigError(
                f"{path} does not exist: is this the right directory, and is it mounted?"
            )
        found = key_at(path, self.key)
        if not belongs(found, certificate):
            raise ConfigError(
                f"{path} is the key of another CA, not of "
                f"{certificate.subject.rfc4514_string()} with SHA-256 "
                f"{pki.fingerprint(certificate).hex()}",
                remedy="name the directory with the right key",
            )
        return pki.Authority(certificate, found)

    def renew_issuing(self) -> x509.Certificate:
        """Renew the issuing CA for ten years, with both keys here; the next `sign_offline` includes
        it.
        """
        issuing = self.authority(ISSUING_KEY, self.chain()[0])
        renewed = pki.renew_issuing(issuing, self.authority(ROOT_KEY, self.root())).certificate
        write_atomic(self.directory / ISSUING, pki.pem(renewed))
        return renewed


def read_requests(document: bytes) -> list[Request]:
    """Return the requests in HQ's document; raise InvalidRequest if it is not one."""
    try:
        data = orjson.loads(document)
        if data["format"] != REQUESTS_FORMAT:
            raise InvalidRequest(f"this file does not have the format {REQUESTS_FORMAT}")
        return [
            Request(
                check_client_id(r["client_id"]),
                str(r["number"]),
                base64.b64decode(r["csr"], validate=True),
                str(r.get("hq", "")),
            )
            for r in data["requests"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InvalidRequest("this file contains no requests of an HQ") from None


def sign_offline(vault: OfflineCa, document: bytes) -> bytes:
    """Sign all requests of the document and, if it asks for one, a new revocation list."""
    requests, data = read_requests(document), orjson.loads(document)
    chain = vault.chain()
    if data["root"] != pki.fingerprint(vault.root()).hex():
        raise InvalidRequest("these requests are for another CA")
    issuing = vault.authority(ISSUING_KEY, chain[0])
    signed = []
    for request in requests:
        key = pki.key_of_csr(request.csr)
        if request.hq:
            leaf = pki.issue_server(issuing, key, request.hq)
        else:
            leaf = pki.issue_client(issuing, key, request.client_id)
        signed.append(
            {"client_id": request.client_id, "chain": [_text(pki.der(c)) for c in (leaf, *chain)]}
        )
    answer = {
        "format": CERTIFICATES_FORMAT,
        "certificates": signed,
        "issuing": [_text(pki.der(c)) for c in chain],
    }
    if number := int(data["crl_number"]):
        revoked = [
            (str(serial), datetime.fromtimestamp(at / 1000, UTC)) for serial, at in data["revoked"]
        ]
        answer["crl"] = _text(make_crl(issuing, revoked, number, pki.OFFLINE_CRL_DAYS))
    return orjson.dumps(answer, option=orjson.OPT_INDENT_2)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()

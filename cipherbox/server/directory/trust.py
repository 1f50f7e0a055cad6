"""Certificates at HQ: who a connection is, what is revoked, and the issuing CA while its key is
here.

What HQ knows of certificates lies in the store; this keeps it in memory by serial number.  A
certificate that TLS accepted still needs to be one that HQ issued to a client it knows, not
revoked, and to fit the profile of certificates.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from cryptography import x509

from cipherbox import clock, pki
from cipherbox.config.settings import ServerConfig
from cipherbox.errors import BundleNotCertified, CredentialsError, Forbidden, Replaced, Revoked
from cipherbox.pki.revocation_lists import make_crl
from cipherbox.server.ca.credentials import Credentials, read_material
from cipherbox.store.port import CertificateRow, Store

CRL_SETTING, CRL_NUMBER_SETTING = "crl", "crl_number"
_CRL_RENEW = timedelta(days=pki.CRL_DAYS / 2)
_SOON_MS = 30 * 24 * 3600 * 1000


class Trust:
    """See the module.  ``crl_ends``: when the revocation list does, once it was read."""

    def __init__(self, config: ServerConfig, store: Store) -> None:
        self.adopt(read_material(config))
        self.crl_ends: datetime | None = None
        self._store = store
        self._rows: dict[str, CertificateRow] = {}
        self._of: dict[str, dict[str, CertificateRow]] = {}  # client -> its certificates
        # client -> the one that says whether it is revoked
        self._newest: dict[str, CertificateRow] = {}
        for row in store.certificates():
            self.put(row)
        self.root_fingerprint = pki.fingerprint(self.root)

    def adopt(self, material: Credentials) -> None:
        """These are HQ's certificates and keys from now on."""
        self.material = material
        self.root, self.issuing, self.server = material.root, material.issuing, material.server
        # what follows a certificate that was issued here
        self.chain = tuple(pki.der(c) for c in material.chain)
        self.server_key, self.authority = material.server_key, material.authority
        # serial numbers of certificates that fit the profile under these CAs
        self._fitting: set[str] = set()

    def identify(self, certificate: x509.Certificate) -> str:
        """The client id of a certificate that TLS accepted; CredentialsError or Revoked."""
        row = self._rows.get(pki.serial(certificate))
        if row is None or row.der != pki.der(certificate):
            raise CredentialsError(
                "HQ has no record of this certificate", remedy="ask for a token and join again"
            )
        self._refuse_revoked(row)
        if row.expires_at <= pki.ms(clock.now()):
            raise CredentialsError(
                f"the certificate of {row.client} ended on {_day(row.expires_at)}"
            )
        if row.serial not in self._fitting:
            try:
                # TLS looks at less
                pki.verify_chain([certificate, *self.material.chain], self.root, clock.now())
            except BundleNotCertified as error:
                raise CredentialsError(
                    f"the certificate of {row.client} was not accepted: {error}"
                ) from None
            self._fitting.add(row.serial)
        return row.client

    def require(self, serial: str) -> None:
        """Revoked or Replaced when a certificate that was good once no longer is: of a request
        that was under way.
        """
        row = self._rows.get(serial)
        if row is not None:
            self._refuse_revoked(row)

    def _refuse_revoked(self, row: CertificateRow) -> None:
        if row.revoked_at and self.good(row.client):
            raise Replaced(
                f"another home was enrolled as {row.client}; this one ended on "
                f"{_day(row.revoked_at)}"
            )
        if row.revoked_at:
            raise Revoked(f"the certificate of {row.client} was revoked on {_day(row.revoked_at)}")

    def issue(self, key: pki.PublicKey, client_id: str) -> x509.Certificate:
        """A new certificate; the caller records it."""
        if self.authority is None:
            raise Forbidden("the CA of this HQ is offline; requests are carried to it")
        return pki.issue_client(self.authority, key, client_id)

    def record(self, certificate: x509.Certificate) -> CertificateRow:
        """The row of a certificate issued now; takes effect when `put` is told that it is
        stored.
        """
        return CertificateRow(
            pki.serial(certificate),
            pki.common_name(certificate),
            pki.ms(certificate.not_valid_before_utc),
            pki.ms(certificate.not_valid_after_utc),
            0,
            pki.der(certificate),
        )

    def put(self, row: CertificateRow) -> None:
        """Asked for very often, and the answers must not depend on how many certificates there
        ever were.
        """
        self._rows[row.serial] = row
        self._of.setdefault(row.client, {})[row.serial] = row
        newest = self._newest.get(row.client)
        if newest is None or newest.serial != row.serial:
            if newest is None or _age(row) > _age(newest):
                self._newest[row.client] = row
        else:  # the newest was revoked: another of the same moment may be good
            self._newest[row.client] = max(self._of[row.client].values(), key=_age)

    def knows(self, serial: str) -> bool:
        """Whether there is a record of a certificate."""
        return serial in self._rows

    def good(self, client: str) -> bool:
        """Whether the client has a certificate that is neither revoked nor over."""
        return self.good_count(client) > 0

    def good_count(self, client: str) -> int:
        """How many certificates of the client are neither revoked nor over."""
        return sum(not row.revoked_at for row in self._alive(client))

    def _alive(self, client: str) -> list[CertificateRow]:
        """The client's certificates that have not ended; those that have are looked at once and
        no more.
        """
        found, now = self._of.get(client, {}), pki.ms(clock.now())
        for serial in [serial for serial, row in found.items() if row.expires_at <= now]:
            del found[serial]
        return list(found.values())

    def named_by(self, serials: Mapping[str, int]) -> list[CertificateRow]:
        """Certificates that a revocation list names and that were good here, with their time of
        revocation.
        """
        rows = (self._rows.get(serial) for serial in serials)
        return [
            r._replace(revoked_at=serials[r.serial])
            for r in rows
            if r is not None and not r.revoked_at
        ]

    def count(self) -> tuple[int, list[CertificateRow]]:
        """How many certificates of clients are good, and those that end within 30 days and have
        no successor.
        """
        now = pki.ms(clock.now())
        good = [r for r in self._rows.values() if not r.revoked_at and r.expires_at > now]
        last: dict[str, CertificateRow] = {}
        for row in sorted(good, key=lambda r: r.expires_at):
            last[row.client] = row
        return len(good), [r for r in last.values() if r.expires_at < now + _SOON_MS]

    def put_revoked(self, rows: list[CertificateRow]) -> None:
        for row in rows:
            self.put(row)

    def revoked(self) -> list[tuple[str, datetime]]:
        """(serial, when) of what is revoked and has not ended."""
        now = pki.ms(clock.now())
        rows = [r for r in self._rows.values() if r.revoked_at and r.expires_at > now]
        return [(r.serial, datetime.fromtimestamp(r.revoked_at / 1000, UTC)) for r in sorted(rows)]

    def revoked_at(self, client: str) -> int:
        """When the client's newest certificate was revoked; 0 if it is good or there is none."""
        if any(not row.revoked_at for row in self._alive(client)):
            return 0
        newest = self._newest.get(client)
        return newest.revoked_at if newest is not None else 0

    def crl(self) -> bytes:
        """The current revocation list, DER; made anew well before the old one ends when the CA
        is here.
        """
        stored = self._store.get_setting(CRL_SETTING)
        if stored and self.crl_ends is None:
            self.crl_ends = x509.load_der_x509_crl(stored).next_update_utc
        if stored is not None and (self.authority is None or not self._old(stored)):
            return stored
        return self.new_crl()

    def new_crl(self) -> bytes:
        """Signs a new list with the next number and stores it.  With an offline CA the stored
        one is all there is.
        """
        if self.authority is None:
            return self._store.get_setting(CRL_SETTING) or b""
        number = self.crl_number() + 1
        crl = make_crl(self.authority, self.revoked(), number)
        self.put_crl(crl, number)
        return crl

    def crl_number(self) -> int:
        return int(self._store.get_setting(CRL_NUMBER_SETTING) or b"0")

    def put_crl(self, crl: bytes, number: int) -> None:
        self._store.put_setting(CRL_NUMBER_SETTING, str(number).encode())
        self._store.put_setting(CRL_SETTING, crl)
        self.crl_ends = x509.load_der_x509_crl(crl).next_update_utc

    def _old(self, crl: bytes) -> bool:
        """Also one that begins later: it was made while the clock was ahead."""
        made = x509.load_der_x509_crl(crl)
        end = made.next_update_utc
        return end is None or not made.last_update_utc <= clock.now() <= end - _CRL_RENEW


def _age(row: CertificateRow) -> tuple[int, bool, int]:
    return row.issued_at, not row.revoked_at, row.revoked_at


def _day(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"

"""Certificates at HQ: identify connections, know what is revoked, and issue while the CA is here.

The store has the record of certificates; this keeps it in memory by serial number.  A certificate
that TLS accepted must also be one that HQ issued to a client it knows, not revoked, and match the
certificate profile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

from cryptography import x509

from cipherbox import pki
from cipherbox.config.settings import ServerConfig
from cipherbox.errors import (
    BundleNotCertified,
    CredentialsError,
    Damaged,
    Forbidden,
    Replaced,
    Revoked,
)
from cipherbox.ops.logs import get_logger
from cipherbox.pki.revocation_lists import is_signed, make_crl
from cipherbox.server.ca.credentials import Credentials, read_material
from cipherbox.server.clock_guard import ClockGuard
from cipherbox.store.port import CertificateRow, Store

log = get_logger(__name__)
CRL_SETTING, CRL_NUMBER_SETTING = "crl", "crl_number"
_CRL_RENEW = timedelta(days=pki.CRL_DAYS / 2)
_SOON_MS = 30 * 24 * 3600 * 1000


class Trust:
    """HQ's certificates and those it issued; ``crl_ends`` is when the revocation list expires."""

    def __init__(self, config: ServerConfig, store: Store, clock: ClockGuard) -> None:
        self.clock = clock
        self.adopt(read_material(config))
        self.crl_ends: datetime | None = None
        self._undamaged = b""  # the list whose signature was verified last
        self._store = store
        self._rows: dict[str, CertificateRow] = {}
        self._of: dict[str, dict[str, CertificateRow]] = {}  # client -> its certificates
        # client -> the certificate that decides whether it is revoked
        self._newest: dict[str, CertificateRow] = {}
        for row in store.certificates():
            self.put(row)
        self.root_fingerprint = pki.fingerprint(self.root)

    def adopt(self, material: Credentials) -> None:
        """Use these certificates and keys from now on."""
        self.material = material
        self.root, self.issuing, self.server = material.root, material.issuing, material.server
        # sent after a certificate that was issued here
        self.chain = tuple(pki.der(c) for c in material.chain)
        self.server_key, self.authority = material.server_key, material.authority
        # serial numbers of certificates that match the profile under these CAs
        self._fitting: set[str] = set()
        end = pki.end_of([*material.chain, material.root])
        self.ca_ends = "a CA of HQ", pki.ms(end)

    def identify(self, certificate: x509.Certificate) -> str:
        """Return the client id of a certificate that TLS accepted; raise CredentialsError or
        Revoked.
        """
        row = self._rows.get(pki.serial(certificate))
        if row is None or row.der != pki.der(certificate):
            raise CredentialsError(
                "HQ has no record of this certificate", remedy="ask for a token and join again"
            )
        self.require(row.serial)
        if row.serial not in self._fitting:
            try:
                # TLS checks less.  The record proves that it has begun, whatever the clock shows.
                pki.verify_chain([certificate, *self.material.chain], self.root)
            except BundleNotCertified as error:
                raise CredentialsError(
                    f"the certificate of {row.client} was not accepted: {error}"
                ) from None
            self._fitting.add(row.serial)
        return row.client

    def require(self, serial: str) -> None:
        """Raise Revoked, Replaced or CredentialsError if a certificate is no longer valid, also
        while its connection is open.
        """
        row = self._rows.get(serial)
        if row is None:
            return
        self._refuse_revoked(row)
        for what, ends_at in ((f"the certificate of {row.client}", row.expires_at), self.ca_ends):
            # while the clock is in doubt nothing ends: else no admin could come to confirm it
            if self.clock.passed(ends_at):
                raise CredentialsError(f"{what} expired on {_day(ends_at)}")

    def _refuse_revoked(self, row: CertificateRow) -> None:
        if row.revoked_at and self.has_valid(row.client):
            raise Replaced(
                f"another home was enrolled as {row.client}; this one was revoked on "
                f"{_day(row.revoked_at)}"
            )
        if row.revoked_at:
            raise Revoked(f"the certificate of {row.client} was revoked on {_day(row.revoked_at)}")

    def issue(self, key: pki.PublicKey, client_id: str) -> x509.Certificate:
        """Issue a certificate, unless the clock is in doubt; the caller records it."""
        self.clock.require()
        if self.authority is None:
            raise Forbidden("the CA of this HQ is offline")
        return pki.issue_client(self.authority, key, client_id)

    def record(self, certificate: x509.Certificate) -> CertificateRow:
        """Return the row of a certificate; it becomes valid with `put`, once it is stored."""
        return CertificateRow(
            pki.serial(certificate),
            pki.common_name(certificate),
            pki.ms(certificate.not_valid_before_utc),
            pki.ms(certificate.not_valid_after_utc),
            0,
            pki.der(certificate),
        )

    def put(self, row: CertificateRow) -> None:
        """Put a stored row into effect.

        Lookups are frequent, and their cost must not depend on how many certificates ever existed.
        """
        self._rows[row.serial] = row
        self._of.setdefault(row.client, {})[row.serial] = row
        newest = self._newest.get(row.client)
        if newest is None or newest.serial != row.serial:
            if newest is None or _age(row) > _age(newest):
                self._newest[row.client] = row
        else:  # the newest was revoked: another one of the same time may be valid
            self._newest[row.client] = max(self._of[row.client].values(), key=_age)

    def knows(self, serial: str) -> bool:
        """Return whether there is a record of a certificate."""
        return serial in self._rows

    def has_valid(self, client: str) -> bool:
        """Return whether the client has a certificate that is neither revoked nor expired."""
        return self.valid_count(client) > 0

    def valid_count(self, client: str) -> int:
        """Return the number of the client's certificates that are neither revoked nor expired."""
        return sum(not row.revoked_at for row in self._alive(client))

    def _alive(self, client: str) -> list[CertificateRow]:
        """Return the client's unexpired certificates; drop the expired ones from the index."""
        found = self._of.get(client, {})
        for serial in [s for s, row in found.items() if self.clock.passed(row.expires_at)]:
            del found[serial]
        return list(found.values())

    def named_by(self, serials: Mapping[str, int]) -> list[CertificateRow]:
        """Return the certificates that a revocation list names and that were valid here, with their
        times of revocation.
        """
        rows = (self._rows.get(serial) for serial in serials)
        return [
            r._replace(revoked_at=serials[r.serial])
            for r in rows
            if r is not None and not r.revoked_at
        ]

    def clients_of(self, serials: Iterable[str]) -> set[str]:
        """Return the clients of those certificates that HQ has a record of."""
        return {self._rows[serial].client for serial in serials if serial in self._rows}

    def count(self) -> tuple[int, list[CertificateRow]]:
        """Return the number of valid client certificates, and those that expire within 30 days and
        have no successor.
        """
        now = self.clock.now_ms()
        good = [r for r in self._rows.values() if not r.revoked_at and r.expires_at > now]
        last: dict[str, CertificateRow] = {}
        for row in sorted(good, key=lambda r: r.expires_at):
            last[row.client] = row
        return len(good), [r for r in last.values() if r.expires_at < now + _SOON_MS]

    def put_revoked(self, rows: list[CertificateRow]) -> None:
        for row in rows:
            self.put(row)

    def revoked_rows(self) -> list[CertificateRow]:
        """Return the revoked certificates that have not expired."""
        now = self.clock.now_ms()
        return sorted(r for r in self._rows.values() if r.revoked_at and r.expires_at > now)

    def revoked(self) -> list[tuple[str, datetime]]:
        """Return the serial numbers and times of revoked certificates that have not expired."""
        return [
            (r.serial, datetime.fromtimestamp(r.revoked_at / 1000, UTC))
            for r in self.revoked_rows()
        ]

    def wholly_revoked(self) -> set[str]:
        """Return the clients whose certificates were all revoked, expired ones included."""
        clients = {row.client for row in self._rows.values() if row.revoked_at}
        return clients - {row.client for row in self._rows.values() if not row.revoked_at}

    def revoked_at(self, client: str) -> int:
        """Return when a client was revoked; 0 if it has a valid certificate or none at all."""
        if any(not row.revoked_at for row in self._alive(client)):
            return 0
        newest = self._newest.get(client)
        return newest.revoked_at if newest is not None else 0

    def crl(self) -> bytes:
        """Return the current revocation list, DER; renew it well before it expires if the CA is
        here.
        """
        stored = self._store.get_setting(CRL_SETTING)
        made = self._read_crl(stored)
        if stored is not None and made is not None and not self._old(made):
            return stored
        return self.new_crl()

    def _read_crl(self, stored: bytes | None) -> x509.CertificateRevocationList | None:
        """Return the stored list; None if there is none, or a damaged one, which HQ makes again.

        Raise Damaged if the CA is elsewhere: only it can make another.
        """
        if not stored:
            return None
        try:
            made = x509.load_der_x509_crl(stored)
            self.crl_ends = made.next_update_utc  # the parser reads it only now
            # an organization may have replaced its CA, whose first list comes later
            if self.authority is None or stored == self._undamaged:
                return made
            if is_signed(stored, self.issuing):
                self._undamaged = stored
                return made
        except Exception:  # the parser has many errors, all of which mean: no list
            if self.authority is None:
                raise Damaged(
                    "the revocation list is damaged in the database",
                    remedy="import the CA's next list (cipherbox ca import), or restore a backup",
                ) from None
        log.error("The revocation list is damaged in the database; HQ makes another one")
        return None

    def new_crl(self) -> bytes:
        """Sign a new list with the next number and store it; with an offline CA return the stored
        one.
        """
        if self.authority is None:
            return self._store.get_setting(CRL_SETTING) or b""
        number = self.crl_number() + 1
        crl = make_crl(self.authority, self.revoked(), number, at=self.clock.now())
        self.put_crl(crl, number)
        return crl

    def complete_crl(self) -> bool:
        """Make a new list if the stored one lacks a revoked certificate; return whether it did."""
        made = self._read_crl(self._store.get_setting(CRL_SETTING))
        if self.authority is None or made is None:
            return False  # `crl` makes the first list
        listed = {one.serial_number for one in made}
        lacking = any(int(row.serial, 16) not in listed for row in self.revoked_rows())
        if lacking:
            self.new_crl()
        return lacking

    def crl_number(self) -> int:
        return self._store.get_number(CRL_NUMBER_SETTING)

    def put_crl(self, crl: bytes, number: int) -> None:
        self._store.put_setting(CRL_NUMBER_SETTING, str(number).encode())
        self._store.put_setting(CRL_SETTING, crl)
        self.crl_ends = x509.load_der_x509_crl(crl).next_update_utc

    def _old(self, made: x509.CertificateRevocationList) -> bool:
        """Return whether HQ's list is due for renewal, or begins later: made while the clock was
        ahead.
        """
        if self.authority is None:
            return False
        end = made.next_update_utc
        return end is None or not made.last_update_utc <= self.clock.now() <= end - _CRL_RENEW


def _age(row: CertificateRow) -> tuple[int, bool, int]:
    return row.issued_at, not row.revoked_at, row.revoked_at


def _day(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"

"""The CA's revocation list as this client knows it: signed, numbered, with an expiry.

A list older than a known one is refused, and so is an expired one, so that HQ cannot hide a
revocation by showing yesterday's list. If HQ's own certificate is on it, no connection is accepted.
The list is requested on every new connection and at least every hour.
"""

from __future__ import annotations

from pathlib import Path

import trio
from cryptography import x509

from cipherbox import clock, pki
from cipherbox.client.connection.connection import Connection
from cipherbox.client.connection.reconnecting import ReconnectingConnection
from cipherbox.client.home import REVOCATIONS
from cipherbox.client.local_database import translated
from cipherbox.errors import CredentialsError, HqRevoked
from cipherbox.pki.revocation_lists import RevocationList, check_crl
from cipherbox.portable import write_atomic
from cipherbox.wire import frames

FRESH_S = 3600.0


class Revocations:
    """The newest revocation list, in memory and in the home."""

    def __init__(
        self, home: Path, issuing: x509.Certificate, connection: ReconnectingConnection
    ) -> None:
        self._path = Path(home) / REVOCATIONS
        self._issuing, self._connection = issuing, connection
        self._list: RevocationList | None = None
        self._asked_at = float("-inf")
        self._ends_s = 0.0  # the list's expiry, in seconds since 1970
        self._current = 0
        self._lock = trio.Lock()
        try:
            self._list = check_crl(self._path.read_bytes(), issuing, clock.now())
            self._ends_s = self._list.next_update.timestamp()
        except (OSError, CredentialsError):
            pass  # no list yet, or expired: HQ has a newer one

    @property
    def fresh(self) -> bool:
        """Whether the list was requested recently and has not expired."""
        return (
            self._list is not None
            and self._current == self._connection.opened
            and trio.current_time() - self._asked_at < FRESH_S
            and clock.now_s() < self._ends_s
        )

    def refresh(self) -> None:
        """Ask HQ for the list again before it is used next."""
        self._asked_at = float("-inf")

    async def ensure(self, number: int = 0) -> None:
        """Make the list fresh and at least of this number. Raise ListOverdue if HQ only has an
        expired list.
        """
        if self._serves(number):
            return
        async with self._lock:
            if self._serves(number):
                return
            answer: frames.Revocations = await self._connection.request(frames.GetRevocations)
            least = self._list.number if self._list is not None else 0
            found = check_crl(answer.crl, self._issuing, clock.now(), least)
            if self._list is None or found.number != least:
                with translated(self._path):
                    write_atomic(self._path, answer.crl)
            self._list, self._asked_at, self._current = (
                found,
                trio.current_time(),
                self._connection.opened,
            )
            self._ends_s = found.next_update.timestamp()
        if self._connection.current is not None:
            self.check_hq(self._connection.current)

    def check_hq(self, current: Connection) -> None:
        """End the connection and raise HqRevoked if HQ's own certificate is on the list."""
        shown = current.certificate
        if shown is not None and self.revoked_at(pki.serial(shown)):
            error = HqRevoked(
                f"HQ's own certificate was revoked (serial number {pki.serial(shown)}): send "
                "nothing, and tell HQ's administrator, who must get a new certificate"
            )
            current.end(error)
            raise error

    def _serves(self, number: int) -> bool:
        return self.fresh and self._list is not None and self._list.number >= number

    @property
    def valid(self) -> bool:
        """Whether the list has not expired, however long ago it was requested."""
        return self._list is not None and clock.now_s() < self._ends_s

    @property
    def names_any(self) -> bool:
        """Whether the list names any certificate."""
        return self._list is not None and bool(self._list.revoked)

    def revoked_at(self, serial: str) -> int:
        """Return when the certificate with that serial number was revoked (ms since 1970), or 0."""
        return self._list.revoked.get(serial, 0) if self._list is not None else 0

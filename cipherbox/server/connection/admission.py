"""Admission: identify a connection by its certificate, and decide whether it may connect."""

from __future__ import annotations

from cryptography import x509

from cipherbox.errors import Busy, CredentialsError, HqRevoked
from cipherbox.server.directory.revocation_lists import RevocationLists
from cipherbox.server.directory.trust import Trust
from cipherbox.server.engine import Engine


class Admission:
    """Decides who may connect, and who is an admin."""

    def __init__(self, engine: Engine, trust: Trust, lists: RevocationLists) -> None:
        self._engine, self._trust, self._lists = engine, trust, lists

    def admit(self, certificate: x509.Certificate) -> tuple[str, str]:
        """Return the client id and role of a certificate.

        Raise HqRevoked, CredentialsError, or Busy while all connections are refused.
        """
        if self._lists.chain_revoked:
            raise HqRevoked(self._lists.chain_revoked)
        client = self._trust.identify(certificate)
        row = self._engine.broker.state.rights.clients.get(client)
        if row is None or row.revoked_at:
            raise CredentialsError("HQ no longer knows this client")
        if why := self._lists.refusal():
            raise Busy(f"HQ refuses connections until it has a newer revocation list: {why}")
        return client, "admin" if self.is_admin(client) else "client"

    def is_admin(self, client: str) -> bool:
        """Return whether a connection's client is an admin; one without a certificate never is."""
        return bool(client) and self._engine.broker.state.rights.is_admin(client, -1)

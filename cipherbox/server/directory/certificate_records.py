"""The record of certificates, in the store and in memory: issued, revoked, withdrawn."""

from __future__ import annotations

from cryptography import x509

from cipherbox import pki
from cipherbox.server.directory.trust import Trust
from cipherbox.server.engine import Engine
from cipherbox.server.log_statements import note_revocation
from cipherbox.store.port import CertificateRow, Store


class CertificateRecords:
    """The record of certificates."""

    def __init__(self, store: Store, engine: Engine, trust: Trust) -> None:
        self._store, self._engine, self._trust = store, engine, trust

    async def add(self, der: bytes) -> None:
        """Record an issued certificate, which makes it valid."""
        await self._put(self._trust.record(pki.load_der(der)))

    async def withdraw(self, leaf: x509.Certificate) -> None:
        """Record as revoked a certificate that a CA signed too late; the next list names it."""
        if not self._trust.knows(pki.serial(leaf)):
            await self._put(
                self._trust.record(leaf)._replace(revoked_at=self._trust.clock.now_ms())
            )

    async def revoke_all(self, client_id: str) -> list[CertificateRow]:
        """Revoke every certificate of a client; return them."""
        at = self._trust.clock.now_ms()
        rows: list[CertificateRow] = await self._engine.in_store(
            self._store.revoke_certificates, client_id, at
        )
        self._trust.put_revoked(rows)
        await note_revocation(self._engine, self._store, client_id, [row.serial for row in rows])
        return rows

    async def _put(self, row: CertificateRow) -> None:
        await self._engine.in_store(self._store.put_certificate, row)
        self._trust.put(row)

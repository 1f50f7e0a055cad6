"""Apply revocation lists: revoke certificates and clients, close connections, replace HQ's own."""

from __future__ import annotations

from typing import Protocol

from cipherbox import pki
from cipherbox.errors import CipherBoxError, GoingAway, HqRevoked
from cipherbox.ops.logs import get_logger
from cipherbox.pki.revocation_lists import RevocationList
from cipherbox.server.connection.registry import Connections
from cipherbox.server.directory.enrolment import Enrolments
from cipherbox.server.directory.revocation_lists import RevocationLists
from cipherbox.server.directory.trust import Trust
from cipherbox.server.engine import Engine
from cipherbox.server.log_statements import note_revocation
from cipherbox.store.port import Store

log = get_logger(__name__)


class Renewable(Protocol):
    """HQ's own certificate."""

    async def renew_if_due(self) -> None: ...


class RevocationEnforcer:
    """Applies the revocation lists of the CAs."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        trust: Trust,
        lists: RevocationLists,
        enrolments: Enrolments,
        connections: Connections,
        certificate: Renewable,
    ) -> None:
        self._store, self._engine, self._trust = store, engine, trust
        self._lists, self._enrolments = lists, enrolments
        self._connections, self._certificate = connections, certificate

    async def run(self) -> None:
        """Apply the lists whenever they change, until cancelled."""
        while True:
            self._lists.changed.clear()
            try:
                await self.apply()
            except CipherBoxError as error:
                log.error("Revocation lists could not be applied", extra={"error": str(error)})
            await self._lists.change()

    async def apply(self) -> None:
        """Apply the lists to connections, clients and HQ's own certificate."""
        await self._engine.in_store(self._lists.remember)
        if self._lists.own_is_revoked() and self._trust.authority is not None:
            await self._replace_own()
        elif self._lists.own_is_revoked():
            await self._certificate.renew_if_due()
        if self._lists.chain_revoked:
            self._connections.end_all(HqRevoked(self._lists.chain_revoked))
        own = self._lists.own()
        if own is not None:
            async with self._enrolments.lock:
                await self.apply_list(own.crl, own.der if self._trust.authority is None else b"")

    async def _replace_own(self) -> None:
        """Revoke HQ's own certificate in the list that HQ makes, and renew it."""
        old = self._trust.server
        at = self._lists.own_revoked()[pki.serial(old)]
        row = self._trust.record(old)._replace(client="", revoked_at=at)  # no client's
        await self._engine.in_store(self._store.put_certificate, row)
        self._trust.put(row)
        await self._engine.in_store(self._trust.new_crl)
        await self._certificate.renew_if_due()
        if self._trust.server != old:
            self._connections.end_all(GoingAway("HQ has a new certificate", remedy="reconnect"))

    async def apply_list(self, says: RevocationList, der: bytes) -> None:
        """Apply a list of the issuing CA: revoke its certificates, close their connections, revoke
        clients without another certificate; then publish a new list to clients.

        The caller holds the lock of the enrolments.  ``der`` is the list to publish, if it is newer
        than the current one; empty: HQ makes its own.
        """
        rows = self._trust.named_by(says.revoked)
        for row in rows:
            await self._engine.in_store(self._store.put_certificate, row)
        self._trust.put_revoked(rows)
        for name in sorted({row.client for row in rows}):
            await note_revocation(
                self._engine, self._store, name, [row.serial for row in rows if row.client == name]
            )
        self._connections.end_certificates({row.serial: row.client for row in rows})
        gone = [
            client
            for client in sorted({row.client for row in rows})
            if not self._trust.has_valid(client)
        ]
        for client in gone:
            await self._enrolments.revoke_without_certificate(
                client, "the CA's revocation list names its certificate"
            )
        if not der and rows:
            await self._engine.in_store(self._trust.new_crl)
        elif der and says.number > await self._engine.in_store(self._trust.crl_number):
            await self._engine.in_store(self._trust.put_crl, der, says.number)
        elif not rows:
            return
        number = await self._engine.in_store(self._trust.crl_number)
        self._connections.notify_revoked(
            f"revoked: {', '.join(gone)}; nothing is sealed to them any more" if gone else "",
            number,
        )

"""Apply revocation lists: revoke certificates and clients, close connections, replace HQ's own.

A revocation takes several commits: the certificates, a statement in HQ's log, the client, the list
for clients.  A crash between two of them, or a commit that failed, leaves it half done: without the
statement receivers refuse what HQ accepted of the client before.  So `finish` does what is missing,
at the start and every minute; each step can be repeated.  The certificates and their connections
end first: nothing more is accepted of them, so a late statement follows all that was accepted.
"""

from __future__ import annotations

from typing import Protocol

import trio

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
from cipherbox.store.port import CertificateRow, Store

log = get_logger(__name__)
FINISH_S = 60.0  # between two looks for revocations that are half done


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
        self._finished: set[str] = set()  # serial numbers whose revocation is known to be complete

    async def run(self) -> None:
        """Apply the lists whenever they change, and finish revocations, until cancelled."""
        applied = False
        while True:
            if not applied or self._lists.changed.is_set():
                self._lists.changed.clear()
                applied = await self._applied()
            try:
                await self.finish()
            except CipherBoxError as error:
                log.error("A revocation could not be finished", extra={"error": str(error)})
            with trio.move_on_after(FINISH_S):
                await self._lists.change()

    async def _applied(self) -> bool:
        try:
            await self.apply()
        except CipherBoxError as error:
            log.error("Revocation lists could not be applied", extra={"error": str(error)})
            return False
        return True

    async def finish(self) -> None:
        """Do what is missing of revocations that were interrupted."""
        async with self._enrolments.lock:
            rows = [r for r in self._trust.revoked_rows() if r.serial not in self._finished]
            if not rows:
                return
            self._connections.end_certificates({row.serial: row.client for row in rows})
            await self._note(rows)
            clients = {row.client for row in rows} & self._trust.wholly_revoked()
            for client in sorted(filter(self._enrolments.has_client, clients)):
                await self._enrolments.finish_revocation(client)
            listed = await self._engine.in_store(self._trust.complete_crl)
            self._finished.update(row.serial for row in rows)
        if listed:
            number = await self._engine.in_store(self._trust.crl_number)
            self._connections.notify_revoked("", number)

    def _gone(self, says: RevocationList, rows: list[CertificateRow]) -> list[str]:
        """Return the clients to revoke: those that a list leaves without a valid certificate, also
        if it was applied in part before.
        """
        without = {row.client for row in rows if not self._trust.has_valid(row.client)}
        without |= self._trust.clients_of(says.revoked) & self._trust.wholly_revoked()
        return [name for name in sorted(without) if self._enrolments.has_client(name)]

    async def _note(self, rows: list[CertificateRow]) -> None:
        """Log revocations that are not logged yet; HQ's own are no client's."""
        for name in sorted({row.client for row in rows if row.client}):
            await note_revocation(
                self._engine, self._store, name, [row.serial for row in rows if row.client == name]
            )

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
        self._connections.end_certificates({row.serial: row.client for row in rows})
        await self._note(rows)
        gone = self._gone(says, rows)
        for client in gone:
            await self._enrolments.revoke_without_certificate(
                client, "the CA's revocation list names its certificate"
            )
        if not der and rows:
            await self._engine.in_store(self._trust.new_crl)
        elif der and says.number > await self._engine.in_store(self._trust.crl_number):
            await self._engine.in_store(self._trust.put_crl, der, says.number)
        elif not rows and not gone:
            return
        number = await self._engine.in_store(self._trust.crl_number)
        self._connections.notify_revoked(
            f"revoked: {', '.join(gone)}; nothing is sealed to them any more" if gone else "",
            number,
        )

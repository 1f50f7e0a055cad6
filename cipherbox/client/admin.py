"""Calls of an admin's client.  HQ refuses them to everybody else."""

from __future__ import annotations

from typing import Any

import orjson

from cipherbox.checks import checked
from cipherbox.client.connection.reconnecting import ReconnectingConnection
from cipherbox.wire import frames

_AS_SET = (1 << 64) - 1


@checked
class AdminCalls:
    """Mixed into `Client`."""

    connection: ReconnectingConnection

    async def enrol(
        self,
        client_id: str,
        role: str = "client",
        approve: bool = False,
        valid_s: int = 0,
        replace: bool = False,
    ) -> str:
        """Return a one-time token for a client (0: it lives a day).  It is a secret until it is
        used.

        ``replace``: also for an id that a home has; that home ends when the token is used.
        Conflict without it.
        """
        answer: frames.Token = await self.connection.request(
            frames.Enrol,
            client_id=client_id,
            role=role,
            approve=approve,
            valid_s=valid_s,
            replaces=replace,
        )
        return answer.token

    async def approve(self, client_id: str, accept: bool = True) -> None:
        """Lets a held enrolment go, or refuses it."""
        await self.connection.request(frames.Approve, client_id=client_id, accept=accept)

    async def grant(
        self, client_id: str, right: str, resource: str = "", give: bool = True
    ) -> None:
        """Gives or takes a right: publish, bind, read, declare or admin; ``*`` is every client."""
        await self.connection.request(
            frames.Grant, client_id=client_id, right=right, resource=resource, give=give
        )

    async def revoke(self, client_id: str, reason: str = "") -> None:
        """Revokes every certificate of a client and cuts its connections."""
        await self.connection.request(frames.Revoke, client_id=client_id, reason=reason)

    async def kick(self, client_id: str, connection: int = 0, reason: str = "") -> int:
        """Cuts a client's connections (0: all of them); how many.  It may come back."""
        answer: frames.Ok = await self.connection.request(
            frames.Kick, client_id=client_id, connection=connection, reason=reason
        )
        return answer.count

    async def limit(self, client_id: str, what: str, most: int | None) -> None:
        """How much of ``what`` one client may have; None: as HQ's settings say.
        `list("totals")` shows it.
        """
        wanted = _AS_SET if most is None else most
        await self.connection.request(
            frames.LimitClient, client_id=client_id, what=what, most=wanted
        )

    async def reload(self) -> list[dict[str, Any]]:
        """HQ reads its settings and certificates again; what changed, and when that counts.
        ConfigError: nothing.
        """
        answer: frames.Listing = await self.connection.request(frames.Reload)
        rows: list[dict[str, Any]] = orjson.loads(answer.rows)
        return rows

    async def drain(self, begin: bool = True, most_s: int = 0) -> int:
        """HQ takes nothing new, lets what waits go out, and ends (or that is taken back); how
        many may go out.
        """
        answer: frames.Ok = await self.connection.request(frames.Drain, begin=begin, most_s=most_s)
        return answer.count

    async def export_requests(self) -> bytes:
        """The signing requests that wait for an offline CA, as a document to carry there."""
        answer: frames.Requests = await self.connection.request(frames.ExportRequests)
        return answer.document

    async def import_certificates(self, document: bytes) -> int:
        """Hands HQ what the offline CA signed; how many certificates."""
        answer: frames.Ok = await self.connection.request(
            frames.ImportCertificates, document=document
        )
        return answer.count

    async def read_log(
        self, after: int = 0, count: int = 1000, *, old: bool = False
    ) -> frames.LogEntries:
        """A page of HQ's signed log: entries after that one, and the newest head.  ``old``: of
        the log before 0.6.
        """
        answer: frames.LogEntries = await self.connection.request(
            frames.ReadLog, after=after, count=count, old=old
        )
        return answer

"""Calls of an admin's client; HQ refuses them to other clients."""

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
        """Return a one-time token for a client, which is secret until used. ``valid_s`` 0: valid
        for a day.

        ``replace`` also permits an id that a home has: that home is replaced when the token is
        used. Raise Conflict without it.
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
        """Approve or refuse a pending enrolment."""
        await self.connection.request(frames.Approve, client_id=client_id, accept=accept)

    async def grant(
        self, client_id: str, right: str, resource: str = "", give: bool = True
    ) -> None:
        """Grant or withdraw a right: publish, bind, read, declare or admin. The client ``*`` means
        every client.
        """
        await self.connection.request(
            frames.Grant, client_id=client_id, right=right, resource=resource, give=give
        )

    async def revoke(self, client_id: str, reason: str = "") -> None:
        """Revoke every certificate of a client and close its connections."""
        await self.connection.request(frames.Revoke, client_id=client_id, reason=reason)

    async def kick(self, client_id: str, connection: int = 0, reason: str = "") -> int:
        """Close a client's connections (0: all) and return the number closed. The client may
        reconnect.
        """
        answer: frames.Ok = await self.connection.request(
            frames.Kick, client_id=client_id, connection=connection, reason=reason
        )
        return answer.count

    async def limit(self, client_id: str, what: str, most: int | None) -> None:
        """Set a limit on ``what`` for one client; None restores the value of HQ's settings.
        `list("totals")` shows it.
        """
        wanted = _AS_SET if most is None else most
        await self.connection.request(
            frames.LimitClient, client_id=client_id, what=what, most=wanted
        )

    async def reload(self) -> list[dict[str, Any]]:
        """Have HQ reload its settings and certificates; return what changed and when it takes
        effect. Raise ConfigError if the settings are invalid, changing nothing.
        """
        answer: frames.Listing = await self.connection.request(frames.Reload)
        rows: list[dict[str, Any]] = orjson.loads(answer.rows)
        return rows

    async def drain(self, begin: bool = True, most_s: int = 0) -> int:
        """Have HQ accept nothing new, deliver what is queued, and stop, or cancel that; return the
        number of envelopes that may be delivered.
        """
        answer: frames.Ok = await self.connection.request(frames.Drain, begin=begin, most_s=most_s)
        return answer.count

    async def confirm_clock(self) -> None:
        """Tell HQ that its clock is right, which ends its doubt; HQ's signed log records it."""
        await self.connection.request(frames.ConfirmClock)

    async def set_watermark(self, watermark_ms: int = 0) -> None:
        """Set the time before which HQ refuses envelope ids as too old, ms since 1970; 0: as HQ's
        settings say. It is for an HQ whose clock was ahead when it deleted records.
        """
        await self.connection.request(frames.SetWatermark, watermark=watermark_ms)

    async def export_requests(self) -> bytes:
        """Return the pending signing requests as a document for the offline CA."""
        answer: frames.Requests = await self.connection.request(frames.ExportRequests)
        return answer.document

    async def import_certificates(self, document: bytes) -> int:
        """Import what the offline CA signed into HQ; return the number of certificates."""
        answer: frames.Ok = await self.connection.request(
            frames.ImportCertificates, document=document
        )
        return answer.count

    async def read_log(
        self, after: int = 0, count: int = 1000, *, old: bool = False
    ) -> frames.LogEntries:
        """Return a page of HQ's signed log: entries after ``after``, and the newest head. ``old``
        reads the log before 0.6.
        """
        answer: frames.LogEntries = await self.connection.request(
            frames.ReadLog, after=after, count=count, old=old
        )
        return answer

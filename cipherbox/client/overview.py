"""A client's status: messages waiting here or at HQ, opened, refused or parked, and the last
contact with HQ.

Everything is read from the home's two databases, so it is the same whatever else runs, and also
while HQ is unreachable.
"""

from __future__ import annotations

import sqlite3
from typing import Protocol

from cipherbox.classes import frozen
from cipherbox.client.home import Home
from cipherbox.client.inbox.inspect import looking
from cipherbox.client.local_database import translated
from cipherbox.client.outbox.outbox import Outbox
from cipherbox.client.outbox.sender import OutboxSender


class OverviewSource(Protocol):
    """What an overview needs of a client."""

    @property
    def home(self) -> Home: ...

    def outbox(self) -> OutboxSender: ...


@frozen
class Overview:
    """Counts of envelopes by state, of files in progress, and of received messages; times are in
    ms.
    """

    waiting: int  # sealed, and not confirmed by HQ
    at_hq: int  # confirmed, and not yet opened by all recipients
    opened: int  # by all their recipients
    refused: int  # by HQ or by a recipient
    files_sending: int
    received: int
    not_taken: int  # refused here
    files_coming: int
    for_handlers: int
    parked: int
    last_contact: int


async def overview(client: OverviewSource) -> Overview:
    """Return the client's status. Raise Forbidden on an admin's machine, which sends and receives
    nothing.
    """
    sent = await client.outbox().store(_sent, client.outbox().outbox)
    with looking(client.home) as look:
        counts = look.counts()
        newest = look.newest_at()
    return Overview(
        sent["waiting"],
        sent["at_hq"],
        sent["opened"],
        sent["refused"],
        sent["files"],
        counts["received_envelopes"],
        counts["refused"],
        counts["files_under_way"],
        counts["for_handlers"],
        counts["parked"],
        max(sent["contact"], newest),
    )


def _sent(outbox: Outbox) -> dict[str, int]:
    db, path = outbox.database
    with translated(path):
        waiting, at_hq, opened, rejected = _one(
            db,
            "SELECT coalesce(sum(state = 0), 0), coalesce(sum(state = 1 AND owed > 0), 0), "
            "coalesce(sum(state = 1 AND owed <= 0), 0), coalesce(sum(state = 2), 0) FROM "
            "envelopes",
        )
        (refused,) = _one(db, "SELECT count(DISTINCT number) FROM outcomes WHERE outcome <> 0")
        (files,) = _one(db, "SELECT count(*) FROM transfers WHERE state = 0")
        (contact,) = _one(
            db,
            "SELECT max((SELECT coalesce(max(at), 0) FROM contact), (SELECT "
            "coalesce(max(accepted_at), 0) FROM envelopes), (SELECT coalesce(max(taken_at), 0) "
            "FROM receipts))",
        )
    return {
        "waiting": waiting,
        "at_hq": at_hq,
        "opened": opened,
        "refused": rejected + refused,
        "files": files,
        "contact": contact,
    }


def _one(db: sqlite3.Connection, query: str) -> tuple[int, ...]:
    return tuple(db.execute(query).fetchone())

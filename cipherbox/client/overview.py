"""An overview of a client: what waits here, what is at HQ, what was opened, refused or parked, and
when HQ was last reached.

Everything is read from the home's two databases, so it is the same beside any other program, and
while HQ is unreachable.
"""

from __future__ import annotations

import sqlite3
from typing import Protocol

import attrs

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


@attrs.frozen
class Overview:
    """Envelopes sent from here by their state, files in transfer, and what was received; times are
    ms since 1970.
    """

    waiting: int  # sealed, and not confirmed by HQ
    at_hq: int  # confirmed, and not opened by all
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
    """Return the overview; raise Forbidden on an admin's machine, which has no mailbox."""
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
        waiting, at_hq, opened, aside = _one(
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
        "refused": aside + refused,
        "files": files,
        "contact": contact,
    }


def _one(db: sqlite3.Connection, query: str) -> tuple[int, ...]:
    return tuple(db.execute(query).fetchone())

"""Watch one home for conditions that need a person, and send alerts as `[alerts]` configures.

Several programs may share a home; one of them watches. Every fact is read where it is recorded: the
outbox, the inbox, the certificate, the disk.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Protocol

import trio

from cipherbox import clock
from cipherbox.alerting import CRITICAL, LOOK_S, WARNING, Alert, Teller
from cipherbox.client.events import LINE
from cipherbox.client.home import ROOT
from cipherbox.client.outbox.rows import PARKED, Row
from cipherbox.client.outbox.sender import OutboxSender
from cipherbox.client.receiving.handler import Handlers
from cipherbox.client.receiving.ports import Connected
from cipherbox.concurrency import Backoff, only, repeat, supervise
from cipherbox.envelope.ids import message_id
from cipherbox.errors import StoreLocked
from cipherbox.portable import free_bytes, lock_file

LOCK = "alerts.lock"
INBOX = "inbox.sqlite3"
LEAST_BYTES = 256 * 1024 * 1024
_EACH = 20  # messages that get an alert of their own
_DAY_S = 86_400


class WatchedClient(Connected, Protocol):
    """What the watch needs of a client."""

    @property
    def outbox_sender(self) -> OutboxSender | None: ...


async def watch(client: WatchedClient, lasting: bool, *, pause_s: float = LOOK_S) -> None:
    """Check and send alerts until cancelled. Return immediately without `[alerts]`, or unless
    ``lasting``: short commands leave it to others.
    """
    config = client.home.config
    if not (lasting and config.alerts.any):
        return
    teller = Teller(
        config.client_id,
        config.alerts,
        config.home,
        lambda text, why: client.events.emit(LINE, f"{text}: {why}"),
    )

    async def look() -> None:
        with suppress(OSError):  # retried at the next check
            await teller.look(await conditions(client))

    async def alone() -> None:
        with lock_file(config.home / LOCK, "the alerts of this home"):
            await repeat(look, pause_s)

    # another program of this home watches while it holds the lock
    await supervise(alone, Backoff(pause_s, pause_s), transient=only(StoreLocked))


async def conditions(client: WatchedClient) -> list[Alert]:
    """Return the alerts that are due now."""
    found = [*_certificate(client), *_disk(client)]
    if client.outbox_sender is not None:
        found += await _outbox(client, client.outbox_sender)
        found += await trio.to_thread.run_sync(lambda: [*_parked(client), *_quiet(client)])
    return found


def _certificate(client: Connected) -> Iterator[Alert]:
    days = (client.home.chain[0].not_valid_after_utc - clock.now()).total_seconds() / _DAY_S
    if days < client.home.config.alerts.certificate_days:
        when = f"ends in {days:.0f} days" if days > 0 else "has ended"
        yield Alert(
            "certificate",
            CRITICAL if days < 3 else WARNING,
            f"the certificate of {client.home.config.client_id} {when}; "
            "cipherbox keys renew says why it was not renewed",
        )


def _disk(client: Connected) -> Iterator[Alert]:
    free = free_bytes(client.home.path)
    if free < LEAST_BYTES:
        yield Alert(
            "disk",
            CRITICAL,
            f"{free // 2**20} MiB free at {client.home.path}; free some space before sending "
            "and receiving stop",
        )


async def _outbox(client: Connected, outbox_sender: OutboxSender) -> list[Alert]:
    now, most_s = clock.now_s(), client.home.config.alerts.stuck_minutes * 60
    rows = await outbox_sender.store(outbox_sender.outbox.rows, [PARKED])
    assert isinstance(rows, list)
    found = []
    for row in rows[-_EACH:]:
        name = message_id(row.envelope_id, 0)
        text = (
            f"message {name} to {', '.join(row.recipients)} was refused: {row.reason}; see: "
            "cipherbox outbox list"
        )
        found.append(Alert("refused", WARNING, text, str(name)))
    waiting = await outbox_sender.store(outbox_sender.outbox.waiting, 0, int(now * 1000), 1000)
    assert isinstance(waiting, list)
    stuck = [row for row in waiting if _since(row) <= (now - most_s) * 1000]
    if stuck:
        away = (
            f"; HQ cannot be reached: {client.connection.trouble}"
            if client.connection.attempts
            else ""
        )
        minutes = (now - stuck[0].sealed_at / 1000) / 60
        text = f"{len(stuck)} messages wait for HQ, the oldest for {minutes:.0f} minutes{away}"
        found.append(
            Alert("stuck", WARNING, f"{text}. See: cipherbox outbox list, cipherbox doctor")
        )
    return found


def _since(row: Row) -> int:
    """Return since when an envelope waits; one that HQ refuses for its time changes with each
    attempt.
    """
    return row.sealed_at if row.code else row.changed_at


def _parked(client: Connected) -> list[Alert]:
    if not (client.home.path / INBOX).exists():
        return []
    with closing(Handlers(client)) as handlers:
        rows = handlers.parked()[-_EACH:]
    return [
        Alert(
            "parked",
            WARNING,
            f"message {row.message_id} from {row.sender_id} is parked after {row.attempts} tries: "
            f"{row.reason}; see: cipherbox inbox list",
            str(row.message_id),
        )
        for row in rows
    ]


def _quiet(client: Connected) -> Iterator[Alert]:
    """Yield an alert for each client that sent nothing for longer than expected; before its first
    message, counting from when this machine joined.
    """
    quiet = client.home.config.alerts.quiet_s
    if not quiet:
        return
    joined_at = (client.home.path / ROOT).stat().st_mtime
    for sender, most_s in quiet.items():
        last = _last_from(client.home.path / INBOX, sender) or joined_at
        silent_s = clock.now_s() - last
        if silent_s > most_s:
            text = (
                f"nothing from {sender} for {silent_s / 3600:.0f} hours; ask whether it still sends"
            )
            yield Alert("quiet", WARNING, text, sender)


def _last_from(path: Path, sender: str) -> float:
    """Return when the newest message of a sender was received, in seconds since 1970, or 0."""
    if not path.exists():
        return 0.0
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5.0)) as db:
        with suppress(sqlite3.Error):
            (last,) = db.execute(
                "SELECT max(received_at) FROM envelopes WHERE sender = ?", (sender,)
            ).fetchone()
            return (last or 0) / 1000
    return 0.0

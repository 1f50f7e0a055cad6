"""Trouble: what was refused, what is parked or stuck, and what `doctor` finds, each with an act."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

import trio
from starlette.responses import Response

from cipherbox import clock
from cipherbox.apps.page.desk import FORGED
from cipherbox.apps.page.sent import SentItem, item_of
from cipherbox.apps.page.view import Finding, View
from cipherbox.client.inbox.inspect import InboxInspection
from cipherbox.client.outbox.outbox import Outbox
from cipherbox.client.outbox.rows import PARKED
from cipherbox.client.outbox.transfers import STOPPED, Transfer, Transfers
from cipherbox.client.receiving.handler import Handlers
from cipherbox.errors import InvalidRequest

MOST = 100


async def listing(view: View) -> Response:
    """Return everything that needs a person."""
    return await _page(view, ())


async def diagnose(view: View) -> Response:
    """Run `doctor` on this machine, and show what it finds."""
    await view.form()
    findings = await trio.to_thread.run_sync(
        lambda: tuple(view.helpers.diagnose(view.desk.client.home))
    )
    return await _page(view, findings)


async def seen(view: View) -> Response:
    """Mark the refusals so far as seen: their alarm ends, and they stay in the list."""
    await view.form()
    await view.desk.choose(seen_at=clock.now_ms())
    return view.go("/trouble", "seen")


async def retry(view: View) -> Response:
    """Let the handler try a parked message again, or all of them."""
    text = (await view.form()).one("message_id")
    try:
        wanted = uuid.UUID(text) if text else None
    except ValueError:
        raise InvalidRequest("this is no message id") from None
    await trio.to_thread.run_sync(_retry, view, wanted)
    return view.go("/trouble", "retried")


def _retry(view: View, wanted: uuid.UUID | None) -> None:
    handlers = Handlers(view.desk.client)
    try:
        handlers.retry(wanted)
    finally:
        handlers.close()


async def _page(view: View, findings: Iterable[Finding]) -> Response:
    desk = view.desk
    if desk.keyless:
        return await view.page(
            "trouble.html",
            findings=findings,
            refused=[],
            parked=[],
            stuck=[],
            stopped=[],
            files=[],
            forged_kinds=FORGED,
        )
    most_ms = int(desk.client.home.config.alerts.stuck_minutes * 60_000)
    stuck, stopped, files = await desk.outbox(
        _sent, desk.client.outbox().outbox, clock.now_ms() - most_ms
    )
    return await view.page(
        "trouble.html",
        findings=findings,
        refused=(await desk.refused())[:MOST],
        parked=await desk.inbox(InboxInspection.parked),
        stuck=stuck,
        stopped=stopped,
        files=files,
        forged_kinds=FORGED,
    )


def _sent(
    outbox: Outbox, sealed_before: int
) -> tuple[list[SentItem], list[SentItem], list[Transfer]]:
    stuck = [item_of(outbox, row) for row in outbox.waiting(0, sealed_before, MOST)]
    rows = [*outbox.rows([PARKED], most=MOST), *outbox.refused(MOST)]
    stopped = [item_of(outbox, row) for row in sorted(rows, key=lambda row: -row.number)]
    files = [one for one in Transfers(outbox).all(MOST) if one.state == STOPPED]
    return stuck, stopped, files[::-1]

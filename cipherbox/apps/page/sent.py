"""What this home sent: the list with the state of each for each recipient, and one in full."""

from __future__ import annotations

import uuid
from typing import Any

from starlette.responses import Response

from cipherbox.apps.page.view import View
from cipherbox.classes import frozen
from cipherbox.client.outbox.outbox import Outbox
from cipherbox.client.outbox.rows import CANCELLED, CONFIRMED, PARKED, WAITING, Refused, Row
from cipherbox.client.outbox.transfers import SENT, STOPPED, Transfer, Transfers
from cipherbox.envelope.outcomes import Outcome, outcome_words
from cipherbox.errors import NotFound

PAGE = 50
FILES = 200  # the newest
# States of one recipient, and of a whole message before its recipients have it
SEALED, AT_HQ, OPENED, REFUSED = "sealed", "with HQ", "opened", "refused"
STOPPED_HERE, DROPPED, SENDING = "not sent", "cancelled", "sending"


@frozen
class Reader:
    """One recipient's state; ``at`` is ms since 1970, 0 if unknown."""

    name: str
    state: str
    at: int = 0
    why: str = ""


@frozen
class SentItem:
    """One sent message, batch or file as the page shows it."""

    id: str
    number: int
    messages: int
    size: int
    sealed_at: int
    accepted_at: int
    state: str
    reason: str
    route: str
    readers: tuple[Reader, ...]
    filename: str = ""
    done_bytes: int = 0

    @property
    def url(self) -> str:
        return f"/sent/{self.id}"


async def listing(view: View) -> Response:
    """Return what was sent, newest first; files in parts above, while they are under way."""
    before = int(text) if (text := view.query.get("before", "")).isdigit() else 1 << 62
    items, files = await view.desk.outbox(_page_of, view.desk.client.outbox().outbox, before)
    following = items[-1].number if len(items) == PAGE else None
    return await view.page(
        "sent.html", items=items, files=files if before == 1 << 62 else [], following=following
    )


async def one(view: View) -> Response:
    """Return one sent message: each step, each recipient, its receipts."""
    row = await row_of(view)
    outbox = view.desk.client.outbox().outbox
    item = await view.desk.outbox(item_of, outbox, row)
    proof: Any = await view.desk.outbox(outbox.proof, row.number)
    report = await view.desk.at_hq(
        lambda: view.desk.client.status(uuid.UUID(bytes=row.envelope_id)), None
    )
    traces = report.traces if report is not None and report.found else []
    return await view.page(
        "sent_one.html", item=item, entry=proof[0] if proof else 0, traces=traces, row=row
    )


async def retry(view: View) -> Response:
    """Send again what HQ refused or what waits: the same bytes, or sealed for today's keys."""
    row, sender = await row_of(view), view.desk.client.outbox()
    if (await view.form()).one("reseal"):
        await sender.seal_again(row.envelope_id)
        return view.go(f"/sent/{view.given('message_id')}", "resealed")
    await sender.store(sender.outbox.again, row.envelope_id)
    sender.look()
    return view.go(f"/sent/{view.given('message_id')}", "retried")


async def cancel(view: View) -> Response:
    """Do not send what HQ has not confirmed."""
    row, sender = await row_of(view), view.desk.client.outbox()
    out = Refused(row.envelope_id, row.generation, 0, "cancelled", CANCELLED)
    await sender.store(lambda: sender.outbox.write(refused=[out]))
    return view.go(f"/sent/{view.given('message_id')}", "cancelled")


async def row_of(view: View) -> Row:
    """Return the outbox row that the path names; raise NotFound."""
    try:
        row = await view.desk.client.sent(uuid.UUID(view.given("message_id")))
    except ValueError:
        row = None
    if row is None:
        raise NotFound("this message was not sent from this home, or its history was dropped")
    return row


def _page_of(outbox: Outbox, before: int) -> tuple[list[SentItem], list[SentItem]]:
    rows = outbox.newest(PAGE, before)[::-1]
    transfers = Transfers(outbox).all(FILES)
    manifests = {one.manifest: one for one in transfers if one.manifest}
    items = [item_of(outbox, row, manifests.get(row.envelope_id)) for row in rows]
    return items, [_file(one) for one in reversed(transfers) if one.state != SENT]


def item_of(outbox: Outbox, row: Row, file: Transfer | None = None) -> SentItem:
    """Return a row with the state of each recipient; blocks on the disk."""
    signed = {
        name: (outcome, at, each) for name, outcome, at, *_, each in outbox.outcomes(row.number)
    }
    readers = []
    for name in row.recipients:
        if name in signed:
            whole, at, each = signed[name]
            outcome = next((one for one in (whole, *each) if one), Outcome.OPENED)
            good = outcome == Outcome.OPENED
            why = "" if good else outcome_words(outcome)
            readers.append(Reader(name, OPENED if good else REFUSED, at, why))
        else:
            readers.append(Reader(name, AT_HQ if row.state == CONFIRMED else _state(row)))
    return SentItem(
        str(uuid.UUID(bytes=row.envelope_id)),
        row.number,
        row.messages,
        file.size if file is not None else row.size,
        row.sealed_at,
        row.accepted_at,
        _summary(row, readers),
        row.reason,
        f"{row.exchange} {row.routing_key}".strip() if row.exchange else "",
        tuple(readers),
        "/".join(file.path) if file is not None else "",
    )


def _state(row: Row) -> str:
    return {WAITING: SEALED, PARKED: STOPPED_HERE, CANCELLED: DROPPED}.get(row.state, AT_HQ)


def _summary(row: Row, readers: list[Reader]) -> str:
    """Return the state of the whole: what is worst, or what all have reached."""
    if any(one.state == REFUSED for one in readers):
        return REFUSED
    if row.state == CONFIRMED and readers and all(one.state == OPENED for one in readers):
        return OPENED
    return _state(row)


def _file(one: Transfer) -> SentItem:
    state = STOPPED_HERE if one.state == STOPPED else SENDING
    readers = tuple(Reader(name, state) for name in one.recipients)
    name = "/".join(one.path)
    return SentItem(
        "",
        one.number,
        1,
        one.size,
        one.made_at,
        0,
        state,
        one.reason,
        "",
        readers,
        name,
        one.done_bytes,
    )

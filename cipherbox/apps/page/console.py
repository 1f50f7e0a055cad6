"""The console of an admin's home: HQ at a glance, who gets what, clients, dead letters, HQ's
certificates and clock, its signed log.

Reading comes first.  Each act asks once, in the page, and HQ records it in its signed log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from starlette.responses import Response

from cipherbox.apps.page.view import LogLine, View
from cipherbox.client.log.cosigners import log_state
from cipherbox.errors import InvalidRequest
from cipherbox.limits import check_client_id

_ROW, _TOP, _WIDTH = 44, 40, 900  # of the picture of routes, in its own units
_COLUMNS = (10, 340, 670)
_BOX = 220
_LABEL = 13  # characters of a routing key on an arrow
MOST_QUEUES = 60  # in the picture; a list below names all
MOST_DEAD = 200
MOST_CLIENTS = 100  # on one page, and as many connections; the search finds the others
LIMITED = ("bytes", "envelopes", "queues", "bundles", "certificates", "prekeys")
LIMIT_DIGITS = 18
ROLES = ("client", "admin")
LOG_ENTRIES = 100
# HQ writes an alert in English, with names and numbers: its kind, for other languages.
ALERT_KINDS = {
    "store": "HQ's database does not answer: publishes wait.",
    "disk": "HQ's disk is nearly full.",
    "clock": "HQ doubts its clock, and refuses publishes.",
    "clock-test": "HQ's clock is moved for a test.",
    "retention": "Records are due to be deleted; check HQ's clock and settings first.",
    "draining": "HQ is draining: publishes wait.",
    "memory": "HQ is low on memory: senders wait for slow recipients.",
    "standby": "No standby waits to take over.",
    "certificate-server": "HQ's certificate ends soon.",
    "certificate-issuing": "The issuing CA's certificate ends soon.",
    "certificate-root": "The root certificate ends soon.",
    "certificate-crl": "HQ's revocation list ends soon.",
    "certificate-lists": "A revocation list of the organization ends soon.",
    "certificate-renewal": "HQ's certificate could not be renewed.",
    "certificate-waiting": "A request of HQ waits for the CA.",
    "lists": "A revocation list was refused; the previous one stays in effect.",
    "revoked-hq": "HQ's certificate was revoked: new connections are refused.",
    "revoked-ca": "A CA above HQ was revoked: new connections are refused.",
    "old-queue": "Envelopes have waited in a queue for more than a day, and nobody reads it.",
}


class Box(NamedTuple):
    """A box of the picture: an exchange, a queue or a reader."""

    x: int
    y: int
    kind: str
    name: str
    note: str


class Arrow(NamedTuple):
    """An arrow of the picture, with the routing key as its label."""

    path: str
    label: str
    x: int
    y: int


class Picture(NamedTuple):
    """Who gets what, drawn: exchanges, queues and readers in three columns."""

    width: int
    height: int
    boxes: list[Box]
    arrows: list[Arrow]
    box: int
    left_out: int


async def glance(view: View) -> Response:
    """Return HQ at a glance: rates, depth, memory, disk, certificates, alerts, the queues."""
    report = await view.desk.at_hq(lambda: view.helpers.report(view.desk.client), None)
    ends = [
        days
        for name, days in (report["certificate_days"] if report else {}).items()
        if name not in ("crl", "lists")  # HQ makes these anew by itself
    ]
    pending = await view.desk.listed("pending")
    return await view.page(
        "console.html",
        hour=view.desk.history.hour(),
        day=view.desk.history.day(),
        report=report,
        alert_kinds=ALERT_KINDS,
        waiting=sum(row.get("state") == "waiting" for row in pending),
        days=int(min(ends, default=0)),
    )


async def routes(view: View) -> Response:
    """Return who gets what: the routes as a picture, and as a table."""
    exchanges = await view.desk.listed("exchanges")
    queues = await view.desk.listed("queues")
    bindings = await view.desk.listed("bindings")
    return await view.page(
        "routes.html", picture=drawn(exchanges, queues, bindings), queues=queues, bindings=bindings
    )


async def clients(view: View) -> Response:
    """Return the clients with their totals and limits, and enrolments that wait for a person."""
    return await _clients(view)


async def _clients(view: View, enrolled: str = "", token: str = "") -> Response:
    """Return the same, with a new token, which is shown this once."""
    wanted = view.query.get("q", "").strip()

    def matches(row: dict[str, Any]) -> bool:
        return wanted.casefold() in str(row["name"]).casefold()

    rows = list(filter(matches, await view.desk.listed("clients")))
    totals = {row["name"]: row for row in await view.desk.listed("totals")}
    connections = await view.desk.listed("connections")
    return await view.page(
        "clients.html",
        rows=rows[:MOST_CLIENTS],
        count=len(rows),
        wanted=wanted,
        totals=totals,
        limited=LIMITED,
        pending=await view.desk.listed("pending"),
        connections=list(filter(matches, connections))[:MOST_CLIENTS],
        enrolled=enrolled,
        token=token,
    )


async def enrol(view: View) -> Response:
    """Make a token for a new client."""
    fields = await view.form()
    name, role = check_client_id(fields.one("client_id").strip()), fields.one("role")
    if role not in ROLES:
        raise InvalidRequest("there is no such role")
    token = await view.desk.client.enrol(
        name, role, approve=bool(fields.one("approve")), replace=bool(fields.one("replace"))
    )
    return await _clients(view, name, token)


async def kick(view: View) -> Response:
    """Close a connection of a client."""
    fields = await view.form()
    number = fields.one("connection")
    if not (number.isascii() and number.isdigit() and len(number) <= LIMIT_DIGITS):
        raise InvalidRequest("this is no connection")
    await view.desk.client.kick(check_client_id(fields.one("client_id")), int(number))
    return view.go("/console/clients", "kicked")


async def purge(view: View) -> Response:
    """Move what waits in a queue to the dead letters."""
    await view.desk.client.purge((await view.form()).one("queue"))
    return view.go("/console/dead", "purged")


async def confirm_clock(view: View) -> Response:
    """Tell HQ that its clock is right."""
    await view.form()
    await view.desk.client.confirm_clock()
    return view.go("/console/hq", "confirmed")


async def limit(view: View) -> Response:
    """Limit what a client may have at HQ; without a number, as HQ's settings say."""
    fields = await view.form()
    what, most = fields.one("what"), fields.one("most").strip()
    if what not in LIMITED:
        raise InvalidRequest("this cannot be limited")
    if most and not (most.isascii() and most.isdigit() and len(most) <= LIMIT_DIGITS):
        raise InvalidRequest("a limit is a whole number", remedy="type digits alone, or nothing")
    await view.desk.client.limit(
        check_client_id(fields.one("client_id")), what, int(most) if most else None
    )
    return view.go("/console/clients", "limited")


async def hq(view: View) -> Response:
    """Return what HQ is: its addresses, its certificates, its revocation lists, its clock."""
    client = view.desk.client
    clock = await view.desk.listed("clock")
    return await view.page(
        "hq.html",
        welcome=client.hq,
        addresses=[one.strip() for one in client.home.config.address.split(",")],
        certificates=await view.desk.listed("certificates"),
        clock=clock[0] if clock else None,
    )


async def approve(view: View) -> Response:
    """Approve or reject a pending enrolment."""
    fields = await view.form()
    accept = fields.one("accept") == "yes"
    await view.desk.client.approve(check_client_id(fields.one("client_id")), accept)
    return view.go("/console/clients", "approved" if accept else "rejected")


async def revoke(view: View) -> Response:
    """Revoke a client."""
    fields = await view.form()
    await view.desk.client.revoke(
        check_client_id(fields.one("client_id")), fields.one("reason")[:200]
    )
    return view.go("/console/clients", "revoked")


async def dead(view: View) -> Response:
    """Return the dead letters, newest first."""
    nothing: list[dict[str, Any]] = []
    rows = await view.desk.at_hq(view.desk.client.dead_letters, nothing)
    newest = sorted(rows, key=lambda row: -int(row["dead_at"]))
    return await view.page("dead.html", rows=newest[:MOST_DEAD], count=len(newest))


async def log(view: View) -> Response:
    """Return the state of HQ's signed log, its witnesses and its latest acts, newest first."""
    nothing: list[LogLine] = []
    client = view.desk.client
    rows = await view.desk.at_hq(lambda: view.helpers.log(client, LOG_ENTRIES), nothing)
    state = await view.desk.at_hq(lambda: log_state(client), None)
    return await view.page("log.html", rows=rows, state=state)


async def settle(view: View) -> Response:
    """Redrive or discard the chosen dead letters."""
    fields = await view.form()
    drop = fields.one("act") == "discard"
    chosen: dict[str, list[int]] = {}
    for text in fields.all("letter"):
        queue, _, seq = text.rpartition("/")
        if not queue or not seq.isdigit():
            raise InvalidRequest("this is no dead letter")
        chosen.setdefault(queue, []).append(int(seq))
    if not chosen:
        raise InvalidRequest("nothing is chosen", remedy="mark the dead letters first")
    for queue, seqs in chosen.items():
        await view.desk.client.settle_dead(queue, sorted(seqs), drop=drop)
    return view.go("/console/dead", "discarded" if drop else "redriven")


def drawn(
    exchanges: Sequence[dict[str, Any]],
    queues: Sequence[dict[str, Any]],
    bindings: Sequence[dict[str, Any]],
) -> Picture:
    """Return the picture of the routes; mailboxes, which everybody reaches by name, are left out
    unless something is bound to them.
    """
    bound = {str(row["queue"]) for row in bindings}
    shown = [
        row for row in queues if not str(row["name"]).startswith("box.") or row["name"] in bound
    ]
    left_out = max(0, len(shown) - MOST_QUEUES)
    shown = shown[:MOST_QUEUES]
    columns = [
        [(str(row["name"]), str(row.get("type", ""))) for row in exchanges],
        [(str(row["name"]), str(row["waiting"])) for row in shown],
        [(name, "") for name in sorted({name for row in shown for name in _readers(row)})],
    ]
    places: list[dict[str, int]] = []
    boxes: list[Box] = []
    height = _TOP + max((len(column) for column in columns), default=1) * _ROW
    for x, kind, column in zip(_COLUMNS, ("exchange", "queue", "reader"), columns, strict=True):
        top = _TOP + (height - _TOP - len(column) * _ROW) // 2
        places.append({name: top + at * _ROW for at, (name, _) in enumerate(column)})
        boxes += [Box(x, places[-1][name], kind, name, note) for name, note in column]
    keys: dict[tuple[str, str], list[str]] = {}
    for row in bindings:
        keys.setdefault((str(row["exchange"]), str(row["queue"])), []).append(
            str(row["routing_key"])
        )
    arrows = [
        _arrow(0, places[0][exchange], places[1][queue], label_of(found))
        for (exchange, queue), found in keys.items()
        if exchange in places[0] and queue in places[1]
    ]
    arrows += [
        _arrow(1, places[1][str(row["name"])], places[2][reader], "")
        for row in shown
        for reader in _readers(row)
    ]
    return Picture(_WIDTH, height + 10, boxes, arrows, _BOX, left_out)


def _readers(queue: dict[str, Any]) -> list[str]:
    """Return who reads a queue: its owner, and those it names."""
    return sorted({str(name) for name in (queue.get("owner"), *queue["readers"]) if name})


def label_of(keys: Sequence[str]) -> str:
    """Return what stands on an arrow: the first routing key, and the number of the others."""
    more = f" +{len(keys) - 1}" if len(keys) > 1 else ""
    return f"{keys[0][:_LABEL]}{'…' if len(keys[0]) > _LABEL else ''}{more}"


def _arrow(column: int, y0: int, y1: int, label: str) -> Arrow:
    x0, x1 = _COLUMNS[column] + _BOX, _COLUMNS[column + 1]
    y0, y1, bend = y0 + 15, y1 + 15, (x1 - x0) // 2
    path = f"M{x0} {y0} C{x0 + bend} {y0} {x1 - bend} {y1} {x1 - 6} {y1}"
    return Arrow(path, label, x1 - 10, y1 - 5)

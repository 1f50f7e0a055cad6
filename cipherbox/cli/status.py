"""`status`: the state of a message, or of this client and HQ."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import click

from cipherbox.cli.exits import Exit
from cipherbox.cli.home import with_client
from cipherbox.cli.options import CLIENT_ID, json_option
from cipherbox.cli.running import run
from cipherbox.errors import NetworkError

if TYPE_CHECKING:
    from cipherbox.client.client import Client
    from cipherbox.wire.frames import StatusReport

Rows = dict[str, list[dict[str, Any]]]
STATES = ("waiting", "delivered, not yet acknowledged", "acknowledged", "dead letter")


class MessageId(click.ParamType[uuid.UUID]):
    """A message id, as `send` prints it."""

    name = "message_id"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> uuid.UUID:
        try:
            return uuid.UUID(str(value))
        except ValueError:
            self.fail(
                f"{value!r} is no message id; it looks like 0199f0a2-7c31-7d05-9c4e-1b2a00000000",
                param,
                ctx,
            )


@click.command()
@click.argument("message_id", type=MessageId(), required=False)
@click.option("--sender", type=CLIENT_ID, help="Its sender. [default: you]")
@json_option
@click.pass_context
def status(
    ctx: click.Context, message_id: uuid.UUID | None, sender: str | None, as_json: bool
) -> int:
    """Show where MESSAGE_ID is; without it, the state of this client and HQ.

    Without HQ, it shows what this machine knows.
    """
    if message_id is None:
        return _overview(ctx, as_json)
    if sender is None:
        shown = _timeline(ctx, message_id, as_json)
        if shown is not None:
            return shown
    return with_client(ctx, lambda client: _message(client, message_id, sender or "", as_json))


def _timeline(ctx: click.Context, message_id: uuid.UUID, as_json: bool) -> int | None:
    """Print the timeline.  Return the exit code, or None if the message was not sent from this
    home.
    """
    from cipherbox.cli.home import load_here
    from cipherbox.cli.output import explain, print_json, safe, say, time_text, warn
    from cipherbox.client.client import open_client
    from cipherbox.client.outbox.tracking import Timeline
    from cipherbox.errors import Forbidden, NotFound

    home = load_here(ctx)

    async def main() -> Timeline | None:
        async with open_client(home, keep_trying=True, renew=False) as client:
            try:
                if await client.sent(message_id) is None:
                    return None
                await client.receipts.settle()
                return await client.timeline(message_id)
            except (NotFound, Forbidden):
                return None

    found = run(main)
    if found is None:
        return None
    if as_json:
        print_json(
            {
                "message_id": str(found.message_id),
                "file": found.file,
                "recipients": list(found.recipients),
                "not_signed": list(found.open_for),
                "hq_asked": found.report is not None,
                "timeline": [
                    {"at": s.at, "what": s.what, "client_id": s.client_id, "text": s.text}
                    for s in found.steps
                ],
                **(_at_hq(found.report) if found.report is not None else {}),
            }
        )
        return Exit.OK
    what = f"File {safe(found.file)}, message" if found.file else "Message"
    say(f"{what} {found.message_id} to {', '.join(map(safe, found.recipients))}")
    for step in found.steps:
        explain(f"  {time_text(step.at):<19}  ", safe(step.text))
    if found.open_for:
        explain(f"  {'':<19}  ", f"no receipt yet from {', '.join(map(safe, found.open_for))}")
    if found.report is None:
        warn("HQ cannot be reached; this is what this machine knows.")
    return Exit.OK


async def _message(client: Client, message_id: uuid.UUID, sender: str, as_json: bool) -> int:
    from cipherbox.cli.output import fail, print_json, safe, say, table, time_text

    report = await client.status(message_id, sender=sender)
    if as_json:
        print_json({"message_id": str(message_id), **_at_hq(report)})
        return Exit.OK if report.found else Exit.REFUSED
    if not report.found:
        fail(
            f"HQ has no record of message {message_id} for you.",
            "If you did not send it, specify its sender: --sender ID",
        )
        return Exit.REFUSED
    say(
        f"Message {message_id} from {safe(report.sender_id)}, accepted by HQ at "
        f"{time_text(report.accepted_at)}."
    )
    table(
        ("queue", "client", "state", "deliveries", "delivered", "acknowledged", "reason"),
        [
            (
                safe(trace.queue),
                safe(trace.client_id) or "-",
                STATES[trace.state],
                trace.attempts,
                time_text(trace.delivered_at),
                time_text(trace.acknowledged_at),
                safe(trace.reason) or "-",
            )
            for trace in report.traces
        ],
        empty="it went to no queue",
    )
    return Exit.OK


def _at_hq(report: StatusReport) -> dict[str, object]:
    return {
        "found": report.found,
        "sender_id": report.sender_id,
        "accepted_at": report.accepted_at,
        "traces": [
            {
                "queue": trace.queue,
                "client_id": trace.client_id,
                "state": STATES[trace.state].split(",")[0],
                "attempts": trace.attempts,
                "delivered_at": trace.delivered_at,
                "acknowledged_at": trace.acknowledged_at,
                "reason": trace.reason,
            }
            for trace in report.traces
        ],
    }


def _overview(ctx: click.Context, as_json: bool) -> int:
    """Print the local state, and HQ's if it can be reached.  Return the exit code."""
    from cipherbox.cli.exits import exit_code
    from cipherbox.cli.home import load_here
    from cipherbox.cli.output import fail
    from cipherbox.cli.top import standbys
    from cipherbox.client.client import open_client

    home = load_here(ctx)

    async def main() -> NetworkError | None:
        async with open_client(home, keep_trying=True, renew=False) as client:
            failure: NetworkError | None = None
            hq: Rows = {"queues": [], "alerts": [], "standbys": []}
            try:
                await client.connection.ready(client.connection.tries)
                await client.ping()
                hq["queues"] = await client.list("queues")
                if client.role == "admin":
                    hq["alerts"] = await client.list("alerts")
                    hq["standbys"] = standbys(await client.list("metrics"))
            except NetworkError as error:
                failure = error
            await _show(client, hq, failure, as_json)
            return failure

    failure = run(main)
    if failure is None:
        return Exit.OK
    fail(str(failure))
    return exit_code(failure)


async def _show(client: Client, hq: Rows, failure: NetworkError | None, as_json: bool) -> None:
    """Print it; HQ's alerts and standbys are for an admin."""
    import attrs

    from cipherbox.cli.output import print_json, record, rows_table, safe, say, time_text, warn
    from cipherbox.cli.top import standby_text
    from cipherbox.client.outbox.folder_files import FolderFiles
    from cipherbox.client.overview import overview

    sender = client.outbox_sender
    files: Any = await sender.store(FolderFiles(sender.outbox).refused) if sender else []
    here = await overview(client) if sender is not None else None
    if as_json:
        print_json(
            {
                "client_id": client.client_id,
                "role": client.role,
                "connected": failure is None,
                **hq,
                "clock_ahead_ms": client.hq_clock.wrong_by_ms,
                "refused": [{"path": list(one.path), "reason": one.reason} for one in files],
                "here": attrs.asdict(here) if here is not None else None,
            }
        )
        return
    reached = (
        "is connected to HQ."
        if failure is None
        else "cannot reach HQ; this is what this machine knows."
    )
    say(f"{client.client_id} ({client.role}) {reached}")
    if here is not None:
        record(
            {
                "sent, waits here": f"{here.waiting} envelope(s), {here.files_sending} file(s)",
                "sent, at HQ": f"{here.at_hq} not opened by all",
                "sent, opened": here.opened,
                "sent, refused": here.refused,
                "received": f"{here.received} envelope(s), {here.files_coming} file(s) coming",
                "received, refused": here.not_taken,
                "for handlers": f"{here.for_handlers} waiting, {here.parked} parked",
                "last contact": time_text(here.last_contact),
            }
        )
    if failure is None:
        rows_table(hq["queues"], empty="no queue")
    for standby in hq["standbys"]:
        say(f"HQ: {safe(standby_text(standby))}")
    if warning := client.hq_clock.warning:
        warn(warning)
    for alert in hq["alerts"]:
        warn(f"HQ: {safe(str(alert['text']))}")
    for file in files:
        warn(f"Refused: {safe('/'.join(file.path))}: {safe(file.reason)}")

"""`outbox`: the sealed messages and files of this machine, and their state."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from cipherbox import clock
from cipherbox.cli.exits import Exit
from cipherbox.cli.home import command_here, with_client_offline
from cipherbox.cli.options import CLIENT_ID, DURATION, json_option, sure
from cipherbox.cli.running import run_until_stopped
from cipherbox.cli.status import MessageId
from cipherbox.errors import NotFound

if TYPE_CHECKING:
    from cipherbox.client.client import Client
    from cipherbox.client.outbox.folder_files import Claim
    from cipherbox.client.outbox.outbox import Outbox
    from cipherbox.client.outbox.rows import Row
    from cipherbox.client.outbox.transfers import Transfer
    from cipherbox.errors import CipherBoxError

_MOST = 100_000  # rows examined for a filter
FILE_STATES = ("sending", "at HQ", "stopped")
T = TypeVar("T")


@click.group()
def outbox() -> None:
    """List, retry, cancel and reseal what this machine has sealed."""


class Listed(NamedTuple):
    """The contents of `outbox list`."""

    rows: list[Row]
    files: list[Transfer]
    refused: dict[bytes, str]  # envelope id -> recipients that refused it, with reasons
    folder: list[Claim]  # files of the agent's folder that a recipient refused
    file_states: dict[bytes, str]  # transfer id -> state of the file


class Filter(NamedTuple):
    """The rows that `outbox list` was asked for."""

    everything: bool
    last: int
    to: str | None
    since_ms: int

    def matches(self, recipients: Sequence[str], at: int) -> bool:
        return at >= self.since_ms and (self.to is None or self.to in recipients)


@contextmanager
def _open_outbox(ctx: click.Context) -> Iterator[Outbox]:
    """Open this home's outbox to read it, without a client and without HQ."""
    from cipherbox.cli.home import load_here
    from cipherbox.client.home import keyless
    from cipherbox.client.outbox.outbox import Outbox

    home = load_here(ctx)
    if home.identity is None:
        raise keyless()
    with closing(Outbox(home.path, home.config.keep_until, hides=home.hides)) as kept:
        yield kept


def _listed(kept: Outbox, wanted: Filter) -> Listed:
    from cipherbox.client.outbox.folder_files import FolderFiles
    from cipherbox.client.outbox.rows import PARKED, WAITING
    from cipherbox.client.outbox.transfers import SENT, Transfers

    everything, last = wanted.everything, wanted.last
    # the filter is applied below
    most = last if wanted.to is None and not wanted.since_ms else _MOST
    found = kept.newest(most) if everything else kept.rows([WAITING, PARKED], most=most)
    found = [row for row in found if wanted.matches(row.recipients, row.sealed_at)][-last:]
    refusing = kept.refused(most)
    refusing = [row for row in refusing if wanted.matches(row.recipients, row.sealed_at)][-last:]
    files = Transfers(kept).all(most)
    files = [one for one in files if wanted.matches(one.recipients, one.made_at)][-last:]
    folder = FolderFiles(kept).refused(most)
    folder = [one for one in folder if wanted.matches(one.recipients, one.changed_at)][-last:]
    refused = {row.envelope_id: _refusals(kept.refusals(row.number)) for row in refusing}
    if not everything:
        found = sorted([*found, *refusing], key=lambda row: row.number)
    files = [one for one in files if everything or one.state != SENT]
    states = {}
    for one in files:
        manifest = kept.find(one.manifest) if one.manifest and one.state == SENT else None
        states[one.id] = FILE_STATES[one.state] if manifest is None else _state(manifest, refused)
    return Listed(found, files, refused, folder, states)


def _refusals(outcomes: Mapping[str, int]) -> str:
    """Return the recipients that refused an envelope, with reasons."""
    from cipherbox.envelope.outcomes import outcome_words

    return "; ".join(f"{name}: {outcome_words(outcome)}" for name, outcome in outcomes.items())


@outbox.command("list")
@click.option("--all", "everything", is_flag=True, help="Include what HQ has confirmed.")
@click.option(
    "--last",
    type=click.IntRange(1, 100_000),
    default=100,
    show_default=True,
    help="At most this many.",
)
@click.option("--to", type=CLIENT_ID, help="Only what goes to this client.")
@click.option(
    "--since", type=DURATION, help="Only what was sealed within this time, for example 7d."
)
@json_option
@click.pass_context
def outbox_list(
    ctx: click.Context,
    everything: bool,
    last: int,
    to: str | None,
    since: float | None,
    as_json: bool,
) -> None:
    """List what is not confirmed yet or was refused; with --all everything, latest last."""
    from cipherbox.cli.output import print_json

    since_ms = int((clock.now_s() - since) * 1000) if since else 0
    wanted = Filter(everything, last, to, since_ms)
    with _open_outbox(ctx) as kept:
        listed = _listed(kept, wanted)
    if as_json:
        of_files = [_file_record(one, listed.file_states[one.id]) for one in listed.files]
        of_rows = (_record(row, listed.refused) for row in listed.rows)
        print_json([*of_rows, *of_files, *map(_refused_record, listed.folder)])
        return
    _show_messages(listed)
    if listed.files:
        _show_files(listed)
    if listed.folder:
        _show_refused_files(listed)
    _advise(ctx, listed)


def _show_messages(listed: Listed) -> None:
    from cipherbox.cli.output import safe, size_text, table, time_text

    table(
        ("message", "more", "to", "sealed", "size", "state", "reason"),
        [
            (
                _first(row),
                row.messages - 1,
                safe(", ".join(row.recipients)),
                time_text(row.sealed_at),
                size_text(row.size),
                _state(row, listed.refused),
                safe(row.reason or listed.refused.get(row.envelope_id, "")) or "-",
            )
            for row in listed.rows
        ],
        empty="nothing is waiting, nothing was refused",
        drop=("more", "size", "sealed"),
    )


def _show_files(listed: Listed) -> None:
    from cipherbox.cli.output import safe, size_text, table

    table(
        ("file", "to", "size", "at HQ", "state", "reason"),
        [
            (
                safe(one.file),
                safe(", ".join(one.recipients)),
                size_text(one.size),
                size_text(one.done_bytes),
                listed.file_states[one.id],
                safe(one.reason) or "-",
            )
            for one in listed.files
        ],
        drop=("size", "at HQ"),
    )


def _show_refused_files(listed: Listed) -> None:
    from cipherbox.cli.output import safe, table, time_text

    table(
        ("refused file", "to", "when", "reason", "it is in"),
        [
            (
                safe("/".join(one.path)),
                safe(", ".join(one.recipients)),
                time_text(one.changed_at),
                safe(one.reason),
                safe(one.place) or "-",
            )
            for one in listed.folder
        ],
        drop=("when",),
    )


def _advise(ctx: click.Context, listed: Listed) -> None:
    from cipherbox.cli.output import next_step
    from cipherbox.client.outbox.rows import PARKED, WAITING

    if any(row.state == WAITING for row in listed.rows) or any(
        one.state == 0 for one in listed.files
    ):
        next_step(f"send what is waiting: {command_here(ctx)} outbox send")
    parked = next((row for row in listed.rows if row.state == PARKED), None)
    if parked is not None:
        next_step(f"retry one: {command_here(ctx)} outbox retry {_first(parked)}")


@outbox.command("send")
@click.pass_context
def outbox_send(ctx: click.Context) -> int:
    """Send everything that is waiting, including files, then exit. `cipherbox agent` does so
    continuously.
    """
    from cipherbox.cli.home import load_here
    from cipherbox.cli.output import fail, print_event, say
    from cipherbox.cli.send_files import progress
    from cipherbox.client.client import open_client
    from cipherbox.client.publishing.files import send_unfinished
    from cipherbox.errors import Queued

    home = load_here(ctx, renews=True)

    async def main() -> list[CipherBoxError]:
        import trio

        async with open_client(home, on_event=print_event, keep_trying=True) as client:
            sender = client.outbox()
            sender.look()

            async def while_reached(waits: Callable[[], Awaitable[object]]) -> None:
                while await waits():
                    if client.connection.failure is not None:
                        raise client.connection.failure
                    if client.connection.away:
                        raise Queued(
                            f"HQ cannot be reached ({client.connection.trouble}); "
                            "waiting messages are kept"
                        )
                    await trio.sleep(0.1)

            async def to_compare() -> bool:
                return not sender.compared.is_set() and bool(
                    await sender.store(sender.outbox.unsigned, 1)
                )

            await while_reached(to_compare)
            with progress() as on_progress:
                stopped = await send_unfinished(client, on_progress=on_progress)
            await while_reached(lambda: sender.store(sender.outbox.waiting, 0, 1 << 62, 1))
            return stopped

    stopped = run_until_stopped(main)
    for error in stopped:
        fail(str(error))
    if not stopped:
        say("Nothing is waiting any more.")
    return Exit.FILE if stopped else Exit.OK


@outbox.command("show")
@click.argument("message_id", type=MessageId())
@json_option
@click.pass_context
def outbox_show(ctx: click.Context, message_id: uuid.UUID, as_json: bool) -> None:
    """Show what is stored about MESSAGE_ID."""
    from cipherbox.cli.output import print_json, record

    async def work(client: Client) -> dict[str, object]:
        row, sender = await _row(client, message_id), client.outbox()
        outcomes: Any = await sender.store(sender.outbox.refusals, row.number)
        return _record(row, {row.envelope_id: _refusals(outcomes)} if outcomes else {})

    (print_json if as_json else record)(with_client_offline(ctx, work))


@outbox.command("retry")
@click.argument("message_id", type=MessageId())
@click.option("--seal-again", is_flag=True, help="Reseal it for the current keys and route.")
@click.pass_context
def outbox_retry(ctx: click.Context, message_id: uuid.UUID, seal_again: bool) -> int:
    """Resend MESSAGE_ID: the same bytes, or with --seal-again its next generation.

    Idempotent: HQ stores it once, and its recipients open it once.
    """
    from cipherbox.cli.output import say
    from cipherbox.client.outbox.rows import WAITING

    async def work(client: Client) -> bool:
        row = await _row(client, message_id)
        sender = client.outbox()
        if seal_again:
            return await sender.seal_again(row.envelope_id) and await _confirmed(client, row)
        if not await sender.store(sender.outbox.again, row.envelope_id):
            return False
        sender.look()
        return await _confirmed(client, row)

    async def _confirmed(client: Client, row: Row) -> bool:
        import trio

        with trio.move_on_after(client.connection.tries * client.connection.timeout_s):
            while not client.connection.away:
                await trio.sleep(0.1)
                now = await _row(client, message_id)
                if now.state != WAITING:
                    break
        return True

    if not with_client_offline(ctx, work):
        raise NotFound(
            f"the bytes of message {message_id} are no longer stored: its recipients have signed "
            "receipts"
        )
    row = with_client_offline(ctx, lambda client: _row(client, message_id))
    say(f"{message_id}: {_state(row)}{f', {row.reason}' if row.reason else ''}")
    return Exit.OK if row.state == 1 else Exit.QUEUED if row.state == WAITING else Exit.REFUSED


@outbox.command("reseal")
@click.option("--to", "client_id", type=CLIENT_ID, help="Only what CLIENT_ID has not opened.")
@click.pass_context
def outbox_reseal(ctx: click.Context, client_id: str | None) -> int:
    """Reseal, for the current keys, everything that is not opened yet.

    Use it after a recipient lost its keys and you compared its new ones, or after a revocation: a
    revoked recipient is left out. A recipient that has opened a message does not get it twice.
    """
    from cipherbox.cli.output import fail, say

    async def work(client: Client) -> tuple[int, list[CipherBoxError]]:
        await client.connection.ready(client.connection.tries)
        await client.receipts.settle()  # messages opened meanwhile are not resealed
        found = await client.seal_again(client_id)
        await _settled(client)
        return found

    done, errors = with_client_offline(ctx, work)
    for text in dict.fromkeys(str(error) for error in errors):
        fail(text)
    say(f"{done} envelope(s) were resealed." if done else "Nothing was resealed.")
    return Exit.REFUSED if errors else Exit.OK


@outbox.command("cancel")
@click.argument("message_id", type=MessageId())
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def outbox_cancel(ctx: click.Context, message_id: uuid.UUID, yes: bool) -> None:
    """Cancel MESSAGE_ID, which HQ has not confirmed. If HQ received it nevertheless, it is
    delivered.
    """
    from cipherbox.cli.output import say
    from cipherbox.client.outbox.rows import CANCELLED, CONFIRMED, Refused

    row = with_client_offline(ctx, lambda client: _row(client, message_id))
    if row.state == CONFIRMED:
        raise NotFound(f"HQ has confirmed message {message_id}; it can no longer be cancelled here")
    sure(f"Cancel {row.messages} message(s) to {', '.join(row.recipients)}?", yes)

    async def work(client: Client) -> None:
        sender = client.outbox()
        out = Refused(row.envelope_id, row.generation, 0, "cancelled", CANCELLED)
        await sender.store(lambda: sender.outbox.write(refused=[out]))

    with_client_offline(ctx, work)
    say(f"{message_id} will not be sent.")


async def _settled(client: Client) -> None:
    """Wait until the outbox is empty, at most for the time of one request with its retries."""
    import trio

    sender = client.outbox()
    with trio.move_on_after(client.connection.tries * client.connection.timeout_s):
        while await sender.store(sender.outbox.waiting, 0, 1 << 62, 1):
            if client.connection.away:
                break
            await trio.sleep(0.1)


async def _row(client: Client, message_id: uuid.UUID) -> Row:
    row = await client.sent(message_id)
    if row is None:
        raise NotFound(
            f"message {message_id} was not sent from this home, or its history was dropped"
        )
    return row


def _file_record(one: Transfer, state: str) -> dict[str, object]:
    return {
        "file": one.file,
        "path": list(one.path),
        "recipients": list(one.recipients),
        "bytes": one.size,
        "at_hq": one.done_bytes,
        "state": state,
        "reason": one.reason,
        "made_at": one.made_at,
    }


def _first(row: Row) -> str:
    return str(uuid.UUID(bytes=row.envelope_id))


def _state(row: Row, refused: Mapping[bytes, str] = MappingProxyType({})) -> str:
    from cipherbox.client.outbox.rows import CONFIRMED, STATES

    if row.envelope_id in refused:
        return "refused by its recipient"
    if row.state == CONFIRMED:
        return "opened by all" if row.owed <= 0 else f"confirmed, {row.owed} not signed"
    return STATES[row.state]


def _refused_record(one: Claim) -> dict[str, object]:
    return {
        "file": one.file,
        "path": list(one.path),
        "recipients": list(one.recipients),
        "bytes": one.size,
        "state": "refused",
        "reason": one.reason,
        "place": one.place,
        "made_at": one.taken_at,
    }


def _record(row: Row, refused: Mapping[bytes, str] = MappingProxyType({})) -> dict[str, object]:
    return {
        "message_id": _first(row),
        "messages": row.messages,
        "recipients": list(row.recipients),
        "exchange": row.exchange,
        "routing_key": row.routing_key,
        "generation": row.generation,
        "bytes": row.size,
        "sealed_at": row.sealed_at,
        "accepted_at": row.accepted_at,
        "state": _state(row, refused),
        "reason": row.reason or refused.get(row.envelope_id, ""),
        "kept": row.content_key is not None,
    }

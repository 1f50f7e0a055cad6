"""`demo`: the labs scenario with real processes over mutual TLS, and a check of every guarantee.

Four labs, three research centers and HQ, each a process of its own running this same program in a
home of its own.  The labs send before the centers connect, so that everything is searched for
plaintext while it waits at HQ, and once more at the end.  Every difference from the expected
outcome is listed, and the exit code is then 1.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from cipherbox.cli.demo.items import BINDINGS, EXCHANGE, LABS, QUEUES, Item, make_items
from cipherbox.cli.demo.report import HQ, Delivery, Report, show, show_json, show_scenes
from cipherbox.cli.exits import Exit
from cipherbox.cli.options import json_option
from cipherbox.cli.running import run_until_stopped
from cipherbox.cli.scratch import Scratch, database_option, scratch

if TYPE_CHECKING:
    import trio

    from cipherbox.cli.demo.blind import Plaintexts, Searched
    from cipherbox.cli.demo.report import Scene
    from cipherbox.harness.stage import Stage

SEED = 20251008
START_TRIES = 3
RECEIPT_TRIES = 5
DELIVERIES = """
    SELECT d.message_id, d.client_id, m.sent_time, d.delivered_time, d.acknowledged_time
    FROM message_deliveries d JOIN message_metadata m USING (message_id) WHERE m.routing_key <>
    '.sys'
"""  # receipts travel there


@click.command()
@click.option("--keep", is_flag=True, help="Keep the directory for inspection.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Work in this new directory instead of a temporary one; it is kept.",
)
@click.option(
    "--hostile-hq",
    "hostile_hq",
    is_flag=True,
    help="Run a dishonest HQ, and show what detects it.",
)
@database_option
@json_option
def demo(keep: bool, directory: Path | None, hostile_hq: bool, url: str, as_json: bool) -> int:
    """Run the labs scenario on this machine, in about ten seconds, and check every guarantee.

    With --hostile-hq, HQ drops a message, swaps a key and rolls its log back, and the commands
    detect it.
    """
    if hostile_hq and url:
        raise click.UsageError("--hostile-hq uses the embedded database; omit --database.")
    from cipherbox.harness.workplace import kept_workplace, workplace

    with ExitStack() as stack:
        if directory is None and not keep:
            directory = stack.enter_context(workplace("cipherbox-demo-"))
        else:
            keep = True
            if directory is None:
                directory = Path(tempfile.mkdtemp(prefix="cipherbox-demo-"))
            else:
                directory.mkdir(mode=0o700, parents=True)
            stack.enter_context(kept_workplace(directory))
        if hostile_hq:
            scenes = run_until_stopped(play_hostile, directory.absolute(), not as_json)
            show_scenes(scenes, as_json, directory if keep else None)
            return Exit.REFUSED if any(scene.missed for scene in scenes) else Exit.OK
        report = run_until_stopped(
            play, directory.absolute(), not as_json, stack.enter_context(scratch(url))
        )
        if as_json:
            show_json(report)
        else:
            show(report, keep)
        return Exit.REFUSED if report.differences else Exit.OK
    return Exit.BUG


async def play(directory: Path, talk: bool, database: Scratch) -> Report:
    """Run the whole scenario below ``directory``, which is empty, and return the report."""
    from cipherbox.cli.demo.blind import Plaintexts
    from cipherbox.harness.stage import Stage

    def tell(text: str) -> None:
        if talk:
            click.echo(f"  {time.monotonic() - began:5.1f} s  {text}")

    began = time.monotonic()
    stage, report, items = Stage(directory), Report(directory), make_items(SEED)
    hq, admin = directory / HQ, directory / "admin"
    server = await _start_hq(stage, hq, admin, database)
    try:
        tell(f"{HQ} serves; its directory is {hq}")
        await stage.enrol(admin, {name: directory / name for name in (*LABS, *QUEUES)})
        tell(f"enrolled by token: {', '.join([*LABS, *QUEUES])}")
        await _topology(admin)
        tell(f"exchange {EXCHANGE}: {', '.join(f'{key} -> {queue}' for queue, key in BINDINGS)}")
        sent = await _send(stage, directory, items)
        tell("four labs sealed and sent; HQ holds everything now")
        plaintexts = Plaintexts((item.file, item.content) for item in items)
        waiting = _search(hq, database, plaintexts)
        tell(f"searched {waiting.size / 1e6:.1f} MB at {HQ} for plaintext")
        await _receive(stage, directory, items)
        tell("three centers received, opened, acknowledged and signed for it")
        receipts = await _receipts(stage, directory, sent)
        tell(f"the labs verified {sum(map(len, receipts.values()))} signed receipts")
        await _compare_depth(admin, report)
    finally:
        code = await stage.stop(server)
    if code != Exit.OK:
        report.differences.append(f"{HQ} ended with {code} when it was asked to stop")
    compare(report, directory, items, sent)
    _read_times(report, hq / "cipherbox.sqlite3", database)
    _compare_receipts(report, receipts)
    at_end = _search(hq, database, plaintexts)
    tell(f"searched {at_end.size / 1e6:.1f} MB at {HQ} again")
    report.searched_files = waiting.files + at_end.files
    report.searched_bytes = waiting.size + at_end.size
    report.differences += [f"while it waited: {text}" for text in waiting.found]
    report.differences += [f"at the end: {text}" for text in at_end.found]
    report.seconds = time.monotonic() - began
    return report


async def play_hostile(directory: Path, talk: bool) -> list[Scene]:
    """Run the scenes of a dishonest HQ below ``directory``, which is empty, and return them."""
    from cipherbox.cli.demo.hostile import CLIENTS, hostile
    from cipherbox.harness.stage import Stage

    def tell(text: str) -> None:
        if talk:
            click.echo(f"  {time.monotonic() - began:5.1f} s  {text}")

    began = time.monotonic()
    stage, admin = Stage(directory), directory / "admin"
    server = await _start_hq(stage, directory / HQ, admin, Scratch(""))
    try:
        await stage.enrol(admin, {name: directory / name for name in CLIENTS})
        tell(f"{HQ} serves; enrolled by token: {', '.join(CLIENTS)}")
    except BaseException:
        await stage.stop(server)
        raise
    return await hostile(stage, directory, server, tell)


# -- the acts --------------------------------------------------------------------------------------


async def _start_hq(stage: Stage, hq: Path, admin: Path, database: Scratch) -> trio.Process:
    from cipherbox.config.settings import LoggingSettings, load_server_config, write_server_config
    from cipherbox.harness.failure import StageFailed
    from cipherbox.harness.stage import free_port

    for attempt in range(1, START_TRIES + 1):
        address = f"127.0.0.1:{free_port()}"
        where = ("--address", address, "--listen", address, *database.arguments)
        await stage.run(HQ, "--home", str(admin), "init", str(hq), *where)
        # Everything HQ writes, also at DEBUG, lies in its directory and is searched.
        config = load_server_config(hq)
        write_server_config(
            attrs.evolve(config, logging=LoggingSettings(level="DEBUG", directory=hq / "logs"))
        )
        try:
            process, _ = await stage.start(HQ, "serve", str(hq))
        except StageFailed:
            if attempt == START_TRIES:
                raise
            shutil.rmtree(hq)  # another process took the port meanwhile
            shutil.rmtree(admin)
            if database.url:
                database.drop()
        else:
            return process
    raise AssertionError("the loop returns or raises")


async def _topology(admin: Path) -> None:
    from cipherbox.client.client import open_client

    async with open_client(admin) as client:
        await client.declare_exchange(EXCHANGE, "topic")
        for center, queue in QUEUES.items():
            await client.declare_queue(queue, owner=center)
        for queue, key in BINDINGS:
            await client.bind(EXCHANGE, queue, key)
        for lab in LABS:
            await client.grant(lab, "publish", EXCHANGE)


async def _send(stage: Stage, directory: Path, items: list[Item]) -> dict[str, str]:
    """Let each lab allow its recipients and send its item.  Return message ids by item name."""
    import orjson
    import trio

    sent: dict[str, str] = {}

    async def lab(item: Item) -> None:
        home = str(directory / item.sender)
        file = directory / item.sender / item.file
        file.write_bytes(item.content)
        await stage.run(item.sender, "--home", home, "route", "allow", EXCHANGE, *item.recipients)
        arguments = [
            "send",
            "--exchange",
            EXCHANGE,
            "--key",
            item.key,
            "--file",
            str(file),
            "--json",
        ]
        answer = orjson.loads(await stage.run(item.sender, "--home", home, *arguments))
        sent[item.name] = answer["message_ids"][0]

    async with trio.open_nursery() as nursery:
        for item in items:
            nursery.start_soon(lab, item)
    return sent


async def _receive(stage: Stage, directory: Path, items: list[Item]) -> None:
    import trio

    async with trio.open_nursery() as nursery:
        for center, queue in QUEUES.items():
            count = str(sum(center in item.recipients for item in items))
            home = str(directory / center)
            arguments = (
                "--home",
                home,
                "receive",
                "--queue",
                queue,
                "--count",
                count,
                "--idle",
                "20",
            )
            nursery.start_soon(stage.run, center, *arguments)


async def _receipts(
    stage: Stage, directory: Path, sent: dict[str, str]
) -> dict[str, dict[str, int]]:
    """Return message id -> center -> time of its receipt, as each lab's own `status` shows it."""
    import orjson
    import trio

    found: dict[str, dict[str, int]] = {}

    async def ask(lab: str, message_id: str) -> None:
        for _ in range(RECEIPT_TRIES):  # the receipt may be a moment behind the acknowledgement
            shown = orjson.loads(
                await stage.run(lab, "--home", str(directory / lab), "status", message_id, "--json")
            )
            found[message_id] = {
                s["client_id"]: s["at"] for s in shown["timeline"] if s["what"] == "opened"
            }
            if not shown["not_signed"]:
                return

    async with trio.open_nursery() as nursery:
        for item, message_id in sent.items():
            nursery.start_soon(ask, item.partition("_")[0], message_id)
    return found


# -- the checks ------------------------------------------------------------------------------------


async def _compare_depth(admin: Path, report: Report) -> None:
    from cipherbox.client.client import open_client

    async with open_client(admin) as client:
        for row in await client.list("queues"):
            left = row["waiting"] + row["unacknowledged"]
            # receipts wait for the lab's next command
            if left and not row["name"].endswith(".sys"):
                report.differences.append(f"{left} envelopes are still in {row['name']}")


def compare(report: Report, directory: Path, items: list[Item], sent: dict[str, str]) -> None:
    """Compare every center's messages with the labs' items: each exactly once, and no others."""
    received = {center: _received(directory / center) for center in QUEUES}
    report.received_files = [
        directory / center / "data" / "received_messages.jsonl" for center in QUEUES
    ]
    for item in items:
        message_id = sent[item.name]
        digest = hashlib.sha256(item.content).hexdigest()
        for center in item.recipients:
            delivery = Delivery(
                item.name, message_id, item.sender, center, len(item.content), digest
            )
            report.deliveries.append(delivery)
            lines = [line for line in received[center] if line["message_id"] == message_id]
            if len(lines) != 1:
                report.differences.append(f"{center} has {item.name} {len(lines)} times")
                continue
            line = lines[0]
            received[center].remove(line)
            delivery.received_sha256 = hashlib.sha256(line["bytes"]).hexdigest()
            if delivery.received_sha256 != digest:
                report.differences.append(
                    f"{center}: {item.name} has other bytes than {item.sender} sent"
                )
            if line["sender_id"] != item.sender or not line["sent_timestamp"]:
                report.differences.append(
                    f"{center}: {item.name} names sender {line['sender_id']!r} or no time"
                )
    for center, surplus in received.items():
        report.differences += [
            f"{center} has message {line['message_id']}, which is not for it" for line in surplus
        ]


def _received(home: Path) -> list[dict[str, Any]]:
    """Return a center's received_messages.jsonl, each line with its content as `bytes`."""
    import orjson

    file = home / "data" / "received_messages.jsonl"
    if not file.exists():
        return []
    lines: list[dict[str, Any]] = [orjson.loads(line) for line in file.read_bytes().splitlines()]
    for line in lines:
        content = line["content"]
        line["bytes"] = (
            content.encode()
            if isinstance(content, str)
            else (file.parent / content["file"]).read_bytes()
        )
    return lines


def _search(hq: Path, database: Scratch, plaintexts: Plaintexts) -> Searched:
    """Search HQ's directory, and with PostgreSQL a dump of every table."""
    from cipherbox.cli.demo.blind import search

    if database.url:
        tables = hq / "tables"
        tables.mkdir(exist_ok=True)
        database.dump(tables)
    return search(hq, plaintexts)


def _read_times(report: Report, path: Path, database: Scratch) -> None:
    """Read when each item was sent, delivered and acknowledged, from HQ's views."""
    import sqlite3

    names = ("message_id", "client_id", "sent_time", "delivered_time", "acknowledged_time")
    if database.url:
        rows = [dict(zip(names, row, strict=True)) for row in database.rows(DELIVERIES)]
        for row in rows:
            row.update(
                {
                    name: row[name].isoformat(timespec="milliseconds")
                    for name in names[2:]
                    if row[name]
                }
            )
    else:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            rows = [dict(zip(names, row, strict=True)) for row in connection.execute(DELIVERIES)]
        finally:
            connection.close()
    if len(rows) != len(report.deliveries):
        report.differences.append(f"HQ counts {len(rows)} deliveries, not {len(report.deliveries)}")
    found = {(str(row["message_id"]), str(row["client_id"])): row for row in rows}
    for delivery in report.deliveries:
        row = found.get((delivery.message_id, delivery.recipient), {})
        for name in ("sent_time", "delivered_time", "acknowledged_time"):
            setattr(delivery, name, str(row.get(name) or ""))
            if not row.get(name):
                report.differences.append(
                    f"HQ has no {name} for {delivery.item} at {delivery.recipient}"
                )


def _compare_receipts(report: Report, receipts: dict[str, dict[str, int]]) -> None:
    """Check that every delivery has a receipt signed by its center."""
    from datetime import UTC, datetime

    for delivery in report.deliveries:
        at = receipts.get(delivery.message_id, {}).get(delivery.recipient)
        if at is None:
            report.differences.append(
                f"{delivery.recipient} has signed no receipt for {delivery.item}"
            )
        else:
            moment = datetime.fromtimestamp(at / 1000, UTC)
            delivery.opened_time = f"{moment:%Y-%m-%dT%H:%M:%S}.{at % 1000:03d}Z"

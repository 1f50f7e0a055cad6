"""Collect what senders, receivers and HQ saw into the report of a trial; page `reliability` has the
format.

Everything is read when the faults are over: HQ's log and dead letters from HQ, with an admin's
client, the rest from the disks, when the processes have ended.
"""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson

from cipherbox.cli.audit_lines import events
from cipherbox.cli.prove.cast import Cast
from cipherbox.cli.prove.worker import LOG, read_content, read_log
from cipherbox.client.client import Client, open_client
from cipherbox.client.log.audit import verify_log
from cipherbox.client.outbox.rows import STATES, Row
from cipherbox.client.outbox.transfers import Transfer, Transfers
from cipherbox.envelope.outcomes import outcome_code
from cipherbox.envelope.transparency_log import Group, decode_groups, decode_record

Json = dict[str, Any]
_ALL = 1 << 40
DELIVERIES = "SELECT message_id, queue_name, state FROM message_deliveries"
_TRANSFER_STATES = ("unfinished", "sent", "stopped")


async def hq_seen(cast: Cast) -> Json:
    """Return HQ's side, from the running HQ; add the deliveries when it has ended."""
    async with open_client(cast.directory / "admin", keep_trying=True) as admin:
        await admin.connection.ready()
        audit = await verify_log(admin, admin.log.key, lambda *_: None)
        accepted, again = await _accepted(admin)
        dead = [
            {"queue": row["queue"], "reason": row["reason"], "sender": row["sender"]}
            for row in await admin.dead_letters()
        ]
    return {
        "log_entries": audit.entries,
        "log_wrong": [f"entry {one['entry']}: {one['reason']}" for one in audit.wrong],
        "accepted": accepted,
        "again": again,
        "dead_letters": dead,
        "deliveries": [],
    }


async def _accepted(admin: Client) -> tuple[list[Json], list[Json]]:
    """Return the envelopes that HQ's log accepted, and those that it confirmed again."""
    found: dict[str, list[Json]] = {"accepted": [], "again": []}
    after = 0
    while True:
        page = await admin.read_log(after, 1000)
        if not page.entries:
            return found["accepted"], found["again"]
        for entry in page.entries:
            after = decode_record(entry.record).index
            for group in decode_groups(entry.body):
                add_accepted(found, after, group)


def add_accepted(found: dict[str, list[Json]], entry: int, group: Group) -> None:
    """Add what a group of HQ's log says was accepted, or confirmed again."""
    for event in events(group):
        if event["what"] in found:
            found[event["what"]].append(
                {
                    "entry": entry,
                    "sender": event["sender"],
                    "envelope": event["message_id"].replace("-", ""),
                    "generation": event["generation"],
                    "sha256": event["envelope_sha256"],
                }
            )


def deliveries(cast: Cast) -> list[list[Any]]:
    """Return (message id, queue, state) of HQ's metadata; HQ has ended."""
    if cast.database is not None:
        return [[str(one), queue, state] for one, queue, state in cast.database.rows(DELIVERIES)]
    path = cast.home("HQ") / "cipherbox.sqlite3"
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
        return [list(row) for row in db.execute(DELIVERIES)]


async def sender_seen(cast: Cast, name: str) -> Json:
    """Return a sender's log and its outbox.  HQ has ended, so opening the client sends nothing."""
    async with open_client(cast.home(name), keep_trying=True, renew=False) as client:
        sender = client.outbox()
        box = sender.outbox
        transfers = await sender.store(Transfers(box).all, _ALL)
        rows: list[Row] = await sender.store(box.newest, _ALL)
        outbox = [
            outbox_row(
                row,
                await sender.store(box.outcomes, row.number),
                await sender.store(box.proof, row.number),
            )
            for row in rows
        ]
    return {
        "log": read_log(cast.notes(name) / LOG),
        "outbox": outbox,
        "transfers": [transfer_row(one) for one in transfers],
    }


def transfer_row(transfer: Transfer) -> Json:
    """Return a file in transfer."""
    return {
        "name": "/".join(transfer.path),
        "state": _TRANSFER_STATES[transfer.state],
        "to": list(transfer.recipients),
    }


def outbox_row(row: Row, outcomes: Any, proof: Any) -> Json:
    """Return an envelope of an outbox."""
    return {
        "envelope": row.envelope_id.hex(),
        "generation": row.generation,
        "messages": row.messages,
        "sha256": row.envelope_hash.hex(),
        "to": list(row.recipients),
        "state": STATES[row.state],
        "why": row.reason,
        "part": row.transfer is not None,
        "box": row.routing_key,
        "entry": proof[0] if proof is not None else 0,
        "receipts": {
            recipient: outcome_code(next((one for one in messages if one), outcome))
            for recipient, outcome, _, _, _, messages in outcomes
        },
    }


def receiver_lines(home: Path) -> Json:
    """Return the lines of a receiver in their order, with the hash of what they contain."""
    path = home / "data" / "received_messages.jsonl"
    raw = path.read_bytes().splitlines() if path.exists() else []
    return {"lines": [_line(orjson.loads(line)) for line in raw]}


def _line(line: Json) -> Json:
    content = line["content"]
    row = {
        "id": line["message_id"],
        "from": line["sender_id"],
        "number": -1,
        "sha256": "",
        "name": "",
    }
    if isinstance(content, str):
        what = read_content(content)
        if what is not None and what[0] == line["sender_id"]:
            row |= {"number": what[1], "sha256": sha256(content.encode())}
    elif isinstance(content, dict) and "file" in content:
        stem = Path(content["filename"]).stem.rpartition("-")[2]
        row |= {
            "number": int(stem) if stem.isdigit() else -1,
            "name": content["filename"],
            "sha256": _file_hash(Path(content["file"])),
        }
    return row


def sha256(content: bytes) -> str:
    """Return the SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _file_hash(path: Path) -> str:
    """Return the SHA-256 of the file as it is on the disk, whatever its line says."""
    try:
        return sha256(path.read_bytes())
    except OSError as error:
        return str(error)

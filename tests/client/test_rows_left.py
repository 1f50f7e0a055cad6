"""Which rows a message leaves in the databases of both ends and of HQ: each is listed here with its
reader and with what deletes it.  A row that is in no list is one that nobody reads.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import trio

from cipherbox.client.receiving.receiver import Receiver

SENDER = {
    "outbox.sqlite3": {
        "envelopes",  # `outbox list`, resending; `Outbox.drop`, `forget`
        "proofs",  # `audit`, `timeline`; with its envelopes
        "outcomes",  # `outbox list`, `timeline`; with its envelope
        "receipts",  # `export_receipts`; with the last of its outcomes
    },
}
RECIPIENT = {
    "inbox.sqlite3": {
        "envelopes",  # duplicates, pending receipts; `Inbox.forget`
        "lines",  # `inbox list`; `EncryptedLines.forget`
    },
}
HQ = {
    "cipherbox.sqlite3": {
        "envelopes",  # duplicates, `trace`; retention
        "entries",  # `trace`; retention
        "log",  # proofs; retention empties its records and keeps the hashes
    },
}


def rows(directory: Path) -> dict[tuple[str, str], int]:
    found = {}
    for path in sorted(directory.glob("*.sqlite3")):
        db = sqlite3.connect(path)
        for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'"):
            (count,) = db.execute(f'SELECT count(*) FROM "{table}"').fetchone()
            found[path.name, table] = count
        db.close()
    return found


async def test_a_message_and_its_receipt_leave_no_row_that_nobody_reads(hq: Any) -> None:
    places = (hq.home("FL-LAB"), hq.home("CA-RC"), hq.directory)
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        receiver = Receiver(center)

        async def exchange() -> None:
            confirmation = await lab.publish("x", to="CA-RC")
            with trio.fail_after(60):
                await receiver.run(count=1)
                assert await lab.wait_for([confirmation.envelope_id], "opened", 60)
            await trio.sleep(0.5)  # outcomes are written a little later than they are known

        for _ in range(3):  # keys, sessions and heads of the log are new with the first
            await exchange()
        before = [rows(place) for place in places]
        await exchange()
        after = [rows(place) for place in places]
    for old, new, listed in zip(before, after, (SENDER, RECIPIENT, HQ), strict=True):
        grown = {name for name, count in new.items() if count > old.get(name, 0)}
        assert grown == {(file, table) for file, tables in listed.items() for table in tables}

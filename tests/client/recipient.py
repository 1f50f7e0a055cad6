"""A recipient as a process of its own: receives from all its mailboxes, and says how much memory
that took at most.

python -m tests.client.recipient HOME ENVELOPES
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import orjson
import trio

from cipherbox.client.client import open_client
from cipherbox.client.inbox.schema import DATABASE
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.portable import keep_heap
from tests.client.memory import Memory

PATIENCE_S = 120.0


async def receive(home: Path, envelopes: int) -> None:
    """Until so many envelopes were recorded or refused; receipts are taken in beside."""
    keep_heap()  # as every command does
    memory = Memory()
    async with open_client(home) as client, trio.open_nursery() as nursery:
        receiver = Receiver(client)
        await nursery.start(receiver.run)
        with trio.move_on_after(PATIENCE_S):
            while recorded(home) + receiver.refused < envelopes:
                await trio.sleep(0.05)
            await client.receipts.settle()
        nursery.cancel_scope.cancel()
    said = {"recorded": recorded(home), "refused": receiver.refused, "most": memory.most()}
    sys.stdout.buffer.write(orjson.dumps(said))


def recorded(home: Path) -> int:
    with closing(sqlite3.connect(home / DATABASE)) as db:
        return int(db.execute("SELECT count(*) FROM envelopes").fetchone()[0])


if __name__ == "__main__":
    trio.run(receive, Path(sys.argv[1]), int(sys.argv[2]))

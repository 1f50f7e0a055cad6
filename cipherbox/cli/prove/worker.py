"""A sender under trial: publishes numbered messages until it is killed or stopped, and logs those
that HQ confirmed.

It may be killed at any instruction.  A message's number is logged before it is published, and is
never used again; `ok` is written only after HQ's confirm.  So after any number of kills the log
shows which messages were confirmed, and which may or may not have been sealed.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import trio

from cipherbox.cli.exits import Exit
from cipherbox.errors import CipherBoxError
from cipherbox.portable import O_BINARY

if TYPE_CHECKING:
    from cipherbox.client.client import Client

LOG = "prove.log"
CONFIRMED = b'"ok"'  # in a line of it
TASKS = 3
_LARGEST_BATCH = 20  # messages of one publish
_LARGEST = 40_000  # characters of a filler


def content_of(sender: str, number: int, filler: str) -> str:
    """Return a message with its sender, its number, and the digest of its filler."""
    return f"{sender} {number} {hashlib.sha256(filler.encode()).hexdigest()} {filler}"


def read_content(text: str) -> tuple[str, int] | None:
    """Return (sender, number) of an intact message; None for anything else."""
    parts = text.split(" ", 3)
    if (
        len(parts) != 4
        or not parts[1].isdigit()
        or hashlib.sha256(parts[3].encode()).hexdigest() != parts[2]
    ):
        return None
    return parts[0], int(parts[1])


def read_log(path: Path) -> tuple[dict[int, list[str]], set[int]]:
    """Return the recipients of every logged number, and the confirmed numbers."""
    begun: dict[int, list[str]] = {}
    confirmed: set[int] = set()
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                row = orjson.loads(line)
            except ValueError:
                continue  # the process was killed in the middle of this line
            numbers = range(row["first"], row["first"] + row["count"])
            if row["what"] == "put":
                begun.update(dict.fromkeys(numbers, row["to"]))
            else:
                confirmed.update(numbers)
    return begun, confirmed


async def work(home: Path) -> int:
    """Publish until standard input ends, then wait until the outbox is empty."""
    from cipherbox.client.client import open_client

    task: dict[str, Any] = orjson.loads(await trio.to_thread.run_sync(sys.stdin.buffer.readline))
    async with open_client(
        home, keep_trying=True, tries=3, timeout_s=5.0, pause_max_s=1.0
    ) as client:
        sender = _Sender(client, home / LOG, task["recipients"], random.Random(task["seed"]))  # noqa: S311
        async with trio.open_nursery() as nursery:
            for _ in range(TASKS):
                nursery.start_soon(sender.publish)
            await trio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()
        await sender.emptied()
    return Exit.OK


class _Sender:
    def __init__(
        self, client: Client, log: Path, recipients: list[str], chance: random.Random
    ) -> None:
        self._client, self._recipients, self._chance = client, recipients, chance
        self._next = max(read_log(log)[0], default=0) + 1
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | O_BINARY, 0o600)
        os.write(self._log, b"\n")  # after a line that a kill cut off

    def _write(self, what: str, first: int, count: int, to: list[str]) -> None:
        row = {"what": what, "first": first, "count": count, "to": to}
        os.write(self._log, orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))

    async def publish(self) -> None:
        """Publish one or a few messages at a time, to one or several recipients, indefinitely."""
        chance, name = self._chance, self._client.client_id
        while True:
            count = chance.choice((1, 1, chance.randint(1, _LARGEST_BATCH)))
            first, self._next = self._next, self._next + count
            to = sorted(chance.sample(self._recipients, chance.randint(1, len(self._recipients))))
            fillers = [
                "x" * chance.choice((0, 100, chance.randint(0, _LARGEST))) for _ in range(count)
            ]
            contents = [content_of(name, first + i, filler) for i, filler in enumerate(fillers)]
            self._write("put", first, count, to)
            try:
                await self._client.publish(contents, to=to)
                self._write("ok", first, count, to)
            except CipherBoxError:
                await trio.sleep(0.1)  # it is in the outbox, or was never sealed
            await trio.sleep(chance.uniform(0, 0.02))

    async def emptied(self) -> None:
        """Wait until every sealed envelope is confirmed."""
        sender = self._client.outbox()
        while True:
            sender.look()
            waiting = await sender.store(sender.outbox.waiting, 0, 1 << 62, 1)
            if not waiting:
                return
            await trio.sleep(0.2)

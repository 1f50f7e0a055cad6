"""A sender under trial: publishes numbered messages and files until it is killed or stopped, and
logs what became of them.

It may be killed at any instruction.  A number is logged with its recipients and hash (`put`) before
it is published, and is never used again; `kept` is written when the outbox has it, `ok` only after
HQ's confirm.  So after any number of kills the log shows what was promised, and what may or may not
have been sealed.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import trio

from cipherbox.cli.exits import Exit
from cipherbox.errors import CipherBoxError, Queued
from cipherbox.portable import O_BINARY

if TYPE_CHECKING:
    from cipherbox.client.client import Client

LOG, STATE = "prove.log", "state.json"
PUBLISHING = "publishing"  # what its state says before it finishes
CONFIRMED = b'"ok"'  # in a line of the log
_LARGEST_BATCH = 20  # messages of one publish
_LARGEST = 40_000  # characters of a filler
_FILES = (0, 1_000, 100_000, 2_500_000)  # sizes: no part, one, and two
AT_ONCE = 1 << 23  # bytes that a sender may be ahead of its allowance


class Allowance:
    """How much content a sender may send in ``elapsed_s``, so that a night fills no disk: above it,
    it sends little and less often.  ``again``: it was killed before, and gets nothing in advance,
    for a night has thousands of kills.
    """

    def __init__(
        self, bytes_per_s: float, *, again: bool, elapsed_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._bytes_per_s, self._elapsed_s, self._began_s = bytes_per_s, elapsed_s, elapsed_s()
        self._sent = AT_ONCE if again else 0

    def spend(self, size: int) -> None:
        self._sent += size

    @property
    def is_spent(self) -> bool:
        allowed = AT_ONCE + (self._elapsed_s() - self._began_s) * self._bytes_per_s
        return self._sent > allowed


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


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a sender's log, without lines that a kill cut off."""
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            rows.append(orjson.loads(line))
        except ValueError:
            continue
    return rows


async def work(home: Path) -> int:
    """Publish until standard input ends, then wait until everything is confirmed and signed for."""
    from cipherbox.client.client import open_client

    task: dict[str, Any] = orjson.loads(await trio.to_thread.run_sync(_line))
    async with open_client(
        home, keep_trying=True, tries=3, timeout_s=task["timeout_s"], pause_max_s=1.0
    ) as client:
        chance = random.Random(task["seed"])  # noqa: S311
        notes = Path(task["notes"])
        allowance = Allowance(task["bytes_per_s"], again=(notes / LOG).exists())
        sender = _Sender(client, notes, task["recipients"], chance, allowance)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.tell)
            async with trio.open_nursery() as publishing:
                publishing.start_soon(sender.publish)
                publishing.start_soon(sender.publish)
                publishing.start_soon(partial(sender.publish, wait=False))
                publishing.start_soon(partial(sender.publish, stanza="ratchet"))
                publishing.start_soon(sender.send_files)
                await trio.to_thread.run_sync(_line, abandon_on_cancel=True)
                publishing.cancel_scope.cancel()
            await sender.finish()
            nursery.cancel_scope.cancel()
    return Exit.OK


def _line() -> bytes:
    """Read standard input to the end of a line.  Not with `sys.stdin`, whose lock an abandoned
    thread would hold when the program ends.
    """
    line = b""
    while not line.endswith(b"\n") and (piece := os.read(0, 1)):
        line += piece
    return line


class _Sender:
    """``notes``: the directory of its log, its state and the files that it sends.  It is not in the
    home, whose disk may lose power.
    """

    def __init__(
        self,
        client: Client,
        notes: Path,
        recipients: list[str],
        chance: random.Random,
        allowance: Allowance,
    ) -> None:
        self._client, self._recipients, self._chance = client, recipients, chance
        self._allowance = allowance
        self._notes, log = notes, notes / LOG
        self._next = max((row["first"] + row["count"] for row in read_log(log)), default=1)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | O_BINARY, 0o600)
        os.write(self._log, b"\n")  # after a line that a kill cut off
        self._doing = PUBLISHING

    def _write(self, what: str, first: int, count: int, **more: Any) -> None:
        row = {"what": what, "first": first, "count": count, **more}
        os.write(self._log, orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))

    def _draw(self, count: int) -> tuple[int, list[str]]:
        """Return the first of the next ``count`` numbers, and who receives them."""
        first, self._next = self._next, self._next + count
        chosen = self._chance.sample(
            self._recipients, self._chance.randint(1, len(self._recipients))
        )
        return first, sorted(chosen)

    async def publish(self, *, wait: bool = True, stanza: str | None = None) -> None:
        """Publish one or a few messages at a time, to one or several recipients, indefinitely."""
        chance, name = self._chance, self._client.client_id
        kind = "message" if stanza is None else "session"
        while True:
            count = chance.choice((1, 1, chance.randint(1, _LARGEST_BATCH)))
            first, to = self._draw(count)
            most = 100 if self._allowance.is_spent else _LARGEST
            fillers = ["x" * chance.choice((0, 100, chance.randint(0, most))) for _ in range(count)]
            self._allowance.spend(sum(map(len, fillers)))
            contents = [content_of(name, first + i, filler) for i, filler in enumerate(fillers)]
            digests = [hashlib.sha256(content.encode()).hexdigest() for content in contents]
            self._write("put", first, count, to=to, kind=kind, name="", sha256=digests)
            try:
                await self._client.publish(contents, to=to, wait=wait, stanza=stanza)
                self._write("ok" if wait else "kept", first, count)
            except Queued:
                self._write("kept", first, count)
            except CipherBoxError:
                await trio.sleep(0.1)  # it was never sealed, for example without the keys for it
            pause_s = 0.02 if wait and stanza is None else 0.1
            await trio.sleep(chance.uniform(0, 1.0 if self._allowance.is_spent else pause_s))

    async def send_files(self) -> None:
        """Send files of no, one or two parts; first those that a kill interrupted."""
        from cipherbox.client.publishing.files import send_file, send_unfinished

        chance, name = self._chance, self._client.client_id
        while True:
            try:
                await send_unfinished(self._client, patient=True)
            except CipherBoxError:
                await trio.sleep(0.5)
                continue
            first, to = self._draw(1)
            content = chance.randbytes(
                chance.choice(_FILES[: 2 if self._allowance.is_spent else 4])
            )
            self._allowance.spend(len(content))
            file = self._notes / f"{name}-{first}.bin"
            file.write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            self._write("put", first, 1, to=to, kind="file", name=file.name, sha256=[digest])
            try:
                await send_file(self._client, file, (file.name,), to, "application/octet-stream")
                self._write("ok", first, 1)
            except CipherBoxError:
                await trio.sleep(0.1)
            await trio.sleep(chance.uniform(0.1, 1.0))

    async def finish(self) -> None:
        """Wait until files are sent, envelopes confirmed, and every recipient has signed."""
        from cipherbox.client.publishing.files import send_unfinished

        sender = self._client.outbox()
        self._doing = "sending its files"
        while True:
            try:
                await send_unfinished(self._client, patient=True)
                break
            except CipherBoxError:
                await trio.sleep(0.5)
        self._doing = "emptying its outbox"
        while await sender.store(sender.outbox.waiting, 0, 1 << 62, 1):
            sender.look()
            await trio.sleep(0.2)
        self._doing = "waiting for receipts"
        while await sender.store(sender.outbox.unsigned, 1):  # noqa: ASYNC110
            await trio.sleep(0.2)  # the disk tells, whichever task of this process wrote it

    async def tell(self) -> None:
        """Say twice a second what it does and waits for, for whoever finds a standstill."""
        connection, sender = self._client.connection, self._client.outbox()
        while True:
            waiting = await sender.store(sender.outbox.waiting, 0, 1 << 62, 1000)
            unsigned = await sender.store(sender.outbox.unsigned, 1000)
            trouble = connection.trouble or connection.failure
            state = {
                "doing": self._doing,
                "waiting": len(waiting),
                "unsigned": len(unsigned),
                "connected": connection.current is not None,
                "trouble": "" if trouble is None else str(trouble),
            }
            part = self._notes / "state.part"
            part.write_bytes(orjson.dumps(state))
            part.replace(self._notes / STATE)
            await trio.sleep(0.5)

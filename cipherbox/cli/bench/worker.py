"""A measured process: reads its task as one line of JSON, reports that it is ready, waits for the
signal, works, and reports in one line of JSON its start, its end, and the CPU time used.

A message begins with the time it was published, in nanoseconds of the machine's monotonic clock,
which all its processes share; the receiver computes the latency from it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import trio

from cipherbox import clock
from cipherbox.cli.bench import files
from cipherbox.cli.bench.measured import SAMPLES, STAMP, measured, message, report, shares
from cipherbox.cli.exits import Exit
from cipherbox.concurrency import Signal
from cipherbox.harness.worker import STALLED_S

if TYPE_CHECKING:
    from cipherbox.client.client import Client

_RESTAMP = 64  # messages that share one timestamp when they are sent as fast as possible
_REPORT_S = 0.2
# At a rate: latencies of these first messages include what a program loads once, and the queue
# that it leaves: 0.4 s of them on a busy machine.
_WARM_S = 1.0
_MARK = b'"content":"'


async def work(home: Path | None) -> int:
    """Read the task from standard input and perform it."""
    from cipherbox.client.client import open_client

    task: dict[str, Any] = orjson.loads(await trio.to_thread.run_sync(sys.stdin.buffer.readline))
    if task["do"].startswith("peer-"):
        from cipherbox.cli.bench import peer_clients

        await (peer_clients.send if task["do"] == "peer-send" else peer_clients.receive)(task)
        return Exit.OK
    does = {
        "send": _send,
        "send-presealed": _send_presealed,
        "receive": _receive,
        "take": _take,
        "send-files": files.send,
        "receive-files": files.receive,
    }
    async with open_client(home, **files.settings(task["do"])) as client:
        await does[task["do"]](client, task)
    return Exit.OK


# -- senders ---------------------------------------------------------------------------------------


async def _send(client: Client, task: dict[str, Any]) -> None:
    from cipherbox.cli.send import WRAPS

    groups, size, batch = task["groups"], task["size"], task["batch"] or None
    stanza = WRAPS[task["wrap"]] if task["wrap"] else None

    async def one_group(to: list[str], count: int) -> None:
        async with client.publisher(to=to, batch=batch, stanza=stanza) as publisher:
            if task["rate"]:
                begin = trio.current_time()
                offset = time.monotonic_ns() - int(begin * 1e9)
                for number in range(count):
                    at = begin + number / task["rate"]
                    await trio.sleep_until(at)
                    await publisher.send(message(int(at * 1e9) + offset, size))
                return
            put = publisher.put
            for number in range(count):
                if number % _RESTAMP == 0:
                    text = message(time.monotonic_ns(), size)
                if not put(text):
                    await publisher.room()

    async def all_groups() -> None:
        async with trio.open_nursery() as reports:
            reports.start_soon(_report_regularly)
            async with trio.open_nursery() as nursery:
                for group, count in zip(groups, shares(task["messages"], len(groups)), strict=True):
                    nursery.start_soon(one_group, group, count)
            reports.cancel_scope.cancel()

    for group in groups:
        await client.bundles(group)
    report(**await measured(all_groups))


async def _report_regularly() -> None:
    """Show that this process works, on a slow machine for longer than a stalled one is given."""
    while True:
        await trio.sleep(STALLED_S / 4)
        report(sending=True)


async def _send_presealed(client: Client, task: dict[str, Any]) -> None:
    from cipherbox.client.connection.confirm_window import PendingPublish
    from cipherbox.envelope.ids import EnvelopeIds
    from cipherbox.sealing.body import TEXT, pack_contents
    from cipherbox.sealing.seal import seal

    window, identity = client.connection.window, client.home.identity
    assert identity is not None
    now = clock.now_ms()
    ids = EnvelopeIds(lambda: now)
    bundles = [await client.bundles(group) for group in task["groups"]]
    settled = 0
    moved = Signal()

    def done(item: PendingPublish) -> None:
        nonlocal settled
        if item.error is not None:
            raise item.error
        settled += 1
        if not window.full:
            moved.notify()

    def sealed(number: int) -> PendingPublish:
        raw = seal(
            identity,
            bundles[number % len(bundles)],
            plain,
            count,
            envelope_id=ids.next(),
            sealed_at=now,
        )
        return PendingPublish(
            raw.raw, raw.envelope_id, raw.count, done, envelope_hash=raw.envelope_hash
        )

    count = task["batch"] or 1
    plain = pack_contents([message(0, task["size"]).encode()] * count, TEXT)
    items = []
    for number in range(-(-task["messages"] // count)):
        items.append(sealed(number))
        if number % 1000 == 0:
            report(sealed=number * count)
            await trio.lowlevel.checkpoint()

    async def body() -> None:
        total = len(items)
        items.reverse()
        while settled < total:
            while items and not window.full:
                window.add(items.pop())
            if settled < total:
                await moved.wait()

    window.room_listeners.append(moved.notify)
    report(**await measured(body))


# -- receivers -------------------------------------------------------------------------------------


async def _receive(client: Client, task: dict[str, Any]) -> None:
    from cipherbox.client.receiving.receiver import Receiver

    took: list[float] = []
    reported = 0.0
    stamped, every = task["size"] >= STAMP, bool(task["rate"])

    def on_lines(lines: list[bytes]) -> None:
        nonlocal reported
        now = time.monotonic_ns()
        if stamped and len(took) < SAMPLES:
            for line in b"".join(lines).splitlines() if every else lines[-1:]:
                at = line.rindex(_MARK) + len(_MARK)
                took.append((now - int(line[at : at + STAMP])) / 1e6)
        if now - reported > _REPORT_S * 1e9:
            reported = now
            report(received=receiver.received)

    await client.offer_prekeys()  # a home does this once, in its first tenth of a second
    receiver = Receiver(client, on_lines=on_lines)

    async def body() -> None:
        await receiver.run([client.mailbox], count=task["messages"])

    result = await measured(body)
    warm = min(len(took) // 5, int(_WARM_S * task["rate"]))
    report(**result, took_ms=took[warm:], received=receiver.received)


async def _take(client: Client, task: dict[str, Any]) -> None:
    """Acknowledge deliveries without opening them, to measure HQ alone."""
    taken = 0
    reported = 0.0

    async def body() -> None:
        nonlocal taken, reported
        async with client.consume_unopened() as consumer, trio.open_nursery() as acks:
            while taken < task["messages"]:
                batch = await consumer.batch()
                taken += len(batch) * (task["batch"] or 1)
                acks.start_soon(client.ack, batch)
                if time.monotonic() - reported > _REPORT_S:
                    reported = time.monotonic()
                    report(received=taken)

    result = await measured(body)
    report(**result, took_ms=[], received=taken)

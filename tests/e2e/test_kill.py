"""SIGKILL of HQ under load, again and again: what was confirmed is delivered, and nothing is in
the inbox twice.
"""

import json
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import trio

from cipherbox.client.client import Client, open_client
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.errors import CipherBoxError
from tests import soak

from .conftest import Hq, make_hq, serving

KILLS = 4 if soak.ON else 1
SENDERS = 8
BETWEEN = 100  # confirms from one kill to the next


class Ids:
    """A growing set of message ids; `reach` waits until it is large enough, `hold` until it
    holds others.
    """

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self._grew = trio.Event()

    def add(self, *ids: str) -> None:
        self.ids.update(ids)
        self._grew.set()
        self._grew = trio.Event()

    async def reach(self, count: int) -> None:
        while len(self.ids) < count:
            await self._grew.wait()

    async def hold(self, others: set[str]) -> None:
        while not others <= self.ids:
            await self._grew.wait()


async def keep_sending(
    client: Client, confirmed: Ids, stop: trio.Event, ended: Ids, name: int
) -> None:
    number = 0
    while not stop.is_set():
        number += 1
        try:
            confirmation = await client.publish(f"{name}-{number}", to=["CA-RC"])
        except CipherBoxError:
            continue  # no word from HQ: it may have it or not
        confirmed.add(*map(str, confirmation.message_ids))
    ended.add(str(name))


@soak.more
async def test_confirmed_means_delivered_once(tmp_path: Path) -> None:
    directory, admin = make_hq(tmp_path)
    with serving(directory) as process:
        hq = Hq(directory, admin, process)
        lab = await trio.to_thread.run_sync(hq.join, "FL-LAB")
        center = await trio.to_thread.run_sync(hq.join, "CA-RC")
    confirmed, received, ended, stop = Ids(), Ids(), Ids(), trio.Event()

    def note(lines: list[bytes]) -> None:
        received.add(*(json.loads(line)["message_id"] for line in lines))

    patience = {"timeout_s": 5.0, "pause_max_s": 0.3}
    with trio.fail_after(300):
        async with AsyncExitStack() as stack:
            sender = await stack.enter_async_context(open_client(lab, keep_trying=True, **patience))
            reader = await stack.enter_async_context(
                open_client(center, keep_trying=True, **patience)
            )
            nursery = await stack.enter_async_context(trio.open_nursery())
            for name in range(SENDERS):
                nursery.start_soon(keep_sending, sender, confirmed, stop, ended, name)
            for kill in range(KILLS + 1):
                with serving(directory) as process:
                    if kill == 0:
                        nursery.start_soon(
                            partial(Receiver(reader, on_lines=note).run, ["box.CA-RC"])
                        )
                    await confirmed.reach(len(confirmed.ids) + BETWEEN)
                    if kill < KILLS:
                        process.kill()  # in the middle of it
                        continue
                    stop.set()
                    await ended.reach(SENDERS)  # none is confirmed any more
                    await received.hold(confirmed.ids)
                    nursery.cancel_scope.cancel()
    lines = (center / "data" / "received_messages.jsonl").read_text("utf-8").splitlines()
    counted = Counter(json.loads(line)["message_id"] for line in lines)
    assert len(confirmed.ids) >= (KILLS + 1) * BETWEEN
    assert confirmed.ids - set(counted) == set(), "confirmed and not delivered"
    assert [i for i, n in counted.items() if n > 1] == [], "in the inbox twice"

"""An envelope is sent while the outbox syncs it, unless a power failure would then do harm; no
caller is told anything before it is synced.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from cipherbox.client.client import Client
from cipherbox.client.connection.connection import Connection
from cipherbox.client.outbox import outbox as module
from cipherbox.client.outbox.rows import CONFIRMED, PARKED
from cipherbox.client.publishing.publish import Confirmation
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.concurrency import OneThread
from cipherbox.errors import RouteChanged, StoreError, TooLarge
from cipherbox.wire.codec import SendItem
from tests.client.parties import Party
from tests.client.scripted import ScriptedHq, client_on
from tests.client.waiting import until


class SlowDisk:
    """Syncs of the outbox, each of which waits for `go` and fails if there is an `error`."""

    def __init__(self, real: Any) -> None:
        self.begun = self.sent = 0  # syncs; envelopes given to the connection
        self.error: OSError | None = None
        self.go = threading.Event()
        self._real = real

    def sync(self, path: Path) -> None:
        self.begun += 1
        assert self.go.wait(60)
        if self.error is not None:
            raise StoreError(str(self.error))
        self._real(path)


in_a_thread = OneThread.run  # as it is before a test's HQ replaces it


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    slow, send = SlowDisk(module.sync), Connection.send_envelopes

    def counted(connection: Connection, items: list[SendItem]) -> None:
        slow.sent += len(items)
        send(connection, items)

    monkeypatch.setattr(module, "sync", slow.sync)
    monkeypatch.setattr(Connection, "send_envelopes", counted)
    yield slow
    slow.go.set()


class Publishing:
    """A publish in a task of its own."""

    def __init__(self, nursery: trio.Nursery, client: Client, **more: Any) -> None:
        self.result: Confirmation | None = None
        self.error: Exception | None = None
        self._client, self._more = client, more
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        try:
            self.result = await self._client.publish("hello", to="CA-RC", **self._more)
        except Exception as error:
            self.error = error

    @property
    def ended(self) -> bool:
        return self.result is not None or self.error is not None


def states(hq: Any) -> list[int]:
    """Return the states in the outbox, as another process of the home sees them."""
    with closing(sqlite3.connect(hq.home("FL-LAB") / module.DATABASE)) as db:
        return [state for (state,) in db.execute("SELECT state FROM envelopes ORDER BY number")]


@pytest.mark.parametrize("wait", [True, False])
async def test_hq_has_it_before_the_sync_and_the_caller_is_told_after(
    hq: Any, disk: SlowDisk, wait: bool
) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center, trio.open_nursery() as n:
        publishing = Publishing(n, lab, wait=wait, prompt_receipt=True)
        with trio.fail_after(60):
            assert await Receiver(center).run(count=1) == 1  # its receipt is sent, too
            window = lab.connection.window
            await until(lambda: window.idle)
            assert not publishing.ended
            assert len(states(hq)) == 1
            disk.go.set()
            await until(lambda: publishing.ended)
            assert publishing.result is not None
            assert bool(publishing.result.accepted_at) is wait
            # neither confirm, proof nor receipt was lost meanwhile
            assert await lab.wait_for([publishing.result.envelope_id], "opened", 60)
            await until(lambda: states(hq) == [CONFIRMED])
            row = await lab.sent(publishing.result.message_ids[0])
            assert lab.outbox_sender.outbox.proof(row.number) is not None


async def test_killed_before_the_sync_the_next_process_sends_it_under_the_same_id(
    hq: Any, disk: SlowDisk
) -> None:
    async with hq.client("CA-RC") as center:
        async with hq.client("FL-LAB") as lab, trio.open_nursery() as nursery:
            publishing = Publishing(nursery, lab)
            await until(lambda: bool(disk.begun and disk.sent) and lab.connection.window.idle)
            nursery.cancel_scope.cancel()
            # nothing that this process does after the commit is recorded
            with closing(sqlite3.connect(hq.home("FL-LAB") / module.DATABASE)) as db:
                copy = sqlite3.connect(":memory:")
                db.backup(copy)
            disk.go.set()
        assert publishing.result is None
        with closing(sqlite3.connect(hq.home("FL-LAB") / module.DATABASE)) as db:
            copy.backup(db)
        copy.close()
        assert states(hq) == [0]
        async with hq.client("FL-LAB"):
            await until(lambda: states(hq) == [CONFIRMED])
        with trio.fail_after(60):
            assert await Receiver(center).drain() == 1


async def test_a_row_that_a_power_failure_took_leaves_a_receipt_that_is_ignored(
    hq: Any, disk: SlowDisk
) -> None:
    async with hq.client("CA-RC") as center:
        async with hq.client("FL-LAB") as lab, trio.open_nursery() as nursery:
            Publishing(nursery, lab)
            await until(lambda: bool(disk.begun and disk.sent) and lab.connection.window.idle)
            nursery.cancel_scope.cancel()
            disk.go.set()
        with closing(sqlite3.connect(hq.home("FL-LAB") / module.DATABASE)) as db:
            db.execute("DELETE FROM envelopes")
            db.execute("DELETE FROM proofs")
            db.commit()
        with trio.fail_after(60):
            assert await Receiver(center).drain() == 1
        async with hq.client("FL-LAB") as lab:
            await lab.receipts.settle()
            confirmation = await lab.publish("next", to="CA-RC")
            assert not confirmation.again
            await until(lambda: states(hq) == [CONFIRMED])
        async with hq.admin() as admin:
            assert await admin.dead_letters() == []


async def test_a_sync_that_fails_is_reported_and_the_next_publish_works(
    hq: Any, disk: SlowDisk
) -> None:
    async with hq.client("FL-LAB") as lab, trio.open_nursery() as nursery:
        disk.error = OSError("input/output error")
        publishing = Publishing(nursery, lab)
        await until(lambda: bool(disk.begun and disk.sent) and lab.connection.window.idle)
        disk.go.set()
        await until(lambda: publishing.ended)
        assert isinstance(publishing.error, StoreError)
        assert "HQ may have it nevertheless" in str(publishing.error)
        disk.error = None
        assert (await lab.publish("next", to="CA-RC")).accepted_at


async def test_a_refusal_that_comes_before_the_sync_is_told_after_it(
    scripted: ScriptedHq,
    lab: Party,
    center: Party,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    disk: SlowDisk,
) -> None:
    scripted.refuse_sends = [RouteChanged("changed")]
    async with client_on(scripted, lab, tmp_path, monkeypatch) as client:
        monkeypatch.setattr(OneThread, "run", in_a_thread)
        async with trio.open_nursery() as nursery:
            publishing = Publishing(nursery, client)
            await until(
                lambda: bool(disk.begun and scripted.sent()) and client.connection.window.idle
            )
            assert len(scripted.sent()) == 1
            assert not publishing.ended
            disk.go.set()
        assert publishing.result is not None
        assert len(scripted.sent()) == 2
        # it took the place of the first one, which is a reason to sync it first
        assert disk.begun == 1
        rows = client.outbox_sender.outbox.rows(range(4))
        assert [row.envelope_id for row in rows] == [publishing.result.envelope_id]


async def test_what_a_power_failure_would_send_twice_is_synced_first(
    hq: Any, disk: SlowDisk
) -> None:
    disk.go.set()
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        await lab.publish("with an idempotency key", to="CA-RC", key="k")
        await center.offer_prekeys()
        await lab.publish("with a ratchet step", to="CA-RC", stanza="ratchet")
        assert disk.begun == 0
        sent = await lab.publish("hello", to="CA-RC")
        assert disk.begun == 1
        assert await lab.outbox_sender.seal_again(sent.envelope_id)
        assert disk.begun == 1


async def test_what_was_kept_together_is_sent_together(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each SEND alone costs as much as its encoding, for the sender and for HQ's reader."""
    sent: list[int] = []
    real = Connection.send_envelopes

    def send(connection: Connection, items: list[SendItem]) -> None:
        sent.append(len(items))
        real(connection, items)

    monkeypatch.setattr(Connection, "send_envelopes", send)
    async with hq.client("FL-LAB") as lab, lab.publisher(to="CA-RC", batch=1) as publisher:
        for number in range(20):
            assert publisher.put(f"message {number}")
        await publisher.flush()
    assert sum(sent) == 20
    assert len(sent) <= 2


async def test_one_that_hq_would_not_take_holds_up_no_other(hq: Any) -> None:
    """HQ's limit may have changed between sealing and sending, with a new connection."""
    async with hq.client("FL-LAB") as lab, lab.publisher(to="CA-RC", batch=1) as publisher:
        for text in ("a", "b" * 5000, "c"):
            assert publisher.put(text)
        lab.connection.window.envelope_bytes = 4000
        await until(lambda: sorted(states(hq)) == [CONFIRMED, CONFIRMED, PARKED])
        with pytest.raises(TooLarge):
            await publisher.flush()
        await publisher.flush()
        assert publisher.confirmed == 2

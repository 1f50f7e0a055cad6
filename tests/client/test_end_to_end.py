"""Client and HQ in one process over real TLS: the promises, with cut lines and restarts."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio

from cipherbox.client.receiving.receiver import Receiver
from cipherbox.errors import (
    Conflict,
    CredentialsError,
    Forbidden,
    NetworkError,
    NotAllowed,
    NotFound,
    RecipientRevoked,
    StoreLocked,
)
from cipherbox.sealing.body import Message
from tests.client.waiting import until


async def test_publish_consume_ack(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        confirmation = await lab.publish(["one", b"two"], to="CA-RC")
        assert confirmation.queues == ("box.CA-RC",)
        assert not confirmation.again
        async with center.consume() as deliveries:
            with trio.fail_after(60):
                delivery = await deliveries.__anext__()
            assert (delivery.sender_id, delivery.attempt, delivery.queue) == (
                "FL-LAB",
                1,
                "box.CA-RC",
            )
            assert [m.content for m in delivery.messages] == [b"one", b"two"]
            assert tuple(delivery.message_ids) == confirmation.message_ids
            assert delivery.accepted_at == confirmation.accepted_at
            assert await center.ack(delivery) == 1
            assert await center.ack(delivery) == 0  # idempotent
        report = await lab.status(confirmation.message_ids[1])
        assert report.found
        assert [(t.queue, t.state) for t in report.traces] == [("box.CA-RC", 2)]
        assert await center.fetch() == []


async def test_routes_by_exchange_and_binding(hq: Any) -> None:
    await hq.join("SF-RC")
    async with hq.admin() as admin, hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        await admin.declare_exchange("labs", "topic")
        for name in ("CA-RC", "SF-RC"):
            await admin.declare_queue(f"queue_{name}", owner=name)
            await admin.bind("labs", f"queue_{name}", "lab.*.dat")
        await admin.grant("FL-LAB", "publish", "labs")
        with pytest.raises(Conflict):
            await admin.declare_exchange("labs", "direct")
        route = await lab.resolve("labs", "lab.fl.dat")
        assert [(q.queue, q.readers) for q in route.queues] == [
            ("queue_CA-RC", ["CA-RC"]),
            ("queue_SF-RC", ["SF-RC"]),
        ]
        with pytest.raises(NotAllowed):
            await lab.publish("x", exchange="labs", routing_key="lab.fl.dat")
        lab.allow.allow("labs", ["CA-RC", "SF-RC"])
        confirmation = await lab.publish("x", exchange="labs", routing_key="lab.fl.dat")
        assert set(confirmation.queues) == {"queue_CA-RC", "queue_SF-RC"}
        # the route changes behind the sender's back: a new reader, who is permitted
        await hq.join("NY-RC")
        await admin.declare_queue("queue_NY-RC", owner="NY-RC")
        await admin.bind("labs", "queue_NY-RC", "lab.#")
        with pytest.raises(NotAllowed, match="NY-RC"):
            await lab.publish("y", exchange="labs", routing_key="lab.fl.dat")
        lab.allow.allow("labs", None)
        confirmation = await lab.publish("z", exchange="labs", routing_key="lab.fl.dat")
        assert len(confirmation.queues) == 3
        found = await center.fetch("queue_CA-RC", envelopes=10)
        assert [d.messages[0].content for d in found] == [b"x", b"z"]
        await center.ack(found)
        with pytest.raises(NotFound):
            await center.fetch("queue_SF-RC")
        with pytest.raises(Forbidden):
            await admin.publish("x", to="CA-RC")


async def test_a_receiver_writes_each_message_once_in_the_form_of_the_predecessors(hq: Any) -> None:
    said: list[Any] = []
    pdf = b"%PDF" + bytes(range(256)) * 40
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC", on_event=said.append) as center:
        sent = await lab.publish(
            [
                "This is a test hybrid message.",
                Message(b"a,b\n1,2\n", "text/csv", {"filename": "a.csv"}),
                Message(pdf, "application/pdf", {"filename": "../../etc/report.pdf"}),
                b"\xff\xfe",
            ],
            to="CA-RC",
        )
        receiver = Receiver(center)
        with trio.fail_after(60):
            assert await receiver.run(count=4) == 4
    lines = hq.lines("CA-RC")
    assert [line["message_id"] for line in lines] == [str(i) for i in sent.message_ids]
    assert list(lines[0]) == ["message_id", "sender_id", "sent_timestamp", "content"]
    assert lines[0]["content"] == "This is a test hybrid message."
    assert lines[0]["sender_id"] == "FL-LAB"
    assert lines[1]["headers"] == {"filename": "a.csv"}
    for line, content, name in zip(
        lines[1:],
        (b"a,b\n1,2\n", pdf, b"\xff\xfe"),
        ("a.csv", "etc/report.pdf", str(sent.message_ids[3])),
        strict=True,
    ):
        file = line["content"]
        assert file["file"] == str(hq.home("CA-RC") / "incoming" / "FL-LAB" / name)
        assert (file["size"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        assert (hq.home("CA-RC") / "incoming" / "FL-LAB" / name).read_bytes() == content
    assert lines[2]["content"]["content_type"] == "application/pdf"
    assert lines[2]["headers"]["filename"] == "../../etc/report.pdf"
    texts = [event.text for event in said]
    first = sent.message_ids[0]
    for text in (
        f"Received message {first} from FL-LAB",
        f"Decrypted message {first}",
        f"Stored message {first} in data/received_messages.jsonl",
        f"ACK sent for message {first}",
        f"Server confirmed ACK for message {first}",
    ):
        assert text in texts


async def test_hq_restarts_in_the_middle_of_publishing(hq: Any) -> None:
    put = 0
    async with hq.client("FL-LAB", tries=6) as lab, hq.client("CA-RC", tries=6) as center:
        restarted = trio.Event()

        async def restart() -> None:
            for _ in range(2):
                await trio.sleep(0.15)
                await hq.restart()
                await lab.connection.ready()
            restarted.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(Receiver(center).run)
            nursery.start_soon(restart)
            with trio.fail_after(60):
                async with lab.publisher(to="CA-RC") as publisher:
                    while put < 2000 or not restarted.is_set():
                        await publisher.send(f"message {put}")
                        put += 1
                        if put % 50 == 0:
                            await trio.sleep(0.02)
                    await publisher.flush()
                    assert publisher.confirmed == put
                await until(lambda: len(hq.lines("CA-RC")) >= put)
            nursery.cancel_scope.cancel()
        assert lab.connection.opened >= 3
    lines = hq.lines("CA-RC")
    assert len(lines) == put
    assert len({line["message_id"] for line in lines}) == put
    assert {line["content"] for line in lines} == {f"message {n}" for n in range(put)}


def stored(directory: Path) -> int:
    """How many messages HQ has a record of."""
    db = sqlite3.connect(f"file:{directory / 'cipherbox.sqlite3'}?mode=ro", uri=True)
    try:
        return int(db.execute("SELECT count(*) FROM message_metadata").fetchone()[0])
    finally:
        db.close()


async def test_a_lost_confirm_is_sent_again_and_confirmed_once(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        await lab.publish("warm", to="CA-RC")

        async def lose_it() -> None:
            hq.gate.back_held = True  # HQ's confirm never arrives
            await until(lambda: stored(hq.directory) == 2)
            await hq.gate.cut()
            hq.gate.back_held = False

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lose_it)
            with trio.fail_after(60):
                confirmation = await lab.publish("once", to="CA-RC")
        assert confirmation.again
        found = await center.fetch(envelopes=10)
        assert [d.messages[0].content for d in found] == [b"warm", b"once"]
        assert found[1].accepted_at == confirmation.accepted_at


async def test_what_comes_again_is_not_written_again(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        await lab.publish("one", to="CA-RC")
        await lab.publish("two", to="CA-RC")
        refuse_acks = True

        async def no_ack(deliveries: Any) -> int:
            if refuse_acks:
                raise NetworkError("cut before the ack")
            return await type(center).ack(center, deliveries)

        center.ack = no_ack
        receiver = Receiver(center)
        with trio.fail_after(60):
            assert await receiver.run(count=2) == 2
        await hq.gate.cut()
        refuse_acks = False
        second = Receiver(center)
        with trio.fail_after(60):
            assert await second.run(idle_s=3.0) == 0
        assert second.duplicates == 2
        assert await center.fetch(envelopes=5) == []
    assert [line["content"] for line in hq.lines("CA-RC")] == ["one", "two"]


async def test_two_receivers_on_one_home(hq: Any) -> None:
    async with hq.client("CA-RC") as one, hq.client("CA-RC") as two, trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: Receiver(one).run(task_status=task_status))
        with pytest.raises(StoreLocked, match=r"inbox .* in use by another"):
            await Receiver(two).run(idle_s=1)
        nursery.cancel_scope.cancel()


async def test_two_consumers_of_one_client_share_a_queue(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as one, hq.client("CA-RC") as two:
        found: list[bytes] = []

        async def take(client: Any, task_status: Any) -> None:
            async with client.consume() as deliveries:
                task_status.started()
                async for delivery in deliveries:
                    found.append(delivery.messages[0].content)
                    await client.ack(delivery)

        async with trio.open_nursery() as nursery:
            await nursery.start(take, one)
            await nursery.start(take, two)
            for n in range(40):
                await lab.publish(b"%d" % n, to="CA-RC")
            await until(lambda: len(found) == 40)
            nursery.cancel_scope.cancel()
    assert sorted(found, key=int) == [b"%d" % n for n in range(40)]


async def test_a_consumer_lives_on_over_a_cut(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        async with center.consume(envelopes=2) as deliveries:
            for n in range(20):
                if n in (5, 12):
                    await hq.gate.cut()
                await lab.publish(str(n), to="CA-RC")
                with trio.fail_after(60):
                    delivery = await deliveries.__anext__()
                assert delivery.messages[0].content == b"%d" % n
                await center.ack(delivery)
        assert center.connection.opened == 3


async def test_revocation_cuts_and_is_never_tried_again(hq: Any) -> None:
    async with hq.admin() as admin, hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        await center.publish("x", to="FL-LAB")
        await admin.revoke("FL-LAB", "left the programme")
        await until(lambda: lab.connection.failure is not None)
        with pytest.raises(CredentialsError, match="revoked"):
            await lab.publish("x", to="CA-RC")
        opened = lab.connection.opened
        await trio.sleep(0.3)
        assert lab.connection.opened == opened
        center.directory.refresh("FL-LAB")
        with pytest.raises(RecipientRevoked, match="revoked"):
            await center.publish("x", to="FL-LAB")
    with pytest.raises(CredentialsError):
        async with hq.client("FL-LAB"):
            pass


async def test_hq_that_is_not_there_is_said_plainly(hq: Any) -> None:
    await hq.stop()
    with trio.fail_after(60):
        with pytest.raises(NetworkError):
            async with hq.client("FL-LAB", pause_max_s=0.05, timeout_s=2.0):
                pass
        with pytest.raises(NetworkError, match="cannot be reached"):
            async with hq.client("FL-LAB", pause_max_s=0.05, address="127.0.0.1:1"):
                pass
        async with hq.client("FL-LAB", pause_max_s=0.05, keep_trying=True) as lab:
            assert lab.connection.current is None
            await hq.start()
            confirmation = await lab.publish("later", to="CA-RC")
            assert confirmation.queues
    await hq.restart()


async def test_the_public_key_lies_beside_the_bundle(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        await lab.publish("x", to="CA-RC")
        (bundle,) = await lab.bundles(["CA-RC"])
        assert (await lab.directory.newest_at_hq("CA-RC")).hash == bundle.hash
    certs = hq.home("FL-LAB") / "certs"
    assert (certs / "CA-RC.bundle").read_bytes() == bundle.raw
    assert (certs / "CA-RC_public.key").read_bytes() == bundle.encrypt_keys[0].public


async def test_the_same_inside_websocket(hq: Any) -> None:
    large = bytes(range(256)) * 4096 * 3
    async with (
        hq.client("FL-LAB", address=hq.websocket) as lab,
        hq.client("CA-RC", address=hq.websocket) as center,
    ):
        await lab.publish([large, b"small"], to="CA-RC")
        (delivery,) = await center.fetch()
        assert [m.content for m in delivery.messages] == [large, b"small"]
        await center.ack(delivery)
    # several addresses: the first that answers
    async with hq.client("FL-LAB", address=f"127.0.0.1:1, {hq.websocket}") as lab:
        await lab.ping()


async def test_a_queue_that_was_taken_away_ends_only_who_named_it(hq: Any) -> None:
    async with hq.admin() as admin, hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        await admin.declare_queue("extra", owner="CA-RC")
        async with trio.open_nursery() as nursery:
            await nursery.start(Receiver(center).keep)
            await lab.publish("one", to="CA-RC")
            await until(lambda: len(hq.lines("CA-RC")) == 1)
            await admin.delete_queue("extra")
            await hq.restart()
            await lab.publish("two", to="CA-RC")
            await until(lambda: len(hq.lines("CA-RC")) == 2)
            nursery.cancel_scope.cancel()
        with trio.fail_after(60), pytest.raises(NotFound):
            await Receiver(center).keep(["extra"])

"""Sessions through a real HQ: first contact with somebody away, replies and receipts that heal,
lost states.
"""

from __future__ import annotations

import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from cipherbox.client.inbox.schema import DATABASE
from cipherbox.client.publishing.files import send_file
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.config.settings import SessionTable
from cipherbox.envelope import layout as layouts
from cipherbox.envelope.stanza_types import StanzaType
from cipherbox.errors import InvalidRequest
from cipherbox.sealing.ratchet import session
from tests.client.real_hq import PREKEYS, RealHq
from tests.client.waiting import until


@pytest.fixture
async def hq(hq: RealHq) -> RealHq:
    async with hq.client("CA-RC") as center:
        assert await center.offer_prekeys() == PREKEYS
    return hq


def sent_stanzas(hq: Any, client_id: str = "FL-LAB") -> list[bytes]:
    """The first stanza of every envelope in an outbox, in order."""
    db = sqlite3.connect(hq.home(client_id) / "outbox.sqlite3")
    raws = [
        raw
        for (raw,) in db.execute(
            "SELECT data FROM envelopes WHERE data IS NOT NULL ORDER BY number"
        )
    ]
    db.close()
    found = []
    for raw in raws:
        at = layouts.split(raw)
        assert at.prefix.recipients[0].stanza_type == StanzaType.RATCHET
        found.append(layouts.stanza(raw, at, 0))
    return found


def change(home: Path, *statements: str, database: str = DATABASE) -> None:
    db = sqlite3.connect(home / database, isolation_level=None)
    for statement in statements:
        db.execute(statement)
    db.close()


def copies(home: Path) -> dict[str, bytes]:
    """All databases of a home, as a backup has them."""
    return {f.name: f.read_bytes() for f in home.glob("*.sqlite3*")}


def set_back(home: Path, backup: dict[str, bytes]) -> None:
    for file in home.glob("*.sqlite3*"):
        file.unlink()
    for name, data in backup.items():
        (home / name).write_bytes(data)


async def received(hq: Any, client_id: str, count: int) -> list[str]:
    async with hq.client(client_id) as client:
        with trio.fail_after(60):
            await Receiver(client).run(count=count)
    return [line["content"] for line in hq.lines(client_id)]


async def test_first_contact_with_somebody_who_is_away(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        for text in ("one", "two"):
            await lab.publish(text, to="CA-RC", stanza="ratchet")
    first, second = map(session.parse, sent_stanzas(hq))
    assert first.handshake is not None
    assert first.handshake == second.handshake  # nobody has answered yet
    assert first.handshake.once_id
    assert (first.header.number, second.header.number) == (0, 1)
    assert await received(hq, "CA-RC", 2) == ["one", "two"]
    async with hq.client("CA-RC") as center:
        assert await center.offer_prekeys() == PREKEYS - 1
        # a reply goes through the same session
        await center.publish("back", to="FL-LAB", stanza="ratchet")
    (reply,) = map(session.parse, sent_stanzas(hq, "CA-RC"))
    assert (reply.session_id, reply.handshake) == (first.session_id, None)
    assert await received(hq, "FL-LAB", 1) == ["back"]
    async with hq.client("FL-LAB") as lab:
        await lab.publish("three", to="CA-RC", stanza="ratchet")
    third = session.parse(sent_stanzas(hq)[-1])
    assert third.handshake is None
    assert third.header.key != second.header.key
    assert await received(hq, "CA-RC", 1) == ["one", "two", "three"]


async def test_receipts_heal_what_goes_one_way(hq: Any) -> None:
    """The lab only sends, the center only receives: its receipts turn the ratchet."""
    keys = []
    for turn in range(3):
        async with hq.client("FL-LAB") as lab:
            confirmation = await lab.publish(f"{turn}", to="CA-RC", stanza="ratchet")
            keys.append(session.parse(sent_stanzas(hq)[-1]).header.key)
            await received(hq, "CA-RC", 1)
            with trio.fail_after(60):
                assert await lab.wait_for([confirmation.envelope_id], "opened", 60)
    assert len(set(keys)) == 3
    assert [line["content"] for line in hq.lines("CA-RC")] == ["0", "1", "2"]


async def test_a_session_in_trouble_holds_up_no_receipt(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        one = await lab.publish("1", to="CA-RC", stanza="ratchet")
        await received(hq, "CA-RC", 1)
        change(hq.home("CA-RC"), "UPDATE sessions SET state = zeroblob(500)")
        two = await lab.publish("2", to="CA-RC")
        await received(hq, "CA-RC", 1)
        assert await lab.wait_for([one.envelope_id, two.envelope_id], "opened", 60)
        async with hq.client("CA-RC") as center, trio.open_nursery() as nursery:
            nursery.start_soon(Receiver(center).run)
            # does not open, and is sealed in a fresh session
            await lab.publish("3", to="CA-RC", stanza="ratchet")
            await until(lambda: len(hq.lines("CA-RC")) == 3)
            nursery.cancel_scope.cancel()


async def test_a_sender_whose_states_are_damaged_begins_anew(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        await lab.publish("1", to="CA-RC", stanza="ratchet")
        change(hq.home("FL-LAB"), "UPDATE sessions SET state = zeroblob(500)")
        await lab.publish("2", to="CA-RC", stanza="ratchet")
    one, two = map(session.parse, sent_stanzas(hq))
    assert one.session_id != two.session_id
    assert await received(hq, "CA-RC", 2) == ["1", "2"]


async def test_both_begin_at_once(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        await lab.offer_prekeys()
        await lab.publish("from the lab", to="CA-RC", stanza="ratchet")
        await center.publish("from the center", to="FL-LAB", stanza="ratchet")
        for client in (lab, center):
            (delivery,) = await client.fetch()
            await client.ack(delivery)
        for _ in range(2):
            await lab.publish("on", to="CA-RC", stanza="ratchet")
            await center.publish("on", to="FL-LAB", stanza="ratchet")
            for client in (lab, center):
                (delivery,) = await client.fetch()
                await client.ack(delivery)
    spoken = {
        session.parse(s).session_id
        for name in ("FL-LAB", "CA-RC")
        for s in sent_stanzas(hq, name)[1:]
    }
    assert len(spoken) == 1


async def test_first_messages_at_once_begin_one_session(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(partial(lab.publish, str(number), to="CA-RC", stanza="ratchet"))
    assert len({session.parse(s).session_id for s in sent_stanzas(hq, "FL-LAB")}) == 1
    assert sorted(await received(hq, "CA-RC", 5)) == list("01234")


async def test_a_delivery_opens_again_until_it_is_acknowledged(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        await lab.publish(["a", "b"], to="CA-RC", stanza="ratchet")
    for _ in range(3):  # a program that ends before it acknowledges
        async with hq.client("CA-RC") as center:
            with trio.fail_after(60):
                while not (found := await center.fetch()):
                    await trio.sleep(0.05)
            assert [m.content for m in found[0].messages] == [b"a", b"b"]
    async with hq.client("CA-RC") as center:
        with trio.fail_after(60):
            while not (found := await center.fetch()):
                await trio.sleep(0.05)
        await center.ack(found)
        db = sqlite3.connect(hq.home("CA-RC") / DATABASE)
        assert db.execute("SELECT count(*) FROM held").fetchone() == (0,)
        db.close()


@pytest.mark.parametrize("who", ["FL-LAB", "CA-RC"])
async def test_a_lost_state_mends_by_itself(hq: Any, who: str) -> None:
    async with hq.client("FL-LAB") as lab:
        await lab.publish("before", to="CA-RC", stanza="ratchet")
    await received(hq, "CA-RC", 1)
    change(hq.home(who), "DELETE FROM sessions", "DELETE FROM secrets", "DELETE FROM facts")
    change(hq.home(who), "DELETE FROM chains", database="outbox.sqlite3")
    async with (
        hq.client("CA-RC") as center,
        hq.client("FL-LAB") as lab,
        trio.open_nursery() as nursery,
    ):
        await center.offer_prekeys()
        receiver = Receiver(center)
        nursery.start_soon(receiver.run)
        await lab.publish("after", to="CA-RC", stanza="ratchet")
        await until(lambda: len(hq.lines("CA-RC")) == 2)
        nursery.cancel_scope.cancel()
    assert [line["content"] for line in hq.lines("CA-RC")] == ["before", "after"]


async def test_a_state_set_back_mends_by_itself(hq: Any) -> None:
    """The sender's home restored from a backup makes message keys again; the receiver says so,
    and both go on.
    """
    async with hq.client("FL-LAB") as lab:
        await lab.publish("1", to="CA-RC", stanza="ratchet")
    backup = copies(hq.home("FL-LAB"))
    async with hq.client("FL-LAB") as lab:
        await lab.publish("2", to="CA-RC", stanza="ratchet")
    await received(hq, "CA-RC", 2)
    set_back(hq.home("FL-LAB"), backup)
    async with (
        hq.client("CA-RC") as center,
        hq.client("FL-LAB") as lab,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(Receiver(center).run)
        await lab.publish("3", to="CA-RC", stanza="ratchet")
        await until(lambda: len(hq.lines("CA-RC")) == 3)
        nursery.cancel_scope.cancel()
    assert [line["content"] for line in hq.lines("CA-RC")] == ["1", "2", "3"]


async def test_an_old_session_is_followed_by_a_fresh_one(hq: Any) -> None:
    async with hq.client("FL-LAB", sessions=SessionTable(rotation_s=0)) as lab:
        for text in ("1", "2"):
            await lab.publish(text, to="CA-RC", stanza="ratchet")
            await trio.sleep(0.01)
        await hq.stop()  # no prekeys to be had: the old one is used on
        with trio.fail_after(60):
            await lab.publish("3", to="CA-RC", stanza="ratchet", wait=False)
        await hq.start()
        await until(lambda: lab.connection.window.idle and len(sent_stanzas(hq)) == 3)
    spoken = [session.parse(stanza).session_id for stanza in sent_stanzas(hq)]
    assert len(set(spoken)) == 2
    assert spoken[1] == spoken[2]
    assert sorted(await received(hq, "CA-RC", 3)) == ["1", "2", "3"]


async def test_several_recipients_each_in_its_session(hq: Any) -> None:
    await hq.join("SF-RC")
    async with hq.client("SF-RC") as other:
        await other.offer_prekeys()
    async with hq.client("FL-LAB") as lab:
        async with lab.publisher(to=["CA-RC", "SF-RC"], stanza="ratchet") as publisher:
            for i in range(50):
                publisher.put(f"{i}")
    for name in ("CA-RC", "SF-RC"):
        assert await received(hq, name, 50) == [str(i) for i in range(50)]


async def test_what_the_outbox_could_not_keep_was_never_said(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cipherbox.client.outbox.outbox import Outbox
    from cipherbox.errors import StoreError

    async with hq.client("FL-LAB") as lab:
        await lab.publish("1", to="CA-RC", stanza="ratchet")
        with monkeypatch.context() as patch:

            def fail(*_: Any) -> None:
                raise StoreError("full")

            patch.setattr(Outbox, "_insert", fail)
            with pytest.raises(StoreError):
                await lab.publish("2", to="CA-RC", stanza="ratchet")
        await lab.publish("3", to="CA-RC", stanza="ratchet")
    assert [session.parse(s).header.number for s in sent_stanzas(hq)] == [0, 1]
    assert await received(hq, "CA-RC", 2) == ["1", "3"]


async def test_two_processes_speak_in_one_session(hq: Any) -> None:
    """Each seals from where it knows the chain to stand; who comes second seals again, and no
    number is used twice.
    """
    async with hq.client("FL-LAB") as one, hq.client("FL-LAB") as other:
        await one.publish("0", to="CA-RC", stanza="ratchet")

        async def some(client: Any, name: str) -> None:
            for turn in range(10):
                await client.publish(f"{name}{turn}", to="CA-RC", stanza="ratchet")

        async def many(client: Any) -> None:
            async with client.publisher(to="CA-RC", stanza="ratchet", batch=1) as publisher:
                for number in range(200):
                    await publisher.send(f"c{number}")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(some, one, "a")
            nursery.start_soon(some, other, "b")
            nursery.start_soon(many, other)
    said = [session.parse(s) for s in sent_stanzas(hq)]
    assert len({s.session_id for s in said}) == 1
    assert sorted(s.header.number for s in said) == list(range(221))
    texts = await received(hq, "CA-RC", 221)
    assert sorted(texts) == sorted(
        ["0", *(f"{n}{i}" for n in "ab" for i in range(10)), *(f"c{i}" for i in range(200))]
    )


async def test_two_readers_of_one_home_hear_in_one_session(hq: Any) -> None:
    """A receiver, and a program that takes from another queue: both open what comes in the same
    session.
    """
    async with hq.admin() as admin:
        await admin.declare_exchange("labs", "direct")
        await admin.grant("FL-LAB", "publish", "labs")
        await admin.declare_queue("own", owner="CA-RC")
        await admin.bind("labs", "own", "k")
    async with (
        hq.client("FL-LAB") as lab,
        hq.client("CA-RC") as center,
        hq.client("CA-RC") as program,
    ):
        lab.allow.allow("labs", None)
        taken: list[bytes] = []

        async def take() -> None:
            async with program.consume("own") as consumer:
                async for delivery in consumer:
                    taken.extend(m.content for m in delivery.messages)
                    await program.ack(delivery)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(Receiver(center).run, [center.mailbox])
            nursery.start_soon(take)
            for number in range(40):
                await lab.publish(f"{number}", to="CA-RC", stanza="ratchet")
                await lab.publish(f"{number}", exchange="labs", routing_key="k", stanza="ratchet")
            await until(lambda: len(hq.lines("CA-RC")) == 40 and len(taken) == 40)
            nursery.cancel_scope.cancel()
    assert sorted(map(int, taken)) == list(range(40))
    spoken = {session.parse(s).session_id for s in sent_stanzas(hq)}
    assert len(spoken) == 1  # nothing had to be mended


async def test_a_fresh_turn_is_safe_before_it_is_spoken_in(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cipherbox.client.outbox.outbox import Outbox
    from cipherbox.client.sessions.sessions import Sessions

    order: list[str] = []
    write, sync = Outbox.write, Sessions.sync

    def noted_write(self: Any, fresh: Any = (), *more: Any, **named: Any) -> Any:
        order.extend("kept" for _ in fresh)
        return write(self, fresh, *more, **named)

    def noted_sync(self: Any) -> None:
        order.append("synced" if self.unsynced else "nothing")
        sync(self)

    monkeypatch.setattr(Outbox, "write", noted_write)
    monkeypatch.setattr(Sessions, "sync", noted_sync)
    async with hq.client("FL-LAB") as lab:
        await lab.publish("1", to="CA-RC", stanza="ratchet")
        await lab.publish("2", to="CA-RC", stanza="ratchet")
        await lab.publish("3", to="CA-RC")
        assert order == ["synced", "kept", "kept", "kept"]


async def test_the_first_key_of_a_chain_goes_when_the_outbox_has_it(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        await lab.publish("1", to="CA-RC", stanza="ratchet")
        db = sqlite3.connect(hq.home("FL-LAB") / DATABASE)
        assert db.execute("SELECT turn, start FROM sessions").fetchall() == [(1, None)]
        db.close()


async def test_files_go_outside_of_sessions(hq: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    async with hq.client("FL-LAB") as lab:
        with pytest.raises(InvalidRequest, match="without stanza 'ratchet'"):
            await send_file(
                lab, tmp_path / "file", ["file"], ["CA-RC"], "text/plain", stanza="ratchet"
            )

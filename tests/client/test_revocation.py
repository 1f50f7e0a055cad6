"""Revoked: cut at once, routed to no more, told to senders, who seal again for those who are
left.
"""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import trio

from cipherbox import pki
from cipherbox.client.keys.pins import PERSON
from cipherbox.client.outbox.rows import CONFIRMED, PARKED
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.envelope.layout import split
from cipherbox.errors import BundleDiscontinuous, CredentialsError, RecipientRevoked, names_detail
from tests.client.real_hq import RealHq
from tests.client.waiting import until


@pytest.fixture
async def hq(hq: RealHq) -> RealHq:
    await hq.join("SF-RC")
    return hq


async def received(hq: Any, name: str) -> list[Any]:
    async with hq.client(name) as client:
        await Receiver(client).drain()
    return [line["content"] for line in hq.lines(name)]


async def test_it_cuts_live_connections_and_tells_every_sender(hq: Any) -> None:
    said: list[str] = []
    async with (
        hq.client("FL-LAB", on_event=lambda e: said.append(str(e))) as lab,
        hq.admin() as admin,
    ):
        await lab.publish("x", to=["CA-RC"])
        async with hq.client("CA-RC") as center:
            await center.connection.ready()
            serial = pki.serial(center.home.chain[0])
            await admin.revoke("CA-RC", "its laptop was stolen")
            with trio.fail_after(60):
                while center.connection.failure is None:
                    await trio.sleep(0.01)
            with pytest.raises(CredentialsError, match=r"its laptop was stolen|CA-RC was revoked"):
                await center.fetch()
        # the sender asked for nothing, and knows
        await until(lambda: lab.revocations.revoked_at(serial) > 0)
        assert any("CA-RC was revoked; nothing is sealed to it any more" in line for line in said)
        with pytest.raises(RecipientRevoked):
            await lab.publish("y", to="CA-RC")
        assert await admin.list("connections", "CA-RC") == []


async def test_what_is_not_opened_is_sealed_again_for_those_who_are_left(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.admin() as admin:
        both = await lab.publish("for both", to=["CA-RC", "SF-RC"])
        alone = await lab.publish("for one", to="CA-RC")
        await admin.revoke("CA-RC", "stolen")
        with trio.fail_after(60):
            while (row := await lab.sent(both.message_ids[0])) is None or (
                row.generation,
                row.state,
            ) != (1, CONFIRMED):
                await trio.sleep(0.01)
        assert row.recipients == ("SF-RC",)
        assert [
            r.client_id for r in split(lab.outbox_sender.outbox.bytes_of(row)).prefix.recipients
        ] == ["SF-RC"]
        row = await lab.sent(alone.message_ids[0])
        assert row.generation == 0  # nobody is left to seal it for
        await lab.outbox_sender.without_revoked()
        assert (await lab.sent(both.message_ids[0])).generation == 1  # once is enough
    assert await received(hq, "SF-RC") == ["for both"]
    async with hq.client("FL-LAB") as lab:
        with trio.fail_after(60):
            while (await lab.sent(both.message_ids[0])).owed:
                await trio.sleep(0.01)


async def test_what_waited_in_the_outbox_goes_to_those_who_are_left(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        await lab.bundles(["CA-RC", "SF-RC"])
        await lab.revocations.ensure()
    await hq.stop()
    async with hq.client("FL-LAB", keep_trying=True, tries=1, timeout_s=0.3) as lab:
        await lab.publish("for both", to=["CA-RC", "SF-RC"], wait=False)
        await lab.publish("for one", to="CA-RC", wait=False)
    await hq.start()
    async with hq.admin() as admin:
        await admin.revoke("CA-RC")
    async with hq.client("FL-LAB") as lab:
        await until(
            lambda: [r.state for r in lab.outbox_sender.outbox.newest(5)] == [CONFIRMED, PARKED]
        )
        first, second = lab.outbox_sender.outbox.newest(5)
        assert first.recipients == ("SF-RC",)
        assert first.generation == 1  # HQ's refusal and its list both say so, and once is enough
        assert "revoked" in first.reason
        assert "revoked" in second.reason
    assert await received(hq, "SF-RC") == ["for both"]


async def test_the_refusal_and_the_list_at_the_same_time_have_it_sealed_once(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.admin() as admin:
        both = await lab.publish("for both", to=["CA-RC", "SF-RC"])
        lab.observer.revocation_list = _deaf
        await admin.revoke("CA-RC", "stolen")
        await lab.revocations.ensure(10**6)
        refused = RecipientRevoked("the certificate of CA-RC was revoked", names_detail(["CA-RC"]))
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(lab.outbox_sender.without_revoked)
                nursery.start_soon(lab.outbox_sender.mend, both.envelope_id, 0, refused)
        assert (await lab.sent(both.message_ids[0])).generation == 1


async def test_a_route_leads_to_those_who_are_left(hq: Any) -> None:
    async with hq.admin() as admin, hq.client("FL-LAB") as lab:
        await admin.grant("CA-RC", "read", "default_queue")
        await admin.grant("SF-RC", "read", "default_queue")
        lab.allow.allow("default_exchange", ["CA-RC", "SF-RC"])
        sent = await lab.publish("x", exchange="default_exchange", routing_key="default_key")
        await admin.revoke("CA-RC")
        with trio.fail_after(60):
            while (await lab.sent(sent.message_ids[0])).generation == 0:
                await trio.sleep(0.01)
        route = await lab.resolve("default_exchange", "default_key")
        assert [q.readers for q in route.queues] == [["SF-RC"]]
    assert await received(hq, "SF-RC") == ["x"]


async def joins_again(hq: Any, name: str) -> None:
    """The machine's disk died: a new token, new keys."""
    shutil.rmtree(hq.home(name))
    await hq.join(name, replace=True)


async def test_after_lost_keys_a_person_compares_and_everything_is_sealed_again(hq: Any) -> None:
    said: list[str] = []
    async with hq.client("FL-LAB", on_event=lambda e: said.append(str(e))) as lab:
        sent = [await lab.publish(f"message {n}", to=["CA-RC", "SF-RC"]) for n in range(3)]
        assert await received(hq, "SF-RC") == ["message 0", "message 1", "message 2"]
        await joins_again(hq, "CA-RC")
        async with hq.client("CA-RC") as center:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Receiver(center).run)
                refused = "from CA-RC: the keys of its sender are not trusted"
                await until(lambda: any(refused in line for line in said))
                nursery.cancel_scope.cancel()
        assert any(
            "lost its keys and joined again, or the key shown to you is false" in line
            for line in said
        )
        done, errors = await lab.seal_again("CA-RC")
        assert done == 0
        assert {type(e) for e in errors} == {BundleDiscontinuous}
        lab.directory.pins.accept(await lab.directory.newest_at_hq("CA-RC"), PERSON)  # keys verify
        assert await lab.seal_again("CA-RC") == (3, [])
        await until(lambda: not lab.outbox_sender.outbox.waiting(0, 1 << 62, 1))
        assert sorted(await received(hq, "CA-RC")) == ["message 0", "message 1", "message 2"]
        for one in sent:
            with trio.fail_after(60):
                while (await lab.sent(one.message_ids[0])).owed:
                    await trio.sleep(0.01)
        assert await lab.seal_again() == (0, [])
    assert len(await received(hq, "SF-RC")) == 3  # opened before, and not again


async def test_who_was_revoked_and_came_back_is_not_left_out(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.admin() as admin:
        sent = await lab.publish("for both", to=["CA-RC", "SF-RC"])
        lab.observer.revocation_list = _deaf
        await admin.revoke("CA-RC", "lost")
        await joins_again(hq, "CA-RC")
        await lab.revocations.ensure(10**6)
        assert lab.revocations.names_any
        assert await lab.directory.revoked() == []
        await lab.outbox_sender.without_revoked()
        assert (await lab.sent(sent.message_ids[0])).recipients == ("CA-RC", "SF-RC")
        lab.directory.pins.accept(await lab.directory.newest_at_hq("CA-RC"), PERSON)
        assert await lab.seal_again("CA-RC") == (1, [])
        await until(lambda: not lab.outbox_sender.outbox.waiting(0, 1 << 62, 1))
    assert await received(hq, "CA-RC") == ["for both"]
    assert await received(hq, "SF-RC") == ["for both"]


async def _deaf(number: int) -> None:
    await trio.lowlevel.checkpoint()

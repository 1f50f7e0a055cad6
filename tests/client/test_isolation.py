"""What one enrolled client does ends with its envelopes: everybody else's mail arrives, and the
next start works.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from cipherbox.client.client import Client
from cipherbox.client.receiving.lookups import OF_SENDER, PER_SENDER
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.envelope.group import TYPE, Unsigned
from cipherbox.envelope.outcomes import Outcome
from cipherbox.envelope.receipt import USE, Leaf
from cipherbox.errors import NotFound
from cipherbox.limits import LIMITS
from cipherbox.sealing.body import Message, text_message
from cipherbox.wire import frames
from tests.client.attacker import crafted, submit
from tests.client.real_hq import RealHq, real_hq


@pytest.fixture
async def hq(tmp_path: Path) -> AsyncIterator[RealHq]:
    async with real_hq(tmp_path, limits={"key_requests_per_minute": 1000}) as found:
        await found.join("FL-LAB", "CA-RC", "BAD-LAB")
        yield found


async def rotate(client: Client, times: int) -> list[bytes]:
    """Registers so many further bundles of the same keys; the hashes of all, oldest first."""
    home = client.home
    identity = home.identity
    assert identity is not None
    assert identity.bundle is not None
    hashes = [identity.bundle.hash]
    for _ in range(times):
        bundle = identity.make_bundle(
            home.key, home.chain, identity.bundle.created_at, identity.bundle, identity
        )
        await client.connection.request(frames.Register, bundle=bundle.raw)
        identity.bundle = bundle
        hashes.append(bundle.hash)
    return hashes


async def test_a_chain_of_very_many_bundles_ends_no_recipient_and_no_query(hq: Any) -> None:
    many = LIMITS.bundles_per_answer * 2 + 5
    async with (
        hq.client("CA-RC") as center,
        hq.client("FL-LAB") as lab,
        hq.client("BAD-LAB", renew=False) as bad,
    ):
        before = await crafted(bad, ["CA-RC"], [text_message("sealed with the first")])
        await lab.bundles(["BAD-LAB"])  # pinned at the first one
        await rotate(bad, many)
        await bad.publish("sealed with the newest", to="CA-RC")
        await submit(bad, before)
        await lab.publish("from somebody else", to="CA-RC")
        with trio.fail_after(60):
            assert await Receiver(center).run(count=3) == 3
        found, reasons = await center.directory.reachable(["BAD-LAB", "FL-LAB"])
        assert (sorted(found), reasons) == (["BAD-LAB", "FL-LAB"], {})
        lab.directory.refresh("BAD-LAB")
        (newest,) = await lab.bundles(["BAD-LAB"])  # from its old pin, page by page
        assert newest.sequence == many + 1


async def test_a_hundred_envelopes_with_made_up_keys_use_up_no_look_ups(hq: Any) -> None:
    async with (
        hq.client("CA-RC") as center,
        hq.client("FL-LAB") as lab,
        hq.client("BAD-LAB", renew=False) as bad,
    ):
        asked, began = counted_look_ups(center), trio.current_time()
        right = bad.home.identity.bundle
        for number in range(100):
            bad.home.identity.bundle = attrs.evolve(right, hash=number.to_bytes(32, "big"))
            await submit(bad, await crafted(bad, ["CA-RC"], [text_message("x")]))
        await lab.publish("from somebody else", to="CA-RC")
        async with trio.open_nursery() as nursery:
            receiver = Receiver(center)
            await nursery.start(receiver.run)
            with trio.fail_after(60):
                while not hq.lines("CA-RC"):
                    await trio.sleep(0.01)
                while receiver.refused + len(center.opener.refusals._due) < 100:
                    await trio.sleep(0.01)
            first = len(asked)
            # many hashes in one request, and so many of one sender
            assert first <= 100 // OF_SENDER + 3
            await center.connection.request(
                frames.Resend, queue="box.CA-RC", sender_id="", envelope_id=bytes(16)
            )
            await lab.publish("and again", to="CA-RC")
            with trio.fail_after(60):
                while len(hq.lines("CA-RC")) < 2:
                    await trio.sleep(0.01)
            # what HQ does not have is remembered, and the rest is not asked for
            assert len(asked) <= allowed(began) + 2
            nursery.cancel_scope.cancel()


def allowed(since: float) -> float:
    """Return the look-ups of one sender that a client makes meanwhile; it has those of a minute
    when it begins.
    """
    return PER_SENDER * (1 + (trio.current_time() - since) / 60)


def counted_look_ups(client: Client) -> list[Any]:
    asked: list[Any] = []
    request = client.connection.request

    async def counting(kind: Any, **fields: Any) -> Any:
        if kind is frames.GetBundles:
            asked.append(fields)
        return await request(kind, **fields)

    client.connection.request = counting  # type: ignore[method-assign]
    return asked


async def test_a_look_up_that_takes_long_holds_up_its_own_sender_alone(hq: Any) -> None:
    async with (
        hq.client("CA-RC") as center,
        hq.client("FL-LAB") as lab,
        hq.client("BAD-LAB") as bad,
    ):
        await lab.publish("first", to="CA-RC")
        with trio.fail_after(60):
            assert await Receiver(center).run(count=1) == 1  # its keys are known from here on
        release, look_up = trio.Event(), center.directory.look_up

        async def slow(wanted: Any) -> Any:
            await release.wait()
            return await look_up(wanted)

        center.directory.look_up = slow
        await bad.publish("whose keys are looked up for long", to="CA-RC")
        await lab.publish("second", to="CA-RC")
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                receiver = Receiver(center)
                await nursery.start(receiver.run)
                while len(hq.lines("CA-RC")) < 2:
                    await trio.sleep(0.01)
                assert [line["sender_id"] for line in hq.lines("CA-RC")] == ["FL-LAB", "FL-LAB"]
                release.set()
                while len(hq.lines("CA-RC")) < 3:
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()


async def test_what_hq_says_to_a_refusal_ends_nothing(hq: Any) -> None:
    async with (
        hq.client("CA-RC") as center,
        hq.client("FL-LAB") as lab,
        hq.client("BAD-LAB", renew=False) as bad,
    ):
        request = center.connection.request

        async def no_nack(kind: Any, **fields: Any) -> Any:
            if kind is frames.Nack:
                raise NotFound("it is not out any more")
            return await request(kind, **fields)

        center.connection.request = no_nack
        raw = await crafted(bad, ["CA-RC"], b"\x02\x00\x00\x00\x00\x01", count=1)
        await submit(bad, raw)
        await lab.publish("from somebody else", to="CA-RC")
        with trio.fail_after(60):
            assert await Receiver(center).run(count=1) == 1


async def test_a_receipt_of_the_year_584_million_ends_no_sender(hq: Any) -> None:
    said: list[Any] = []
    async with hq.client("FL-LAB", on_event=said.append) as lab, hq.client("BAD-LAB") as bad:
        confirmation = await lab.publish("for the dishonest", to="BAD-LAB")
        row = await lab.sent(confirmation.message_ids[0])
        identity = bad.home.identity
        leaf = Leaf("FL-LAB", row.envelope_id, 0, row.envelope_hash, 1, Outcome.OPENED)
        unsigned = Unsigned.over(
            "BAD-LAB", (1 << 64) - 1, identity.bundle.hash, identity.suite, [leaf]
        )
        await bad.publish(
            [Message(unsigned.group(identity.sign(USE, unsigned.digest), "FL-LAB"), TYPE)],
            to="FL-LAB",
            box="sys",
        )
        with trio.fail_after(60):
            assert await lab.wait_for([confirmation.envelope_id], "opened", 60)


async def test_one_envelope_that_cannot_be_recorded_ends_with_itself(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cipherbox.client.inbox import inbox as inboxes

    made = inboxes.lines_of

    def lines_of(one: Any) -> Any:
        if one.sender == "BAD-LAB":
            raise OverflowError("a number that nobody thought of")
        return made(one)

    monkeypatch.setattr(inboxes, "lines_of", lines_of)
    async with (
        hq.client("CA-RC") as center,
        hq.client("FL-LAB") as lab,
        hq.client("BAD-LAB") as bad,
    ):
        await bad.publish("poison", to="CA-RC")
        for number in range(3):
            await lab.publish(f"good {number}", to="CA-RC")
        receiver = Receiver(center)
        with trio.fail_after(60):
            assert await receiver.run(count=3) == 3
        assert receiver.refused == 1
    assert [line["content"] for line in hq.lines("CA-RC")] == ["good 0", "good 1", "good 2"]


async def test_receipts_with_made_up_keys_use_up_no_look_ups(hq: Any) -> None:
    async with (
        hq.client("FL-LAB") as lab,
        hq.client("BAD-LAB") as bad,
        hq.client("CA-RC") as center,
    ):
        confirmation = await lab.publish("for the dishonest", to="BAD-LAB")
        row = await lab.sent(confirmation.message_ids[0])
        asked, began = counted_look_ups(lab), trio.current_time()
        identity = bad.home.identity
        for number in range(60):
            leaf = Leaf("FL-LAB", row.envelope_id, 0, row.envelope_hash, 1, Outcome.OPENED)
            unsigned = Unsigned.over(
                "BAD-LAB", 1, number.to_bytes(32, "big"), identity.suite, [leaf]
            )
            group = unsigned.group(identity.sign(USE, unsigned.digest), "FL-LAB")
            await bad.publish([Message(group, TYPE)], to="FL-LAB", box="sys")
        honest = await lab.publish("for somebody else", to="CA-RC")
        assert await Receiver(center).run(count=1) == 1
        with trio.fail_after(60):
            assert await lab.wait_for([honest.envelope_id], "opened", 60)
        assert len(asked) <= allowed(began) + 4

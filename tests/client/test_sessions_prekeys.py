"""Prekeys at a real HQ: left, handed out once, replaced when due, refused when they are not
their owner's.
"""

from __future__ import annotations

from typing import Any

import pytest
import trio

from cipherbox.client.receiving.receiver import Receiver
from cipherbox.errors import BundleRefused, InvalidRequest, UnknownRecipient
from cipherbox.sealing.ratchet import session
from tests.client.real_hq import PREKEYS
from tests.client.test_sessions import copies, hq, received, sent_stanzas, set_back
from tests.client.waiting import until

__all__ = ["hq"]


async def test_a_short_fetch_leaves_prekeys(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        assert await Receiver(lab).drain() == 0
    async with hq.client("CA-RC") as center:
        await center.publish("x", to="FL-LAB", stanza="ratchet")


async def test_an_older_hq_is_not_asked(hq: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hq.client("FL-LAB") as lab:
        lab.connection.current.welcome.features = 0
        assert await Receiver(lab).drain() == 0
        for call in (lab.offer_prekeys, lambda: lab.publish("x", to="CA-RC", stanza="ratchet")):
            with pytest.raises(UnknownRecipient, match="does not store prekeys"):
                await call()
        assert (await lab.publish("x", to="CA-RC")).accepted_at


async def test_a_receiver_that_was_set_back_replaces_its_prekeys(hq: Any) -> None:
    """Its backup knows neither the prekeys HQ hands out nor their numbers."""
    backup = copies(hq.home("CA-RC"))
    async with hq.client("CA-RC") as center:
        keys = center.sessions.keys
        keys._put_fact("offered", bytes(4))  # as after a week: all are due
        assert keys.must_replace()
        await center.offer_prekeys()
    set_back(hq.home("CA-RC"), backup)
    async with (
        hq.client("CA-RC") as center,
        hq.client("FL-LAB") as lab,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(Receiver(center).run)
        await lab.publish("x", to="CA-RC", stanza="ratchet")
        await until(lambda: len(hq.lines("CA-RC")) == 1)
        nursery.cancel_scope.cancel()


async def test_an_hq_that_was_set_back_gets_fresh_prekeys(hq: Any) -> None:
    async with hq.client("CA-RC") as center:
        keys = center.sessions.keys
        offered = keys._fact("offered")
        await center.offer_prekeys()
        assert keys._fact("offered") == offered
        center.connection.current.welcome.history = b"another history."
        await center.offer_prekeys()
        assert keys._fact("offered") != offered


async def test_what_is_refused(hq: Any) -> None:
    await hq.join("SF-RC")
    async with hq.admin() as admin, hq.client("FL-LAB") as lab:
        with pytest.raises(UnknownRecipient, match="no prekeys at HQ"):
            await lab.publish("x", to="SF-RC", stanza="ratchet")
        await admin.declare_exchange("labs", "direct")
        await admin.grant("FL-LAB", "publish", "labs")
        lab.allow.allow("labs", None)
        await admin.declare_queue("own", owner="CA-RC")
        await admin.bind("labs", "own", "k")
        await lab.publish("x", exchange="labs", routing_key="k", stanza="ratchet")
        await admin.declare_queue("shared", owner="CA-RC", readers=["SF-RC"])
        await admin.bind("labs", "shared", "many")
        with pytest.raises(InvalidRequest, match="two ends"):
            await lab.publish("x", exchange="labs", routing_key="many", stanza="ratchet")
        # prekeys of another, or changed on the way
        assert lab.prekeys is not None
        good = lab.prekeys.sessions.keys.replacement()
        async with hq.client("SF-RC") as other:
            with pytest.raises(BundleRefused):
                await other.prekeys._send(good.signed, (), replace=False)
        bad = good.signed[:-1] + bytes([good.signed[-1] ^ 1])
        with pytest.raises(BundleRefused):
            await lab.prekeys._send(bad, (), replace=False)


async def test_one_time_prekeys_are_handed_out_once_and_topped_up(hq: Any) -> None:
    from cipherbox.wire import frames

    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        seen = set()
        for _ in range(4):
            (found,) = (await lab.connection.request(frames.GetPrekeys, clients=["CA-RC"])).answers
            assert found.signed
            seen.add(found.once)
        assert len(seen) == 3  # two of them, then the last resort
        assert b"" in seen
        assert await center.offer_prekeys() == PREKEYS - 2
        assert (await lab.connection.request(frames.GetPrekeys, clients=["NOBODY"])).answers[
            0
        ].signed == b""
        # first contact with the last resort works too
        await lab.publish("x", to="CA-RC", stanza="ratchet")
    shaken = session.parse(sent_stanzas(hq)[0]).handshake
    assert shaken is not None
    assert shaken.once_id == 0
    assert await received(hq, "CA-RC", 1) == ["x"]


async def test_rotated_keys_take_their_prekeys_along(hq: Any) -> None:
    """The lab has pinned the keys before; what HQ hands out is signed by those of now."""
    async with hq.client("FL-LAB") as lab:
        await lab.publish("usual", to="CA-RC")
        async with hq.client("CA-RC") as center:
            await center.publish("begun before", to="FL-LAB")
            await center.key_lifecycle.rotate()
            assert await center.offer_prekeys() == PREKEYS
        await lab.publish("in a session", to="CA-RC", stanza="ratchet")
        assert lab.directory.pins.get("CA-RC").bundle.sequence == 2
    assert await received(hq, "CA-RC", 2) == ["usual", "in a session"]

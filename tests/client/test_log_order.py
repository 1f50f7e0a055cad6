"""The order in HQ's log decides what a revoked sender is believed, not the times that HQ states."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from cipherbox.errors import SenderNotValid, Throttled
from cipherbox.server.hq import HQ
from cipherbox.wire import frames

BACK_MS = 60_000


def running(client: Any) -> HQ:
    """The HQ behind this client, with all that its operator can do."""
    found = [one for one in gc.get_objects() if isinstance(one, HQ)]
    return next(one for one in found if one.engine.audit is not None and one.engine.audit.public == client.log.key)


async def revoke(hq: HQ, client_id: str) -> None:
    """Log and list name the client; its connection is left alive, as a hostile HQ would."""
    await hq.enrolments._revoke_certificates(client_id)
    await hq.engine.in_store(hq.trust.new_crl)


async def test_a_backdated_clock_makes_no_revoked_sender_believed(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        server = running(lab)
        real = server.engine._clock_ms
        server.engine._clock_ms = lambda: real() - BACK_MS
        server.engine.broker.now -= BACK_MS
        await lab.publish("before", to="CA-RC")
        await revoke(server, "FL-LAB")
        await lab.publish("after", to="CA-RC")
        first, second = await center.fetch_unopened(envelopes=2)
        assert second.accepted_at < real() - BACK_MS / 2  # whatever HQ says about when that was
        center.revocations._asked_at = float("-inf")
        await center.open(first)
        assert first.messages[0].content == b"before"
        with pytest.raises(SenderNotValid, match=r"in entry \d+ of its log, after entry \d+, in which the certificate"):
            await center.open(second)


async def test_an_hq_that_proves_no_order_is_not_believed(hq: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        server = running(lab)
        real = server.engine._clock_ms
        server.engine._clock_ms = lambda: real() - BACK_MS
        server.engine.broker.now -= BACK_MS
        await lab.publish("before", to="CA-RC")
        await revoke(server, "FL-LAB")
        (delivery,) = await center.fetch_unopened()
        center.revocations._asked_at = float("-inf")
        monkeypatch.setattr("cipherbox.server.logrequests._acceptance_for", lambda *_: b"")
        with pytest.raises(SenderNotValid, match="does not prove that it accepted this before"):
            await center.open(delivery)


async def test_a_revoked_senders_backlog_uses_up_no_requests(hq: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is over the bound ends with its envelope, and comes again; what HQ refuses to answer now does, too."""
    monkeypatch.setattr("cipherbox.client.log.order.ASKED", 2)
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        server = running(lab)
        real = server.engine._clock_ms
        server.engine._clock_ms = lambda: real() - BACK_MS
        server.engine.broker.now -= BACK_MS
        for text in "1234":
            await lab.publish(text, to="CA-RC")
        await revoke(server, "FL-LAB")
        first, *more = await center.fetch_unopened(envelopes=4)
        center.revocations._asked_at = float("-inf")
        await center.open(first)
        with monkeypatch.context() as patch:
            patch.setattr("cipherbox.server.logrequests._acceptance_for", throttled)
            with pytest.raises(SenderNotValid, match="not so fast"):
                await center.open(more[0])
        for delivery in more[1:]:
            with pytest.raises(SenderNotValid, match="HQ is asked too much about it"):
                await center.open(delivery)


def throttled(*_: object) -> bytes:
    raise Throttled("not so fast")


async def test_who_may_not_read_an_envelope_gets_no_proof_of_it(hq: Any) -> None:
    await hq.join("SF-RC")
    async with hq.client("FL-LAB") as lab, hq.client("SF-RC") as stranger:
        confirmation = await lab.publish("x", to="CA-RC")
        name = frames.EnvelopeName("FL-LAB", confirmation.envelope_id)
        for client, proven in ((lab, True), (stranger, False)):
            answer = await client.line.request(frames.Prove, envelopes=[name], serials=[], incarnation=False)
            assert bool(answer.envelopes[0]) is proven

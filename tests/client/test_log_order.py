"""The order in HQ's log decides what a revoked sender is believed, not the times that HQ states."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import trio

from cipherbox.client.log.order import TOGETHER
from cipherbox.client.receiving.pending_receipts import PendingReceipts
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.clock import now_ms
from cipherbox.envelope.group import decode_group
from cipherbox.envelope.outcomes import Outcome
from cipherbox.errors import LogContradiction, SenderNotValid, Throttled
from cipherbox.server.directory.certificate_records import CertificateRecords
from cipherbox.server.hq import HQ
from cipherbox.wire import frames
from tests import soak
from tests.client.waiting import until

BACK_MS = 60_000


def running(client: Any) -> HQ:
    """The HQ behind this client, with all that its operator can do."""
    found = [one for one in gc.get_objects() if isinstance(one, HQ)]
    return next(one for one in found if one.config.directory.parent in client.home.path.parents)


def backdated(client: Any) -> HQ:
    """Set back the clock of the HQ behind this client by `BACK_MS`, and return that HQ."""
    server = running(client)
    real = server.engine.clock_ms
    server.engine.clock_ms = lambda: real() - BACK_MS
    server.engine.broker.state.now -= BACK_MS
    return server


async def revoke(hq: HQ, client_id: str) -> None:
    """Log and list name the client; its connection is left alive, as a hostile HQ would."""
    await CertificateRecords(hq.store, hq.engine, hq.trust).revoke_all(client_id)
    await hq.engine.in_store(hq.trust.new_crl)


async def test_a_backdated_clock_makes_no_revoked_sender_believed(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        server = backdated(lab)
        await lab.publish("before", to="CA-RC")
        await revoke(server, "FL-LAB")
        await lab.publish("after", to="CA-RC")
        first, second = await center.fetch_unopened(envelopes=2)
        assert second.accepted_at < now_ms() - BACK_MS / 2  # whatever time HQ states
        center.revocations.refresh()
        await center.open(first)
        assert first.messages[0].content == b"before"
        with pytest.raises(
            SenderNotValid,
            match=r"in entry \d+ of its log, after entry \d+, in which the certificate",
        ):
            await center.open(second)


async def test_an_hq_that_proves_no_order_is_not_believed(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        server = backdated(lab)
        await lab.publish("before", to="CA-RC")
        await revoke(server, "FL-LAB")
        (delivery,) = await center.fetch_unopened()
        center.revocations.refresh()
        monkeypatch.setattr("cipherbox.server.requests.log._acceptance_for", lambda *_: b"")
        with pytest.raises(SenderNotValid, match="does not prove that it accepted this before"):
            await center.open(delivery)


async def test_a_revoked_senders_backlog_uses_up_no_requests(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An envelope over the bound is refused and redelivered, as is one whose proof HQ refuses."""
    monkeypatch.setattr("cipherbox.client.log.order.POINTS", 2 * 9)
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        server = backdated(lab)
        for text in "1234":
            await lab.publish(text, to="CA-RC")
        await revoke(server, "FL-LAB")
        first, *more = await center.fetch_unopened(envelopes=4)
        center.revocations.refresh()
        await center.open(first)
        with monkeypatch.context() as patch:
            patch.setattr("cipherbox.server.requests.log._acceptance_for", throttled)
            with pytest.raises(SenderNotValid, match="not so fast"):
                await center.open(more[0])
        for delivery in more[1:]:
            with pytest.raises(SenderNotValid, match="rate limit for proofs about it"):
                await center.open(delivery)


@soak.more
async def test_many_waiting_envelopes_take_few_requests(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, waiting = [], 1000 if soak.ON else 300
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        async with lab.publisher(to="CA-RC", batch=1) as publisher:
            for number in range(waiting):
                await publisher.send(str(number))
            await publisher.flush()
        await revoke(running(lab), "FL-LAB")
        request = center.connection.request

        async def counted(kind: Any, **fields: Any) -> Any:
            if kind is frames.Prove:
                asked.append(len(fields["envelopes"]))
            return await request(kind, **fields)

        monkeypatch.setattr(center.connection, "request", counted)
        center.revocations.refresh()
        with trio.fail_after(60):
            assert await Receiver(center).run(count=waiting) == waiting
        assert len(asked) <= 2 * waiting // TOGETHER  # a batch that ends early may cut one short
        assert max(asked) <= TOGETHER
    assert [line["content"] for line in hq.lines("CA-RC")] == [
        str(number) for number in range(waiting)
    ]


async def test_what_is_not_proven_with_the_others_is_asked_for_alone(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        for text in "123":
            await lab.publish(text, to="CA-RC")
        await revoke(running(lab), "FL-LAB")
        await lab.publish("after", to="CA-RC")
        request, asked = center.connection.request, []

        async def partly(kind: Any, **fields: Any) -> Any:
            answer = await request(kind, **fields)
            if kind is frames.Prove:
                asked.append(len(fields["envelopes"]))
                answer.envelopes[1:2] = [b""] * len(answer.envelopes[1:2])
            return answer

        monkeypatch.setattr(center.connection, "request", partly)
        center.revocations.refresh()
        assert [one.messages[0].content for one in await center.fetch(envelopes=4)] == [
            b"1",
            b"2",
            b"3",
        ]
        assert asked == [4, 1]  # the second alone; the two behind it were proven with the first


def throttled(*_: object) -> bytes:
    raise Throttled("not so fast")


async def test_who_may_not_read_an_envelope_gets_no_proof_of_it(hq: Any) -> None:
    await hq.join("SF-RC")
    async with hq.client("FL-LAB") as lab, hq.client("SF-RC") as stranger:
        confirmation = await lab.publish("x", to="CA-RC")
        name = frames.EnvelopeName("FL-LAB", confirmation.envelope_id)
        for client, proven in ((lab, True), (stranger, False)):
            answer = await client.connection.request(
                frames.Prove, envelopes=[name], serials=[], incarnation=False
            )
            assert bool(answer.envelopes[0]) is proven


# -- the place that a delivery names ---------------------------------------------------------------


def rename(hq: HQ, more: int) -> None:
    """HQ names another entry for what it holds in memory."""
    held = hq.engine.bodies._held
    held.update(
        {number: body._replace(log_entry=body.log_entry + more) for number, body in held.items()}
    )


async def proven(lab: Any, confirmation: Any) -> int:
    """The entry of the log that HQ proved to the sender, once that is kept."""
    row = lab.outbox_sender.outbox.find(confirmation.envelope_id)
    await until(lambda: lab.outbox_sender.outbox.proof(row.number) is not None)
    return int(lab.outbox_sender.outbox.proof(row.number)[0])


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_delivery_and_its_receipt_name_the_entry_that_the_sender_was_proven(
    hq: Any, restarted: bool
) -> None:
    said: list[str] = []
    async with hq.client("FL-LAB") as lab:
        confirmation = await lab.publish("x", to="CA-RC")
        entry = await proven(lab, confirmation)
    if restarted:
        await hq.restart()
    async with hq.client("CA-RC") as center:
        (delivery,) = await center.fetch_unopened()
        assert delivery.log_entry == entry > 0
    async with hq.client("FL-LAB", on_event=said.append) as lab, hq.client("CA-RC") as center:
        with trio.fail_after(60):
            await Receiver(center).run(count=1)
            assert await lab.wait_for([confirmation.envelope_id], "opened", 60)
        (raw,) = (
            one for (one,) in lab.outbox_sender.outbox._db.execute("SELECT bytes FROM receipts")
        )
        assert [leaf.log_entry for leaf in decode_group(raw).leaves if leaf is not None] == [entry]
    assert not any("keeps two logs" in line for line in said)


async def test_a_receipt_with_another_entry_than_was_proven_is_said_to_the_sender(hq: Any) -> None:
    said: list[str] = []
    async with hq.client("FL-LAB", on_event=said.append) as lab, hq.client("CA-RC") as center:
        confirmation = await lab.publish("x", to="CA-RC")
        entry = await proven(lab, confirmation)
        rename(running(lab), 3)
        with trio.fail_after(60):
            await Receiver(center).run(count=1)
            assert await lab.wait_for([confirmation.envelope_id], "opened", 60)
        (line,) = [line for line in said if "keeps two logs" in line]
        assert (
            f"accepted in entry {entry + 3} of its log, and HQ proved here that it was entry "
            f"{entry}" in line
        )
        shown = (await lab.timeline(confirmation.message_ids[0])).steps
        (text,) = [step.text for step in shown if step.what == "opened"]
        assert f"it names entry {entry + 3} of HQ's log, and HQ proved entry {entry} here" in text
        assert lab.log.heads.contradiction() is None  # the recipient's word alone stops nobody
        await lab.publish("y", to="CA-RC")


async def test_a_refusal_is_signed_with_its_entry(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        confirmation = await lab.publish("x", to="CA-RC")
        entry = await proven(lab, confirmation)
        (delivery,) = await center.fetch_unopened()
        receiver = Receiver(center)
        with receiver.locked():
            owed = PendingReceipts(center)
            owed.refuse([(delivery, Outcome.NOT_ACCEPTED, "from nobody")])
            (one,) = owed._pending([])
            owed.close()
        assert one.leaf.log_entry == entry


async def test_an_hq_that_proves_another_entry_than_it_delivered_contradicts_itself(
    hq: Any,
) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        server = backdated(lab)
        await lab.publish("before", to="CA-RC")
        await revoke(server, "FL-LAB")
        rename(server, -1)
        (delivery,) = await center.fetch_unopened()
        center.revocations.refresh()
        with pytest.raises(
            LogContradiction, match=r"now proves entry \d+. Nothing is sent or received"
        ):
            await center.open(delivery)
    with pytest.raises(LogContradiction, match="until a person has decided"):
        async with hq.client("CA-RC", tries=1):
            pass


@pytest.mark.parametrize("days", [399, 4000])
async def test_what_was_accepted_by_a_wrong_clock_stays_deliverable(hq: Any, days: int) -> None:
    """By HQ's time, the sender's keys were not valid yet, or not any more; and the recipient's were
    not when it signed the receipt.
    """
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        server = running(lab)
        real = server.engine.clock_ms
        server.engine.clock_ms = lambda: real() + days * 86_400_000
        sent = await lab.publish("by a wrong clock", to="CA-RC")
        with trio.fail_after(60):
            assert await Receiver(center).run(count=1) == 1
            assert await lab.wait_for([sent.envelope_id], "opened", 60)
        assert abs(sent.accepted_at - now_ms()) > 300 * 86_400_000


async def test_a_sender_revoked_since_is_believed_whatever_the_clock_was(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        server = running(lab)
        real = server.engine.clock_ms
        server.engine.clock_ms = lambda: real() + 30 * 86_400_000
        await lab.publish("before", to="CA-RC")
        server.engine.clock_ms = real
        await revoke(server, "FL-LAB")
        await lab.publish("after", to="CA-RC")
        first, second = await center.fetch_unopened(envelopes=2)
        center.revocations.refresh()
        await center.open(first)
        with pytest.raises(SenderNotValid, match="after entry"):
            await center.open(second)

"""Publishing and batching against a scripted HQ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from cipherbox.envelope.kinds import BodyCipher, StanzaType
from cipherbox.envelope.layout import split
from cipherbox.errors import (
    Busy,
    Forbidden,
    InvalidRequest,
    NoRoute,
    NotAllowed,
    Queued,
    QuotaExceeded,
    RouteChanged,
    TimedOut,
    TooLarge,
    UnknownRecipient,
)
from cipherbox.limits import LIMITS
from cipherbox.sealing.body import Message
from cipherbox.sealing.open import inspect, open_envelope
from cipherbox.wire import frames
from tests.client.parties import Authority, Party
from tests.client.scripted import ScriptedHq, client_on, settle


def opened(raw: bytes, sender: Party, recipient: Party) -> list[Message]:
    return open_envelope(inspect(raw), recipient.identity, sender.bundle)


async def test_publish_seals_for_the_recipient_and_waits(
    hq: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    async with client_on(hq, lab, tmp_path, monkeypatch, said) as client:
        messages = ["text", b"bytes", Message(b"{}", "application/json", {"filename": "a.json"})]
        confirmation = await client.publish(messages, to="CA-RC", cipher="chacha20-poly1305", stanza="hpke-x25519")
    (raw,) = hq.envelopes
    prefix = split(raw).prefix
    assert (prefix.sender, prefix.exchange, prefix.routing_key) == ("FL-LAB", "", "")
    assert prefix.body_cipher == BodyCipher.CHACHA20_POLY1305
    assert prefix.recipients[0].stanza_type == StanzaType.HPKE_X25519
    assert confirmation.accepted_at == 1000
    assert confirmation.queues == ("q",)
    assert confirmation.envelope_id == prefix.envelope_id
    assert [i.int - int.from_bytes(prefix.envelope_id, "big") for i in confirmation.message_ids] == [0, 1, 2]
    found = opened(raw, lab, center)
    assert [m.content for m in found] == [b"text", b"bytes", b"{}"]
    assert [m.content_type for m in found] == [
        "text/plain; charset=utf-8", "application/octet-stream", "application/json",
    ]  # fmt: skip
    assert found[2].headers == {"filename": "a.json"}
    first = confirmation.message_ids[0]
    texts = [event.text for event in said]
    assert f"Encrypted message {first} for CA-RC" in texts
    assert f"Server ACK received for message {first}" in texts
    assert any(str(e).startswith("[20") and f"] [SENDER] Server ACK received for message {first}" in e for e in said)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "say who receives it"),
        ({"to": ["no client id!"]}, "no client id"),
        ({"to": "CA-RC", "box": "other"}, "mailbox"),
        ({"to": "CA-RC", "box": "bulk", "routing_key": "k"}, "does not go with"),
        ({"to": "CA-RC", "stanza": "rot13"}, "stanza"),
        ({"to": "CA-RC", "cipher": "rot13"}, "cipher"),
        ({"to": "CA-RC", "expires_at": 1}, "expired"),
    ],
)
async def test_arguments_that_do_not_fit_are_said(
    hq: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any, words: str
) -> None:
    async with client_on(hq, lab, tmp_path, monkeypatch) as client:
        with pytest.raises(InvalidRequest, match=words):
            await client.publish("x", **options)
    assert not hq.envelopes


async def test_an_unknown_recipient_stops_before_anything_is_sent(
    hq: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client_on(hq, lab, tmp_path, monkeypatch) as client:
        with pytest.raises(UnknownRecipient, match="NY-RC"):
            await client.publish("x", to=["CA-RC", "NY-RC"])
    assert not hq.envelopes


async def test_a_route_needs_the_allow_list(
    hq: ScriptedHq, lab: Party, center: Party, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hq.offer(authority.party("SF-RC"))
    hq.readers = ["CA-RC", "SF-RC"]
    async with client_on(hq, lab, tmp_path, monkeypatch) as client:
        client.allow.allow("labs", ["CA-RC"])
        with pytest.raises(NotAllowed, match="SF-RC"):
            await client.publish("x", exchange="labs", routing_key="k")
        assert not hq.envelopes
        client.allow.allow("labs", ["SF-RC"])
        await client.publish("x", exchange="labs", routing_key="k")
        hq.readers = []
        with pytest.raises(NoRoute):
            await client.publish("x", exchange="other", routing_key="k")
    (raw,) = hq.envelopes
    prefix = split(raw).prefix
    assert [r.client_id for r in prefix.recipients] == ["CA-RC", "SF-RC"]
    assert (prefix.exchange, prefix.routing_key) == ("labs", "k")
    assert hq.sent()[0][2] == 1  # the route's version


async def test_a_changed_route_is_resolved_checked_and_sealed_anew_under_a_fresh_id(
    hq: ScriptedHq, lab: Party, center: Party, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hq.offer(authority.party("SF-RC"))
    hq.readers = ["CA-RC"]
    async with client_on(hq, lab, tmp_path, monkeypatch) as client:
        client.allow.allow("labs", ["CA-RC", "SF-RC"])
        await client.publish("one", exchange="labs", routing_key="k")
        hq.readers, hq.route_version = ["CA-RC", "SF-RC"], 2
        hq.refuse_sends = [RouteChanged("changed")]
        await client.publish("two", exchange="labs", routing_key="k")
        ids = [split(raw).prefix.envelope_id for *_, raw in hq.sent()]
        assert len(set(ids)) == 3
        assert [len(split(raw).prefix.recipients) for raw in hq.envelopes] == [1, 2]

        hq.offer(authority.party("NY-RC"))
        hq.readers, hq.route_version = ["CA-RC", "NY-RC"], 3
        hq.refuse_sends = [RouteChanged("changed")]
        with pytest.raises(NotAllowed, match="NY-RC"):
            await client.publish("three", exchange="labs", routing_key="k")
    assert len(hq.envelopes) == 2


async def test_an_unanswered_publish_ends_with_the_reason(
    hq: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:  # fmt: skip
    hq.confirm_at_once = False
    async with client_on(hq, lab, tmp_path, monkeypatch, tries=2, timeout_s=5.0) as client:
        began = trio.current_time()
        with pytest.raises(TimedOut, match="2 tries of 5 s"):
            await client.publish("x", to="CA-RC")
        assert 10 <= trio.current_time() - began < 12
        hq.confirm_at_once = True
        hq.refuse_sends = [QuotaExceeded("too much waits")] * 500
        with pytest.raises(Queued, match="too much waits"):
            await client.publish("x", to="CA-RC")
    assert len({raw for *_, raw in hq.sent()}) == 2  # again and again the same bytes


async def test_many_messages_become_several_envelopes(
    hq: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client_on(hq, lab, tmp_path, monkeypatch) as client:
        six = [bytes([n]) * (3 << 20) for n in range(6)]
        confirmation = await client.publish(six, to="CA-RC")
        assert hq.counts() == [5, 1]
        assert len(set(confirmation.message_ids)) == 6
        with pytest.raises(TooLarge, match="message 2"):
            await client.publish([b"x", bytes(LIMITS.envelope_bytes)], to="CA-RC")
        with pytest.raises(InvalidRequest):
            await client.publish([], to="CA-RC")
    found = [m.content for raw in hq.envelopes for m in opened(raw, lab, center)]
    assert found == six


async def test_more_recipients_than_an_envelope_has_become_groups(
    hq: ScriptedHq, lab: Party, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cipherbox.client.publish.LIMITS", type("Few", (), {"recipients": 2, "messages": 65536})())
    names = [f"RC-{n}" for n in range(5)]
    for name in names:
        hq.offer(authority.party(name))
    async with client_on(hq, lab, tmp_path, monkeypatch) as client:
        confirmation = await client.publish("x", to=names)
        assert [len(split(raw).prefix.recipients) for raw in hq.envelopes] == [2, 2, 1]
        assert len(confirmation.more) == 2
        with pytest.raises(InvalidRequest, match="at most"):
            async with client.publisher(to=names):
                pass


# -- the publisher --------------------------------------------------------------------------------------------------


async def test_one_message_goes_at_once_and_a_busy_publisher_batches(
    hq: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hq.confirm_at_once = False
    async with client_on(hq, lab, tmp_path, monkeypatch) as client:
        async with client.publisher(to="CA-RC") as publisher:
            assert publisher.put(b"first")
            await settle()
            assert hq.counts() == [1]
            assert publisher.put(b"second")
            await settle()
            assert hq.counts() == [1, 1]
            for n in range(100):  # two are out: these gather
                assert publisher.put(bytes([n]))
            await settle()
            assert hq.counts() == [1, 1]
            assert publisher.unconfirmed == 102
            await hq.release(1)
            await settle()
            assert hq.counts() == [1, 1, 100]
            assert publisher.put(b"last")
            await hq.release()
            await settle()
            assert hq.counts() == [1, 1, 100, 1]
            await hq.release()
            await publisher.flush()
            assert (publisher.confirmed, publisher.unconfirmed, publisher.envelopes) == (103, 0, 4)
    found = [m.content for raw in hq.envelopes for m in opened(raw, lab, center)]
    assert found == [b"first", b"second", *(bytes([n]) for n in range(100)), b"last"]


async def test_full_batches_go_at_once_by_count_and_by_bytes(
    hq: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hq.confirm_at_once = False
    async with client_on(hq, lab, tmp_path, monkeypatch) as client:
        async with client.publisher(to="CA-RC") as publisher:
            for n in range(2 + 2 * LIMITS.batch_messages + 5):
                publisher.put(b"%d" % n)
            await settle()
            assert hq.counts() == [1, 1, LIMITS.batch_messages, LIMITS.batch_messages]
            for _ in range(4):
                publisher.put(bytes(LIMITS.batch_bytes // 2))
            await settle()
            assert hq.counts()[4:] == [7, 2]
            await hq.release()
            await settle()
            await hq.release()
            await publisher.flush()
    total = sum(hq.counts())
    assert total == 2 + 2 * LIMITS.batch_messages + 9


async def test_kinds_of_messages_mix_in_a_batch(
    hq: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hq.confirm_at_once = False
    async with client_on(hq, lab, tmp_path, monkeypatch) as client:
        async with client.publisher(to="CA-RC") as publisher:
            publisher.put("1")
            publisher.put("2")
            publisher.put("three")
            publisher.put(b"four")
            publisher.put(Message(b"five", "text/csv", {"a": "b"}))
            publisher.put("six")
            await settle()
            await hq.release()
            await settle()
            await hq.release()
    mixed = opened(hq.envelopes[2], lab, center)
    assert [(m.content, m.content_type.split(";")[0], m.headers) for m in mixed] == [
        (b"three", "text/plain", {}),
        (b"four", "application/octet-stream", {}),
        (b"five", "text/csv", {"a": "b"}),
        (b"six", "text/plain", {}),
    ]


async def test_a_publisher_without_room_waits_and_loses_nothing(
    hq: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hq.confirm_at_once = False
    hq.window = 3
    monkeypatch.setattr("cipherbox.client.publisher.LIMITS", type("Small", (), {
        "batch_messages": 10, "batch_bytes": 1 << 20, "open_batches": 2, "recipients": 256,
    })())  # fmt: skip
    taken = 0
    async with client_on(hq, lab, tmp_path, monkeypatch) as client:
        async with client.publisher(to="CA-RC") as publisher:
            while publisher.put(b"%d" % taken):
                taken += 1
            taken += 1
            assert taken == 1 + 1 + 10 + 10  # three envelopes in the window, one full batch behind them
            with pytest.raises(Busy, match="await room"):
                publisher.put(b"too many")
            waited = False

            async def wait() -> None:
                nonlocal waited
                await publisher.room()
                waited = True

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await settle()
                assert not waited
                await hq.release(1)
            assert waited
            hq.confirm_at_once = True
            await hq.release()
            for _ in range(50):
                await publisher.send(b"%d" % taken)
                taken += 1
    found = [m.content for raw in hq.envelopes for m in opened(raw, lab, center)]
    assert found == [b"%d" % n for n in range(taken)]


async def test_two_publishers_share_the_window(
    hq: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hq.confirm_at_once = False
    hq.window = 1
    async with client_on(hq, lab, tmp_path, monkeypatch) as client:
        async with client.publisher(to="CA-RC") as one, client.publisher(to="CA-RC") as two:
            one.put(b"one")
            await settle()
            two.put(b"two")  # the window is full with the other's: it must go when that is confirmed
            await settle()
            assert hq.counts() == [1]
            hq.confirm_at_once = True
            await hq.release()
            await two.flush()
            assert two.confirmed == 1


async def test_a_publisher_follows_a_changed_route(
    hq: ScriptedHq, lab: Party, center: Party, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hq.offer(authority.party("SF-RC"))
    hq.readers = ["CA-RC"]
    async with client_on(hq, lab, tmp_path, monkeypatch) as client:
        client.allow.allow("labs", ["CA-RC", "SF-RC"])
        async with client.publisher(exchange="labs", routing_key="k") as publisher:
            await publisher.send("one")
            await publisher.flush()
            hq.readers, hq.route_version = ["CA-RC", "SF-RC"], 2
            hq.refuse_sends = [RouteChanged("changed")] * 2
            await publisher.send("two")
            await publisher.send("three")
            await publisher.flush()
            assert publisher.confirmed == 3
    assert [len(split(raw).prefix.recipients) for raw in hq.envelopes] == [1, 2, 2]
    assert len({split(raw).prefix.envelope_id for *_, raw in hq.sent()}) == 5


async def test_a_refused_batch_is_raised_and_handed_back(
    hq: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client_on(hq, lab, tmp_path, monkeypatch) as client:
        async with client.publisher(to="CA-RC") as publisher:
            hq.refuse_sends = [Forbidden("no")]
            publisher.put("lost?")
            with pytest.raises(Forbidden, match="1 messages were not published"):
                await publisher.flush()
            ((messages, error),) = publisher.refused
            assert [m.content for m in messages] == [b"lost?"]
            assert isinstance(error, Forbidden)
            await publisher.send("and on it goes")
            await publisher.flush()
            assert (publisher.confirmed, publisher.unconfirmed) == (1, 0)
            with pytest.raises(TooLarge):
                publisher.put(bytes(LIMITS.envelope_bytes))


async def test_a_publisher_flush_is_bounded_and_can_be_repeated(
    hq: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:  # fmt: skip
    hq.confirm_at_once = False
    async with client_on(hq, lab, tmp_path, monkeypatch, tries=2, timeout_s=2.0) as client:
        async with client.publisher(to="CA-RC") as publisher:
            publisher.put("x")
            with pytest.raises(TimedOut, match="1 messages wait"):
                await publisher.flush()
            hq.confirm_at_once = True
            await publisher.flush()
            assert publisher.confirmed == 1
    assert len({raw for *_, raw in hq.sent()}) == 1


async def test_an_error_of_the_block_stays_what_it_was(
    hq: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caught: BaseException | None = None
    hq.confirm_at_once = False
    try:
        async with client_on(hq, lab, tmp_path, monkeypatch) as client, client.publisher(to="CA-RC") as publisher:
            publisher.put("x")
            raise KeyError("mine")
    except BaseException as error:
        caught = error
    assert type(caught) is KeyError


async def test_pings_are_answered(
    hq: ScriptedHq, lab: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client_on(hq, lab, tmp_path, monkeypatch) as client:
        await client.ping()
        assert client.hq is not None
        assert (client.client_id, client.role, client.hq.software) == ("FL-LAB", "client", "fake")
    assert any(isinstance(event, frames.Ping) for event in hq.asked)

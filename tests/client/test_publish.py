"""Publishing and batching against a scripted HQ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from cipherbox.envelope.layout import split
from cipherbox.envelope.stanza_types import StanzaType
from cipherbox.envelope.suites import BodyCipher
from cipherbox.errors import (
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
from tests.client.parties import Authority, Party
from tests.client.scripted import ScriptedHq, client_on, opened


async def test_publish_seals_for_the_recipient_and_waits(
    scripted: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    async with client_on(scripted, lab, tmp_path, monkeypatch, said) as client:
        messages = ["text", b"bytes", Message(b"{}", "application/json", {"filename": "a.json"})]
        confirmation = await client.publish(
            messages, to="CA-RC", cipher="chacha20-poly1305", stanza="hpke-x25519"
        )
    (raw,) = scripted.envelopes
    prefix = split(raw).prefix
    assert (prefix.sender, prefix.exchange, prefix.routing_key) == ("FL-LAB", "", "")
    assert prefix.body_cipher == BodyCipher.CHACHA20_POLY1305
    assert prefix.recipients[0].stanza_type == StanzaType.HPKE_X25519
    assert confirmation.accepted_at == 1000
    assert confirmation.queues == ("q",)
    assert confirmation.envelope_id == prefix.envelope_id
    assert [
        i.int - int.from_bytes(prefix.envelope_id, "big") for i in confirmation.message_ids
    ] == [0, 1, 2]
    found = opened(raw, lab, center)
    assert [m.content for m in found] == [b"text", b"bytes", b"{}"]
    assert [m.content_type for m in found] == [
        "text/plain; charset=utf-8",
        "application/octet-stream",
        "application/json",
    ]
    assert found[2].headers == {"filename": "a.json"}
    first = confirmation.message_ids[0]
    texts = [event.text for event in said]
    assert f"Encrypted message {first} for CA-RC" in texts
    assert f"Server ACK received for message {first}" in texts
    assert any(
        str(e).startswith("[20") and f"] [SENDER] Server ACK received for message {first}" in e
        for e in said
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "say who receives it"),
        ({"to": ["no client id!"]}, "invalid client id"),
        ({"to": "CA-RC", "box": "other"}, "mailbox"),
        ({"to": "CA-RC", "box": "bulk", "routing_key": "k"}, "does not go with"),
        ({"to": "CA-RC", "stanza": "rot13"}, "stanza"),
        ({"to": "CA-RC", "cipher": "rot13"}, "cipher"),
        ({"to": "CA-RC", "expires_at": 1}, "expired"),
    ],
)
async def test_arguments_that_do_not_fit_are_said(
    scripted: ScriptedHq,
    lab: Party,
    center: Party,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: Any,
    words: str,
) -> None:
    async with client_on(scripted, lab, tmp_path, monkeypatch) as client:
        with pytest.raises(InvalidRequest, match=words):
            await client.publish("x", **options)
    assert not scripted.envelopes


async def test_an_unknown_recipient_stops_before_anything_is_sent(
    scripted: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client_on(scripted, lab, tmp_path, monkeypatch) as client:
        with pytest.raises(UnknownRecipient, match="NY-RC"):
            await client.publish("x", to=["CA-RC", "NY-RC"])
    assert not scripted.envelopes


async def test_a_route_needs_the_allow_list(
    scripted: ScriptedHq,
    lab: Party,
    center: Party,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted.offer(authority.party("SF-RC"))
    scripted.readers = ["CA-RC", "SF-RC"]
    async with client_on(scripted, lab, tmp_path, monkeypatch) as client:
        client.allow.allow("labs", ["CA-RC"])
        with pytest.raises(NotAllowed, match="SF-RC"):
            await client.publish("x", exchange="labs", routing_key="k")
        assert not scripted.envelopes
        client.allow.allow("labs", ["SF-RC"])
        await client.publish("x", exchange="labs", routing_key="k")
        scripted.readers = []
        with pytest.raises(NoRoute):
            await client.publish("x", exchange="other", routing_key="k")
    (raw,) = scripted.envelopes
    prefix = split(raw).prefix
    assert [r.client_id for r in prefix.recipients] == ["CA-RC", "SF-RC"]
    assert (prefix.exchange, prefix.routing_key) == ("labs", "k")
    assert scripted.sent()[0][2] == 1  # the route's version


async def test_a_changed_route_is_resolved_checked_and_sealed_anew_under_a_fresh_id(
    scripted: ScriptedHq,
    lab: Party,
    center: Party,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted.offer(authority.party("SF-RC"))
    scripted.readers = ["CA-RC"]
    async with client_on(scripted, lab, tmp_path, monkeypatch) as client:
        client.allow.allow("labs", ["CA-RC", "SF-RC"])
        await client.publish("one", exchange="labs", routing_key="k")
        scripted.change_route("CA-RC", "SF-RC", refused=1)
        await client.publish("two", exchange="labs", routing_key="k")
        ids = [split(raw).prefix.envelope_id for *_, raw in scripted.sent()]
        assert len(set(ids)) == 3
        assert [len(split(raw).prefix.recipients) for raw in scripted.envelopes] == [1, 2]

        scripted.offer(authority.party("NY-RC"))
        scripted.readers, scripted.route_version = ["CA-RC", "NY-RC"], 3
        scripted.refuse_sends = [RouteChanged("changed")]
        with pytest.raises(NotAllowed, match="NY-RC"):
            await client.publish("three", exchange="labs", routing_key="k")
    assert len(scripted.envelopes) == 2


async def test_an_unanswered_publish_ends_with_the_reason(
    scripted: ScriptedHq,
    lab: Party,
    center: Party,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:
    scripted.confirm_at_once = False
    async with client_on(scripted, lab, tmp_path, monkeypatch, tries=2, timeout_s=5.0) as client:
        began = trio.current_time()
        with pytest.raises(TimedOut, match="2 tries of 5 s"):
            await client.publish("x", to="CA-RC")
        assert 10 <= trio.current_time() - began < 12
        scripted.confirm_at_once = True
        scripted.refuse_sends = [QuotaExceeded("too much waits")] * 500
        with pytest.raises(Queued, match="too much waits"):
            await client.publish("x", to="CA-RC")
    assert len({raw for *_, raw in scripted.sent()}) == 2  # again and again the same bytes


async def test_many_messages_become_several_envelopes(
    scripted: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client_on(scripted, lab, tmp_path, monkeypatch) as client:
        six = [bytes([n]) * (3 << 20) for n in range(6)]
        confirmation = await client.publish(six, to="CA-RC")
        assert scripted.counts() == [5, 1]
        assert len(set(confirmation.message_ids)) == 6
        with pytest.raises(TooLarge, match="message 2"):
            await client.publish([b"x", bytes(LIMITS.envelope_bytes)], to="CA-RC")
        with pytest.raises(InvalidRequest):
            await client.publish([], to="CA-RC")
    found = [m.content for raw in scripted.envelopes for m in opened(raw, lab, center)]
    assert found == six


async def test_more_recipients_than_an_envelope_has_become_groups(
    scripted: ScriptedHq,
    lab: Party,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "cipherbox.client.options.LIMITS",
        type("Few", (), {"recipients": 2, "messages": 65536})(),
    )
    names = [f"RC-{n}" for n in range(5)]
    for name in names:
        scripted.offer(authority.party(name))
    async with client_on(scripted, lab, tmp_path, monkeypatch) as client:
        confirmation = await client.publish("x", to=names)
        assert [len(split(raw).prefix.recipients) for raw in scripted.envelopes] == [2, 2, 1]
        assert len(confirmation.more) == 2
        with pytest.raises(InvalidRequest, match="at most"):
            async with client.publisher(to=names):
                pass

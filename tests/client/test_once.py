"""Idempotency keys over a real HQ: nothing goes twice, whoever repeats it and whenever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from cipherbox.client.outbox import sender as post_module
from cipherbox.client.outbox.origins import KEY_BYTES, Once
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.errors import CipherBoxError, InvalidRequest, KeyReused, Queued, UnknownRecipient
from cipherbox.sealing.body import Message


def contents(hq: Any) -> list[str]:
    return [line["content"] for line in hq.lines("CA-RC")]


async def received(hq: Any) -> list[str]:
    async with hq.client("CA-RC") as center:
        await Receiver(center).drain()
    return contents(hq)


async def test_a_message_published_twice_with_its_key_goes_once(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        first = await lab.publish("MSH|1", to="CA-RC", key="MSG-00017")
        again = await lab.publish("MSH|1", to="CA-RC", key="MSG-00017")
        other = await lab.publish("MSH|2", to="CA-RC", key="MSG-00018")
        plain = await lab.publish("MSH|1", to="CA-RC")
    async with hq.client("FL-LAB") as lab:  # also the next process
        later = await lab.publish("MSH|1", to=["CA-RC"], key="MSG-00017")
    assert not first.duplicate
    assert again.duplicate
    assert later.duplicate
    assert again.message_ids == later.message_ids == first.message_ids
    assert again.accepted_at == first.accepted_at > 0
    assert len({first.envelope_id, other.envelope_id, plain.envelope_id}) == 3
    assert await received(hq) == ["MSH|1", "MSH|2", "MSH|1"]


async def test_other_content_under_a_used_key_is_refused_and_sends_nothing(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        first = await lab.publish("17.3", to="CA-RC", key="k")
        for other in (
            "17.4",
            b"17.3",
            Message(b"17.3", "text/plain; charset=utf-8", {"unit": "mg"}),
            ["17.3", "x"],
        ):
            with pytest.raises(KeyReused, match=str(first.message_ids[0])):
                await lab.publish(other, to="CA-RC", key="k")
    assert await received(hq) == ["17.3"]


async def test_a_key_counts_for_its_route_alone(hq: Any) -> None:
    await hq.join("SF-RC")
    async with hq.client("FL-LAB") as lab:
        one = await lab.publish("x", to="CA-RC", key="k")
        two = await lab.publish("x", to="SF-RC", key="k")
        both = await lab.publish("x", to=["SF-RC", "CA-RC"], key="k")
        same = await lab.publish("x", to=["CA-RC", "SF-RC"], key="k")
    assert [c.duplicate for c in (one, two, both, same)] == [False, False, False, True]


async def test_of_two_processes_at_once_with_one_key_one_wins(hq: Any) -> None:
    """Each has its own connection to the outbox; both ask before either has written."""
    found: list[Any] = []

    async def publish(client: Any, text: str) -> None:
        try:
            found.append(await client.publish(text, to="CA-RC", key="k"))
        except KeyReused as error:
            found.append(error)

    async with hq.client("FL-LAB") as one, hq.client("FL-LAB") as two:
        for client in (one, two):
            await client.directory.recipients(["CA-RC"])
        async with trio.open_nursery() as nursery:
            for client in (one, two, one, two):
                nursery.start_soon(publish, client, "same")
    assert sorted(c.duplicate for c in found) == [False, True, True, True]
    assert len({c.envelope_id for c in found}) == 1
    found.clear()
    async with (
        hq.client("FL-LAB") as one,
        hq.client("FL-LAB") as two,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(publish, one, "this")
        nursery.start_soon(publish, two, "that")
    assert sorted(isinstance(c, KeyReused) for c in found) in ([False, True], [True, True])
    assert contents(hq) == []


async def test_while_hq_is_away_the_second_waits_for_the_first(hq: Any, monkeypatch: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        await lab.directory.recipients(["CA-RC"])
    await hq.stop()
    short = {"keep_trying": True, "tries": 1, "timeout_s": 0.3, "pause_max_s": 0.1}
    async with hq.client("FL-LAB", **short) as lab:
        kept = await lab.publish("x", to="CA-RC", key="k", wait=False)
        quick = await lab.publish("x", to="CA-RC", key="k", wait=False)
        assert (kept.duplicate, quick.duplicate, quick.accepted_at) == (False, True, 0)
        with pytest.raises(Queued) as caught:
            await lab.publish("x", to="CA-RC", key="k")
        assert caught.value.message_ids == (str(kept.message_ids[0]),)
    await hq.start()
    async with hq.client("FL-LAB") as lab:
        with trio.fail_after(60):
            done = await lab.publish("x", to="CA-RC", key="k")
    assert done.duplicate
    assert done.accepted_at > 0
    assert done.envelope_id == kept.envelope_id
    assert await received(hq) == ["x"]


async def test_the_key_of_what_went_nowhere_is_free(hq: Any, monkeypatch: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        with pytest.raises(UnknownRecipient):
            await lab.publish("x", to="XX-RC", key="k")
        await hq.join("XX-RC")
        lab.directory.refresh("XX-RC")
        assert not (await lab.publish("x", to="XX-RC", key="k")).duplicate

        def refuse(self: Any, item: Any) -> None:
            item.error, item.gone = UnknownRecipient("HQ has no mailbox"), True
            self.settled(item)

        with monkeypatch.context() as patch:
            patch.setattr(post_module.OutboxSender, "_send", refuse)
            with pytest.raises(UnknownRecipient):
                await lab.publish("y", to="CA-RC", key="y")
            await trio.sleep(0.5)
        done = await lab.publish("other", to="CA-RC", key="y")
        assert not done.duplicate
        assert len(lab.outbox().outbox.newest(10)) == 2
    assert await received(hq) == ["other"]


async def test_a_crash_before_the_commit_leaves_neither_envelope_nor_key(
    hq: Any, monkeypatch: Any
) -> None:
    async with hq.client("FL-LAB") as lab:
        with monkeypatch.context() as patch:
            patch.setattr(type(lab.outbox().outbox), "_confirm", _broken)
            with pytest.raises(CipherBoxError):
                await lab.publish("x", to="CA-RC", key="k")
        assert not (await lab.publish("x", to="CA-RC", key="k")).duplicate
    assert await received(hq) == ["x"]


def _broken(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "key", ["", "x" * (KEY_BYTES + 1), "\ud800"], ids=["empty", "long", "surrogate"]
)
def test_a_key_that_cannot_be_recorded_is_named(key: str) -> None:
    with pytest.raises(InvalidRequest, match="idempotency key"):
        Once.of(key, ["CA-RC"], "", "", [Message(b"x")])


def test_a_header_that_cannot_be_written_is_named() -> None:
    with pytest.raises(InvalidRequest, match="header"):
        Once.of("k", ["CA-RC"], "", "", [Message(b"x", "text/plain", {"a": "\ud800"})])


async def test_keys_go_with_the_history_of_their_messages(hq: Any, tmp_path: Path) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        first = await lab.publish("x", to="CA-RC", key="k")
        await Receiver(center).run(count=1)
        assert await lab.wait_for([first.envelope_id], "opened", 60)
        outbox = lab.outbox().outbox
        with trio.fail_after(60):  # the bytes go a moment after the receipt
            while not outbox.forget(1 << 62):
                await trio.sleep(0.01)
        assert not (await lab.publish("y", to="CA-RC", key="k")).duplicate

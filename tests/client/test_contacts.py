"""Whom a recipient takes mail from: its own lists, looked up while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from cipherbox.client.contacts import FILE, Contacts
from cipherbox.client.inbox.receiver import Receiver
from cipherbox.envelope.kinds import Outcome
from cipherbox.errors import ConfigError, InvalidRequest


def test_everybody_until_somebody_is_blocked_or_some_are_allowed(tmp_path: Path) -> None:
    contacts, others = Contacts(tmp_path), Contacts(tmp_path)
    assert contacts.accepts("FL-LAB")
    contacts.block(["fl-lab"])
    assert [others.accepts(n) for n in ("FL-LAB", "MA-LAB")] == [False, True]
    contacts.allow(["MA-LAB"])
    assert [others.accepts(n) for n in ("FL-LAB", "MA-LAB", "PA-LAB")] == [False, True, False]
    contacts.allow(["FL-LAB"])  # is blocked no longer
    assert others.accepts("FL-LAB")
    contacts.block(["FL-LAB"])
    contacts.allow_everybody()
    assert [others.accepts(n) for n in ("FL-LAB", "PA-LAB")] == [False, True]
    contacts.unblock(["FL-LAB"])
    assert others.accepts("FL-LAB")
    with pytest.raises(InvalidRequest):
        contacts.block(["../x"])


@pytest.mark.parametrize("text", ["", "[]", '{"allowed": 5}', '{"blocked": ["../x"]}'])
def test_a_damaged_list_is_said_and_opens_no_door(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ConfigError, match=FILE):
        Contacts(tmp_path).accepts("FL-LAB")


async def test_blocked_while_it_receives_is_refused_with_a_receipt_and_kept_at_hq(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        async with trio.open_nursery() as nursery:
            await nursery.start(Receiver(center).run)
            first = await lab.publish("taken", to="CA-RC")
            with trio.fail_after(20):
                assert await lab.wait_for([first.envelope_id], "opened", 10)
            Contacts(hq.home("CA-RC")).block(["FL-LAB"])  # another program of this home
            second = await lab.publish("refused", to="CA-RC")
            with trio.fail_after(20):
                while not (told := lab.post.outbox.outcomes((await lab.sent(second.message_ids[0])).number)):
                    await trio.sleep(0.02)
            assert [(who, outcome) for who, outcome, *_ in told] == [("CA-RC", Outcome.NOT_ACCEPTED)]
            back = await center.publish("an answer", to="FL-LAB")  # and receipts of the blocked are taken
            async with hq.client("FL-LAB") as again:
                with trio.fail_after(20):
                    assert await Receiver(again).run(count=1) == 1
            with trio.fail_after(20):
                assert await center.wait_for([back.envelope_id], "opened", 10)
            nursery.cancel_scope.cancel()
    async with hq.admin() as admin:
        assert [str(row["reason"])[:12] for row in await admin.dead_letters()] == ["not-accepted"]
    assert [line["content"] for line in hq.lines("CA-RC")] == ["taken"]

"""`send --wait` ends with the receipt, whatever the receipt says, and the screens agree about
it.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from typing import Any

import pytest
import trio

from cipherbox.client.client import Client
from cipherbox.client.receiving.handler import Handled
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.errors import Bad, RecipientRefuses
from tests.client.test_lookups import typed


def bad(handled: Handled, tx: sqlite3.Connection) -> None:
    raise Bad("no such patient")


async def handle(center: Client) -> None:
    await center.process(bad, tries=1)


async def receive(center: Client) -> None:
    await Receiver(center).run()


@pytest.mark.parametrize(("takes", "why"), [(handle, "handler failed"), (receive, "not accepted")])
async def test_what_is_refused_is_not_waited_for(hq: Any, takes: Any, why: str) -> None:
    """It said "opened and signed for by all" of what a handler gave up, and waited a minute
    where all was refused.
    """
    lab, home = hq.home("FL-LAB"), hq.home("CA-RC")
    settings = home / "client.toml"
    settings.write_text(
        settings.read_text("utf-8").replace("tell_hq = true", "tell_hq = false"), "utf-8"
    )
    if takes is receive:
        assert (await typed(home, "contacts", "block", "FL-LAB")).exception is None
    async with hq.client("CA-RC") as center, trio.open_nursery() as nursery:
        nursery.start_soon(takes, center)
        done = await typed(lab, "send", "--to", "CA-RC", "--wait", "opened", "--within", "50s", "x")
        assert isinstance(done.exception, RecipientRefuses), done.output
        assert f"refused by CA-RC: {why}" in str(done.exception)
        assert "confirmed by HQ" in done.stdout
        as_json = await typed(
            lab, "send", "--to", "CA-RC", "--wait", "opened", "--within", "50s", "--json", "y"
        )
        assert json.loads(as_json.stdout)["state"] == "refused"
        nursery.cancel_scope.cancel()
    (message,) = json.loads(as_json.stdout)["message_ids"]
    shown = (await typed(lab, "outbox", "show", message)).stdout
    assert "refused by its recipient" in shown
    assert f"CA-RC: {why}" in shown
    listed = (await typed(lab, "outbox", "list", "--all")).stdout
    assert listed.count("refused by its recipient") == 2
    assert f"refused by CA-RC: {why}" in (await typed(lab, "status", message)).stdout
    async with hq.client("FL-LAB") as client:
        waits = client.wait_for([uuid.UUID(message).bytes], "delivered", 50)
        if takes is handle:  # which is more than delivered
            assert await waits
        else:
            with pytest.raises(RecipientRefuses):
                await waits


async def test_one_of_two_recipients_refuses(hq: Any) -> None:
    await hq.join("SF-RC")
    async with (
        hq.client("FL-LAB") as lab,
        hq.client("CA-RC") as center,
        hq.client("SF-RC") as other,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle, center)
            nursery.start_soon(receive, other)
            sent = await lab.publish("x", to=["CA-RC", "SF-RC"])
            with pytest.raises(RecipientRefuses, match="refused by CA-RC: handler failed"):
                await lab.wait_for([sent.envelope_id], "opened", 60)
            assert await lab.wait_for([sent.envelope_id], "delivered", 60)
            nursery.cancel_scope.cancel()

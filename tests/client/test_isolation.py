"""What one enrolled client does ends with its envelopes: everybody else's mail arrives, and the next start works."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from cipherbox.client.api import Client
from cipherbox.client.inbox.receiver import Receiver
from cipherbox.limits import LIMITS
from cipherbox.sealing.body import text_message
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
        bundle = identity.make_bundle(home.key, home.chain, identity.bundle.created_at, identity.bundle, identity)
        await client.line.request(frames.Register, bundle=bundle.raw)
        identity.bundle = bundle
        hashes.append(bundle.hash)
    return hashes


async def test_a_chain_of_very_many_bundles_ends_no_recipient_and_no_query(hq: Any) -> None:
    many = LIMITS.bundles_per_answer * 2 + 5
    async with hq.client("CA-RC") as center, hq.client("FL-LAB") as lab, hq.client("BAD-LAB", renew=False) as bad:
        before = await crafted(bad, ["CA-RC"], [text_message("sealed with the first")])
        await lab.bundles(["BAD-LAB"])  # pinned at the first one
        await rotate(bad, many)
        await bad.publish("sealed with the newest", to="CA-RC")
        await submit(bad, before)
        await lab.publish("from somebody else", to="CA-RC")
        with trio.fail_after(30):
            assert await Receiver(center).run(count=3) == 3
        found, reasons = await center.directory.reachable(["BAD-LAB", "FL-LAB"])
        assert (sorted(found), reasons) == (["BAD-LAB", "FL-LAB"], {})
        lab.directory.refresh("BAD-LAB")
        (newest,) = await lab.bundles(["BAD-LAB"])  # from its old pin, page by page
        assert newest.sequence == many + 1

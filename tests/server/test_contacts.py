"""The frame that tells HQ whom a client takes mail from: bounded, for itself alone, and kept."""

from __future__ import annotations

from pathlib import Path

import attrs

from cipherbox.contact_lists import ContactLists
from cipherbox.limits import LIMITS
from cipherbox.server.connection.budget import COSTS
from cipherbox.wire import frames
from tests.server.hq import codec_name, running


async def test_a_client_tells_and_hq_refuses_for_it_and_says_at_welcome_what_it_has(
    tmp_path: Path,
) -> None:
    lists = ContactLists((), ("fl-lab", "Zz"))
    async with running(tmp_path / "hq") as r:
        center, lab = await r.client("CA-RC"), await r.client("FL-LAB")
        assert (await center.ask(frames.TellContacts, [], ["Zz", "fl-lab", "Zz"])).count == 1
        assert (await center.ask(frames.TellContacts, [], ["fl-lab", "Zz"])).count == 0
        raw = r.people["FL-LAB"].seal(r.people["CA-RC"]).raw
        refused = await lab.publish(raw)
        assert (codec_name(refused), refused.code, refused.retryable) == (
            "recipient-refuses",
            0x0221,
            False,
        )
        assert refused.message == "CA-RC takes no mail from FL-LAB"
        again = await r.dial(r.people["CA-RC"], hello=False)
        assert (await again.hello()).contacts == lists.digest
        assert (await again.ask(frames.TellContacts, [], [])).count == 1
        assert isinstance(await lab.publish(raw), frames.Confirm)


async def test_lists_are_bounded_and_have_a_budget_of_their_own_client(tmp_path: Path) -> None:
    limits = attrs.evolve(LIMITS, requests_per_minute=5 * COSTS[frames.TellContacts].points)
    async with running(tmp_path / "hq", limits=limits) as r:
        evil, lab = await r.client("EVIL"), await r.client("FL-LAB")
        many = [f"LAB-{n}" for n in range(LIMITS.names_per_frame)]
        assert await evil.refused(frames.TellContacts, many, ["ONE"]) == "invalid-request"
        assert await evil.refused(frames.TellContacts, [], ["../x"]) == "invalid-request"
        said = [await evil.ask(frames.TellContacts, [], many[n:]) for n in range(6)]
        assert {codec_name(a) for a in said if isinstance(a, frames.Error)} == {"throttled"}
        assert sum(isinstance(a, frames.Ok) for a in said) >= 3
        assert isinstance(await lab.ask(frames.TellContacts, [], ["EVIL"]), frames.Ok)
        assert len(r.hq.engine.broker.state.rights.contacts_of("EVIL")) <= LIMITS.names_per_frame

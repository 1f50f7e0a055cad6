"""Whom a recipient takes mail from: its own lists, looked up while it runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from cipherbox.cli.main import cli
from cipherbox.client.outbox.rows import CONFIRMED, PARKED
from cipherbox.client.publishing.files import send_file
from cipherbox.client.receiving import contacts_upload as module
from cipherbox.client.receiving.contacts import FILE, Contacts
from cipherbox.client.receiving.contacts_upload import ContactsUploader
from cipherbox.client.receiving.opening import Opener
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.config.toml_file import ContactSettings
from cipherbox.contact_lists import ContactLists
from cipherbox.envelope.outcomes import Outcome
from cipherbox.errors import ConfigError, InvalidRequest, RecipientRefuses
from cipherbox.limits import LIMITS
from tests.client.real_hq import RealHq
from tests.client.test_log_order import running
from tests.client.waiting import until

SILENT = ContactSettings(tell_hq=False)


def test_blocking_the_last_who_was_allowed_lets_nobody_in(tmp_path: Path) -> None:
    contacts = Contacts(tmp_path)
    contacts.allow(["FL-LAB"])
    contacts.block(["fl-lab"])
    assert not contacts.lists().accepts("FL-LAB")
    assert not contacts.lists().accepts("BAD-LAB")
    contacts.allow_everybody()
    assert contacts.lists().accepts("BAD-LAB")
    assert not contacts.lists().accepts("FL-LAB")


def test_everybody_until_somebody_is_blocked_or_some_are_allowed(tmp_path: Path) -> None:
    contacts, others = Contacts(tmp_path), Contacts(tmp_path)
    assert contacts.lists().accepts("FL-LAB")
    contacts.block(["fl-lab"])
    assert [others.lists().accepts(n) for n in ("FL-LAB", "MA-LAB")] == [False, True]
    contacts.allow(["MA-LAB"])
    assert [others.lists().accepts(n) for n in ("FL-LAB", "MA-LAB", "PA-LAB")] == [
        False,
        True,
        False,
    ]
    contacts.allow(["FL-LAB"])  # is blocked no longer
    assert others.lists().accepts("FL-LAB")
    contacts.block(["FL-LAB"])
    contacts.allow_everybody()
    assert [others.lists().accepts(n) for n in ("FL-LAB", "PA-LAB")] == [False, True]
    contacts.unblock(["FL-LAB"])
    assert others.lists().accepts("FL-LAB")
    with pytest.raises(InvalidRequest):
        contacts.block(["../x"])


@pytest.mark.parametrize("text", ["", "[]", '{"allowed": 5}', '{"blocked": ["../x"]}'])
def test_a_damaged_list_is_said_and_opens_no_door(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ConfigError, match=FILE):
        Contacts(tmp_path).lists().accepts("FL-LAB")


async def test_the_lists_are_read_once_for_what_is_opened_together(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    real = Opener.contact_lists

    def read(opener: Opener) -> ContactLists:
        nonlocal reads
        reads += 1
        return real(opener)

    monkeypatch.setattr(Opener, "contact_lists", read)
    async with hq.client("FL-LAB") as lab, lab.publisher(to="CA-RC", batch=1) as publisher:
        for number in range(30):
            assert publisher.put(f"message {number}")
        await publisher.flush()
    async with hq.client("CA-RC") as center:
        with trio.fail_after(60):
            assert await Receiver(center).run(count=1) == 1  # looks up the sender's keys
            reads = 0
            assert await Receiver(center).run(count=29) == 29
    assert 1 <= reads < 29


async def test_blocked_while_it_receives_is_refused_with_a_receipt_and_kept_at_hq(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC", contacts=SILENT) as center:
        async with trio.open_nursery() as nursery:
            await nursery.start(Receiver(center).run)
            first = await lab.publish("taken", to="CA-RC")
            with trio.fail_after(60):
                assert await lab.wait_for([first.envelope_id], "opened", 60)
            Contacts(hq.home("CA-RC")).block(["FL-LAB"])  # another program of this home
            second = await lab.publish("refused", to="CA-RC")
            with trio.fail_after(60):
                while not (
                    told := lab.outbox_sender.outbox.outcomes(
                        (await lab.sent(second.message_ids[0])).number
                    )
                ):
                    await trio.sleep(0.02)
            assert [(who, outcome) for who, outcome, *_ in told] == [
                ("CA-RC", Outcome.NOT_ACCEPTED)
            ]
            # and receipts of the blocked are taken
            back = await center.publish("an answer", to="FL-LAB")
            async with hq.client("FL-LAB") as again:
                with trio.fail_after(60):
                    assert await Receiver(again).run(count=1) == 1
            with trio.fail_after(60):
                assert await center.wait_for([back.envelope_id], "opened", 60)
            nursery.cancel_scope.cancel()
    async with hq.admin() as admin:
        assert [str(row["reason"])[:12] for row in await admin.dead_letters()] == ["not-accepted"]
    assert [line["content"] for line in hq.lines("CA-RC")] == ["taken"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.02)


async def at_hq(hq: RealHq, client_id: str) -> ContactLists:
    """What HQ says it has of a client, found by the digest that WELCOME names."""
    async with hq.client(client_id) as client:
        assert client.hq is not None
        told = client.hq.contacts
    lists = Contacts(hq.home(client_id)).lists()
    assert told in (b"", lists.digest)
    return lists if told else ContactLists()


@pytest.mark.usefixtures("quick")
async def test_hq_refuses_for_the_recipient_and_says_who_and_the_outbox_keeps_it(
    hq: RealHq,
) -> None:
    contacts = Contacts(hq.home("CA-RC"))
    contacts.block(["fl-lab"])
    async with hq.client("CA-RC") as center:
        await ContactsUploader(center).upload()
    await hq.restart()
    async with hq.client("FL-LAB") as lab:
        with pytest.raises(RecipientRefuses, match="CA-RC takes no mail from FL-LAB"):
            await lab.publish("refused", to="CA-RC")
        outbox = lab.outbox().outbox
        await until(lambda: bool(outbox.rows([PARKED])))
        assert [row.reason for row in outbox.rows([PARKED])] == ["CA-RC takes no mail from FL-LAB"]
        with pytest.raises(
            RecipientRefuses, match=r"CA-RC takes no mail from FL-LAB; the others get it: FL-LAB$"
        ):
            await lab.publish("for both", to=["CA-RC", "FL-LAB"])
        await until(lambda: len(outbox.rows([CONFIRMED])) == 1)
        (row,) = outbox.rows([CONFIRMED])
        assert (row.recipients, row.generation) == (("FL-LAB",), 1)
        assert row.reason == "CA-RC takes no mail from FL-LAB"  # which outbox list shows
        found = await lab.publish("for who takes it", to=["CA-RC", "FL-LAB"], partial=True)
        assert (found.missing, found.queues) == (("CA-RC",), ("box.FL-LAB",))
        contacts.allow_everybody()
        contacts.unblock(["FL-LAB"])  # nobody has told HQ
        async with hq.client("CA-RC") as center:
            await ContactsUploader(center).upload()
            await lab.publish("taken", to="CA-RC")
            with trio.fail_after(60):
                assert await Receiver(center).run(count=1) == 1
        with trio.fail_after(60):
            assert await Receiver(lab).run(count=2) == 2
    assert [line["content"] for line in hq.lines("CA-RC")] == ["taken"]
    assert [line["content"] for line in hq.lines("FL-LAB")] == ["for both", "for who takes it"]


@pytest.mark.usefixtures("quick")
async def test_what_nobody_waits_for_goes_to_the_others_and_it_is_said_who_does_not_get_it(
    hq: RealHq,
) -> None:
    await hq.join("SF-RC", "NY-RC")
    Contacts(hq.home("CA-RC")).block(["FL-LAB"])
    async with hq.client("CA-RC") as center:
        await ContactsUploader(center).upload()
    said: list[str] = []
    async with hq.client("FL-LAB", on_event=lambda e: said.append(str(e))) as lab:
        await lab.bundles(["CA-RC", "SF-RC", "NY-RC"])
        server = running(lab)
        server.engine.broker.state.queues.pop("box.NY-RC")  # HQ has no mailbox for a second one
        await lab.publish("for three", to=["CA-RC", "SF-RC", "NY-RC"], wait=False)
        outbox = lab.outbox().outbox
        await until(lambda: [row.recipients for row in outbox.rows([CONFIRMED])] == [("SF-RC",)])
        (row,) = outbox.rows([CONFIRMED])
        assert row.generation == 2
        assert row.reason == "HQ has no mailbox for NY-RC; CA-RC takes no mail from FL-LAB"
        for reason in row.reason.split("; "):
            assert any(reason in line and "sealed again for the others" in line for line in said)
        async with lab.publisher(to=["CA-RC", "SF-RC"]) as publisher:
            publisher.put("by a publisher")
            with pytest.raises(RecipientRefuses, match=r"the others get it: SF-RC$"):
                await publisher.flush()
            assert (publisher.refused, publisher.unconfirmed) == ([], 0)
    async with hq.client("SF-RC") as other:
        with trio.fail_after(60):
            assert await Receiver(other).run(count=2) == 2
    assert [line["content"] for line in hq.lines("SF-RC")] == ["for three", "by a publisher"]


@pytest.mark.usefixtures("quick")
async def test_a_file_goes_to_the_others_too(hq: RealHq, tmp_path: Path) -> None:
    await hq.join("SF-RC")
    Contacts(hq.home("CA-RC")).block(["FL-LAB"])
    async with hq.client("CA-RC") as center:
        await ContactsUploader(center).upload()
    said: list[str] = []
    file = tmp_path / "large.bin"
    raw = os.urandom(LIMITS.part_bytes + 1)
    await trio.Path(file).write_bytes(raw)
    async with (
        hq.client("FL-LAB", on_event=lambda e: said.append(str(e))) as lab,
        hq.client("SF-RC") as other,
    ):
        sent = await send_file(lab, file, ["large.bin"], ["CA-RC", "SF-RC"], "")
        assert sent.missing == ("CA-RC",)
        assert any(
            "CA-RC takes no mail from FL-LAB; large.bin goes to SF-RC" in line for line in said
        )
        with trio.fail_after(60):
            assert await Receiver(other).run(count=1) == 1
    (line,) = hq.lines("SF-RC")
    assert await trio.Path(line["content"]["file"]).read_bytes() == raw


@pytest.mark.usefixtures("quick")
async def test_receipts_come_back_from_whom_one_blocks(hq: RealHq) -> None:
    Contacts(hq.home("CA-RC")).block(["FL-LAB"])
    async with hq.client("CA-RC") as center, hq.client("FL-LAB") as lab:
        await ContactsUploader(center).upload()
        sent = await center.publish("what do you say?", to="FL-LAB")
        with trio.fail_after(60):
            assert await Receiver(lab).run(count=1) == 1
        with trio.fail_after(60):
            assert await center.wait_for([sent.envelope_id], "opened", 60)
        with pytest.raises(RecipientRefuses):
            await lab.publish("an answer", to="CA-RC")


@pytest.mark.usefixtures("quick")
async def test_hq_gets_to_know_what_another_program_changed_and_forgets_it_when_told_to(
    hq: RealHq,
) -> None:
    contacts = Contacts(hq.home("CA-RC"))
    async with hq.client("CA-RC"), hq.client("FL-LAB") as lab:
        contacts.block(["FL-LAB"])

        async def refused() -> bool:
            try:
                await lab.publish("is it so?", to="CA-RC")
            except RecipientRefuses:
                return True
            return False

        with trio.fail_after(60):
            while not await refused():
                await trio.sleep(0.02)
    async with hq.client("CA-RC", contacts=SILENT) as silent:
        assert silent.hq is not None
        assert silent.hq.contacts == contacts.lists().digest
        await ContactsUploader(silent).upload()
    assert await at_hq(hq, "CA-RC") == ContactLists()


async def test_a_list_too_long_for_hq_is_not_told_in_part(hq: RealHq) -> None:
    names = [f"LAB-{n}" for n in range(LIMITS.names_per_frame + 1)]
    Contacts(hq.home("CA-RC")).allow(names)
    async with hq.client("CA-RC") as center:
        assert not await ContactsUploader(center).upload()
        Contacts(hq.home("CA-RC")).allow_everybody()
        Contacts(hq.home("CA-RC")).block(names[1:])
        await ContactsUploader(center).upload()
        await center.publish("to nobody who minds", to="FL-LAB")


@pytest.mark.usefixtures("quick")
async def test_two_programs_of_one_home_end_with_what_the_file_says(hq: RealHq) -> None:
    contacts = Contacts(hq.home("CA-RC"))
    contacts.block(["FL-LAB"])
    async with hq.client("CA-RC") as one, hq.client("CA-RC") as two:
        first, second = ContactsUploader(one), ContactsUploader(two)
        await first.upload()
        contacts.block(["MA-LAB"])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.upload)
            nursery.start_soon(second.upload)
        assert [await first.upload(), await second.upload()] == [False, False]
    assert (await at_hq(hq, "CA-RC")).blocked == ("FL-LAB", "MA-LAB")


async def test_the_command_tells_hq_and_says_what_hq_knows(hq: RealHq) -> None:
    home = hq.home("CA-RC")

    async def said(*words: str) -> str:
        done = await trio.to_thread.run_sync(
            CliRunner().invoke, cli, ["--home", str(home), "contacts", *words]
        )
        assert done.exit_code == 0, done.output
        return str(done.output)

    assert "HQ has these lists" in await said("block", "FL-LAB")
    assert (await at_hq(hq, "CA-RC")).blocked == ("FL-LAB",)
    assert "blocked: FL-LAB" in await said("list")
    lab = await trio.to_thread.run_sync(
        CliRunner().invoke,
        cli,
        ["--home", str(hq.home("FL-LAB")), "send", "--to", "CA-RC", "is it so?"],
    )
    assert isinstance(lab.exception, RecipientRefuses)
    (home / "client.toml").write_text(
        (home / "client.toml").read_text().replace("tell_hq = true", "tell_hq = false")
    )
    assert "HQ does not get these lists" in await said("block", "MA-LAB")
    assert await at_hq(hq, "CA-RC") == ContactLists()
    await hq.stop()
    told = await said("allow", "--everybody")
    assert "In force here" in told
    assert "on the next connection" in told

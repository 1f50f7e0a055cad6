"""What a person looks up under an id or a name that is not there is refused in words, never
answered as if it were.
"""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner, Result

from cipherbox.cli.main import cli
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.errors import NotFound


async def typed(home: Path, *words: str) -> Result:
    call = lambda: CliRunner().invoke(cli, ["--home", str(home), *words], standalone_mode=False)  # noqa: E731
    with trio.fail_after(60):
        return await trio.to_thread.run_sync(call)


async def refused(home: Path, *words: str) -> str:
    done = await typed(home, *words)
    assert isinstance(done.exception, NotFound), (words, done.output, done.exception)
    assert done.stdout == ""
    return str(done.exception)


def beyond(message: uuid.UUID, index: int) -> str:
    """The id of a message that its envelope would have to be longer for."""
    return str(uuid.UUID(int=message.int + index))


async def test_an_index_that_the_message_does_not_have(hq: Any) -> None:
    """`status` found the envelope, and showed the times of another message."""
    lab, center = hq.home("FL-LAB"), hq.home("CA-RC")
    async with hq.client("FL-LAB") as client:
        sent = await client.publish(["one", "two"], to="CA-RC")
    first, last = sent.message_ids[0], beyond(sent.message_ids[0], 2)
    async with hq.client("CA-RC") as client:
        with trio.fail_after(60):
            await Receiver(client).run(count=2)
    for home, more in (
        (lab, ()),
        (hq.admin_home, ("--sender", "FL-LAB")),
        (center, ("--sender", "FL-LAB")),
    ):
        assert (await typed(home, "status", str(sent.message_ids[1]), *more)).return_value == 0
        done = await typed(home, "status", last, *more)
        assert done.return_value == 1, done.output
        assert f"no record of message {last}" in done.stderr
        assert done.stdout == ""
        done = await typed(home, "status", last, "--json", *more)
        assert (done.return_value, '"found":false' in done.stdout) == (1, True)
    for words in (
        ("outbox", "show"),
        ("outbox", "retry"),
        ("outbox", "cancel", "--yes"),
        ("receipt", "export"),
    ):
        assert "was not sent from this home" in await refused(lab, *words, last)
    for words in (("inbox", "show"), ("inbox", "save")):
        assert "is not in the inbox" in await refused(center, *words, last)
    assert "is not parked" in await refused(center, "inbox", "retry", last)
    async with hq.client("FL-LAB") as client:
        with pytest.raises(NotFound):
            await client.timeline(last)
        assert not (await client.status(last)).found
        assert (await client.status(first)).found


async def test_a_receipt_of_somebody_whom_it_was_not_sent_to(hq: Any) -> None:
    """It said that this client has not signed yet: as if it would."""
    await hq.join("SF-RC")
    async with hq.client("FL-LAB") as client:
        sent = await client.publish("x", to="CA-RC")
    said = await refused(
        hq.home("FL-LAB"), "receipt", "export", str(sent.message_ids[0]), "--recipient", "SF-RC"
    )
    assert "was not sent to SF-RC, but to CA-RC" in said
    said = await refused(
        hq.home("FL-LAB"), "receipt", "export", str(sent.message_ids[0]), "--recipient", "CA-RC"
    )
    assert "CA-RC has not signed" in said


async def test_names_that_nobody_has(hq: Any) -> None:
    admin, lab = hq.admin_home, hq.home("FL-LAB")
    for words in (
        ("grants", "FL-LAP"),
        ("clients", "roles", "FL-LAP"),
        ("clients", "show", "FL-LAP"),
        ("dead", "list", "no-queue"),
        ("dead", "redrive", "--queue", "no-queue"),
        ("dead", "show", "box.CA-RC/7"),
        ("queue", "show", "no-queue"),
        ("exchange", "show", "no-exchange"),
        ("grant", "FL-LAP", "declare"),
        ("revoke", "FL-LAP", "--yes"),
    ):
        said = await refused(admin, *words)
        assert re.search(r"\bno \S+|do not exist", said), (words, said)
    for words in (
        ("route", "resolve", "no-exchange", "k"),
        ("keys", "show", "NOBODY"),
        ("grants", "NOBODY"),
    ):
        await refused(lab, *words)
    assert (await typed(admin, "grants", "FL-LAB")).exception is None
    assert (await typed(admin, "grants", "*")).exception is None
    assert (await typed(admin, "dead", "list", "box.FL-LAB")).stdout == "no dead letters\n"


async def test_who_is_blocked_by_a_name_that_nobody_has_is_told_so(hq: Any) -> None:
    """A slip of the pen blocked nobody, and said that HQ refuses from now on."""
    done = await typed(hq.home("CA-RC"), "contacts", "block", "FL-LAP")
    assert "HQ does not know a client FL-LAP yet; did you mean FL-LAB?" in done.stderr
    done = await typed(hq.home("CA-RC"), "contacts", "block", "--remove", "FL-LAP")
    assert "does not know a client" not in done.stderr
    done = await typed(hq.home("CA-RC"), "contacts", "allow", "FL-LAB")
    assert "does not know a client" not in done.stderr


async def test_a_command_of_clients_that_is_none(hq: Any) -> None:
    """`clients disconnect X` was read as `clients show disconnect X`."""
    done = await typed(hq.admin_home, "clients", "disconnect", "FL-LAB")
    assert "No such command 'disconnect'" in str(done.exception)
    assert "FL-LAB" in (await typed(hq.admin_home, "clients", "FL-LAB", "--json")).stdout


# -- HQ's log --------------------------------------------------------------------------------------


async def test_the_log_is_read_by_people_and_by_machines(hq: Any) -> None:
    """It printed the names of fields: `admin: Enrol target=FL-LAB, role=client, replaces=False`."""
    admin = hq.admin_home
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        sent = await lab.publish("x", to="CA-RC")
        with trio.fail_after(60):
            await Receiver(center).run(count=1)
    for words in (
        ("exchange", "declare", "labs", "--type", "topic"),
        ("queue", "declare", "q", "--owner", "CA-RC"),
        ("binding", "declare", "labs", "q", "lab.*"),
        ("grant", "FL-LAB", "publish", "labs"),
        ("clients", "limit", "FL-LAB", "queues", "3"),
    ):
        done = await typed(admin, *words)
        assert done.exception is None, (words, done.exception)
    shown = (await typed(admin, "audit", "show", "--last", "100")).stdout
    for words in (
        r"admin  made a token for FL-LAB as client",
        r"HQ  enrolled FL-LAB as client",
        r"FL-LAB  has key bundle 1, SHA-256 [0-9a-f]{64}",
        rf"FL-LAB  sent {sent.message_ids[0]}",
        r"HQ  delivered 1 of box\.CA-RC to CA-RC",
        r"CA-RC  acknowledged 1 of box\.CA-RC",
        r"admin  declared exchange labs, topic",
        r"admin  declared queue q of CA-RC",
        r"admin  bound queue q to labs with key 'lab\.\*'",
        r"admin  gave the right publish on labs to FL-LAB",
        r"admin  limited FL-LAB to 3 queues",
    ):
        assert re.search(rf"(?m)^ *\d+  \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d  {words}$", shown), (
            words,
            shown,
        )
    assert not re.search(r"\w+=\S|\{|\[", shown)
    machine = (await typed(admin, "audit", "show", "--last", "100", "--json")).stdout
    assert '"act":"LimitClient","target":"FL-LAB","limit":"queues","most":3' in machine
    assert '"what":"acts"' in machine


async def test_entries_after_the_last_one(hq: Any) -> None:
    """Nothing was printed at all."""
    assert (
        "entries, and none after 9999"
        in (await typed(hq.admin_home, "audit", "show", "--after", "9999")).stdout
    )
    assert (await typed(hq.admin_home, "audit", "show", "--after", "9999", "--json")).stdout == ""

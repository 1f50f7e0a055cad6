"""The console of an admin's home, over a real HQ: reading, and acts that HQ's log records."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio
from nacl.signing import SigningKey

from cipherbox import clock
from cipherbox.apps.page.console import MOST_QUEUES, drawn
from cipherbox.apps.page.history import DAY_EVERY, POINTS, SAMPLE_S, WIDTH, History
from cipherbox.client.enrol import join
from cipherbox.client.log.witness import Witness, load_key, verifier_key
from cipherbox.errors import CipherBoxError
from cipherbox.server import app
from tests.client.real_hq import RealHq
from tests.page.web import Web, page_of


@pytest.fixture
async def admin(hq: RealHq) -> AsyncIterator[Web]:
    """The page of HQ's admin, connected."""
    async with page_of(hq.admin_home) as web:
        await web.until("/console", lambda page: "HQ is ready" in page.words)
        yield web


async def test_hq_at_a_glance(hq: RealHq, admin: Web) -> None:
    assert (await admin.get("/")).headers["location"] == "/console"
    page = await admin.get("/console")
    for words in ("Clients connected", "Memory", "published messages", "days"):
        assert words in page.words
    for path in ("/messages", "/sent", "/write"):
        assert (await admin.get(path)).status == 404  # an admin's home has no keys
    for path in ("/people", "/trouble", "/proof", "/settings", "/manual/page"):
        assert (await admin.get(path)).status == 200, path
    await hq.stop()
    assert (
        "HQ does not answer now."
        in (await admin.until("/console", lambda p: "does not" in p.words)).words
    )


async def test_only_an_admin_has_a_console(lab: Web) -> None:
    for path in ("", "/clients", "/dead", "/routes", "/hq", "/log"):
        path = f"/console{path}"
        assert (await lab.get(path)).status == 404
    for path in (
        "/console/revoke",
        "/console/approve",
        "/console/dead",
        "/console/limit",
        "/console/clients",
        "/console/kick",
        "/console/purge",
        "/console/clock",
    ):
        assert (await lab.post(path, {"client_id": "CA-RC"})).status == 404


async def test_who_gets_what_is_drawn(hq: RealHq, admin: Web) -> None:
    async with hq.admin() as client:
        await client.declare_exchange("lab_reports", "topic")
        await client.declare_queue("ca_rc_queue", owner="CA-RC", readers=["CA-RC"])
        await client.bind("lab_reports", "ca_rc_queue", "labs.#")
    page = await admin.get("/console/routes")
    assert page.text.count("marker-end=") == 3  # one of HQ's own defaults
    for name in ("lab_reports", "ca_rc_queue", "labs.#", "CA-RC"):
        assert re.search(rf"<text[^>]*>{re.escape(name)}</text>", page.text), name
    assert "box.FL-LAB" in page.words  # in the table


def test_a_picture_is_bounded() -> None:
    queues = [{"name": f"q{n}", "readers": ["A"], "waiting": n} for n in range(MOST_QUEUES + 5)]
    bindings = [{"exchange": "x", "queue": f"q{n}", "routing_key": "k"} for n in range(70)]
    picture = drawn([{"name": "x", "type": "topic"}], queues, bindings)
    assert picture.left_out == 5
    assert len(picture.boxes) == MOST_QUEUES + 2
    assert len(picture.arrows) == 2 * MOST_QUEUES
    assert drawn([], [], []).boxes == []


async def test_a_client_is_enrolled_approved_disconnected_and_revoked(
    hq: RealHq, admin: Web
) -> None:
    for wrong in ({"client_id": "no such!"}, {"role": "king"}):
        fields = {"client_id": "NY-RC", "role": "client", "approve": "yes", **wrong}
        assert (await admin.post("/console/clients", fields)).status == 400
    fields = {"client_id": "NY-RC", "role": "client", "approve": "yes"}
    page = await admin.post("/console/clients", fields)
    assert "is shown this once" in page.words
    token = re.findall(r'<pre class="token">([^<]+)</pre>', page.text)[0]
    assert token not in (await admin.get("/console/clients")).text
    async with hq.admin() as client:
        await client.enrol("CHIEF", role="admin")
        await client.enrol("FL-LAB", replace=True)
    page = await admin.get("/console/clients")
    assert "CHIEF its token was not used yet as an admin until" in page.words
    assert "It replaces the home that has this name now." in page.words
    assert "Approve FL-LAB" not in page.words
    assert "wait for a person" not in (await admin.get("/console")).words
    async with trio.open_nursery() as nursery:
        nursery.start_soon(join, hq.home("NY-RC"), token)
        page = await admin.until("/console/clients", lambda page: "Approve NY-RC" in page.words)
        assert "Compare the number" in page.words
        assert "1 enrolments wait for a person" in (await admin.get("/console")).words
        answer = await admin.post("/console/approve", {"client_id": "NY-RC", "accept": "yes"})
        assert answer.status == 303, answer.words
    async with hq.client("NY-RC") as client:
        await client.ping()
        page = await admin.get("/console/clients")
        number = re.findall(r'"NY-RC"><[^<]*name="connection" value="(\d+)"', page.text)[0]
        before = client.connection.current
        fields = {"client_id": "NY-RC", "connection": number}
        assert (await admin.post("/console/kick", fields)).status == 303
        with trio.fail_after(60):
            while client.connection.current in (before, None):  # it comes back
                await trio.sleep(0.05)
        await client.ping()
        assert (await admin.post("/console/kick", {**fields, "connection": "x"})).status == 400
    page = await admin.get("/console/log")
    assert "made a token for NY-RC as client" in page.words
    assert "closed 1 connection(s) of NY-RC: an admin closed this connection" in page.words
    page = await admin.get("/console/clients")
    assert "Revoke every certificate of NY-RC" in page.words  # it asks once
    assert (
        await admin.post("/console/revoke", {"client_id": "NY-RC", "reason": "left"})
    ).status == 303
    page = await admin.until("/console/log", lambda page: "revoked NY-RC: left" in page.words)
    assert page.words.index("revoked NY-RC") < page.words.index("made a token for NY-RC")
    with pytest.raises(CipherBoxError):
        async with hq.client("NY-RC"):
            pass
    page = await admin.get("/console/clients")
    assert "✗ revoked" in page.words
    assert (await admin.post("/console/revoke", {"client_id": "no such!"})).status == 400


async def test_a_queue_is_purged_and_dead_letters_are_redriven_and_discarded(
    hq: RealHq, admin: Web
) -> None:
    async with hq.client("FL-LAB") as client:
        await client.publish("one", to=["CA-RC"])
        await client.publish("two", to=["CA-RC"])
    assert "Purge box.CA-RC" in (await admin.get("/console/routes")).words
    assert (await admin.post("/console/purge", {"queue": "box.CA-RC"})).status == 303
    assert "Purge box.CA-RC" not in (await admin.get("/console/routes")).words
    assert (await admin.post("/console/purge", {"queue": "nowhere"})).status == 404
    page = await admin.get("/console/dead")
    letters = re.findall(r'value="(box\.CA-RC/\d+)"', page.text)
    assert len(letters) == 2
    assert (await admin.post("/console/dead", {"act": "redrive"})).status == 400
    for act, letter in zip(("redrive", "discard"), letters, strict=True):
        answer = await admin.post("/console/dead", {"act": act, "letter": letter})
        assert answer.status == 303, answer.words
    assert "There are no dead letters." in (await admin.get("/console/dead")).words
    async with hq.admin() as client:
        assert len(await client.dead_letters(settled=True)) == 2
        (row,) = await client.list("queues", "box.CA-RC")
        assert row["waiting"] == 1


async def test_totals_stand_beside_their_limits_and_a_limit_is_set(hq: RealHq, admin: Web) -> None:
    page = await admin.get("/console/clients?q=lab")
    assert "Totals and limits FL-LAB" in page.words
    assert "CA-RC" not in page.words
    fields = {"client_id": "FL-LAB", "what": "envelopes", "most": "7"}
    assert (await admin.post("/console/limit", fields)).status == 303
    page = await admin.get("/console/clients?q=LAB")
    assert "envelopes 0 7 0 %" in page.words
    page = await admin.get("/console/log")
    assert "limited FL-LAB to 7 envelopes" in page.words
    page = await admin.get("/console/log", Accept_Language="de")
    assert "begrenzte FL-LAB auf 7 (Umschläge)" in page.words
    assert (await admin.post("/console/limit", {**fields, "most": ""})).status == 303
    assert "envelopes 0 7" not in (await admin.get("/console/clients?q=LAB")).words
    for wrong in ({"what": "x"}, {"most": "-1"}, {"most": "1e3"}, {"most": "0" * 5000 + "1"}):
        assert (await admin.post("/console/limit", {**fields, **wrong})).status == 400, wrong


async def test_witnesses_and_heads_of_the_log(hq: RealHq) -> None:
    """A cosignature counts by a key that is known here; another key's is wrong."""
    keys = {}
    for name in ("CA-RC", "FL-LAB"):
        async with hq.client(name) as client:
            key = load_key(client.home)
            keys[name] = verifier_key(name, key).text
            await Witness(client, key).once()
    settings = hq.admin_home / "client.toml"
    text = settings.read_text()
    other = verifier_key("FL-LAB", SigningKey.generate()).text
    for known, states in (
        ([keys["CA-RC"]], {"CA-RC": "✓ verified", "FL-LAB": "its key is not known here"}),
        ([keys["CA-RC"], other], {"CA-RC": "✓ verified", "FL-LAB": "✗ signature invalid"}),
    ):
        shown = "[" + ", ".join(f'"{one}"' for one in known) + "]"
        settings.write_text(text.replace("witnesses = []", f"witnesses = {shown}"))
        async with page_of(hq.admin_home) as admin:
            page = await admin.until("/console/log", lambda page: "Witnesses" in page.words)
            assert "continues everything that this home has seen" in page.words
            rows = re.findall(r"<tr><td>(CA-RC|FL-LAB)</td>(.*?)</tr>", page.text, re.DOTALL)
            found = {name: re.findall(r">([^<>]+)</span>", row)[-1] for name, row in rows}
            assert found == states


def test_the_last_hour_and_day_are_plotted() -> None:
    history = History()
    assert history.hour() == history.day() == []
    for number in range(DAY_EVERY * (POINTS + 10)):
        rates = {"published messages": number, "delivered envelopes": 0}
        history.add({"rates": rates, "now": {"waiting": 5, "memory_bytes": 1e8}})
    for plots in (history.hour(), history.day()):
        assert [len(one.points.split()) for one in plots] == [POINTS] * 4
        first, last = (pair.split(",") for pair in (plots[0].points.split()[i] for i in (0, -1)))
        assert (float(first[0]), float(last[0]), float(last[1])) == (0.0, WIDTH, 4.0)
        assert plots[1].most == 0
    assert history.day()[0].since == SAMPLE_S * DAY_EVERY * (POINTS - 1)


async def test_certificates_and_a_clock_that_is_confirmed(
    hq: RealHq, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead_ms = 0
    moved = partial(app.HQ, clock_ms=lambda: clock.now_ms() + ahead_ms)
    monkeypatch.setattr(app, "HQ", moved)
    await hq.restart()
    async with page_of(hq.admin_home) as admin:
        page = await admin.until("/console/hq", lambda page: "HQ uses" in page.words)
        known = ("Root CA", "Issuing CA", "Revocation list that clients get", "at HQ", "cipherbox")
        assert [words for words in known if words not in page.words] == []
        assert "Confirm the clock" not in page.words
        ahead_ms = 2 * 3600 * 1000
        page = await admin.get("/console/hq", Accept_Language="de")
        assert "Die Uhr geht richtig" in page.words
        assert (
            "HQ zweifelt an seiner Uhr" in (await admin.get("/console", Accept_Language="de")).words
        )
        assert (await admin.post("/console/clock")).status == 303
        assert "Confirm the clock" not in (await admin.get("/console/hq")).words
        assert "confirmed that HQ's clock is right" in (await admin.get("/console/log")).words
        await hq.stop()
        await admin.until("/console/hq", lambda page: "HQ does not answer now." in page.words)

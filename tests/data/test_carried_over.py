"""Data of every published version opens in this one: HQ's directory and clients' homes, with what
waits in them.

How the data was made, and how long its certificates last, is in `make_0_5_0.py`.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from cipherbox import clock, pki
from cipherbox.client.client import open_client
from cipherbox.client.home import Home
from cipherbox.client.inbox.inspect import looking
from cipherbox.client.keys.pins import SUCCESSION, Pins
from cipherbox.client.log.audit import verify_log
from cipherbox.client.publishing.files import send_unfinished
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.envelope.receipt_file import verify_file
from tests.client.real_hq import RealHq
from tests.data.unpack import PASSWORD, old_hq, set_clock, shift_clock, unpack

LABS, CENTERS = ("FL-LAB", "MA-LAB"), ("CA-RC", "NY-RC")


# its message was accepted before; 0.5.0's log proves no order, so it is refused, saying why
REVOKED = "TX-LAB"


def opened(hq: RealHq, name: str, said: list[str] | None = None) -> Any:
    def hear(event: Any) -> None:
        if said is not None:
            said.append(str(event))

    return open_client(hq.home(name), password=PASSWORD if name == "NY-RC" else None, on_event=hear)


async def sent(hq: RealHq, expected: dict[str, Any], name: str) -> None:
    """Everything in this client's outbox is at HQ."""
    async with opened(hq, name) as client:
        own = [
            row["id"]
            for rows in expected["outbox"].values()
            for row in rows
            if row["sender"] == name
        ]
        own += [
            row["id"] for row in expected["waiting"]["CA-RC"] if "does not know" in row["content"]
        ]
        with trio.fail_after(60):
            for one in own:
                while (row := await client.sent(one)) is not None and not row.accepted_at:
                    await trio.sleep(0.05)
        assert await send_unfinished(client) == []


async def started(hq: RealHq, *names: str) -> None:
    """Their programs of this version have run once: before that nothing new is sealed to them."""
    for name in names:
        async with opened(hq, name) as client:
            assert client.home.identity is not None
            assert client.home.identity.bundle is not None
            assert client.home.identity.bundle.version == 2


def lines_of(hq: RealHq, name: str, home: Home) -> list[dict[str, Any]]:
    """What 0.5.0 received lies readable; what came since is kept under the key where a password
    protects it.
    """
    lines = hq.lines(name)
    if home.sealed:
        with looking(home) as look:
            lines += [entry.document for entry in look.shelf.oldest()]
    return lines


async def received(
    hq: RealHq, name: str, wanted: set[str], said: list[str] | None = None
) -> dict[str, dict[str, Any]]:
    """The lines of this client's inbox by message id, once those wanted are there."""
    async with opened(hq, name, said) as client:
        receiver = Receiver(client)
        with trio.fail_after(60):
            while True:
                found = {line["message_id"]: line for line in lines_of(hq, name, client.home)}
                if wanted <= found.keys():
                    return found
                await receiver.run(idle_s=0.3)


def text_of(hq: RealHq, name: str, line: dict[str, Any]) -> str:
    """A line's content, as what is expected says it."""
    content = line["content"]
    if isinstance(content, str):
        return content
    if "file" not in content:  # kept under the key; what it opens to has this hash
        return f"sha256:{content['sha256']}"
    raw = (hq.home(name) / "data" / content["file"]).read_bytes()
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def test_in_three_years_the_data_is_as_young_as_today(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {"made_at": clock.now_ms()}
    shift_clock(monkeypatch, 3 * 365 * 24 * 3600.0)
    set_clock(expected, monkeypatch)
    for now_ms in (clock.now_ms(), pki.ms(clock.now()), time.time_ns() // 1_000_000):
        assert 0 <= now_ms - expected["made_at"] < 25 * 3600 * 1000


async def test_what_waited_in_0_5_0_is_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = unpack("0.5.0", tmp_path)
    set_clock(expected, monkeypatch)
    said: list[str] = []
    async with old_hq(tmp_path) as hq:
        await started(hq, *CENTERS, *LABS)
        for name in (*LABS, "NY-RC"):
            await sent(hq, expected, name)
        for name in CENTERS:
            rows = (
                expected["waiting"][name]
                + expected["outbox"].get(name, [])
                + expected["received"][name]
            )
            if name == "CA-RC":  # who comes first gets what waits in a queue of both
                rows += expected["waiting"]["reports"]
            rows = [row for row in rows if row["sender"] != REVOKED]
            found = await received(hq, name, {row["id"] for row in rows}, said)
            async with opened(hq, name) as client:
                assert len(lines_of(hq, name, client.home)) == len(found)  # each exactly once
            for row in rows:
                line = found[row["id"]]
                assert (line["sender_id"], text_of(hq, name, line)) == (
                    row["sender"],
                    row["content"],
                )
        why = f"from {REVOKED}: the certificate of {REVOKED} was revoked, and HQ does not prove"
        assert any(why in event for event in said)
        whole = hq.home("CA-RC") / "incoming" / "FL-LAB" / "run.bin"
        assert whole.read_bytes() == b"".join(bytes([n]) * (2 << 20) for n in range(6))
        async with hq.admin() as admin:
            dead = await admin.dead_letters()
            assert [row["queue"] for row in dead if row["queue"] != "box.CA-RC"] == [
                expected["dead"]["queue"]
            ]
        async with opened(hq, "FL-LAB") as lab:  # and life goes on, in the same sessions too
            for kind in ("hpke-mlkem768-x25519", "rsa-oaep", "ratchet"):
                done = await lab.publish(f"new, {kind}", to="CA-RC", stanza=kind)
                assert str(done.message_ids[0]) in await received(
                    hq, "CA-RC", {str(done.message_ids[0])}
                )


async def test_what_was_pinned_in_0_5_0_still_is_and_is_to_be_compared_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pinned keys signed for those of today; the number that people compared covered the
    signing keys alone.
    """
    set_clock(unpack("0.5.0", tmp_path), monkeypatch)
    said: list[str] = []
    async with old_hq(tmp_path) as hq:
        before = {name: Pins(hq.home("FL-LAB")).get(name) for name in CENTERS}
        assert {name: bool(pin and pin.verified_at) for name, pin in before.items()} == {
            "CA-RC": True,
            "NY-RC": False,
        }
        await started(hq, *CENTERS)
        async with open_client(hq.home("FL-LAB"), on_event=lambda e: said.append(str(e))) as lab:
            await lab.bundles(CENTERS)
            pins = {pin.bundle.client_id: pin for pin in lab.directory.pins.entries()}
    assert {
        name: (pin.pinned_by, pin.bundle.version, pin.compared_at) for name, pin in pins.items()
    } == {
        "CA-RC": (SUCCESSION, 2, 0),
        "NY-RC": (SUCCESSION, 2, 0),
    }
    assert (
        next(line for line in said if "compare once more: cipherbox keys verify" in line).count(
            "CA-RC"
        )
        == 2
    )


async def test_hq_of_0_5_0_is_whole_after_the_upgrade(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_clock(unpack("0.5.0", tmp_path), monkeypatch)
    async with old_hq(tmp_path) as hq, hq.admin() as admin:
        rows = {row["name"]: row for row in await admin.list("clients")}
        assert {name for name, row in rows.items() if row["revoked_at"]} == {"TX-LAB"}
        found = await verify_log(admin, admin.log.key, lambda *_: None)
        assert found.wrong == []
        assert found.old_entries >= 20  # and the first entry of the tree names the newest of them


def test_receipts_of_0_5_0_still_verify(tmp_path: Path) -> None:
    expected = unpack("0.5.0", tmp_path)
    assert len(expected["receipts"]) == 5
    for name in expected["receipts"]:
        statement = verify_file((tmp_path / "receipts" / name).read_bytes())
        assert statement.outcome == "opened"
        assert name == f"{statement.message_id}-{statement.recipient}.receipt.json"

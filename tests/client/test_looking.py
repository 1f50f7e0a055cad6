"""What a person sees of a home's inbox, with the commands they type, also beside a receiver and
without HQ.
"""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner, Result

from cipherbox.cli.main import cli
from cipherbox.client.overview import overview
from cipherbox.client.publishing.files import send_file
from cipherbox.client.publishing.parts import Manifest, manifest_message, part_message
from cipherbox.client.receiving.delivery import Delivery
from cipherbox.client.receiving.pending_receipts import PendingReceipts
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.envelope.outcomes import Outcome
from cipherbox.limits import LIMITS
from cipherbox.sealing.body import Message
from tests.client.real_hq import RealHq
from tests.client.waiting import until


def call(home: Path, *words: str) -> Result:
    done = CliRunner().invoke(cli, ["--home", str(home), *words])
    assert done.exit_code == 0, done.output
    return done


def bytes_of(path: Path) -> bytes:
    return path.read_bytes()


@pytest.fixture
async def center(hq: RealHq, tmp_path: Path) -> Path:
    """A home that has received two texts, a small file and a large one, and refused a file."""
    large = tmp_path / "scan.tif"
    large.write_bytes(bytes(3_000_000))
    async with hq.client("FL-LAB") as lab:
        small = Message(b"a,b\n1,2\n", "text/csv", {"filename": "results.csv"})
        await lab.publish(["Sample 17 is ready", "\x1b[31mred", small], to="CA-RC")
        await send_file(lab, large, ["scan.tif"], ["CA-RC"], "image/tiff")
        part = part_message(b"t" * 16, 0, LIMITS.part_bytes, b"one thing", compress=False)
        manifest = Manifest(b"t" * 16, ("bad.bin",), 9, LIMITS.part_bytes, (bytes(32),), 0, "")
        await lab.publish([part], to="CA-RC", box="bulk")
        await lab.publish([manifest_message(manifest)], to="CA-RC", box="bulk")
    async with hq.client("CA-RC") as client:
        with trio.fail_after(60):
            await Receiver(client).drain()
    return hq.home("CA-RC")


async def test_everything_that_was_received_is_listed_found_shown_and_saved(
    center: Path, tmp_path: Path
) -> None:
    rows = json.loads(call(center, "inbox", "list", "--json").stdout)
    rows[2:] = sorted(rows[2:], key=lambda row: str(row["filename"]))  # whichever was whole first
    assert [row["filename"] for row in rows] == ["", "", "results.csv", "scan.tif"]
    assert {row["sender_id"] for row in rows} == {"FL-LAB"}
    assert {row["signature"] for row in rows} == {"ed25519"}
    assert [row["content_type"].partition(";")[0] for row in rows] == [
        *["text/plain"] * 2,
        "text/csv",
        "image/tiff",
    ]
    shown = call(center, "inbox", "list").stdout
    assert "\x1b" not in shown
    assert "Sample 17 is ready" in shown
    found = json.loads(call(center, "inbox", "search", "SAMPLE 17", "--json").stdout)
    assert [row["message_id"] for row in found] == [rows[0]["message_id"]]
    assert (
        json.loads(call(center, "inbox", "search", "scan", "--json").stdout)[0]["filename"]
        == "scan.tif"
    )
    assert json.loads(call(center, "inbox", "list", "--from", "PA-LAB", "--json").stdout) == []
    text = call(center, "inbox", "show", rows[1]["message_id"]).stdout
    assert "\\x1b[31mred" in text
    for row, content in (
        (rows[0], b"Sample 17 is ready"),
        (rows[2], b"a,b\n1,2\n"),
        (rows[3], bytes(3_000_000)),
    ):
        saved = Path(call(center, "inbox", "save", row["message_id"], str(tmp_path)).stdout.strip())
        assert saved.parent == tmp_path
        assert bytes_of(saved) == content
    nobodys = rows[0]["message_id"][:-4] + "00ff"
    assert CliRunner().invoke(cli, ["--home", str(center), "inbox", "show", nobodys]).exit_code


async def test_what_was_refused_is_listed_with_its_reason(center: Path) -> None:
    (row,) = json.loads(call(center, "inbox", "list", "--refused", "--json").stdout)
    assert row["sender_id"] == "FL-LAB"
    assert "not what the manifest says" in row["reason"]
    assert json.loads(call(center, "inbox", "list", "--parked", "--json").stdout) == []


async def test_lines_that_were_lost_are_written_again(center: Path, tmp_path: Path) -> None:
    file = center / "data" / "received_messages.jsonl"
    before = bytes_of(file)
    rotated = Path(call(center, "inbox", "rotate").stdout.strip())
    assert bytes_of(rotated) == before
    assert rotated.parent == file.parent
    os.unlink(rotated)
    assert os.listdir(file.parent) == []
    assert call(center, "inbox", "export", "--since", "1h").stdout_bytes == before
    call(center, "inbox", "export", str(tmp_path / "again.jsonl"))
    assert bytes_of(tmp_path / "again.jsonl") == before
    assert (
        CliRunner()
        .invoke(cli, ["--home", str(center), "inbox", "export", str(tmp_path / "again.jsonl")])
        .exit_code
    )
    assert call(center, "inbox", "export", "--since", "0.0001s").stdout == ""


async def test_a_running_receiver_begins_a_new_file_after_a_rotation(hq: Any) -> None:
    home = hq.home("CA-RC")
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as client:
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: Receiver(client).run(task_status=task_status))
            await lab.publish("before", to="CA-RC")
            await until(lambda: len(hq.lines("CA-RC")) == 1)
            rotated = Path(call(home, "inbox", "rotate").stdout.strip())
            await lab.publish("after", to="CA-RC")
            await until(lambda: [line["content"] for line in hq.lines("CA-RC")] == ["after"])
            assert [
                row["content_type"]
                for row in json.loads(call(home, "inbox", "list", "--json").stdout)
            ]
            nursery.cancel_scope.cancel()
    assert json.loads(bytes_of(rotated))["content"] == "before"


async def test_waiting_for_opened_ends_although_another_program_takes_the_receipt(hq: Any) -> None:
    """As `send --wait opened` beside an agent of the same home: the receipt comes to whichever
    HQ gives it to.
    """
    async with (
        hq.client("FL-LAB") as beside,
        hq.client("FL-LAB") as lab,
        hq.client("CA-RC") as center,
    ):
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: Receiver(center).run(task_status=task_status))
            for number in range(6):
                done = await lab.publish(f"{number}", to="CA-RC")
                with trio.fail_after(60):
                    assert await lab.wait_for([done.envelope_id], "opened", 60)
            nursery.cancel_scope.cancel()
        assert beside.outbox_sender is not None


def asked(home: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["--home", str(home), *words], standalone_mode=False)


async def test_a_clients_status_says_what_is_where_also_with_hq_away(hq: Any) -> None:
    lab = hq.home("FL-LAB")
    async with hq.client("FL-LAB") as client:
        opened = await client.publish("opened", to="CA-RC")
        async with hq.client("CA-RC") as center:
            await Receiver(center).run(count=1)
        assert await client.wait_for([opened.envelope_id], "opened", 60)
        await client.publish("not fetched", to="CA-RC")
    await hq.stop()
    async with hq.client("FL-LAB", keep_trying=True) as client:
        await client.publish("waits", to="CA-RC", wait=False)
        here = await overview(client)
    assert (here.waiting, here.at_hq, here.opened, here.refused) == (1, 1, 1, 0)
    assert here.last_contact > 1_700_000_000_000
    settings = lab / "client.toml"
    text = bytes_of(settings).decode().replace("tries = 3", "tries = 1")
    write(settings, text.replace("timeout_s = 10.0", "timeout_s = 0.5"))
    with trio.fail_after(60):
        done = await trio.to_thread.run_sync(asked, lab, "status", "--json")
        listed = await trio.to_thread.run_sync(
            asked, lab, "outbox", "list", "--all", "--to", "CA-RC", "--json"
        )
        nobody = await trio.to_thread.run_sync(
            asked, lab, "outbox", "list", "--all", "--to", "PA-LAB", "--json"
        )
        older = await trio.to_thread.run_sync(
            asked, lab, "outbox", "list", "--all", "--since", "0.0001s", "--json"
        )
    assert done.return_value == 3
    shown = json.loads(done.stdout)
    assert shown["connected"] is False
    assert (shown["here"]["waiting"], shown["here"]["at_hq"], shown["here"]["opened"]) == (1, 1, 1)
    assert len(json.loads(listed.stdout)) == 3
    assert json.loads(nobody.stdout) == json.loads(older.stdout) == []


async def test_what_is_no_envelope_is_on_the_list_of_refusals(hq: Any) -> None:
    async with hq.client("CA-RC") as center:
        with Receiver(center).locked(), closing(PendingReceipts(center)) as receipts:
            delivery = Delivery("box.CA-RC", (1, 1, 1 << 63, 1 << 63, b"no envelope"), None, None)
            receipts.refuse([(delivery, Outcome.MALFORMED, "too short")])
    (row,) = json.loads(call(hq.home("CA-RC"), "inbox", "list", "--refused", "--json").stdout)
    assert (row["outcome"], row["reason"], row["sender_id"]) == ("malformed", "too short", "")


def write(path: Path, text: str) -> None:
    path.write_text(text)


async def test_a_file_is_listed_as_opened_once_its_recipient_has_signed_for_it(
    hq: Any, tmp_path: Path
) -> None:
    file = tmp_path / "scan.tif"
    file.write_bytes(bytes(LIMITS.part_bytes + 1))
    states = []
    async with hq.client("FL-LAB") as lab:
        sent = await send_file(lab, file, ["scan.tif"], ["CA-RC"], "image/tiff")
    states.append(await outbox_list(hq.home("FL-LAB")))
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        with trio.fail_after(60):
            await Receiver(center).run(count=1)
        assert await lab.wait_for([sent.envelope_id], "opened", 60)
    states.append(await outbox_list(hq.home("FL-LAB")))
    assert [[row["state"] for row in one if "file" in row] for one in states] == [
        ["confirmed, 1 not signed"],
        ["opened by all"],
    ]


async def outbox_list(home: Path) -> list[dict[str, Any]]:
    done = await trio.to_thread.run_sync(asked, home, "outbox", "list", "--all", "--json")
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows

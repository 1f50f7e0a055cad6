"""What an admin shows and takes away, over HQ's own commands; and every list as JSON."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from .conftest import ENVIRONMENT, PROGRAM, Hq, shell


@pytest.mark.joined
def test_topology_from_declare_to_delete(hq: Hq, tmp_path: Path) -> None:
    lab = hq.join("FL-LAB")
    hq.join("CA-RC")

    def admin(*arguments: str) -> str:
        shown = shell(*arguments, home=hq.admin)
        assert shown.code == 0, (arguments, shown.err)
        return shown.out

    admin("exchange", "declare", "labs", "--type", "topic")
    admin("queue", "declare", "results", "--owner", "CA-RC")
    admin("binding", "declare", "labs", "results", "lab.*")
    admin("grant", "FL-LAB", "publish", "labs")
    shown = json.loads(admin("exchange", "show", "labs", "--json"))
    assert shown["leads_to"] == [{"queue": "results", "routing_key": "lab.*"}]
    assert shown["rights"] == [{"client": "FL-LAB", "right": "publish"}]
    assert json.loads(admin("binding", "show", "results", "--json"))[0]["exchange"] == "labs"
    assert {"client": "FL-LAB", "right": "publish", "resource": "labs"} in json.loads(
        admin("grants", "--json")
    )
    assert {r["resource"] for r in json.loads(admin("clients", "FL-LAB", "--json"))["rights"]} == {
        "labs"
    }
    assert "Limit for FL-LAB: 3 queues" in admin("clients", "limit", "FL-LAB", "queues", "3")
    lab_row = json.loads(admin("clients", "FL-LAB", "--json"))
    totals = {row["what"]: (row["has"], row["at_most"]) for row in lab_row["totals"]}
    assert totals["queues"] == (0, 3)
    assert totals["bundles"][0] == lab_row["bundles"] == 1
    assert "the default of HQ's settings" in admin(
        "clients", "limit", "FL-LAB", "queues", "--default"
    )
    (listed,) = [row for row in json.loads(admin("clients", "--json")) if row["name"] == "FL-LAB"]
    assert (listed["queues_most"], listed["certificates"]) == (64, 1)
    shell("route", "allow", "labs", "CA-RC", home=lab)
    assert shell("send", "--exchange", "labs", "--key", "lab.1", "x", home=lab).code == 0
    queue = json.loads(admin("queue", "show", "results", "--json"))
    assert (queue["waiting"], queue["owner"]) == (1, "CA-RC")
    assert queue["oldest_at"] > 0
    assert "waiting         1" in admin("queue", "show", "results")

    unasked = shell("queue", "purge", "results", home=hq.admin)
    assert unasked.code == 2
    assert "--yes" in unasked.err
    full = shell("queue", "delete", "results", "--yes", home=hq.admin)
    assert full.code == 1
    assert "unacknowledged envelopes and cannot be deleted" in full.err
    assert "1 envelope of 'results' went to the dead letters" in admin(
        "queue", "purge", "results", "--yes"
    )
    admin("queue", "delete", "results", "--yes")
    admin("exchange", "delete", "labs", "--yes")
    for kind in ("exchange", "queue", "binding"):
        assert shell(kind, "show", "labs", home=hq.admin).code == 1
    assert not [r for r in json.loads(admin("grants", "--json")) if r["resource"] == "labs"]


def test_every_list_is_json(hq: Hq, tmp_path: Path) -> None:
    lab = hq.join("FL-LAB")
    for arguments in (
        ["exchange", "list"],
        ["queue", "list"],
        ["binding", "list"],
        ["clients"],
        ["grants"],
        ["clients", "--pending"],
    ):
        rows = json.loads(shell(*arguments, "--json", home=hq.admin).out)
        assert isinstance(rows, list), arguments
        assert all(isinstance(row, dict) for row in rows)
    assert json.loads(shell("keys", "list", "--json", home=lab).out) == []
    assert json.loads(shell("route", "list", "--json", home=lab).out) == {}
    assert json.loads(shell("keys", "show", "--json", home=lab).out)["client"] == "FL-LAB"
    assert json.loads(shell("status", "--json", home=lab).out)
    row = json.loads(shell("clock", "--json", home=hq.admin).out)
    assert (row["doubt"], row["watermark"]) == ("", 0)
    assert "HQ's clock is right" in shell("clock", home=hq.admin).out
    assert "is confirmed" in shell("clock", "confirm", home=hq.admin).out
    assert shell("clock", "watermark", home=hq.admin).code == 2  # it asks
    set_back = shell("clock", "watermark", "2025-10-01", "--yes", home=hq.admin)
    assert "HQ refuses ids before 2025-10-01" in set_back.out


def test_the_last_admin_stays(hq: Hq) -> None:
    asked = shell("revoke", "admin", home=hq.admin)
    assert asked.code == 2
    assert "Revoke yourself?" in asked.err
    refused = shell("revoke", "admin", "--yes", home=hq.admin)
    assert refused.code == 1
    assert "last admin" in refused.err
    assert "enroll CLIENT_ID --role admin" in refused.err
    assert shell("status", home=hq.admin).code == 0


@pytest.mark.joined
def test_keys_handed_over_in_person_are_pinned_as_compared(hq: Hq, tmp_path: Path) -> None:
    lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
    file = str(tmp_path / "center.keys")
    assert shell("keys", "export", file, home=center).code == 0
    unasked = shell("keys", "import", file, home=lab)
    assert unasked.code == 2
    assert shell("keys", "show", "CA-RC", home=lab).code == 1
    assert shell("keys", "import", file, "--yes", home=lab).code == 0
    shown = json.loads(shell("keys", "show", "CA-RC", "--json", home=lab).out)
    assert shown["pinned_by"] == "person"
    assert shown["compared_at"] > 0
    (tmp_path / "bad.keys").write_bytes(b"CBXB" + os.urandom(300))
    bad = shell("keys", "import", str(tmp_path / "bad.keys"), "--yes", home=lab)
    assert bad.code == 7
    assert "Traceback" not in bad.err


def test_completion_of_commands_and_of_what_follows_them(tmp_path: Path) -> None:
    for shell_name in ("bash", "zsh", "fish"):
        shown = shell("completion", shell_name, home=tmp_path)
        assert shown.code == 0
        assert "_CIPHERBOX_COMPLETE" in shown.out

    def completed(words: str, at: int) -> list[str]:
        environment = {
            **ENVIRONMENT,
            "_CIPHERBOX_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(at),
        }
        done = subprocess.run(
            PROGRAM, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert completed("cipherbox que", 1) == ["queue"]
    assert completed("cipherbox queue sh", 2) == ["show"]
    assert "--yes" in completed("cipherbox queue purge --", 3)


def full_disk(arguments: list[str], home: Path) -> "subprocess.CompletedProcess[bytes]":
    with Path("/dev/full").open("wb") as out:
        return subprocess.run(
            [*PROGRAM, "--home", str(home), *arguments],
            stdout=out,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            timeout=300,
            check=False,
        )


@pytest.mark.joined
def test_a_result_that_cannot_be_printed_has_its_own_code_and_the_work_is_done(
    hq: Hq, tmp_path: Path
) -> None:
    lab = hq.join("FL-LAB")
    center = hq.join("CA-RC")
    for arguments in (["send", "--to", "CA-RC", "a"], ["send", "--json", "--to", "CA-RC", "b"]):
        done = full_disk(arguments, lab)
        assert done.returncode == 10, done.stderr
        assert b"could not be printed" in done.stderr
        assert b"Traceback" not in done.stderr
    received = shell("fetch", "--json", home=center)
    assert [json.loads(line)["content"] for line in received.out.splitlines()] == ["a", "b"]
    closed = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *PROGRAM, "--home", str(lab), "version"],
        env=ENVIRONMENT,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert closed.returncode == 10, closed.stderr

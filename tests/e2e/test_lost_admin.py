"""The only admin's key is lost: the way back on HQ's own machine, and what it must not be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import ENVIRONMENT, LIMIT_S, PROGRAM, Hq, make_hq, serving, shell


def acts(admin: Path) -> list[tuple[str, str, str]]:
    """What the signed log says was done, after a check of all of it."""
    assert shell("audit", "verify", home=admin).code == 0
    shown = shell("audit", "show", "--last", "1000", "--json", home=admin)
    assert shown.code == 0, shown.err
    events = [event for line in shown.out.splitlines() for event in json.loads(line)["events"]]
    return [(e["by"], e["act"], e.get("target", "")) for e in events if e["what"] == "acts"]


def begin_join(home: Path, token: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [*PROGRAM, "--home", str(home), "join"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdin is not None
    process.stdin.write(token.encode())
    process.stdin.close()
    process.stdin = None
    return process


def test_a_new_admin_without_an_admin(hq: Hq, tmp_path: Path) -> None:
    directory, anew = str(hq.directory), tmp_path / "anew"
    lab = hq.join("FL-LAB")
    nobody = tmp_path / "nobody"
    runs = shell("enroll", "admin2", "--role", "admin", "--hq", directory, home=nobody)
    assert (runs.code, "in use by another CipherBox process" in runs.err) == (6, True), runs.err
    hq.process.terminate()
    hq.process.wait(LIMIT_S)
    shutil.move(hq.admin, tmp_path / "thief")
    for wrong in (["admin2"], ["admin2", "--role", "admin", "--approve"]):
        assert shell("enroll", *wrong, "--hq", directory, home=nobody).code == 2
    for name, word in (
        ("admin", "lost key"),
        ("ADMIN", "differ in more than case"),
        ("FL-LAB", "lost key"),
    ):
        refused = shell("enroll", name, "--role", "admin", "--hq", directory, home=nobody)
        assert (refused.code, word in refused.err) == (1, True), refused.err
    made = shell("enroll", "admin2", "--role", "admin", "--hq", directory, home=nobody)
    assert made.code == 0, made.err
    assert not nobody.exists()
    with serving(hq.directory):
        assert shell("join", home=anew, stdin=made.out).code == 0
        done = acts(anew)
        here = done.index(("HQ", "EnrolHere", "admin2"))
        assert ("HQ", "AddClient", "admin2") in done[here:]
        assert [what for _, what, _ in done].count("EnrolHere") == 1  # refusals left none
        assert shell("revoke", "admin", home=anew).code == 0
        assert shell("status", home=tmp_path / "thief").code != 0
        assert shell("send", "--to", "FL-LAB", "still here", home=lab).code == 0


def test_an_admin_is_not_made_a_client_by_mistake(hq: Hq, tmp_path: Path) -> None:
    """`enroll admin`, without --role, would have left HQ without any admin."""
    hq.join("FL-LAB")
    for name, role, word in (("admin", "client", "an admin"), ("FL-LAB", "admin", "a client")):
        refused = shell("enroll", name, "--role", role, home=hq.admin)
        assert (refused.code, f"is {word}, and its role" in refused.err) == (1, True), refused.err
    early = shell("enroll", "two", home=hq.admin)
    late = shell("enroll", "two", "--role", "admin", home=hq.admin)
    assert shell("join", home=tmp_path / "two", stdin=late.out).code == 0
    demoted = shell("join", home=tmp_path / "client", stdin=early.out)
    assert (demoted.code != 0, "with the role admin" in demoted.err) == (True, True), demoted.err
    assert shell("clients", "roles", home=tmp_path / "two").code == 0


def test_a_token_among_the_arguments_is_not_said_again(tmp_path: Path) -> None:
    seen = shell("join", "CBX-SECRET-OF-THE-TOKEN", home=tmp_path / "home")
    assert (seen.code, "admin for another, run " in seen.err, "SECRET" in seen.err) == (
        2,
        True,
        False,
    )
    assert not (tmp_path / "home").exists()


def test_with_the_ca_elsewhere(tmp_path: Path) -> None:
    """The request of the new admin is carried to the CA and back beside an HQ that is stopped."""
    directory, admin = make_hq(tmp_path)
    vault, requests, signed = (
        tmp_path / "vault",
        tmp_path / "requests.json",
        tmp_path / "signed.json",
    )
    assert (
        shell("ca", "take-off", str(directory), str(vault), "--all", "--yes", home=admin).code == 0
    )
    shutil.rmtree(admin)
    made = shell("enroll", "admin2", "--role", "admin", "--hq", str(directory), home=admin)
    assert made.code == 0, made.err
    anew = tmp_path / "anew"
    with serving(directory):
        waits = begin_join(anew, made.out)
        assert waits.stderr is not None
        assert b"carried to the offline CA" in waits.stderr.readline()
        waits.terminate()
        waits.communicate(timeout=LIMIT_S)
        alone = shell("ca", "export", str(requests), "--hq", str(directory), home=admin)
        assert alone.code == 0, alone.err
        # while it is served
        assert [r["client_id"] for r in json.loads(requests.read_bytes())["requests"]] == ["HQ"]
    assert shell("ca", "export", str(requests), "--hq", str(directory), home=admin).code == 0
    assert [r["client_id"] for r in json.loads(requests.read_bytes())["requests"]] == [
        "HQ",
        "admin2",
    ]
    assert (
        shell(
            "ca", "sign", str(requests), str(signed), "--ca", str(vault), "--yes", home=admin
        ).code
        == 0
    )
    taken = shell("ca", "import", str(signed), "--hq", str(directory), home=admin)
    # its own, the admin's, the list
    assert (taken.code, "HQ imported 3" in taken.out) == (0, True), taken.err
    again = shell("ca", "import", str(signed), "--hq", str(directory), home=admin)
    assert (again.code, "HQ already had all of it" in again.out) == (0, True), again.err
    with serving(directory):
        assert shell("join", home=anew, stdin=made.out).code == 0
        rows = {row["name"]: row for row in json.loads(shell("ca", "--json", home=anew).out)}
        assert rows["requests"]["count"] == 0


def test_files_of_another_user_are_left_alone(tmp_path: Path) -> None:
    """What root writes into HQ's directory HQ could not read: it is told so before anything is
    written.
    """
    if os.geteuid() != 0:
        pytest.skip("only root writes what another user cannot read")
    directory, admin = make_hq(tmp_path)
    for path in (directory, *directory.rglob("*")):
        shutil.chown(path, "nobody")
    before = sorted((str(p), p.stat().st_mtime_ns) for p in directory.rglob("*"))
    for words in (
        ("ca", "take-off", str(directory), str(tmp_path / "stick"), "--all", "--yes"),
        ("ca", "renew", str(directory)),
        ("ca", "export", str(tmp_path / "x.json"), "--hq", str(directory)),
        ("enroll", "admin2", "--role", "admin", "--hq", str(directory)),
    ):
        refused = shell(*words, home=admin)
        assert (refused.code, "sudo -u nobody cipherbox" in refused.err) == (5, True), refused.err
    assert sorted((str(p), p.stat().st_mtime_ns) for p in directory.rglob("*")) == before
    assert not (tmp_path / "stick").exists()

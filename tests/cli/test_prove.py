"""The checker of `prove` finds each thing that can be wrong, in a report that is right; the watch
says who waits for what.
"""

import ast
import copy
import json
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from cipherbox import portable
from cipherbox.cli.prove import checker, watch, worker
from cipherbox.cli.prove.cast import Cast
from cipherbox.cli.prove.faults import KINDS, skipped
from cipherbox.cli.prove.watch import Standstill, Watch
from cipherbox.harness import stage
from cipherbox.harness.disk import Disk, why_no_disk

GOLDEN = Path(__file__).parent.parent / "golden" / "prove_report.json"
SOURCE = Path(checker.__file__)
Json = Any


def report() -> Json:
    return json.loads(GOLDEN.read_bytes())


def s1(r: Json) -> Json:
    return r["senders"]["S1"]


def r1(r: Json) -> Json:
    return r["receivers"]["R1"]["lines"]


def swap(r: Json) -> None:
    """Number 5, put after 1 was confirmed, arrives before it."""
    lines = r1(r)
    lines.insert(0, lines.pop())


BROKEN: dict[str, tuple[str, Callable[[Json], Any]]] = {
    "a confirmed message is missing": ("lost", lambda r: r1(r).pop(0)),
    "a kept message is missing": ("lost", lambda r: r1(r).pop(2)),
    "a message arrived twice": ("duplicated", lambda r: r1(r).append(r1(r)[3])),
    "an id arrived twice": (
        "duplicated",
        lambda r: r1(r).append(dict(r1(r)[3], number=6, sha256=s1(r)["log"][7]["sha256"][0])),
    ),
    "what nobody put": ("unexpected", lambda r: r1(r)[0].update(number=99)),
    "another one's message": ("unexpected", lambda r: r1(r)[0].update(number=4)),
    "a number is put twice": ("unexpected", lambda r: s1(r)["log"].append(s1(r)["log"][0])),
    "other content": ("changed", lambda r: r1(r)[0].update(sha256="00")),
    "another file name": (
        "changed",
        lambda r: r["receivers"]["R2"]["lines"][2].update(name="S1-4 (2).bin"),
    ),
    "order": ("disordered", swap),
    "something waits in an outbox": (
        "undelivered",
        lambda r: s1(r)["outbox"][0].update(state="waiting"),
    ),
    "a file is unfinished": (
        "undelivered",
        lambda r: s1(r)["transfers"][0].update(state="unfinished"),
    ),
    "a file that was only put": (
        "lost",
        lambda r: (r["receivers"]["R2"]["lines"].pop(), s1(r)["log"].pop(5)),
    ),
    "no receipt": ("receipts", lambda r: s1(r)["outbox"][0]["receipts"].pop("R1")),
    "a receipt that refuses": ("receipts", lambda r: s1(r)["outbox"][0]["receipts"].update(R1="x")),
    "a receipt for what never arrived": ("receipts", lambda r: r1(r).pop()),
    "an entry is wrong": ("log", lambda r: r["hq"]["log_wrong"].append("entry 3: changed")),
    "not in the log": ("log", lambda r: r["hq"]["accepted"].pop(0)),
    "accepted twice": ("log", lambda r: r["hq"]["accepted"].append(r["hq"]["accepted"][0])),
    "another hash in the log": ("log", lambda r: r["hq"]["accepted"][0].update(sha256="00")),
    "another entry than proven": ("log", lambda r: s1(r)["outbox"][4].update(entry=10)),
    "a dead letter": (
        "dead letters",
        lambda r: r["hq"]["dead_letters"].append(
            {"queue": "box.R1", "reason": "damaged", "sender": "S1"}
        ),
    ),
    "not acknowledged": ("metadata", lambda r: r["hq"]["deliveries"][0].__setitem__(2, "waiting")),
    "no record at HQ": ("metadata", lambda r: r["hq"]["deliveries"].pop(0)),
    "an outbox forgot": ("metadata", lambda r: s1(r)["outbox"].pop(4)),
    "memory": ("memory", lambda r: r["processes"]["HQ"][0].__setitem__(1, 1 << 30)),
    "open files": ("open files", lambda r: r["processes"]["HQ"][1].__setitem__(2, 1000)),
    "a standstill": ("standstill", lambda r: r["standstill"].append("nothing happened for 45 s")),
}


def test_mail_may_overtake_what_its_recipient_had_sealed_again() -> None:
    late = report()
    swap(late)
    assert [rule for rule, _ in checker.check(late).problems] == ["disordered"]
    first = late["hq"]["accepted"][0]
    assert r1(late)[1]["id"].replace("-", "") == first["envelope"]
    late["hq"]["accepted"].append(dict(first, generation=0, entry=2))
    assert checker.check(late).problems == []


def test_a_generation_that_all_had_opened_before_need_not_be_sent() -> None:
    late = report()
    row = s1(late)["outbox"][0]
    row["generation"] += 1
    assert set(row["receipts"].values()) == {"opened"}
    assert checker.check(late).problems == []
    row["receipts"].pop("R1")
    assert "log" in [rule for rule, _ in checker.check(late).problems]


def test_the_golden_report_is_right() -> None:
    found = checker.check(report())
    assert found.problems == []
    assert dict(found.counts) == {
        "put": 8,
        "confirmed": 5,
        "kept": 1,
        "recovered": 1,
        "files": 1,
        "sessions": 1,
        "receipts": 5,
        "log entries": 12,
    }


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_found(name: str) -> None:
    rule, damage = BROKEN[name]
    damaged = report()
    damage(damaged)
    assert rule in {found for found, _ in checker.check(damaged).problems}


def test_a_generation_that_nobody_needed_any_more_is_confirmed_again() -> None:
    resealed = report()
    row = s1(resealed)["outbox"][4]
    row.update(generation=2, sha256="11")
    assert {rule for rule, _ in checker.check(resealed).problems} == {"log"}
    resealed["hq"]["again"][0].update(generation=2, sha256="11")
    assert checker.check(resealed).problems == []


def test_the_proof_of_an_earlier_generation_is_enough_once_all_have_opened_the_envelope() -> None:
    resealed = report()
    row = s1(resealed)["outbox"][0]
    row.update(generation=2, sha256="11")
    later = {**row, "sender": "S1", "entry": 20}
    resealed["hq"]["accepted"].append(later)
    assert checker.check(resealed).problems == []
    row["receipts"].popitem()
    texts = [text for rule, text in checker.check(resealed).problems if rule == "log"]
    assert [text.endswith("is of another entry") for text in texts] == [True]


def test_a_file_that_is_no_report_is_refused(tmp_path: Path) -> None:
    for damage in (lambda r: r.update(version=2), lambda r: r.pop("senders")):
        damaged = copy.deepcopy(report())
        damage(damaged)
        with pytest.raises(ValueError, match=r"not a|incomplete"):
            checker.check(damaged)


def test_the_checker_needs_python_alone() -> None:
    names = set()
    for node in ast.walk(ast.parse(SOURCE.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    assert names <= sys.stdlib_module_names


@pytest.mark.parametrize("good", [True, False])
def test_the_checker_runs_alone(tmp_path: Path, good: bool) -> None:
    (tmp_path / "checker.py").write_bytes(SOURCE.read_bytes())
    shown = report()
    if not good:
        r1(shown).pop(0)
    (tmp_path / "report.json").write_text(json.dumps(shown))
    command = [sys.executable, "-I", "-S", "checker.py", "report.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == (0 if good else 1), done.stderr
    assert "confirmed 5" in done.stdout
    assert ("R1 never got number 1 of S1" in done.stdout) is not good


def test_faults_that_cannot_be_played_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "is_root", lambda: False)
    found = skipped(KINDS, ["database sessions"])
    assert found["power cut"] == found["full disk"] == "needs root"
    assert set(found) == {"power cut", "full disk", "database kill", "failover"}
    assert skipped(("kill",), []) == {}


@pytest.mark.skipif(bool(why_no_disk()), reason=why_no_disk() or "-")
def test_a_disk_that_was_full_is_not_full_after_a_power_cut(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "image", tmp_path / "disk", 16 << 20)
    try:
        free = shutil.disk_usage(disk.place).free
        disk.fill()
        portable.sync_directory(disk.place)  # its journal does so every five seconds
        assert shutil.disk_usage(disk.place).free < free / 10
        disk.free()
        disk.cut()
        disk.remount()
        assert shutil.disk_usage(disk.place).free > free / 2
    finally:
        disk.remove()


@pytest.mark.parametrize("again", [False, True])
def test_a_long_trial_sends_no_more_than_disks_hold(again: bool) -> None:
    """``again``: a sender that was killed has its advance behind it."""
    now_s = 100.0
    allowance = worker.Allowance(1000.0, again=again, elapsed_s=lambda: now_s)
    if not again:
        allowance.spend(worker.AT_ONCE)
    assert not allowance.is_spent
    allowance.spend(5000)
    assert allowance.is_spent
    now_s += 4.9
    assert allowance.is_spent
    now_s += 0.2
    assert not allowance.is_spent


async def test_a_standstill_says_who_waits_for_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LOOK_S", 0.001)
    cast = Cast(tmp_path, senders=1, receivers=1, seed=1)
    seen = Watch(cast, time.monotonic(), patience_s=0.2)
    for name in cast.names:
        cast.processes[name] = await trio.lowlevel.open_process(
            [sys.executable, "-c", "import threading; threading.Event().wait(600)"]
        )
    cast.notes("S1").mkdir()
    state = {"doing": "publishing", "waiting": 3, "unsigned": 2, "connected": False, "trouble": "x"}
    (cast.notes("S1") / "state.json").write_text(json.dumps(state))
    try:
        portable.stop_process(cast.processes["HQ"].pid)
        with trio.fail_after(60):
            while not portable.is_stopped(cast.processes["HQ"].pid):
                await trio.sleep(0.01)
            with pytest.raises(Standstill) as caught:
                await seen.confirmed()
    finally:
        await cast.end()
    first, hq, sender, receiver = caught.value.args
    assert first.startswith("nothing happened for")
    assert "is stopped by a signal" in hq
    assert "waits for 3 confirms of HQ and for receipts of 2 envelopes" in sender
    assert "it is not connected to HQ (x)" in sender
    assert "R1" in receiver
    assert "has 0 messages" in receiver


async def test_a_standstill_has_hqs_last_warnings(tmp_path: Path) -> None:
    """A run stood still, and why was known only after its directory was gone."""
    cast = Cast(tmp_path, senders=0, receivers=0, seed=1)
    seen = Watch(cast, time.monotonic(), patience_s=0.0)
    rows = [
        {"level": "WARNING", "message": "early"},
        {"level": "ERROR", "message": "moved for a test"},
        {"level": "CRITICAL", "message": "in doubt", "error": "an hour ahead"},
        {"level": "ERROR", "message": "moved for a test"},
        {"level": "WARNING", "message": "late"},
        {"level": "INFO", "message": "nothing"},
    ]
    cast.stage.output("HQ").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + "text\n{")
    cast.processes["HQ"] = await trio.lowlevel.open_process(
        [sys.executable, "-c", "import threading; threading.Event().wait(600)"]
    )
    try:
        seen.judge()
        await trio.sleep(0.001)
        with pytest.raises(Standstill) as caught:
            seen.judge()
    finally:
        await cast.end()
    _, hq = caught.value.args
    assert hq.endswith("; its last warnings: in doubt (an hour ahead); moved for a test; late")


async def test_what_an_outbox_takes_is_no_progress(tmp_path: Path) -> None:
    cast = Cast(tmp_path, senders=1, receivers=1, seed=1)
    seen = Watch(cast, time.monotonic(), patience_s=0.0)
    cast.notes("S1").mkdir()
    log, state = cast.notes("S1") / "prove.log", cast.notes("S1") / "state.json"
    seen.judge()
    log.write_text('{"what":"kept","first":1,"count":1}\n')
    state.write_text(json.dumps({"doing": "publishing", "waiting": 5}))
    with pytest.raises(Standstill):
        seen.judge()
    with log.open("a") as file:
        file.write('{"what":"ok","first":1,"count":1}\n')
    seen.judge()
    state.write_text(json.dumps({"doing": "emptying its outbox", "waiting": 4}))
    seen.judge()


def test_a_port_is_given_to_one_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while nobody listens there, and to whichever process: two trials and the tests run
    beside each other.
    """
    first, drawn = stage.free_port(), secrets.randbelow
    again = [first - stage.LOWEST_PORT] * 3

    def draws(below: int) -> int:
        return again.pop() if again else drawn(below)

    monkeypatch.setattr(secrets, "randbelow", draws)
    assert stage.free_port() != first
    assert again == []

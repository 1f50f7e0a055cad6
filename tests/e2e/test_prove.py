"""`cipherbox prove` with real processes: it finds nothing wrong here, it finds what a broken store
does, and a standstill fails.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from cipherbox.cli.prove.cast import Cast
from cipherbox.cli.prove.database import Database
from cipherbox.cli.scratch import Scratch
from cipherbox.harness import stage
from cipherbox.harness.failure import StageFailed
from tests import postgres, soak

from .conftest import ENVIRONMENT, LIMIT_S, PROGRAM, line_with, shell

GOLDEN = Path(__file__).parent.parent / "golden" / "prove_report.json"
FAULTS = ("kill", "kill two", "kill in recovery", "pause", "cut", "partition", "slow link", "clock")
FEW = ("--senders", "1", "--receivers", "1")


def chosen(*kinds: str) -> list[str]:
    """What every machine can play: power cuts and full disks need root."""
    return [word for kind in kinds for word in ("--fault", kind)]


def shape(value: Any) -> Any:
    """The names in a report, whatever the clients are called and however long its lists are."""
    if isinstance(value, dict):
        if any(name.startswith(("S", "R")) and name[1:].isdigit() for name in value):
            return {"CLIENT": shape(next(iter(value.values())))}
        return {name: shape(inner) for name, inner in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else type(value).__name__


@soak.more
def test_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    rounds = 14 if soak.ON else 2
    report = tmp_path / "report.json"
    shown = shell(
        "prove",
        "--rounds",
        str(rounds),
        "--json",
        "--report",
        str(report),
        *(chosen(*FAULTS) if soak.ON else [*chosen("kill", "cut"), *FEW]),
        home=tmp_path,
    )
    proof = json.loads(shown.out)
    assert shown.code == 0, (shown.err, proof)
    assert proof["good"]
    assert not proof["examples"]
    assert proof["counts"]["confirmed"] > 0
    assert sum(proof["faults"].values()) == proof["rounds"] == rounds
    made, golden = json.loads(report.read_bytes()), json.loads(GOLDEN.read_bytes())
    for name in ("skipped", "standstill", "faults", "hq", "senders", "receivers"):
        assert type(made[name]) is type(golden[name])
    assert made.keys() == golden.keys()
    assert shape(made["senders"]) == shape(golden["senders"])
    assert shape(made["receivers"]) == shape(golden["receivers"])
    assert made["hq"].keys() == golden["hq"].keys()
    again = shell("prove", "--check", str(report), home=tmp_path)
    assert again.code == 0, again.err
    made["receivers"]["R1"]["lines"].pop()
    report.write_text(json.dumps(made))
    assert shell("prove", "--check", str(report), home=tmp_path).code == 1


def test_a_store_that_loses_is_found_out(tmp_path: Path) -> None:
    shown = shell(
        "prove",
        "--rounds",
        "2",
        "--seed",
        "5",
        "--broken-store",
        *FEW,
        "--patience",
        "10",
        *chosen("kill", "cut"),
        home=tmp_path,
    )
    assert shown.code == 1, shown.err
    words = shown.out.replace(",", "").split()
    assert int(words[words.index("lost") + 1]) > 0
    assert "R1 never got number" in shown.err


def test_a_standstill_fails(tmp_path: Path) -> None:
    shown = shell(
        "prove",
        "--rounds",
        "1",
        *FEW,
        "--stop-hq",
        "--patience",
        "8",
        "--json",
        *chosen("cut"),
        home=tmp_path,
    )
    proof = json.loads(shown.out)
    assert shown.code == 1, (shown.err, proof)
    assert not proof["good"]
    first, hq, *others = proof["standstill"]
    assert first.startswith("nothing happened for")
    assert "is stopped by a signal" in hq
    assert any("S1" in text and "confirms of HQ" in text for text in others)


@pytest.mark.parametrize("name", ["R1", "S1", "HQ"])
async def test_a_process_that_ends_by_itself_is_named(tmp_path: Path, name: str) -> None:
    cast = Cast(tmp_path, senders=1, receivers=1, seed=1)
    cast.stage.output(name).write_text("the last thing it said")
    cast.processes[name] = await _ended(3)
    with pytest.raises(StageFailed, match=rf"{name} ended with 3:\nthe last thing it said"):
        await cast.look_after()


async def test_an_hq_that_another_one_took_over_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(Scratch("postgresql://nobody@127.0.0.1/nothing"))
    cast = Cast(tmp_path, senders=1, receivers=1, seed=1, database=database)
    cast.processes = {"HQ": await _ended(6), "HQ2": await _ended(0)}
    started: list[str] = []

    async def start(name: str) -> None:
        started.append(name)

    monkeypatch.setattr(cast, "start", start)
    await cast.look_after()
    assert started == ["HQ"]
    cast.processes["R1"] = await _ended(0)
    with pytest.raises(StageFailed, match="R1 ended unexpectedly"):
        await cast.look_after()
    cast.processes["R1"] = await _ended(6)
    with pytest.raises(StageFailed, match="R1 ended with 6"):
        await cast.look_after()


async def _ended(code: int) -> trio.Process:
    process = await trio.lowlevel.open_process([sys.executable, "-c", f"raise SystemExit({code})"])
    await process.wait()
    return process


async def test_a_start_that_is_cancelled_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "program", lambda: [sys.executable, "-c"])
    note = tmp_path / "pid"
    written = f"open({str(note)!r}, 'w').write(str(os.getpid()) + '.')"
    silent = f"import os, threading; {written}; threading.Event().wait(600)"
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.Stage(tmp_path).start, "HQ", silent)
            while not (note.exists() and note.read_text().endswith(".")):
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()[:-1]), 0)


def left_of(top: Path) -> list[str]:
    """What is left of a run whose temporary files were below ``top``, on this machine."""
    left = [str(path) for path in top.iterdir()]
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    left += [line for line in mounts if str(top) in line]
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        left += [text for text in [file.read_text()] if str(top) in text]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        left += [f"{process.name} {command}"] if str(top) in command else []
    return left


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that PostgreSQL, which never runs as root, may enter too."""
    with tempfile.TemporaryDirectory(prefix="proved-", ignore_cleanup_errors=True) as path:
        Path(path).chmod(0o755)
        yield Path(path)


KILLS = [*(("sqlite", number) for number in (9, 15, 2, 1)), ("local", 9), ("local", 15)]


@soak.only
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("store", "number"), KILLS)
def test_a_killed_prove_leaves_nothing(
    open_path: Path, patient: Callable[[Callable[[], bool]], None], store: str, number: int
) -> None:
    """Processes, also stopped ones, PostgreSQL, loop devices, mounts, files."""
    command = [*PROGRAM, "prove", "--minutes", "10", *FEW, *chosen("pause")]
    command += ["--fault", "full disk"] if os.geteuid() == 0 else []
    if store == "local":
        command += ["--database", "local", "--postgres-bin", str(postgres.binaries())]
    environment = {**ENVIRONMENT, "TMPDIR": str(open_path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    ) as process:
        try:
            line_with(process, " s  pause")
            assert len(left_of(open_path)) > 5
            process.send_signal(number)
            process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    patient(lambda: left_of(open_path) == [])

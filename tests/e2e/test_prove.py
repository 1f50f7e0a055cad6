"""`cipherbox prove` with real processes: it finds nothing wrong here, and it finds what a broken
store does.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import trio

from cipherbox.cli.prove.database import Database
from cipherbox.cli.prove.play import Trial
from cipherbox.cli.scratch import Scratch
from cipherbox.harness import stage
from cipherbox.harness.failure import StageFailed
from tests import soak

from .conftest import shell


@soak.more
def test_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    rounds = 5 if soak.ON else 2
    shown = shell("prove", "--rounds", str(rounds), "--json", home=tmp_path)
    found = json.loads(shown.out)
    assert shown.code == 0, (shown.err, found)
    assert (found["lost"], found["duplicated"], found["unexpected"]) == (0, 0, 0)
    assert found["confirmed"] > 0
    assert found["kills"] + found["cuts"] == found["rounds"] == rounds


def test_a_store_that_loses_is_found_out(tmp_path: Path) -> None:
    shown = shell("prove", "--rounds", "2", "--seed", "5", "--broken-store", home=tmp_path)
    assert shown.code == 1, shown.err
    words = shown.out.replace(",", "").split()
    assert int(words[words.index("lost") + 1]) > 0
    assert "which HQ confirmed" in shown.err


@pytest.mark.parametrize("name", ["R1", "S1", "HQ"])
async def test_a_process_that_ends_by_itself_is_named(tmp_path: Path, name: str) -> None:
    trial = Trial(
        tmp_path, senders=1, receivers=1, rounds=1, seconds=0, seed=1, broken=False, say=print
    )
    trial.stage.output(name).write_text("the last thing it said")
    trial.processes[name] = await _ended(3)
    with pytest.raises(StageFailed, match=rf"{name} ended with 3:\nthe last thing it said"):
        await trial.look_after()


async def test_an_hq_that_another_one_took_over_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(Scratch("postgresql://nobody@127.0.0.1/nothing"))
    trial = Trial(
        tmp_path,
        senders=1,
        receivers=1,
        rounds=1,
        seconds=0,
        seed=1,
        broken=False,
        say=print,
        database=database,
    )
    trial.processes = {"HQ": await _ended(6), "HQ2": await _ended(0)}
    started: list[str] = []

    async def start(name: str) -> None:
        started.append(name)

    monkeypatch.setattr(trial, "_start", start)
    await trial.look_after()
    assert started == ["HQ"]
    trial.processes["R1"] = await _ended(0)
    with pytest.raises(StageFailed, match="R1 ended unexpectedly"):
        await trial.look_after()
    trial.processes["R1"] = await _ended(6)
    with pytest.raises(StageFailed, match="R1 ended with 6"):
        await trial.look_after()


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
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.Stage(tmp_path).start, "HQ", silent)
            while not (note.exists() and note.read_text().endswith(".")):
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()[:-1]), 0)

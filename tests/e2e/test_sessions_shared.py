"""Sessions of homes in which several programs speak and hear at once, each killed at any time."""

import json
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from cipherbox.envelope import layout as layouts
from cipherbox.sealing.ratchet import session
from tests import soak
from tests.warm import FORKED

from .conftest import ENVIRONMENT, PROGRAM, Hq, first_line, shell

SECONDS = soak.of(15)
WAIT = threading.Event()  # never set
SPEAKER = """
import sys, trio
from cipherbox.client.client import open_client
async def main(home, to, name):
    opened = open_client(home)
    async with opened as client, client.publisher(to=to, stanza="ratchet", batch=1) as publisher:
        print("ready", flush=True)
        number = 0
        while True:
            await publisher.send(f"{name}.{number}")
            number += 1
            await trio.sleep(0.01)
trio.run(main, *sys.argv[1:])
"""


class Killed(threading.Thread):
    """Runs a program again and again, and kills it each time, until the end."""

    def __init__(self, seed: int, command: Callable[[int], list[str]], end: float) -> None:
        super().__init__()
        self._random, self._command, self._end = random.Random(seed), command, end

    def run(self) -> None:
        turn = 0
        while time.monotonic() < self._end:
            process = subprocess.Popen(
                self._command(turn),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=ENVIRONMENT,
            )
            assert process.stdout is not None
            with process.stdout:
                first_line(process)
                WAIT.wait(self._random.uniform(0.0, 1.5))
                process.kill()
                process.wait()
            turn += 1


def watch(home: Path) -> None:
    """All that was ever in the outbox stays to be looked at."""
    db = sqlite3.connect(home / "outbox.sqlite3")
    db.executescript(
        "CREATE TABLE kept (envelope_id BLOB, data BLOB);"
        "CREATE TRIGGER keep AFTER INSERT ON envelopes BEGIN"
        " INSERT INTO kept VALUES (NEW.envelope_id, NEW.data); END;"
    )
    db.close()


def envelope_of(line: dict[str, str]) -> bytes:
    return bytes.fromhex(line["message_id"].replace("-", ""))


def ask(home: Path, question: str) -> list[tuple[object, ...]]:
    db = sqlite3.connect(home / "outbox.sqlite3", timeout=30)
    try:
        return db.execute(question).fetchall()
    finally:
        db.close()


@soak.more
@pytest.mark.joined
def test_everything_is_killed_and_nothing_lost_or_doubled(hq: Hq, tmp_path: Path) -> None:
    lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
    for home in (lab, center):
        assert shell("fetch", home=home).code == 0
    for home, to in ((lab, "CA-RC"), (center, "FL-LAB")):
        assert shell("send", "--to", to, "--wrap", "ratchet", "begins", home=home).code == 0
        watch(home)
    end = time.monotonic() + SECONDS
    python, threads = [sys.executable, "-c"], []
    for seed, (home, to) in enumerate(((lab, "CA-RC"), (center, "FL-LAB"))):
        place = str(home)

        def speaks(turn: int, place: str = place, to: str = to) -> list[str]:
            return [*python, FORKED + SPEAKER, place, to, f"publisher.{turn}"]

        def sends(turn: int, place: str = place, to: str = to) -> list[str]:
            return [
                *PROGRAM,
                "--home",
                place,
                "send",
                "--to",
                to,
                "--wrap",
                "ratchet",
                f"send.{turn}",
            ]

        def receives(turn: int, place: str = place) -> list[str]:
            return [*PROGRAM, "--home", place, "agent" if turn % 2 else "receive"]

        threads += [
            Killed(3 * seed + i, what, end) for i, what in enumerate((speaks, sends, receives))
        ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(30):  # what is left goes out and in
        for home in (lab, center):
            assert shell("fetch", home=home).code == 0
        if not any(
            ask(home, "SELECT 1 FROM envelopes WHERE owed > 0 LIMIT 1") for home in (lab, center)
        ):
            break
        WAIT.wait(0.3)
    for home, other in ((lab, center), (center, lab)):
        lines = (other / "data" / "received_messages.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        assert max(Counter(line["message_id"] for line in found).values()) == 1
        assert max(Counter(line["content"] for line in found).values()) == 1
        assert {(one,) for one in map(envelope_of, found)} == set(
            ask(home, "SELECT envelope_id FROM envelopes")
        )
        assert ask(home, "SELECT DISTINCT state FROM envelopes") == [(1,)]
        said: Counter[tuple[bytes, bytes, int]] = Counter()
        for _, raw in ask(home, "SELECT * FROM kept"):
            parsed = session.parse(layouts.stanza(raw, layouts.split(raw), 0))
            said[parsed.session_id, parsed.header.key, parsed.header.number] += 1
        assert max(said.values(), default=1) == 1
        assert ask(home, "SELECT count(*) FROM generations") == [(0,)]
        assert len({name for name, _, _ in said}) <= 2

"""Every odd file of the table, sent with `send` and through the agent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from cipherbox.cli.exits import Exit
from tests.cases.play import Outcome, digest, play
from tests.cases.table import ARRIVES, FAILS, FILES, LEFT, WAITS, File

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
ROWS = [pytest.param(row, id=row.name) for row in FILES]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    files = [row for row in FILES if not (ROOT and row.agent == WAITS)]
    return trio.run(play, tmp_path_factory.mktemp("cases"), files)


def skip_as_root(row: File) -> None:
    if ROOT and row.agent == WAITS:
        pytest.skip("root may read every file")


@pytest.mark.parametrize("row", ROWS)
def test_the_agent_with(outcome: Outcome, row: File) -> None:
    skip_as_root(row)
    played = outcome.rows[row.name]
    first, _, _ = (played.content or b"").partition(b"\0both\0")
    lines = "\n".join(outcome.lines)
    there = {ARRIVES: "sent", FAILS: "failed", WAITS: "outgoing", LEFT: "outgoing"}[row.agent]
    assert set(played.places) == {there}, (played.places, played.reason, lines)
    assert played.content is None or (digest(first) in outcome.by_agent) == (row.agent == ARRIVES)
    assert (row.says if row.agent == FAILS else "") in played.reason
    assert bool(played.reason) == (row.agent == FAILS)
    if row.agent in (WAITS, LEFT) and row.says:
        assert sum(row.says in line and played.file.name in line for line in outcome.lines) == 1, (
            lines
        )


@pytest.mark.parametrize("row", ROWS)
def test_send_with(outcome: Outcome, row: File) -> None:
    skip_as_root(row)
    played = outcome.rows[row.name]
    _, _, second = (played.content or b"").partition(b"\0both\0")
    if row.send == ARRIVES:
        assert played.code == Exit.OK, played.said
        assert digest(second) in outcome.by_send
    else:
        assert played.code in (Exit.USAGE, Exit.STORE, Exit.FILE), (played.code, played.said)
        assert row.says in played.said.replace("\n", " "), played.said


def test_a_row_that_fails_is_noticed(tmp_path: Path) -> None:
    assert {row.agent for row in FILES} == {ARRIVES, FAILS, WAITS, LEFT}
    assert len({row.name for row in FILES}) == len(FILES)

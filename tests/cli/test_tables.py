"""Tables on terminals of different widths: what matters is never cut."""

from __future__ import annotations

import uuid

import pytest

from cipherbox.cli import output, tables

HEADS = ("message", "more", "to", "sealed", "size", "state", "reason")
IDS = [str(uuid.UUID(int=n << 64 | n)) for n in range(1, 4)]
ROWS = [
    (one, 0, "CA-RC, SF-RC", "2026-11-30 00:31:09", "1.2 KB", "confirmed, 2 not signed", "-")
    for one in IDS
]
DROP = ("more", "size", "sealed", "reason")


@pytest.fixture
def terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> pytest.MonkeyPatch:
    monkeypatch.setattr(tables, "on_terminal", lambda: True)
    return monkeypatch


def shown(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int, **more: object
) -> list[str]:
    terminal.setenv("COLUMNS", str(width))
    output.table(HEADS, ROWS, **more)  # type: ignore[arg-type]
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_every_row_can_be_told_apart_at_any_width(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    lines = shown(terminal, capsys, width, drop=DROP)
    for one in IDS:
        assert sum(one in line for line in lines) == 1
    if width >= 60:
        assert max(map(tables.cells, lines)) <= width
    assert not any("…" in line for line in lines)


def test_the_least_important_columns_go_first_and_that_is_said(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.setenv("COLUMNS", "80")
    output.table(HEADS, ROWS, drop=DROP)
    caught = capsys.readouterr()
    head = caught.out.splitlines()[0].split()
    assert head == ["message", "to", "state"]
    assert "reason, more, size, sealed" in caught.err  # first the one that says nothing
    assert "--json" in caught.err


def test_a_script_gets_every_column(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(HEADS, ROWS, drop=DROP)
    caught = capsys.readouterr()
    assert caught.out.splitlines()[0].split() == list(HEADS)
    assert caught.err == ""


def test_a_long_reason_is_folded_and_not_cut(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.setenv("COLUMNS", "80")
    reason = " ".join(f"word{n}" for n in range(40))
    output.table(("message", "reason"), [(IDS[0], reason), (IDS[1], "-")], drop=())
    out = capsys.readouterr().out
    assert all(f"word{n}" in out for n in range(40))
    assert max(map(len, out.splitlines())) <= 80


def test_wide_characters_take_two_cells(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.setenv("COLUMNS", "80")
    output.table(("name", "state"), [("検査結果", "ok"), ("plain", "ok")])
    lines = capsys.readouterr().out.splitlines()
    assert len({tables.cells(line[: line.rindex("ok")]) for line in lines[1:]}) == 1


def test_rows_of_hq_at_eighty_columns(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three rows were all `box.C…`."""
    terminal.setenv("COLUMNS", "80")
    rows = [
        {
            "name": f"box.CALIFORNIA-RESEARCH-CENTER{suffix}",
            "owner": "CALIFORNIA-RESEARCH-CENTER",
            "readers": [],
            "waiting": 3,
            "unacknowledged": 0,
            "bytes": 4711,
            "consumers": 1,
            "oldest_at": 1_700_000_000_000,
            "ttl_s": 0,
            "max_length": 0,
        }
        for suffix in ("", ".bulk", ".sys")
    ]
    output.rows_table(rows)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [str(row["name"]) for row in rows]
    assert "waiting" in lines[0]
    assert max(map(len, lines)) <= 80

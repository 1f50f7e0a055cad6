"""The manual from the command line, and how texts look."""

import re

import pytest
from click.testing import CliRunner

from cipherbox.cli import output
from cipherbox.cli.main import cli
from cipherbox.cli.page_layout import laid_out
from cipherbox.client.events import Event, EventKind

from .conftest import Run


def test_the_manual_lists_its_pages_by_kind_and_prints_one(cipherbox: Run) -> None:
    shown = cipherbox("manual")
    assert shown.code == 0
    lines = shown.out.splitlines()
    assert lines[0] == "Tutorials: learn it by doing"
    assert lines[1].split()[0] == "quickstart"
    assert max(map(len, lines)) <= 80
    assert all(re.match(r"  [a-z0-9-]+ {2,}\S|\S|$", line) for line in lines), (
        "one line for each page"
    )
    assert "Next: cipherbox manual quickstart" in shown.err
    assert cipherbox("manual", "exit-codes").out.startswith("# Exit codes\n")


def test_the_manual_is_searched(cipherbox: Run) -> None:
    shown = cipherbox("manual", "--search", "disk_resume_BYTES")
    assert shown.code == 0
    assert "configuration: 1 lines" in shown.out
    assert "[The disk is full]" in shown.out
    assert (
        "configuration"
        not in cipherbox("manual", "operations", "--search", "disk_resume_bytes").out
    )
    shown = cipherbox("manual", "--search", "no such word")
    assert shown.code == 2
    assert "No page has 'no such word'" in shown.err


def test_an_unknown_page_names_the_nearest(cipherbox: Run) -> None:
    shown = cipherbox("manual", "tutorial")
    assert shown.code == 2
    assert "'tutorial-hq'" in shown.err
    assert "'exit-codes'" in cipherbox("manual", "exitcodes").err


def test_topics_are_completed() -> None:
    from click.shell_completion import ShellComplete

    from cipherbox.cli.main import cli

    found = ShellComplete(cli, {}, "cipherbox", "_X").get_completions(["manual"], "tutorial-")
    names = ["tutorial-hq", "tutorial-lab", "tutorial-center", "tutorial-folders", "tutorial-exec"]
    assert [one.value for one in found] == names


def test_a_page_is_laid_out_for_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    table = f"| a | b | c |\n|---|---|---|\n| `{'k' * 25}` | {'word ' * 20} | `{'z' * 40}` |\n"
    page = f"# A page\n\nLong {'and ' * 30}\n\n```sh\n{'x' * 90}\n```\n\n{table}"
    shown = re.sub(r"\x1b\[[0-9;]*m", "", laid_out(page))
    assert shown.startswith("A PAGE\n")
    assert f"\n    {'x' * 90}\n" in shown, "code stays in one line, to be copied"
    others = [line for line in shown.splitlines() if "xx" not in line]
    assert max(map(len, others)) <= 60
    assert f" {'k' * 25} " in shown, "what is looked up stays in one piece"
    assert shown.count("z") == 40, "nothing is left out"
    assert "|" not in shown
    assert "`" not in shown


def test_log_lines_look_like_the_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_event(Event("SENDER", "Server ACK received for message 1", mark=True))
    line = capsys.readouterr().out
    assert re.fullmatch(
        r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] ✅ \[SENDER\] Server ACK received for message 1\n",
        line,
    )


def test_commands_choose_events_by_their_kind(capsys: pytest.CaptureFixture[str]) -> None:
    """What an event's text begins with, or says, decides nothing."""
    events = [
        Event("SENDER", "Key of R1 called; trying again in 1 s"),
        Event("SENDER", "known", kind=EventKind.KEY),
        Event("RECEIVER", "turned away", kind=EventKind.STRANGER),
        Event("LINE", "ahead", kind=EventKind.CLOCK),
        Event("LINE", "away", kind=EventKind.RECONNECTING),
    ]
    for event in events:
        output.print_keys(event)
    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()] == ["known", "ahead"]
    for event in events:
        output.print_trouble(event)
    shown = [line.rpartition("] ")[2] for line in capsys.readouterr().err.splitlines()]
    assert shown == ["known", "turned away", "ahead", "away"]


def test_a_table_without_a_terminal_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("name", "depth"), [("ca_rc_queue", 12), ("x", 3)])
    assert capsys.readouterr().out == "name         depth\nca_rc_queue     12\nx                3\n"
    output.table(("name",), [], empty="no queue")
    assert capsys.readouterr().out == "no queue\n"


def test_rows_of_hq_are_made_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    output.rows_table(
        [
            {
                "name": "a\x1b[31m",
                "readers": ["x", "y\n"],
                "added_at": 0,
                "revoked": False,
                "reason": None,
            }
        ]
    )
    heads, row = capsys.readouterr().out.splitlines()
    assert heads.split() == ["name", "readers", "added", "revoked", "reason"]
    assert "\x1b" not in row
    assert row.split() == ["a\\x1b[31m", "x,", "y\\n", "-", "no", "-"]


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("/usr/local/bin/cipherbox", "cipherbox send"),
        ("dist/cipherbox.pyz", "python3 dist/cipherbox.pyz send"),
        ("my files/cipherbox.pyz", "python3 'my files/cipherbox.pyz' send"),
        ("/lib/python3/cipherbox/__main__.py", "python3 -m cipherbox send"),
    ],
)
def test_commands_are_shown_as_the_user_types_them(
    monkeypatch: pytest.MonkeyPatch, program: str, command: str
) -> None:
    monkeypatch.setattr("sys.argv", [program])
    monkeypatch.setenv("PATH", "")
    shown = output.as_called("run: cipherbox send --to X, not cipherbox alone")
    assert shown == f"run: {command} --to X, not cipherbox alone"
    assert output.as_called(shown) == shown  # already as the user types it


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (3_501_225, "3.5 MB"), (10**13, "10.0 TB")],
)
def test_sizes(size: int, text: str) -> None:
    assert output.size_text(size) == text


def test_a_doubted_clock_is_shown_with_the_command_that_confirms_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    doubt = "HQ's clock shows 2028-04-13 11:43 UTC, 500.0 days ahead of the time that HQ expects"
    times = {"shows": 1_839_000_000_000, "used": 1_796_000_000_000}
    row = {**times, "newest_entry": 1_796_000_000_000, "watermark": 0, "doubt": doubt}
    monkeypatch.setattr("cipherbox.cli.clock.with_admin", lambda _, work: row)
    done = CliRunner().invoke(cli, ["clock"])
    assert doubt in done.output
    assert "cipherbox clock confirm" in done.output
    # this machine's clock shows another time: it asks
    asked = CliRunner().invoke(cli, ["clock", "confirm"])
    assert asked.exit_code == 2
    assert "Is HQ's right? Cannot prompt" in asked.output

"""Lines of a terminal: they break between words, and what a person copies is whole."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from cipherbox.cli import output
from cipherbox.cli.commands import COMMANDS
from cipherbox.cli.main import every_command
from cipherbox.cli.wrapping import HelpFormatter, pieces_of, wrap

from .conftest import Run

WIDTH = 80
PATH = "/srv/hospital/data/of/a/laboratory/with-a-long-name/and/more/FL-LAB/client.toml"
TEXT = (
    f"the settings in {PATH} name no address of HQ; ask the admin of HQ for a new token with "
    "cipherbox enroll FL-LAB --replace, and run here: cipherbox --home '/srv/a b/home' join "
    "--password-file /etc/cipherbox/password"
)
WHOLE = [
    PATH,
    "cipherbox enroll FL-LAB --replace,",
    "cipherbox --home '/srv/a b/home' join --password-file /etc/cipherbox/password",
]


class Screen(io.StringIO):
    """A standard error that is a terminal, and does not say how wide."""

    def isatty(self) -> bool:
        return True


Shown = Callable[[], str]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shown:
    """What stands on the screen."""
    monkeypatch.setattr(output, "width_of", lambda stream: WIDTH)
    monkeypatch.setattr(sys, "argv", ["cipherbox"])
    return lambda: click.unstyle(capsys.readouterr().err)


def test_the_width_of_what_lines_are_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "61")
    assert output.width_of(Screen()) == 61
    assert output.width_of(io.StringIO()) == sys.maxsize
    monkeypatch.setenv("COLUMNS", "0")
    assert output.width_of(Screen()) == 80


@pytest.mark.parametrize("tell", [output.fail, output.keep, output.warn, output.next_step])
def test_long_lines_break_between_words(screen: Shown, tell: Callable[[str], None]) -> None:
    """Errors broke where the terminal's last column happened to be."""
    tell(TEXT)
    shown = screen().splitlines()
    assert " ".join(line.strip() for line in shown).endswith(TEXT)
    for line in shown:
        assert len(line) <= WIDTH or any(line.strip().startswith(whole) for whole in WHOLE), line
    for whole in WHOLE:
        assert any(whole in line for line in shown), whole
    first, *rest = shown
    indent = len(first) - len(
        first.removeprefix("Error: ").removeprefix("Kept: ").removeprefix("Next: ")
    )
    assert all(line[:indent].strip() == "" for line in rest)


def test_what_doctor_finds_breaks_between_words(
    cipherbox: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(output, "width_of", lambda stream: WIDTH)
    home = (
        tmp_path
        / "a-home-whose-name-is-so-long-that-no-line-holds-it"
        / "with-another-part-of-a-name"
    )
    shown = cipherbox("--home", str(home), "doctor").out
    assert str(home) in shown
    for line in shown.splitlines():
        assert len(line) <= WIDTH or str(home) in line or "cipherbox" in line, line


def test_an_error_of_several_lines_and_its_advice(screen: Shown) -> None:
    output.fail("one\ntwo " + "words " * 20, "See: cipherbox clients")
    shown = screen().splitlines()
    assert shown[0] == "Error: one"
    assert shown[1].startswith("       two words")
    assert shown[-1] == "       See: cipherbox clients"
    assert max(map(len, shown)) <= WIDTH


def test_an_indented_line_stays_indented(screen: Shown) -> None:
    """As in what `fetch` says at its end."""
    output.warn("  2 from FL-LAB: no mail is taken")
    assert screen() == "  2 from FL-LAB: no mail is taken\n"


def test_what_is_no_terminal_gets_lines_as_they_are(cipherbox: Run) -> None:
    shown = cipherbox("--home", f"{PATH}/{'x' * 60}", "status")
    assert len(shown.err.splitlines()[0]) > 2 * WIDTH


def test_the_usage_of_a_command_is_an_error_as_any_other(screen: Shown) -> None:
    from cipherbox.cli.main import run

    assert run(["send", "--to", "x" * 200, "text"]) == 2
    shown = screen()
    usage = (
        "Usage: cipherbox send [OPTIONS] [CONTENT]\nTry 'cipherbox send --help' for "
        "help.\n\nError: "
    )
    assert shown.startswith(usage)


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("run: cipherbox join", " cipherbox join"),
        ("token (cipherbox enroll) and run", " (cipherbox enroll)"),
        ("see cipherbox audit show --last 5; then", " cipherbox audit show --last 5;"),
        ("say cipherbox outbox retry. The others", " cipherbox outbox retry."),
        ("while `cipherbox agent` runs", " `cipherbox agent`"),
        ("my-cipherbox join", " join"),
        ("cipherbox enroll FL-LAB and wait", "cipherbox enroll FL-LAB"),
        ("cipherbox send --to A 'Hello, world' now", "cipherbox send --to A 'Hello, world' now"),
    ],
)
def test_a_command_is_one_piece(text: str, command: str) -> None:
    assert command in list(pieces_of(text))
    assert "".join(pieces_of(text)) == text


def test_spaces_between_pieces_stay_unless_the_line_ends_there() -> None:
    assert wrap(pieces_of("to send:     cipherbox send"), 80) == "to send:     cipherbox send"
    assert (
        wrap(pieces_of("to send:     cipherbox send"), 20, "", "  ") == "to send:\n  cipherbox send"
    )


# -- help ------------------------------------------------------------------------------------------

EVERY = [(command, context) for section in COMMANDS for command, context in every_command(section)]


@pytest.mark.parametrize(
    ("command", "context"), EVERY, ids=[context.info_name for _, context in EVERY]
)
def test_no_word_of_a_help_page_is_broken(command: click.Command, context: click.Context) -> None:
    """`postgresql://user@ho` stood at the end of a line, `st:port` under it; FL- and LAB
    likewise.
    """
    here = command.make_context(
        context.info_name, [], resilient_parsing=True, terminal_width=WIDTH - 2
    )
    assert isinstance(here.make_formatter(), HelpFormatter)
    shown = command.get_help(here)
    words = set(shown.split())
    texts = [
        command.help or "",
        *(one.help or "" for one in command.params if isinstance(one, click.Option)),
    ]
    hidden = [one.help for one in command.params if isinstance(one, click.Option) and one.hidden]
    for text in texts:
        if text not in hidden:
            assert set(text.replace("\b", "").split()) <= words, text
    for line in shown.splitlines():
        assert len(line) <= WIDTH or len(line.split()) <= 2, line


def test_the_help_of_the_whole_is_laid_out_in_columns(cipherbox: Run) -> None:
    shown = cipherbox("--help").out
    assert re.search(
        r"Headquarters:\n  init +Create HQ's data directory, its CA and the first admin\.\n", shown
    ), shown

"""The command as a whole: help, unknown commands, errors in plain words, speed of start."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

import cipherbox as package
from cipherbox import errors
from cipherbox.cli import main as main_module
from cipherbox.cli.exits import Exit
from cipherbox.harness.failure import StageFailed

from .conftest import Run


def test_version(cipherbox: Run) -> None:
    shown = cipherbox("version")
    assert shown.code == 0
    assert shown.out.startswith(f"CipherBox {package.__version__} (Python 3.")
    assert json.loads(cipherbox("version", "--json").out)["cipherbox"] == package.__version__


def test_help_lists_every_command_once(cipherbox: Run) -> None:
    shown = cipherbox("--help")
    for name in main_module.FLAT:
        assert shown.out.count(f"\n  {name} ") == 1, name
    assert "cipherbox manual quickstart" in shown.out


@pytest.mark.parametrize("name", sorted(main_module.FLAT))
def test_every_command_explains_itself(cipherbox: Run, name: str) -> None:
    shown = cipherbox(name, "--help")
    assert shown.code == 0
    assert shown.out.startswith("Usage: cipherbox ")
    assert shown.err == ""


def test_a_misspelt_command(cipherbox: Run) -> None:
    shown = cipherbox("recieve")
    assert shown.code == Exit.USAGE
    assert "Unknown command 'recieve'. Did you mean 'receive'?" in shown.err


def test_a_misspelt_option(cipherbox: Run) -> None:
    shown = cipherbox("send", "--tu", "CA-RC", "x")
    assert shown.code == Exit.USAGE
    assert "--tu" in shown.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["send", "hello"], "Specify the recipients"),
        (["send", "--to", "A", "--exchange", "x", "hello"], "Specify the recipients"),
        (["send", "--exchange", "x", "hello"], "--key KEY"),
        (["send", "--to", "../etc", "hello"], "invalid client id"),
        (["send", "--to", "A", "--header", "novalue", "x"], "NAME=VALUE"),
        (["send", "--to", "A", "--expires", "soon", "x"], "90s, 15m, 12h or 7d"),
        (["enroll", "CON"], "device name"),
        (["grant", "FL-LAB", "publish"], "needs an exchange"),
        (["route", "allow", "x"], "--any"),
        (["status", "17"], "no message id"),
        (["queue", "declare", "a\u202eb"], "control characters"),
        (["manual", "quikstart"], "Did you mean 'quickstart'?"),
    ],
)
def test_wrong_use_is_explained(cipherbox: Run, arguments: list[str], says: str) -> None:
    shown = cipherbox(*arguments)
    assert shown.code == Exit.USAGE
    assert says in " ".join(shown.err.split())


def test_without_a_home_it_says_to_join(cipherbox: Run, tmp_path: Path) -> None:
    shown = cipherbox("--home", str(tmp_path / "none"), "send", "--to", "CA-RC", "x")
    assert shown.code == Exit.CONFIG
    assert "client.toml does not exist" in shown.err
    assert f"cipherbox --home {tmp_path / 'none'} join" in shown.err.replace("\n", " ")
    assert "Traceback" not in shown.err


def test_join_refuses_an_empty_token_and_a_foreign_text(cipherbox: Run, tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    assert cipherbox("--home", home, "join", stdin="\n").code == Exit.USAGE
    shown = cipherbox("--home", home, "join", stdin="cipherbox-1-nonsense\n")
    assert shown.code == Exit.CREDENTIALS
    assert "cipherbox enroll" in shown.err
    assert not (tmp_path / "home" / "client.toml").exists()


def test_a_token_is_no_argument(cipherbox: Run) -> None:
    assert cipherbox("join", "cipherbox-1-AAAA").code == Exit.USAGE


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Makes the command `version` fail with an error."""

    def fail_with(error: BaseException) -> None:
        @click.command()
        @click.option("--json", is_flag=True)
        def version(json: bool) -> None:
            raise error

        monkeypatch.setattr("cipherbox.cli.completion_texts.version", version)

    return fail_with  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (errors.NotFound("no queue 'x' that you may read"), 1, "No queue 'x'"),
        (errors.TimedOut("no answer in 10 s"), 3, "is HQ running"),
        (errors.Revoked("the certificate was revoked"), 4, "Ask the admin why"),
        (errors.StoreLocked("/srv/hq is in use"), 6, "Stop the other process"),
        (errors.BundleDiscontinuous("the key of CA-RC changed"), 7, "cipherbox keys verify"),
        (errors.SignatureInvalid("the signature does not verify"), 8, "does not verify"),
        (errors.FrameTooLarge("4 GiB"), 9, "4 GiB"),
        (PermissionError(13, "Permission denied", "/srv/x"), 6, "/srv/x: Permission denied"),
        (ZeroDivisionError("division by zero"), 70, "Internal error (ZeroDivisionError"),
        (StageFailed("HQ did not start:\nno room"), 1, "no room"),
        (
            ExceptionGroup("", [ExceptionGroup("", [StageFailed("R1 ended with 3")])]),
            1,
            "Error: R1 ended with 3",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_become_words_and_a_code(
    cipherbox: Run, failing: Run, error: BaseException, code: int, says: str
) -> None:
    failing(error)
    shown = cipherbox("version")
    assert shown.code == code
    assert says in shown.err
    assert "Traceback" not in shown.err
    failing(BaseExceptionGroup("group", [BaseExceptionGroup("inner", [error])]))
    assert cipherbox("version").code == code


def test_a_refusal_says_more_than_the_cut_line_beside_it(cipherbox: Run, failing: Run) -> None:
    failing(ExceptionGroup("both", [errors.NetworkError("cut"), errors.Forbidden("not yours")]))
    assert cipherbox("version").code == Exit.REFUSED


def test_a_bug_beside_an_error_is_not_hidden(cipherbox: Run, failing: Run) -> None:
    failing(ExceptionGroup("both", [errors.NetworkError("cut"), TypeError("bug")]))
    assert cipherbox("version").code == Exit.BUG


def test_the_traceback_is_there_when_asked_for(
    cipherbox: Run, failing: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(ZeroDivisionError("x"))
    assert "Traceback" in cipherbox("--debug", "version").err
    monkeypatch.setenv("CIPHERBOX_DEBUG", "1")
    assert "Traceback" in cipherbox("version").err


def test_another_partys_text_cannot_drive_the_terminal(cipherbox: Run, failing: Run) -> None:
    failing(errors.Refused("no \x1b[2J\x07 \u202egnp.exe"))
    shown = cipherbox("version")
    assert "\x1b" not in shown.err
    assert "\u202e" not in shown.err


def test_version_and_help_load_nothing_heavy() -> None:
    program = (
        "import sys\nbefore = set(sys.modules)  # what measures coverage loads some\n"
        "from cipherbox.cli.main import main\ntry: main(sys.argv[1:])\nexcept "
        "SystemExit: pass\n"
        "heavy = {'trio', 'cryptography', 'rich', 'nacl', 'sqlite3', 'attrs', 'orjson'}\n"
        "print(sorted(heavy & (sys.modules.keys() - before)))\n"
    )
    for arguments in (["version"], ["--help"]):
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        assert done.stdout.splitlines()[-1] == "[]"


def test_a_closed_pipe_is_no_traceback() -> None:
    command = f"{sys.executable} -m cipherbox manual architecture | head -1"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout == "# Architecture\n"
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr

"""What `--exec` says about its command before anything is received."""

from pathlib import Path

import pytest

from .conftest import Run


@pytest.mark.parametrize("command", ["receive", "agent"])
@pytest.mark.parametrize("text", ["./import 'one", ""])
def test_a_command_that_cannot_be_read_is_refused(cipherbox: Run, command: str, text: str) -> None:
    shown = cipherbox(command, "--exec", text)
    assert shown.code == 2, shown.err
    assert "--exec" in shown.err


def test_a_program_that_cannot_be_run_is_named_at_the_start(cipherbox: Run, tmp_path: Path) -> None:
    program = tmp_path / "import-one"
    home = ("--home", str(tmp_path / "home"))
    assert (
        f"{program} is no program here" in cipherbox(*home, "receive", "--exec", str(program)).err
    )
    program.write_text("#!/bin/sh\n")
    assert (
        f"{program} may not be run (chmod +x)"
        in cipherbox(*home, "receive", "--exec", str(program)).err
    )
    program.chmod(0o755)
    assert "--exec:" not in cipherbox(*home, "receive", "--exec", str(program)).err


def test_what_only_a_shell_reads_is_said_at_the_start(cipherbox: Run, tmp_path: Path) -> None:
    """`cat > file` failed five times at each message, at a file named >."""
    home = ("--home", str(tmp_path / "home"))
    assert "no shell reads '>'" in cipherbox(*home, "receive", "--exec", "cat > out.txt").err
    assert (
        "no shell reads" not in cipherbox(*home, "receive", "--exec", "sh -c 'cat > out.txt'").err
    )

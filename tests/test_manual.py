"""The manual says what the code does: its made parts are up to date, its links lead somewhere, its commands exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cipherbox import errors
from cipherbox.cli import document
from cipherbox.cli.exits import MEANING, Exit, exit_code
from cipherbox.cli.main import cli
from cipherbox.cli.manual import INDEX, PAGES as INDEXED, manual_pages, title

ROOT = Path(__file__).resolve().parent.parent
PAGES = manual_pages()


@pytest.mark.parametrize("name", sorted(document.PAGES))
def test_made_parts_are_up_to_date(name: str) -> None:
    assert document.renewed(PAGES[name], document.PAGES[name]()) == PAGES[name], (
        "run: python -m cipherbox.cli.document"
    )


@pytest.mark.parametrize("name", sorted(PAGES))
def test_every_page_has_one_title(name: str) -> None:
    outside_code = re.sub(r"```.*?```", "", PAGES[name], flags=re.DOTALL)
    assert title(PAGES[name])
    assert len(re.findall(r"^# ", outside_code, re.MULTILINE)) == 1


def test_pages_named_in_texts_exist() -> None:
    for name, page in {**PAGES, "README": (ROOT / "README.md").read_text("utf-8")}.items():
        for topic in re.findall(r"cipherbox manual ([a-z-]+)", page):
            assert topic in PAGES, (name, topic)
        for topics in re.findall(r"\b[Pp]ages? ((?:`[a-z-]+`(?:, | and )?)+)", page):
            for topic in re.findall(r"`([a-z-]+)`", topics):
                assert topic in PAGES, (name, topic)


def _commands() -> list[tuple[str, str]]:
    """Every line `cipherbox ...` in a code block of the manual and the README."""
    found = []
    for name, page in {**PAGES, "README": (ROOT / "README.md").read_text("utf-8")}.items():
        for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                where = re.search(r"\bcipherbox(?:\.pyz)? ", line.partition("#")[0])
                if where:
                    found.append((name, "cipherbox " + line[where.end() :]))
    return found


@pytest.mark.parametrize(("page", "line"), _commands())
def test_commands_in_examples_parse(page: str, line: str) -> None:
    """Commands, options and the number of arguments are those of the program; nothing is run."""
    words = shlex.split(re.split(r"[|;&]| #", line)[0])[1:]
    context = cli.make_context("cipherbox", list(words))
    command: click.Command = cli
    rest = [*context._protected_args, *context.args]
    while isinstance(command, click.Group):
        assert rest, line
        found = command.get_command(context, rest[0])
        assert found is not None, f"{page}: {line}"
        command, rest = found, rest[1:]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word.partition("=")[0] for word in rest if word.startswith("-") and len(word) > 1} <= known, line


def test_every_error_has_an_exit_code() -> None:
    for kind in errors.BY_CODE.values():
        code = exit_code(kind("x"))
        assert code in MEANING
        assert (code == Exit.BUG) == (kind is errors.CipherBoxError), kind
    assert exit_code(OSError()) == Exit.STORE
    assert exit_code(KeyboardInterrupt()) == Exit.INTERRUPTED
    assert exit_code(ValueError()) == Exit.BUG
    assert set(MEANING) == set(Exit)


def test_the_tests_the_threat_model_names_exist() -> None:
    named = re.findall(r"`(tests/[a-z0-9_/]+\.py)(?:::(test_\w+))?`", PAGES["threat-model"])
    assert len(named) > 40
    for file, function in named:
        text = (ROOT / file).read_text("utf-8")
        assert not function or re.search(rf"^(async )?def {function}\(", text, re.MULTILINE), (file, function)


def test_every_adversary_of_the_threat_model_has_what_it_can_and_what_it_cannot() -> None:
    sections = re.split(r"^## ", PAGES["threat-model"], flags=re.MULTILINE)[1:]
    adversaries = [s for s in sections if s.startswith(("A ", "Another ", "HQ's ", "Who holds "))]
    assert len(adversaries) == 7
    for section in adversaries:
        assert "| can |" in section
        cannot = [line for line in section.splitlines() if line.startswith("| cannot |")]
        assert cannot
        assert all("`tests/" in line for line in cannot), section[:40]


@pytest.mark.parametrize("name", ["sessions"])
def test_examples_in_python_run(name: str, tmp_path: Path) -> None:
    """In a process of their own, as a reader would run them."""
    blocks = re.findall(r"```python\n(.*?)```", PAGES[name], re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        program = tmp_path / f"{name}{number}.py"
        program.write_text(block)
        subprocess.run([sys.executable, str(program)], check=True, timeout=60, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})

"""The manual says what the code does: its made parts are up to date, its links lead somewhere,
its commands exist.
"""

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from cipherbox import errors
from cipherbox.cli import document
from cipherbox.cli.exits import MEANING, Exit, exit_code
from cipherbox.cli.main import cli
from cipherbox.cli.manual import EXAMPLES, INDEX, manual_pages, title
from cipherbox.cli.manual import PAGES as INDEXED

ROOT = Path(__file__).resolve().parent.parent
PAGES = manual_pages()


@pytest.mark.parametrize("name", sorted(document.PAGES))
def test_made_parts_are_up_to_date(name: str) -> None:
    assert document.renewed(PAGES[name], document.PAGES[name]()) == PAGES[name], (
        "run: make generate"
    )


@pytest.mark.parametrize("name", sorted(PAGES))
def test_every_page_has_one_title(name: str) -> None:
    outside_code = re.sub(r"```.*?```", "", PAGES[name], flags=re.DOTALL)
    assert title(PAGES[name])
    assert len(re.findall(r"^# ", outside_code, re.MULTILINE)) == 1


def test_pages_named_in_texts_exist() -> None:
    for name, page in {**PAGES, "README": (ROOT / "README.md").read_text("utf-8")}.items():
        for topic in re.findall(r"cipherbox manual ([a-z][a-z-]*)", page):
            assert topic in PAGES or topic in EXAMPLES, (name, topic)
        for topics in re.findall(r"\b[Pp]ages? ((?:`[a-z-]+`(?:, | and )?)+)", page):
            for topic in re.findall(r"`([a-z-]+)`", topics):
                assert topic in PAGES, (name, topic)


def _shown(lines: list[str]) -> Iterator[list[str]]:
    """The words of every command `cipherbox ...` in lines of a shell."""
    for line in lines:
        lexer = shlex.shlex(
            re.sub(r"\bsudo (-u ?\w+ )?", "", line), posix=True, punctuation_chars=True
        )
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= set("();<>|&"):
                words.append(word)
                continue
            for at, one in enumerate(words):
                if one == "cipherbox" or one.endswith("cipherbox.pyz"):
                    yield words[at + 1 :]
                    break
            words = []


def _commands() -> list[Any]:
    """Those in a block of the manual and the README, whole; and those in a sentence, which may
    leave words out.
    """
    found = []
    for name, page in {**PAGES, "README": (ROOT / "README.md").read_text("utf-8")}.items():
        blocks = [
            block.replace("\\\n", " ") for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
        ]
        blocks = [re.sub(r"(?s)<<'EOF'.*?^EOF$", "", block, flags=re.MULTILINE) for block in blocks]
        found += [(name, words, True) for block in blocks for words in _shown(block.splitlines())]
        text = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
        sentences = [" ".join(one.split()) for one in re.findall(r"`(cipherbox [^`]+)`", text)]
        found += [(name, words, False) for words in _shown(sentences)]
    return [pytest.param(*one, id=f"{number}-{one[0]}") for number, one in enumerate(found)]


@pytest.mark.parametrize(("page", "words", "whole"), _commands())
def test_commands_in_examples_parse(page: str, words: list[str], whole: bool) -> None:
    """Commands, options, their choices and the number of arguments are those of the program;
    nothing is run.
    """
    context = cli.make_context(
        "cipherbox", [word for word in words if word != "..."], resilient_parsing=True
    )
    command: click.Command = cli
    rest = [*context._protected_args, *context.args]
    while isinstance(command, click.Group) and rest:
        found = command.get_command(context, rest[0])
        if found is None and command.name != "cipherbox" and command.invoke_without_command:
            break  # `clients FL-LAB`
        if found is None and rest[-1] == "COMMAND":
            return
        assert found is not None, f"{page}: {words}"
        command, rest = found, rest[1:]
    if isinstance(command, click.Group):
        assert not whole or command.invoke_without_command or not rest, (page, words)
        return
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)} <= known, (
        page,
        words,
    )
    if not whole:
        return
    values, extra, _ = command.make_parser(click.Context(command)).parse_args(rest)
    assert extra == [], (page, words)
    for parameter in command.params:
        value = values.get(parameter.name)
        if isinstance(parameter, click.Argument) and parameter.required:
            assert isinstance(value, str) or (isinstance(value, tuple) and value), (
                page,
                words,
                parameter.name,
            )
        if isinstance(parameter.type, click.Choice) and isinstance(value, str):
            assert value in parameter.type.choices, (page, words)


def test_a_wrong_command_is_noticed() -> None:
    good = ["dead", "show", "box.CA-RC/17"]
    test_commands_in_examples_parse("here", good, True)
    wrong_role = ["enroll", "FL-LAB", "--role", "x"]
    for words in (
        ["dead", "show"],
        [*good, "x"],
        ["dead", "shew", "x"],
        [*good, "--wrong"],
        wrong_role,
    ):
        with pytest.raises((AssertionError, click.UsageError)):
            test_commands_in_examples_parse("here", words, True)
    assert list(_shown(["a | sudo -u lab cipherbox --home x join || echo cipherbox"])) == [
        ["--home", "x", "join"],
        [],
    ]


def test_every_page_is_in_the_index_and_in_the_readme() -> None:
    assert sorted(INDEXED) == sorted(PAGES)
    assert [kind.partition(":")[0] for kind in INDEX] == [
        "Tutorials",
        "How-to",
        "Reference",
        "Formats",
        "Explanation",
    ]
    readme = (ROOT / "README.md").read_text("utf-8")
    assert [page for page in PAGES if f"(cipherbox/manual/{page}.md)" not in readme] == []


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
        assert not function or re.search(rf"^ *(async )?def {function}\(", text, re.MULTILINE), (
            file,
            function,
        )


def test_every_adversary_of_the_threat_model_has_what_it_can_and_what_it_cannot() -> None:
    sections = re.split(r"^## ", PAGES["threat-model"], flags=re.MULTILINE)[1:]
    assert sections[0].startswith("Not protected")
    rows = [line for line in sections[0].splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 5
    assert all("`tests/" in line for line in rows)
    adversaries = [s for s in sections if s.startswith(("A ", "An ", "Another ", "HQ's "))]
    assert len(adversaries) == 9
    for section in adversaries:
        assert "| can |" in section
        assert "| cannot |" in section
        lines = [
            line for line in section.splitlines() if line.startswith(("| can |", "| cannot |"))
        ]
        assert [line for line in lines if "`tests/" not in line] == [], section[:40]


@pytest.mark.parametrize("name", ["sessions"])
def test_examples_in_python_run(name: str, tmp_path: Path) -> None:
    """In a process of their own, as a reader would run them."""
    blocks = re.findall(r"```python\n(.*?)```", PAGES[name], re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        program = tmp_path / f"{name}{number}.py"
        program.write_text(block)
        subprocess.run(
            [sys.executable, str(program)],
            check=True,
            timeout=300,
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT)},
        )


def _defined(file: Path) -> set[str]:
    """Return the functions, classes and methods that a module defines, as `Class.method`."""
    found = set()
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{one.name}"
                for one in node.body
                if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return found


def test_the_walks_of_the_architecture_name_files_and_functions_that_exist() -> None:
    """Whoever moves one of them changes the page with it."""
    section = PAGES["architecture"].partition("## Through the files\n")[2].partition("\n## ")[0]
    named = re.findall(r"`([a-z_]+(?:/[a-z_]+)+\.py)`", section)
    assert len(set(named)) > 30
    assert [file for file in named if not (ROOT / "cipherbox" / file).is_file()] == []
    steps = re.findall(r"^\| `([a-z_/]+\.py)` \| `([\w.]+)` \|", section, re.MULTILINE)
    assert len(steps) > 35
    assert [step for step in steps if step[1] not in _defined(ROOT / "cipherbox" / step[0])] == []


def test_the_recipes_for_contributors_name_files_tables_and_targets_that_exist() -> None:
    page = PAGES["contributing"]
    paths = re.findall(r"`((?:cipherbox|tests|packaging)/[\w./-]*)`", page)
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        files = re.findall(r"`((?:cipherbox|tests)/[\w./-]*\.py)`", section)
        code = "\n".join((ROOT / file).read_text("utf-8") for file in files)
        tables = re.findall(r"`([A-Z][A-Z_]{3,})`", section)
        names = re.findall(r"`([A-Z][a-z]+[A-Za-z]*|\w+_\w+)`", section)
        missing = {name for name in {*tables, *names} if not re.search(rf"\b{name}\b", code)}
        assert missing <= {"ASK_TIME", "TIME", "TYPE_CHECKING", "cipherbox_", "_total"}, section
    made = (ROOT / "Makefile").read_text("utf-8")
    targets = re.findall(r"\bmake ([a-z]+)", page)
    assert [target for target in targets if not re.search(rf"^{target}:", made, re.MULTILINE)] == []


def test_the_protocol_page_names_the_version_that_is_spoken() -> None:
    from cipherbox.wire.frames import VERSION

    assert f"Version {VERSION}." in PAGES["protocol"]

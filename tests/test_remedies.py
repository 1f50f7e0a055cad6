"""What is wrong and what to do about it are separate fields: no sentence holds both, and no program
takes a sentence apart.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cipherbox import errors
from cipherbox.cli.doctor.findings import findings_of
from cipherbox.cli.exits import advice
from cipherbox.errors import ConfigError, NotFound, Problem

PACKAGE = Path(__file__).resolve().parent.parent / "cipherbox"
KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, errors.CipherBoxError)
}
_VERBS = (
    "add|ask|begin|bring|check|choose|connect|copy|correct|create|declare|delete|end|enrol|fetch|"
    "fix|free|give|have|import|install|let|look|make|mount|move|name|pack|pass|pin|put|read|"
    "redrive|register|remove|rename|renew|repeat|restore|revoke|run|say|see|seal|send|serve|set|"
    "sign|start|stop|take|tell|try|turn|update|use|wait|write"
)
INSTRUCTION = re.compile(
    rf"; (?:(?:first|then|or|else|please) )?(?:{_VERBS})\b|; (?:an admin permits it|did you mean)"
)


def texts(node: ast.expr) -> Iterator[str]:
    """Yield the constant parts of a text."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def hidden_instructions() -> Iterator[str]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = ast.unparse(node.func).rpartition(".")[2]
            if name == "Problem" or name in KINDS:
                told = [*texts(node.args[0])]
            elif name == "Finding" and "doctor" in path.parts:
                told = [text for value in node.args[:3] for text in texts(value)]
            else:
                continue
            if any(INSTRUCTION.search(text) for text in told):
                yield f"{path.relative_to(PACKAGE.parent)}:{node.lineno} {told}"


def test_no_message_says_what_its_remedy_should() -> None:
    assert [*hidden_instructions()] == []


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_no_class_of_errors_says_what_its_advice_should(kind: type[errors.CipherBoxError]) -> None:
    assert not INSTRUCTION.search(kind("").what)


def test_nothing_takes_a_sentence_apart() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{number}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if re.search(r"""(partition|split)\(["'](; |\. )["']""", line)
        or re.search(r"""["'][^"']+["'] (not )?in str\((error|e|group)\)""", line)
    ]
    assert wrong == []


def test_an_error_has_its_cause_and_its_remedy_as_fields() -> None:
    error = NotFound("there is no queue 'x'", b"d", remedy="see: cipherbox queue list")
    assert str(error) == "there is no queue 'x'; see: cipherbox queue list"
    assert (error.what, error.remedy) == ("there is no queue 'x'", "see: cipherbox queue list")
    assert advice(error) == "See: cipherbox queue list"
    copied = error.copy("gone")
    assert (copied.what, copied.detail, copied.remedy) == ("gone", b"d", error.remedy)
    assert error.problems == (Problem(error.what, error.remedy),)


def test_an_error_takes_both_from_a_problem() -> None:
    error = ConfigError(Problem("it is closed", "open it"))
    assert (error.what, error.remedy) == ("it is closed", "open it")


def test_an_error_of_several_problems_keeps_each_with_its_remedy() -> None:
    several = [Problem("one", "mend one"), Problem("two; three")]
    error = ConfigError.of(several)
    assert str(error) == "one; mend one\ntwo; three"
    assert error.problems == tuple(several)
    found = findings_of("settings", error, "read the manual")
    assert [(f.text, f.todo) for f in found] == [
        ("one", "mend one"),
        ("two; three", "read the manual"),
    ]

"""The page's texts in other languages: none is missing, none is left over, places are kept."""

from __future__ import annotations

import ast
import re
import string
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from cipherbox import errors
from cipherbox.apps.page import words
from cipherbox.apps.page.console import ALERT_KINDS, LIMITED
from cipherbox.apps.page.history import SHOWN
from cipherbox.apps.page.view import SAID
from cipherbox.apps.page.words import TEXTS, chosen, explain, languages, translator
from cipherbox.checks import WrongType
from cipherbox.cli import audit_lines
from cipherbox.cli.doctor import client as client_checks
from cipherbox.cli.doctor import findings, leftovers
from cipherbox.cli.top import RATES
from cipherbox.config import proxies
from cipherbox.envelope.outcomes import Outcome, outcome_words
from cipherbox.errors import CipherBoxError, Forbidden, InvalidRequest, summary
from cipherbox.net import tls
from cipherbox.pki.profile import OutOfDate
from cipherbox.readable import Sentence
from cipherbox.server.operations import alerts

TEMPLATES = Path(words.__file__).parent / "templates"
STATES = ("sealed", "with HQ", "opened", "refused", "not sent", "cancelled", "sending")
OTHERS = sorted(path.stem for path in TEXTS.glob("*.toml"))


def texts() -> set[str]:
    """Every text that a template shows in the user's language."""
    plots = {name for _, name in SHOWN}
    outcomes = {outcome_words(outcome) for outcome in Outcome}
    found = {*SAID.values(), *STATES, *outcomes, *RATES, *plots, *LIMITED, *kinds(), *own_errors()}
    found |= {*ALERT_KINDS.values(), *sentences(), *abouts()}
    for path in TEMPLATES.glob("*.html"):
        text = path.read_text("utf-8")
        found |= set(re.findall(r'\b_\("([^"]+)"', text))
        found |= set(re.findall(r'\("/[a-z/]+", "([^"]+)"\)', text))  # names of pages
    return found


def kinds() -> set[str]:
    """A sentence for each kind of error."""
    found, waiting = set(), [*CipherBoxError.__subclasses__()]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__module__ == errors.__name__:  # others are their base, to a person
            found.add(summary(kind))
    return found


SPOKEN = (
    audit_lines,
    client_checks,
    findings,
    leftovers,
    proxies,
)  # modules whose sentences the page shows


def sentences() -> set[str]:
    """The patterns of what `doctor` and HQ's log say, but for those that are values alone."""
    found = {words for words in audit_lines.ACTS.values() if isinstance(words, str)}
    for module in SPOKEN:
        found |= {
            str(node.args[0].value)
            for node in calls(module, "Sentence")
            if isinstance(node.args[0], ast.Constant)
        }
    return {one for one in found if re.search("[a-z]", re.sub(r"{.*?}", "", one))}


def abouts() -> set[str]:
    """What findings are about, as one word each."""
    found = {
        value.value
        for module in SPOKEN
        for name, at in (("Finding", 1), ("finding", 0), ("findings_of", 0), ("ends", 0))
        for node in calls(module, name)
        if isinstance(value := node.args[at], ast.Constant)
    }
    return {str(one) for one in found} | {"network", "files", "certificates"}


def calls(module: ModuleType, name: str) -> list[ast.Call]:
    """The calls of a function in a module's text."""
    tree = ast.parse(Path(str(module.__file__)).read_text("utf-8"))
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]


def own_errors() -> set[str]:
    """What the page's own code says, as an error with its remedy, or in the user's language."""
    found = set()
    for path in Path(words.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                name = node.func.id
                values = [*node.args[:1], *(k.value for k in node.keywords if k.arg == "remedy")]
                if name == "_" or hasattr(errors, name):
                    found |= {
                        one.value
                        for one in values
                        if isinstance(one, ast.Constant) and isinstance(one.value, str)
                    }
    return found


@pytest.mark.parametrize("language", OTHERS)
def test_an_error_is_told_in_the_users_language(language: str) -> None:
    table = tomllib.loads((TEXTS / f"{language}.toml").read_text("utf-8"))
    own = InvalidRequest("nobody is chosen", remedy="choose one recipient or more, or a route")
    assert explain(own, language) == (table[own.what], table[own.remedy or ""], "")
    named = Forbidden("FL-LAB may not read 'q'", remedy="ask")
    assert explain(named, language) == (table[summary(Forbidden)], "", str(named))
    assert explain(WrongType("x"), language).what == table[summary(InvalidRequest)]
    assert explain(named, "en") == (named.what, "ask", "")


@pytest.mark.parametrize("language", OTHERS)
def test_a_language_has_every_text_and_no_other(language: str) -> None:
    table = tomllib.loads((TEXTS / f"{language}.toml").read_text("utf-8"))
    assert table.pop("language")
    assert sorted(texts() - set(table)) == []
    assert sorted(set(table) - texts()) == []
    for english, own in table.items():
        assert places(english) == places(own), english


def places(text: str) -> set[str | None]:
    return {name for _, name, _, _ in string.Formatter().parse(text)} - {None}


def test_the_browsers_language_is_taken_unless_one_is_set() -> None:
    assert set(OTHERS) >= {"de", "es"}
    assert next(iter(languages())) == "en"
    assert chosen("", "de-AT,de;q=0.9,en;q=0.8") == "de"
    assert chosen("", "fr-FR, es;q=0.5") == "es"
    assert chosen("", "fr") == chosen("", "") == "en"
    assert chosen("en", "de") == "en"
    assert chosen("../../x", "de") == "de"


def test_a_text_without_a_translation_is_english() -> None:
    assert translator("de")("no such text {n}", n=3) == "no such text 3"
    assert translator("de")("Messages") != "Messages"


def test_a_sentence_is_told_with_its_values_and_the_sentences_in_it() -> None:
    text = Sentence(
        "{what} ends on {end}, in {days} days",
        what=Sentence("this client's certificate"),
        end="2027-01-01",
        days=7,
    )
    assert text == "this client's certificate ends on 2027-01-01, in 7 days"
    assert translator("en")(text) == text
    assert translator("de")(text) == "das Zertifikat dieses Clients endet am 2027-01-01, in 7 Tagen"
    several = Sentence("read by {readers}", readers=["{name}", Sentence("nothing")])
    assert several == "read by {name}, nothing"  # a value in braces stays as it is
    assert translator("es")(several) == "leída por {name}, nada"


def test_every_alert_of_hq_has_a_kind_in_other_languages() -> None:
    found = {
        str(node.args[0].value)
        for node in calls(alerts, "Alert")
        if isinstance(node.args[0], ast.Constant)
    }
    made = {f"certificate-{name}" for name in alerts.SOON_DAYS} | {"revoked-hq", "revoked-ca"}
    assert set(ALERT_KINDS) == found | made


def test_an_error_that_another_module_derives_is_its_base_to_a_person() -> None:
    for error in (tls.NotAcceptedNow("x"), tls.Cut("x"), OutOfDate("x")):
        (found,) = findings.findings_of("network", error)
        assert found.kind in kinds(), error
        for language in OTHERS:
            assert explain(error, language).english == "x"

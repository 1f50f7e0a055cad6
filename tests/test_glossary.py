"""The glossary defines each term once, names classes that exist, and the words it replaced do not
come back into the manual.
"""

import re
from collections import Counter
from pathlib import Path

import pytest

from cipherbox.cli.manual import manual_pages

PACKAGE = Path(__file__).resolve().parent.parent / "cipherbox"
PAGES = manual_pages()
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|"))
    for line in PAGES["glossary"].splitlines()
    if line.startswith("| ") and not line.startswith("| term |")
]
TERMS = [term.strip() for terms, _ in ROWS for term in terms.split(",")]
# One class for each idea that had a word of our own.
CLASSES = {
    "BrokerState",
    "CaExchange",
    "Connection",
    "ConnectionAcceptor",
    "LocalSecretBox",
    "LogProofVerifier",
    "OutboxEntry",
    "OutboxSender",
    "ParsedEnvelope",
    "PendingPublish",
    "PendingReceipts",
    "PrekeyService",
    "PublishOptions",
    "ReceiptConsumer",
    "ReconnectingConnection",
    "ResolvedRoute",
    "RevocationLists",
}
# What was replaced: names of classes, in code font or as a word, and phrases of sentences.
REPLACED = [
    r"\b(KeyKeeper|OwedReceipts|ReceiptTaker|Doorman|Sighted|Speaker)\b",
    r"`(Line|Link|Post|Target|Fresh|Outgoing|OfflineCa|Listed|Carried|Desk|Lists)`",
    r"\bset aside\b",
    r"\bhand(s|ed)? out\b",
    r"\b(give|gives|given|gave) back\b",
    r"\bbur(y|ied|ies)\b",
    r"\bcondemned\b",
    r"\*history\*",
    r"\bdoorman\b",
    r"\bowed\b",
]


def _prose(page: str) -> str:
    """A page without blocks of code and without its generated parts."""
    page = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    page = re.sub(r"<!-- made: begin -->.*?<!-- made: end -->", "", page, flags=re.DOTALL)
    for part in ("errors", "records", "frames"):
        page = re.sub(rf"<!-- {part} -->.*?<!-- end of {part} -->", "", page, flags=re.DOTALL)
    return " ".join(page.split())


def test_each_term_is_defined_once() -> None:
    assert len(TERMS) > 100
    assert [term for term, times in Counter(TERMS).items() if times > 1] == []
    assert all(len(row) == 2 and all(row) for row in ROWS)


def test_classes_that_the_glossary_names_exist_and_are_named_once() -> None:
    named = Counter(re.findall(r"`([A-Z][a-z]+(?:[A-Z][a-z]+)*)`", PAGES["glossary"]))
    assert {name for name, times in named.items() if times > 1} == set()
    assert named.keys() == CLASSES
    source = "\n".join(file.read_text("utf-8") for file in PACKAGE.rglob("*.py"))
    defined = set(re.findall(r"^class (\w+)\b", source, re.MULTILINE))
    assert named.keys() - defined == set()


@pytest.mark.parametrize("name", sorted(PAGES))
def test_replaced_words_do_not_come_back(name: str) -> None:
    page = _prose(PAGES[name])
    assert [found[0] for word in REPLACED for found in re.finditer(word, page)] == []

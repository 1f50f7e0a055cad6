"""The page's texts in other languages: a file for each, from the English text to its own.

``texts/de.toml`` has one line for each text, under the English one.  A text that a file leaves out
is shown in English; a test finds those.  A new language is a new file.

An error's own text is in the file if it is always the same.  Most contain names and numbers: then
the file has a sentence for its kind, and the English text follows in full.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cipherbox.errors import CipherBoxError, kind_of, summary
from cipherbox.readable import Sentence, filled

TEXTS = Path(__file__).parent / "texts"
ENGLISH = "en"
Translate = Callable[..., str]


@functools.cache
def languages() -> dict[str, str]:
    """Return the code and the own name of each language, English first."""
    found = {path.stem: str(_table(path.stem)["language"]) for path in sorted(TEXTS.glob("*.toml"))}
    return {ENGLISH: "English", **found}


def chosen(setting: str, accepted: str) -> str:
    """Return the language: as set, else the first that the browser names and the page has."""
    if setting in languages():
        return setting
    for part in accepted.split(","):
        code = part.partition(";")[0].strip().lower().partition("-")[0]
        if code in languages():
            return code
    return ENGLISH


def translator(language: str) -> Translate:
    """Return the function that templates call as ``_``: text, and values for its places."""
    table = _table(language) if language != ENGLISH else {}

    def translate(text: str, **values: object) -> str:
        if isinstance(text, Sentence):
            return filled(
                str(table.get(text.pattern, text.pattern)),
                {name: told(value) for name, value in text.values.items()},
            )
        found = str(table.get(text, text))
        return found.format(**values) if values else found

    def told(value: object) -> object:
        if isinstance(value, list):
            return [told(one) for one in value]
        return translate(value) if isinstance(value, Sentence) else value

    return translate


class Explained(NamedTuple):
    """An error in the user's language; ``english``: its text, if only its kind is translated."""

    what: str
    remedy: str
    english: str = ""


def explain(error: CipherBoxError, language: str) -> Explained:
    """Return what an error says and what to do, in this language as far as there is a text."""
    what, remedy = error.what, error.remedy or ""
    table = _table(language) if language != ENGLISH else {}
    if what in table and (not remedy or remedy in table):
        return Explained(str(table[what]), str(table.get(remedy, "")))
    kind = summary(kind_of(error))
    return Explained(str(table[kind]), "", str(error)) if kind in table else Explained(what, remedy)


@functools.cache
def _table(language: str) -> dict[str, str]:
    return tomllib.loads((TEXTS / f"{language}.toml").read_text("utf-8"))

"""The page's texts in other languages: a file for each, from the English text to its own.

``texts/de.toml`` has one line for each text, under the English one.  A text that a file leaves out
is shown in English; a test finds those.  A new language is a new file.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable
from pathlib import Path

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
        found = str(table.get(text, text))
        return found.format(**values) if values else found

    return translate


@functools.cache
def _table(language: str) -> dict[str, str]:
    return tomllib.loads((TEXTS / f"{language}.toml").read_text("utf-8"))

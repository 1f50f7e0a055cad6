"""Reads published vectors: the lines `name = value` of the standards' own test files, in rows."""

from __future__ import annotations

import re
from pathlib import Path

import cryptography_vectors

ROOT = Path(cryptography_vectors.__file__).parent
_LINE = re.compile(r"(\w+) *= *(.*)")


class Row(dict[str, str]):
    """One vector.  A word that stands alone on its line is there with an empty value."""

    def raw(self, name: str) -> bytes:
        """The bytes of hexadecimal text, or of text in quotes."""
        value = self[name]
        return value[1:-1].encode() if value.startswith('"') else bytes.fromhex(value)


def rows(name: str, *headings: str) -> list[Row]:
    """The rows under all these headings (lines in brackets); each row begins with the same name."""
    found: list[Row] = []
    heading: list[str] = []
    first, in_heading = "", False
    for line in (ROOT / name).read_text().splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            heading = [*heading, line] if in_heading else [line]
            in_heading = True
            continue
        in_heading = False
        if not all(h in heading for h in headings):
            continue
        match = _LINE.fullmatch(line)
        key, value = match.groups() if match else (line, "")
        first = first or key
        if key == first:
            found.append(Row())
        found[-1][key] = value
    assert found, f"{name} holds no vectors under {headings}"
    return found


def flipped(data: bytes, at: int = -1) -> bytes:
    """The same bytes with one bit changed."""
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)

"""Search every file of HQ's directory for runs of bytes of known plaintexts.

Every plaintext is cut into blocks of 16 bytes at 16-byte steps.  A run of 31 or more plaintext
bytes anywhere in a file holds at least one whole block, whatever its position there; so a file is
looked at from each of 16 starting points, 16 bytes at a time, and each piece is looked up in the
set of blocks.  A block of one repeated byte proves nothing (an empty database page is full of them)
and is left out.

That would be one lookup of 16 bytes for each byte of HQ's directory.  A machine word takes a third
of the time, so only windows that hold a word of some block are looked at in this way.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

BLOCK, WORD = 16, 8
REPEATED = 0x0101010101010101  # a word of one repeated byte is a multiple of it
WINDOW = 64 * 1024
# empty pages and reserved space hold nothing to look up
_ZEROS = memoryview(bytes(WINDOW + BLOCK - 1))
_STEP, _WORDS = struct.Struct(f"{BLOCK}s"), struct.Struct("=QQ")


class Searched(NamedTuple):
    """The result of a search: the files and bytes covered, and the matches."""

    files: int
    size: int  # bytes, empty pages not counted
    found: list[str]  # "FILE holds bytes of NAME"


def blocks(plaintext: bytes) -> set[tuple[bytes]]:
    """Return the whole blocks of a plaintext, without those that may occur by chance."""
    whole = len(plaintext) - len(plaintext) % BLOCK
    return {piece for piece in _STEP.iter_unpack(plaintext[:whole]) if len(set(piece[0])) > 2}


class Plaintexts:
    """What is searched for: the name of the plaintext of each block, and a word of each block."""

    def __init__(self, plaintexts: Iterable[tuple[str, bytes]]) -> None:
        self.names: dict[tuple[bytes], str] = {}
        self.words: set[int] = set()
        for name, plaintext in plaintexts:
            found = blocks(plaintext)
            self.names.update(dict.fromkeys(found, name))
            halves = _WORDS.iter_unpack(b"".join(block for (block,) in found))
            self.words.update(first if first % REPEATED else second for first, second in halves)


def search(directory: Path, plaintexts: Plaintexts) -> Searched:
    """Search every file below ``directory``, whatever its kind."""
    files = size = 0
    found: list[str] = []
    for path in sorted(directory.rglob("*")):
        if not path.is_file():
            continue
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue  # HQ dropped it meanwhile
        hits, looked_at = _hits(data, plaintexts)
        files += 1
        size += looked_at
        names = {plaintexts.names[hit] for hit in hits}
        found += [f"{path.relative_to(directory)} holds bytes of {name}" for name in sorted(names)]
    return Searched(files, size, found)


def _hits(data: bytes, plaintexts: Plaintexts) -> tuple[set[tuple[bytes]], int]:
    view = memoryview(data)
    hits: set[tuple[bytes]] = set()
    looked_at = 0
    for at in range(0, len(data), WINDOW):
        # a block across the border is in the window before it
        window = view[at : at + WINDOW + BLOCK - 1]
        if window == _ZEROS[: len(window)]:
            continue
        looked_at += min(WINDOW, len(window))
        if not _holds_word(window, plaintexts.words):
            continue
        for start in range(min(BLOCK, max(0, len(window) - BLOCK + 1))):
            end = start + (len(window) - start) // BLOCK * BLOCK
            hits |= plaintexts.names.keys() & _STEP.iter_unpack(window[start:end])
    return hits, looked_at


def _holds_word(window: memoryview, words: set[int]) -> bool:
    for start in range(WORD):
        end = start + max(0, len(window) - start) // WORD * WORD
        if not words.isdisjoint(window[start:end].cast("Q")):
            return True
    return False

"""Mutations without knowledge of the format: the same seed gives the same bytes."""

from __future__ import annotations

import random
from collections.abc import Sequence

_NUMBERS = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 47,
    (1 << 64) - 1,
)
_MOST = 1 << 20


def mutated(seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """One of the seeds, changed in one to four ways."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 4)):
        chance.choice(_WAYS)(data, seeds, chance)
    return bytes(data[:_MOST])


def _place(data: bytearray, chance: random.Random) -> int:
    """Anywhere; half of the time near the beginning, where lengths and counts are."""
    return chance.randrange(min(len(data), chance.choice((48, 1 << 30))) + 1)


def _flip(data: bytearray, seeds: Sequence[bytes], chance: random.Random) -> None:
    if data:
        data[min(_place(data, chance), len(data) - 1)] ^= 1 << chance.randrange(8)


def _set(data: bytearray, seeds: Sequence[bytes], chance: random.Random) -> None:
    size, at = chance.choice((1, 2, 4, 8)), _place(data, chance)
    number = chance.choice(_NUMBERS) + chance.choice((0, 0, 1, -1))
    data[at : at + size] = (number % (1 << 8 * size)).to_bytes(
        size, chance.choice(("big", "big", "little"))
    )


def _cut(data: bytearray, seeds: Sequence[bytes], chance: random.Random) -> None:
    at = _place(data, chance)
    del data[at : chance.choice((len(data), at + chance.randint(1, 32)))]


def _insert(data: bytearray, seeds: Sequence[bytes], chance: random.Random) -> None:
    at = _place(data, chance)
    data[at:at] = chance.choice(
        (chance.randbytes(chance.randint(1, 32)), bytes(chance.randint(1, 64)))
    )


def _repeat(data: bytearray, seeds: Sequence[bytes], chance: random.Random) -> None:
    at, size = _place(data, chance), chance.choice((1, 4, 16, 256))
    data[at:at] = data[at : at + size] * chance.choice((1, 2, 100))


def _splice(data: bytearray, seeds: Sequence[bytes], chance: random.Random) -> None:
    other = chance.choice(seeds)
    at = _place(data, chance)
    data[at:] = other[min(at, len(other)) :]


_WAYS = (_flip, _flip, _set, _set, _cut, _insert, _repeat, _splice)

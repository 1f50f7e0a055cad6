"""A short, deterministic part of `make fuzz`: good bytes are taken, mutated ones answered as
documented.
"""

from __future__ import annotations

import random

import pytest

from tests.fuzz.check import GROWTH_BYTES, RuleBroken, check, kept, peak_bytes
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS, Target

INPUTS, SLOW_INPUTS = 400, 60


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_a_parser_answers_with_its_value_or_its_documented_error(target: Target) -> None:
    seeds, chance = list(target.seeds()), random.Random(target.name)
    taken = [seed for seed in seeds if check(target, seed)]
    assert taken, "no seed is taken"
    cut = (seed[:at] for seed in taken[:2] for at in range(0, len(seed), len(seed) // 9 or 1))
    for data in (*kept(target), *cut):
        check(target, data)
    before = peak_bytes()
    for _ in range(SLOW_INPUTS if target.slow else INPUTS):
        check(target, mutated(seeds, chance))
    assert peak_bytes() - before < GROWTH_BYTES


def test_a_parser_that_breaks_the_rule_is_noticed() -> None:
    def read(data: bytes) -> object:
        return data[0]

    with pytest.raises(RuleBroken, match="IndexError"):
        check(Target("careless", read, (ValueError,), lambda: iter([b"x"])), b"")


def test_mutations_are_the_same_for_the_same_seed() -> None:
    first, again = (
        [mutated([b"abcdef" * 9, b"x"], chance) for _ in range(50)]
        for chance in (random.Random(1), random.Random(1))
    )
    assert first == again
    assert len(set(first)) > 40

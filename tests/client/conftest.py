"""Fixtures of the client's tests."""

from __future__ import annotations

import pytest

from tests.client.parties import Authority, Party
from tests.client.scripted import ScriptedHq


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def hq(authority: Authority) -> ScriptedHq:
    return ScriptedHq(authority)


@pytest.fixture
def lab(authority: Authority) -> Party:
    return authority.party("FL-LAB")


@pytest.fixture
def center(authority: Authority, hq: ScriptedHq) -> Party:
    party = authority.party("CA-RC")
    hq.offer(party)
    return party

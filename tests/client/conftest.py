"""Fixtures of the client's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.client.parties import Authority, Party
from tests.client.real_hq import RealHq, real_hq
from tests.client.scripted import ScriptedHq


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture
async def empty_hq(tmp_path: Path) -> AsyncIterator[RealHq]:
    """It serves, and nobody has joined."""
    async with real_hq(tmp_path) as found:
        yield found


@pytest.fixture
async def hq(enrolled: Path, tmp_path: Path) -> AsyncIterator[RealHq]:
    """A lab and a center have joined; a module that wants more has its own `hq`, made from this
    one.
    """
    async with real_hq(tmp_path, like=enrolled) as found:
        yield found


@pytest.fixture
def scripted(authority: Authority) -> ScriptedHq:
    return ScriptedHq(authority)


@pytest.fixture
def lab(authority: Authority) -> Party:
    return authority.party("FL-LAB")


@pytest.fixture
def center(authority: Authority, scripted: ScriptedHq) -> Party:
    party = authority.party("CA-RC")
    scripted.offer(party)
    return party

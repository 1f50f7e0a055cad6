"""Fixtures of the page's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.client.real_hq import RealHq, real_hq
from tests.page.web import Web, page_of


@pytest.fixture
async def hq(enrolled: Path, tmp_path: Path) -> AsyncIterator[RealHq]:
    """A lab and a center have joined."""
    async with real_hq(tmp_path, like=enrolled) as found:
        yield found


@pytest.fixture
async def lab(hq: RealHq) -> AsyncIterator[Web]:
    """The page of FL-LAB."""
    async with page_of(hq.home("FL-LAB")) as found:
        yield found


@pytest.fixture
async def center(hq: RealHq) -> AsyncIterator[Web]:
    """The page of CA-RC."""
    async with page_of(hq.home("CA-RC")) as found:
        yield found

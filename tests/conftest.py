"""What tests of several kinds share: a PostgreSQL server for each process that runs tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import postgres


@pytest.fixture(scope="session")
def postgresql() -> Iterator[postgres.Server]:
    """A running server; a test takes a schema of its own."""
    yield from postgres.shared()

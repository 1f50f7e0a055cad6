"""What tests of several kinds share: PostgreSQL servers, and logs that are as before afterwards."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from cipherbox.ops.logs import ROOT
from tests import postgres


@pytest.fixture(scope="session")
def postgresql() -> Iterator[postgres.Server]:
    """A running server for each process that runs tests; a test takes a schema of its own."""
    yield from postgres.shared()


@pytest.fixture
def own() -> Iterator[postgres.Server]:
    """A server of one test, which may do with it what it likes."""
    server = postgres.new_server()
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.fixture
def logs_as_before() -> Iterator[None]:
    """For tests that set up logging."""
    yield
    root = logging.getLogger(ROOT)
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.NOTSET)
    root.propagate = True

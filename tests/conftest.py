"""What tests of several kinds share: warm starts, what goes to `make soak`, PostgreSQL servers, logs as before."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from cipherbox.ops.logs import ROOT
from tests import postgres, soak, warm

WARM = warm.install()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="what takes long, and nothing else: see tests/soak.py")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "soak: there is more of it in `make soak`; see tests/soak.py")
    soak.ON = config.getoption("--soak")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    soak.choose(config, items)


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

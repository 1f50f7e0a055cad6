"""What tests of several kinds share: warm starts, what goes to `make soak`, PostgreSQL servers,
logs as before.
"""

from __future__ import annotations

import gc
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import trio

from cipherbox.harness.workplace import abandoned, remove_tree
from cipherbox.ops.logs import ROOT
from tests import postgres, soak, warm

MEMORY, ROOM = "/dev/shm", 4 << 30
for name in ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"):  # programs start as they do for a user
    os.environ.pop(name, None)
WARM = warm.install()
# how long an example takes says something of the machine and nothing of the code
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--soak", action="store_true", help="what takes long, and nothing else: see tests/soak.py"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "soak: there is more of it in `make soak`; see tests/soak.py"
    )
    config.addinivalue_line("markers", "early: it takes longest, so nothing else waits for its end")
    config.addinivalue_line("markers", "joined: `hq` of end-to-end tests has two clients already")
    soak.ON = config.getoption("--soak")
    use_memory()
    for path in abandoned():  # of killed runs: it fills the memory, and `doctor` reports it
        remove_tree(path)


def use_memory() -> None:
    """Temporary files lie in memory where there is room: most of what tests wait for is a disk that
    syncs.

    Whoever sets TMPDIR is taken at their word.
    """
    if "TMPDIR" in os.environ or not os.access(MEMORY, os.W_OK):
        return
    found = os.statvfs(MEMORY)
    if found.f_bavail * found.f_frsize > ROOM and not found.f_flag & os.ST_NOEXEC:
        os.environ["TMPDIR"] = MEMORY
        tempfile.tempdir = None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    soak.choose(config, items)
    items.sort(key=lambda item: item.get_closest_marker("early") is None)


def pytest_collection_finish() -> None:
    gc.freeze()  # thousands of tests stay to the end: no collection of garbage looks at them again


@pytest.fixture(scope="session")
def postgresql() -> Iterator[postgres.Server]:
    """A running server for each process that runs tests; a test takes a schema of its own."""
    yield from postgres.shared()


@pytest.fixture(scope="session")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An HQ whose admin enrolled a lab and a center: made once, to be copied by tests that do
    not test enrolment.
    """
    from tests.client.real_hq import real_hq

    path = tmp_path_factory.mktemp("enrolled")

    async def make() -> None:
        async with real_hq(path) as hq:
            await hq.join("FL-LAB", "CA-RC")

    trio.run(make)
    return path


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

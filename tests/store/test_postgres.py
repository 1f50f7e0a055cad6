"""The suite on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cipherbox.store.port import Store
from cipherbox.store.postgres.store import PostgresStore
from tests import postgres
from tests.store.suite import Opener, Suite
from tests.store.suite_records import Records


class TestPostgres(Suite, Records):
    @pytest.fixture(params=["database", "spool"])
    def opener(
        self, request: pytest.FixtureRequest, tmp_path: Path, postgresql: postgres.Server
    ) -> Iterator[Opener]:
        target = postgres.target(postgresql, postgres.schema(), bodies=request.param)
        with ExitStack() as stack:

            def again() -> Store:
                store = PostgresStore(target, tmp_path, create=True, force=True)
                stack.callback(store.close)
                return store

            yield again

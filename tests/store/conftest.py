"""What the tests of PostgreSQL's faults share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cipherbox.store.postgres.store import PostgresStore
from cipherbox.store.postgres.target import Target

Opener = Callable[..., PostgresStore]


@pytest.fixture
def opening(tmp_path: Path) -> Iterator[Opener]:
    """Opens stores that are closed at the end of the test."""
    with ExitStack() as stack:

        def opened(target: Target, **more: Any) -> PostgresStore:
            store = PostgresStore(target, tmp_path, **{"create": True, **more})
            stack.callback(store.close)
            return store

        yield opened

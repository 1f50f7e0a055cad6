"""What takes long: `make test` plays a tenth of it, `make soak` the whole, with the same
assertions.

    @soak.more                                       there is more of it in `make soak`,
    @settings(max_examples=soak.of(200))             which is 200 there and 20 in `make test`
    @soak.only                                       it runs in `make soak` alone

`pytest --soak` (what `make soak` says) runs the tests with one of these marks and no other; without
it, those of `only` are skipped.  How much there is, is known when this module is read: conftest.py
sets `ON` before.
"""

from __future__ import annotations

import pytest

ON = False
more = pytest.mark.soak
only = pytest.mark.soak(only=True)


def of(whole: int) -> int:
    """How much of it now."""
    return whole if ON else -(-whole // 10)


def choose(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is not played now."""
    if ON:
        unmarked = [item for item in items if not item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=unmarked)
        items[:] = [item for item in items if item.get_closest_marker("soak")]
        return
    for item in items:
        mark = item.get_closest_marker("soak")
        if mark is not None and mark.kwargs.get("only"):
            item.add_marker(pytest.mark.skipif(True, reason="runs in `make soak`"))

"""A clock of this machine that is set otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cipherbox import clock
from cipherbox.server.hq import HQ


@contextmanager
def shifted_clock(days: float) -> Iterator[None]:
    """Shift this machine's clock."""
    before = clock.now_s
    clock.now_s = lambda: before() + days * 86_400
    try:
        yield
    finally:
        clock.now_s = before


@contextmanager
def confirmed_clock(hq: HQ, days: float) -> Iterator[None]:
    """Shift the clock, and tell HQ that it is right; afterwards, too."""
    try:
        with shifted_clock(days):
            hq.clock.confirm()
            yield
    finally:
        hq.clock.confirm()

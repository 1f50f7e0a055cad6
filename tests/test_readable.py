"""Sizes and times as people read them."""

from __future__ import annotations

import pytest

from cipherbox.apps.page import site
from cipherbox.cli import output
from cipherbox.readable import local_time, size_text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (4 << 30, "4.3 GB"), (10**15, "1000.0 TB")],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize("ms", [2**62, 2**63 - 1, -(2**62)])
def test_a_time_that_no_calendar_has_is_shown_as_a_number(ms: int) -> None:
    """A hostile HQ says when it accepted something; listings show it all the same."""
    assert local_time(ms) is None
    assert output.time_text(ms) == site.time_text(ms) == f"{ms} ms"


def test_times_are_those_of_this_machine() -> None:
    then = local_time(1_790_000_000_000)
    assert then is not None
    assert then.timestamp() == 1_790_000_000
    assert output.time_text(1_790_000_000_000) == f"{then:%Y-%m-%d %H:%M:%S}"
    assert site.time_text(1_790_000_000_000) == f"{then:%Y-%m-%d %H:%M}"
    assert output.time_text(0) == site.time_text(0) == "-"

"""`cipherbox prove` with real processes: it finds nothing wrong here, and it finds what a broken store does."""

import json
from pathlib import Path

from .conftest import shell


def test_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    shown = shell("prove", "--rounds", "5", "--json", home=tmp_path)
    found = json.loads(shown.out)
    assert shown.code == 0, (shown.err, found)
    assert (found["lost"], found["duplicated"], found["unexpected"]) == (0, 0, 0)
    assert found["confirmed"] > 0
    assert found["kills"] + found["cuts"] == found["rounds"] == 5


def test_a_store_that_loses_is_found_out(tmp_path: Path) -> None:
    shown = shell("prove", "--rounds", "2", "--seed", "5", "--broken-store", home=tmp_path)
    assert shown.code == 1, shown.err
    words = shown.out.replace(",", "").split()
    assert int(words[words.index("lost") + 1]) > 0
    assert "which HQ confirmed" in shown.err

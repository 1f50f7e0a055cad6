"""`cipherbox dead`: what was given up on is seen with its reason, sent again, or dropped by an
admin alone.
"""

import json
from pathlib import Path

import pytest

from .conftest import Hq, shell


def dead(hq: Hq, *arguments: str, home: Path | None = None) -> list[dict[str, object]]:
    shown = shell("dead", "list", "--json", *arguments, home=home or hq.admin)
    assert shown.code == 0, shown.err
    found: list[dict[str, object]] = json.loads(shown.out)
    return found


@pytest.mark.joined
def test_from_dead_to_delivered_or_dropped(hq: Hq, tmp_path: Path) -> None:
    lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
    declare = ("queue", "declare", "short", "--owner", "CA-RC", "--max-length")
    assert shell(*declare, "2", home=hq.admin).code == 0
    assert shell("exchange", "declare", "labs", home=hq.admin).code == 0
    assert shell("binding", "declare", "labs", "short", "k", home=hq.admin).code == 0
    assert shell("grant", "FL-LAB", "publish", "labs", home=hq.admin).code == 0
    assert shell("route", "allow", "labs", "CA-RC", home=lab).code == 0
    for text in ("one", "two", "three", "four"):
        assert shell("send", "--exchange", "labs", "--key", "k", text, home=lab).code == 0
    first, second = dead(hq)
    assert (first["queue"], first["sender"], first["reason"]) == (
        "short",
        "FL-LAB",
        "the queue exceeded its maximum length",
    )
    letters = [f"{row['queue']}/{row['seq']}" for row in (first, second)]
    assert dead(hq, "short", home=center) == [first, second]
    assert shell("dead", "list", "short", home=lab).code == 1  # not its queue
    everybodys = shell("dead", "list", home=lab)
    assert (everybodys.code, "one of your queues, for example box.FL-LAB" in everybodys.err) == (
        1,
        True,
    )
    assert shell("dead", "drop", "--yes", letters[0], home=center).code == 1  # an admin's alone
    # which pushes out the next
    assert shell("dead", "redrive", letters[0], home=hq.admin).code == 0
    assert len(dead(hq)) == 2
    assert shell(*declare, "0", home=hq.admin).code == 0
    assert shell("dead", "redrive", "--queue", "short", home=center).code == 0
    assert dead(hq) == []
    assert shell("dead", "redrive", letters[0], home=hq.admin).code == 1  # it is settled
    assert (
        shell("receive", "--queue", "short", "--count", "4", "--idle", "20", home=center).code == 0
    )
    lines = (center / "data" / "received_messages.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["content"] for line in lines) == ["four", "one", "three", "two"]

    assert shell("send", "--to", "CA-RC", "never read", home=lab).code == 0
    assert shell("queue", "purge", "box.CA-RC", "--yes", home=hq.admin).code == 0
    (purged,) = dead(hq)
    letter = f"box.CA-RC/{purged['seq']}"
    assert shell("dead", "drop", letter, home=hq.admin).code == 2  # nobody can be asked
    assert shell("dead", "drop", "--yes", letter, home=hq.admin).code == 0
    assert dead(hq) == []
    shown = shell("dead", "show", letter, home=hq.admin)
    assert "dropped" in shown.out
    log = shell("audit", "show", "--last", "1000", home=hq.admin).out
    assert f"admin  dropped {letter}" in log
    assert shell("audit", "verify", home=hq.admin).code == 0

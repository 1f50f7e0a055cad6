"""`make mutate`: the changes that are known to mean the same are told from the other survivors."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

from tests import mutate, mutate_sim

SURVIVOR = """\
# cipherbox.envelope.ids.x_id_time_ms__mutmut_4: survived
--- cipherbox/envelope/ids.py
+++ cipherbox/envelope/ids.py
@@ -1,3 +1,3 @@
 def id_time_ms(envelope_id: bytes) -> int:
-    return int.from_bytes(envelope_id[:6], {before})
+    return int.from_bytes(envelope_id[:6], {after})
"""
NAME = "cipherbox.envelope.ids.x_id_time_ms__mutmut_4"


def test_each_equivalent_change_is_of_a_line_that_stands_in_its_module() -> None:
    rows = tomllib.loads(mutate.EQUIVALENT.read_text("utf-8"))["equivalent"]
    for row in rows:
        module = Path(mutate.ROOT, "cipherbox", *row["module"].split(".")).with_suffix(".py")
        lines = {line.strip() for line in module.read_text("utf-8").splitlines()}
        assert row["line"] in lines, f"{row['module']}: {row['line']} is stale: take it off"
        assert row["change"].split(" -> ")[0] in row["line"]
        assert row["reason"]


def test_each_change_that_the_simulation_need_not_notice_is_possible() -> None:
    for row in tomllib.loads(mutate_sim.EQUIVALENT.read_text("utf-8"))["equivalent"]:
        source = Path(mutate.ROOT, "cipherbox", row["file"]).read_text("utf-8")
        lines = source.splitlines()
        possible = {
            mutate_sim.changed(source, number, place)[2]
            for number, place, at in mutate_sim.places(ast.parse(source))
            if lines[at - 1].strip() == row["line"]
        }
        assert row["change"] in possible, f"{row['file']}: {row['line']} is stale: take it off"
        assert row["reason"]


def test_only_the_listed_change_of_a_line_is_known() -> None:
    known = mutate.equivalents()
    dropped = SURVIVOR.format(before='"big"', after="")
    assert mutate.change_of(NAME, dropped) in known
    other = SURVIVOR.format(before='"big"', after='"XXbigXX"')
    assert mutate.change_of(NAME, other) not in known

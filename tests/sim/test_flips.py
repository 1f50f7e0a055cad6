"""A flipped bit: nothing false is delivered, and no program ends with an error that is not ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import soak
from tests.sim import disk
from tests.sim.flips import play_flip
from tests.sim.test_sim import make_template
from tests.sim.world import Template, World

pytestmark = pytest.mark.skipif(bool(disk.why_not()), reason=disk.why_not() or "-")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return make_template(tmp_path_factory.mktemp("template"))


@soak.more
@pytest.mark.parametrize("seed", range(1000 if soak.ON else 4))
def test_a_flipped_bit_makes_nothing_false(
    seed: int, template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, (what, why) = play_flip(World(tmp_path, template, seed), seed, monkeypatch)
    assert what != "false", (file, why)

"""A running `serve` has not loaded what opens a message: looked at in the process itself, after
real work.
"""

from pathlib import Path

from .conftest import Hq, make_hq, serving, shell


def test_serve_never_loads_sealing(tmp_path: Path) -> None:
    directory, admin = make_hq(tmp_path, joined=True)
    modules = tmp_path / "modules"
    with serving(directory, modules) as process:
        hq = Hq(directory, admin, process)
        lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
        assert shell("send", "--to", "CA-RC", "hello", home=lab).code == 0
        assert "1 message(s) received" in shell("fetch", home=center).out
    loaded = modules.read_text().splitlines()
    assert "cipherbox.server.engine" in loaded
    assert [
        name for name in loaded if name.startswith(("cipherbox.sealing", "cipherbox.client"))
    ] == []

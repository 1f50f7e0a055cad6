"""Running `cipherbox` in this process: what a terminal would show, and the exit code."""

import io
import sys
from collections.abc import Callable

import attrs
import pytest

from cipherbox.cli.main import main


@attrs.frozen
class Shown:
    """The end of one command."""

    code: int
    out: str
    err: str


Run = Callable[..., Shown]


@pytest.fixture
def cipherbox(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """``cipherbox("send", "--to", "X", stdin="...")``."""
    monkeypatch.delenv("CIPHERBOX_DEBUG", raising=False)

    def run(*arguments: str, stdin: str = "") -> Shown:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(list(arguments))
        out, err = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Shown(caught.value.code, out, err)

    return run

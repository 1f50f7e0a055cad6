"""Who writes `ca-rc` is told of CA-RC, whatever the command."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import trio

from cipherbox.cli import main as cli
from cipherbox.client.suggest import nearest


def test_case_counts_before_likeness() -> None:
    assert nearest("ca-rc", ["CA-RD", "CA-RC"]) == "CA-RC"
    assert nearest("CA-RCC", ["CA-RC", "FL-LAB"]) == "CA-RC"
    assert nearest("NY", ["CA-RC", "FL-LAB"]) == ""


COMMANDS = (
    ["send", "--to", "ca-rc", "hello"],
    ["keys", "verify", "ca-rc"],
    ["clients", "show", "ca-rc"],
    ["clients", "ca-rc"],
)


async def test_a_client_id_in_lower_case(hq: Any) -> None:
    def run(words: list[str], shown: io.StringIO) -> int:
        with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(shown):
            return cli.run(["--home", str(hq.home("FL-LAB")), *words])

    with trio.fail_after(60):
        for words in COMMANDS:
            shown = io.StringIO()
            assert await trio.to_thread.run_sync(run, words, shown) != 0
            assert "Did you mean CA-RC?" in " ".join(shown.getvalue().split()), (
                words,
                shown.getvalue(),
            )

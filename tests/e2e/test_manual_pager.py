"""A manual page on a terminal: through the reader's pager, laid out for the width; into a pipe
as Markdown.
"""

import stat
from pathlib import Path

from .conftest import shell
from .terminal import on_terminal


def test_a_page_goes_through_the_pager_of_a_terminal_alone(tmp_path: Path) -> None:
    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\necho paged\nexec cat\n")
    pager.chmod(pager.stat().st_mode | stat.S_IXUSR)
    environment = {"PAGER": str(pager), "TERM": "xterm", "COLUMNS": "80"}
    with on_terminal("manual", "exit-codes", home=tmp_path, **environment) as terminal:
        terminal.expect("paged\r\n")
        terminal.expect("EXIT CODES")
        terminal.expect(r"(?m)^ +130 ")
        assert terminal.end() == 0
        assert max(map(len, terminal.shown.splitlines())) <= 80
    with on_terminal(
        "manual", "exit-codes", "--no-pager", home=tmp_path, **environment
    ) as terminal:
        terminal.expect("EXIT CODES")
        assert terminal.end() == 0
        assert "paged" not in terminal.shown
    assert shell("manual", "exit-codes", home=tmp_path, **environment).out.startswith(
        "# Exit codes\n"
    )

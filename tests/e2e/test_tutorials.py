"""The tutorials, played as a reader plays them: HQ's, the center's and the lab's against each
other.  Each start is a fork of a warm process, which costs less; that the one file holds what these
commands need is tested in test_pyz.py, and test_demo.py plays with it.

How a page is read.  A block `sh` is run; the block `text` after it is what it prints: each line is
there, in this order, `...` stands for anything, other lines may stand between.  A command that
stays (serve, receive, agent) is left running; a `text` block after nothing new was printed is about
it, and is waited for; with a first line `^C` it is interrupted first.  Replaced are HQ's address,
and MESSAGE_ID by the id that was printed last.
"""

import os
import re
import shlex
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cipherbox.cli.manual import manual_pages
from cipherbox.harness.stage import free_port
from cipherbox.ops.unpack import CACHE_VARIABLE

from .conftest import ENVIRONMENT, LIMIT_S, PROGRAM
from .forwarded import Forwarder

ADDRESS, PORT = "192.0.2.10:7443", ":7443"
STAYS = re.compile(r"cipherbox (serve|agent|receive(?!.*--idle))\b")
# Shows what others do: repeated until it shows what the page says.
LOOKS = re.compile(r"(cipherbox (status|inbox list)|ls|find|cat) (?!>)")
ID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}\b")
ASKED = "reads to you (bundle 1): "
Patient = Callable[[Callable[[], bool]], None]


class Reader:
    """One page, one machine: a folder that is home too, and the file in it."""

    def __init__(
        self,
        page: str,
        folder: Path,
        pyz: Path,
        address: str,
        patient: Patient,
        forwarder: Forwarder,
    ) -> None:
        text = manual_pages()[page]
        found = re.finditer(r"^## [^\n]*|```(sh|text)\n(.*?)```", text, re.MULTILINE | re.DOTALL)
        self.steps = [(match[1] or "section", match[2] or match[0]) for match in found]
        self.folder, self.address, self.patient = folder, address, patient
        python = folder.parent / f"{folder.name}-bin" / "python3"
        self.at = 0
        self.printed = ""  # of the newest command that ended
        self.answer = ""  # to what `keys verify` asks
        self._id = ""
        self._fresh = False  # a command was run and its output is not compared yet
        self._staying: subprocess.Popen[bytes] | None = None
        self._log = folder.with_suffix(".log")
        folder.mkdir()
        (folder / "cipherbox.pyz").symlink_to(pyz)
        python.parent.mkdir()
        python.write_text(f'#!/bin/sh\nexec {shlex.join(forwarder.command)} "$@"\n')
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        path, cache = f"{python.parent}:{os.environ['PATH']}", str(pyz.parent / "cache")
        self.environment = ENVIRONMENT | {"HOME": str(folder), "PATH": path, CACHE_VARIABLE: cache}

    def play(self, until: str = "") -> None:
        """Goes on to the section ``until``, or to the end."""
        for kind, text in self.steps[self.at :]:
            if until and text == f"## {until}":
                return
            self.at += 1
            if kind == "sh":
                self.run(text)
            elif kind == "text":
                self.compare(text)
        assert not until, f"there is no section {until!r} left"

    def run(self, block: str) -> None:
        block = block.replace(ADDRESS, self.address).replace("MESSAGE_ID", self._id)
        if STAYS.match(block):
            with self._log.open("wb") as log:
                self._staying = subprocess.Popen(
                    [*PROGRAM, *shlex.split(block)[1:]],
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    env=self.environment,
                    start_new_session=True,
                )
            self._fresh = False
            return
        script = (
            'shopt -s expand_aliases\nalias cipherbox="python3 $PWD/cipherbox.pyz"\nset '
            f"-e\n{block}"
        )
        done = subprocess.run(
            ["bash", "-c", script],
            input=f"{self.answer}\n".encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            env=self.environment,
            timeout=LIMIT_S,
            check=False,
        )
        self.printed = done.stdout.decode().replace(ASKED, f"{ASKED}{self.answer}\n")
        assert done.returncode == 0 or LOOKS.match(block), f"{block}\n{self.printed}"
        self._fresh = bool(self.printed)
        if ids := ID.findall(self.printed):
            self._id = ids[-1]

    def compare(self, expected: str) -> None:
        lines = expected.replace(PORT, ":" + self.address.rpartition(":")[2]).splitlines()
        if self._fresh:
            self._fresh = False
            before = self.steps[self.at - 2][1]
            if LOOKS.match(before) and missing(lines, self.printed):
                self.patient(lambda: self.run(before) is None and not missing(lines, self.printed))
                self._fresh = False
            assert not missing(lines, self.printed), (
                f"{missing(lines, self.printed)!r} is not in\n{self.printed}"
            )
            return
        assert self._staying is not None
        if lines[0] == "^C":
            self._staying.send_signal(signal.SIGINT)
            assert self._staying.wait(LIMIT_S) == 0, self._log.read_text("utf-8")
            del lines[0]
        try:
            self.patient(lambda: not missing(lines, self._log.read_text("utf-8")))
        except AssertionError:
            log = self._log.read_text("utf-8")
            raise AssertionError(f"{missing(lines, log)!r} is not in\n{log}") from None

    def end(self) -> None:
        if self._staying is not None and self._staying.poll() is None:
            self._staying.kill()
            self._staying.wait(LIMIT_S)


def missing(lines: list[str], printed: str) -> str:
    """The first of ``lines`` that is not in what was printed, after those before it; empty: all
    are there.
    """
    there = iter([" ".join(line.split()) for line in printed.splitlines()])
    for line in lines:
        pattern = re.compile(".*".join(map(re.escape, " ".join(line.split()).split("..."))))
        if not any(pattern.fullmatch(one) for one in there):
            return line
    return ""


def test_a_missing_line_is_noticed() -> None:
    printed = "one  1\nbetween\ntwo: 2 of 3\n"
    assert missing(["one 1", "two: ... of 3"], printed) == ""
    assert missing(["two: ... of 3", "one 1"], printed) == "one 1"
    assert missing(["two: ... of 4"], printed) == "two: ... of 4"
    assert missing(["one"], printed) == "one"


@pytest.fixture
def readers(
    request: pytest.FixtureRequest, pyz: Path, tmp_path: Path, patient: Patient
) -> Iterator[dict[str, Reader]]:
    address = f"127.0.0.1:{free_port()}"
    pages = getattr(request, "param", {})
    forwarder = Forwarder(tmp_path / "forwarder")
    found = {}
    for name in ("hq", "lab", "center"):
        page = f"tutorial-{pages.get(name, name)}"
        found[name] = Reader(page, tmp_path / name, pyz, address, patient, forwarder)
    try:
        yield found
    finally:
        for reader in found.values():
            reader.end()
        forwarder.close()


@pytest.mark.early
def test_three_people_play_the_tutorials(readers: dict[str, Reader]) -> None:
    hq, lab, center = readers["hq"], readers["lab"], readers["center"]
    hq.play(until="When they have joined")
    for reader, token in ((lab, "fl-lab.token"), (center, "ca-rc.token")):
        (reader.folder / token).write_bytes((hq.folder / token).read_bytes())

    center.play(until="Receive")
    lab.answer = center.printed.splitlines()[0]
    assert len(lab.answer.split()) == 6
    center.play(until="When the lab has sent")
    lab.play(until="When the center asks for one more")
    center.play(until="Run it")
    lab.play()
    center.play()
    hq.play()
    for reader in readers.values():
        assert reader.at == len(reader.steps)


@pytest.mark.parametrize(
    "readers", [{"lab": "folders", "center": "exec"}], indirect=True, ids=["folders-and-exec"]
)
@pytest.mark.early
def test_a_lab_of_folders_and_a_center_of_one_program(readers: dict[str, Reader]) -> None:
    hq, lab, center = readers["hq"], readers["lab"], readers["center"]
    hq.play(until="When they have joined")
    for reader, token in ((lab, "fl-lab.token"), (center, "ca-rc.token")):
        (reader.folder / token).write_bytes((hq.folder / token).read_bytes())

    center.play(until="When the lab has sent")
    lab.play(until="Send one more")
    center.play(until="Make it available again")
    lab.play(until="Send what the center refuses")
    center.play(until="What the program refuses")
    lab.play(until="End")
    center.play()
    lab.play()
    for reader in (lab, center):
        assert reader.at == len(reader.steps)

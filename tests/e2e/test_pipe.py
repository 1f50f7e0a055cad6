"""`cipherbox pipe` between real processes: programs at both ends, HQ killed, an end killed."""

import hashlib
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from cipherbox.cli.exits import Exit

from .conftest import ENVIRONMENT, LIMIT_S, PROGRAM, Hq, make_hq, serving, shell

Wait = Callable[[Callable[[], bool]], None]


@contextmanager
def pipe(
    *arguments: str,
    home: Path,
    stdin: int | IO[bytes] = subprocess.PIPE,
    stdout: int | IO[bytes] = subprocess.PIPE,
) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(
        [*PROGRAM, "--home", str(home), "pipe", *arguments],
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(LIMIT_S)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def error(process: "subprocess.Popen[bytes]") -> str:
    assert process.stderr is not None
    return process.stderr.read().decode()


pytestmark = pytest.mark.joined


@pytest.fixture
def homes(hq: Hq) -> tuple[Path, Path]:
    return hq.join("FL-LAB"), hq.join("CA-RC")


def test_a_file_there_and_an_answer_back(homes: tuple[Path, Path], tmp_path: Path) -> None:
    lab, center = homes
    given = random.Random(1).randbytes(12_345_678)
    (tmp_path / "given").write_bytes(given)
    with (tmp_path / "given").open("rb") as source, (tmp_path / "got").open("wb") as target:
        with (
            pipe("CA-RC", home=lab, stdin=source) as here,
            pipe("FL-LAB", "--listen", home=center, stdout=target) as there,
        ):
            assert there.stdin is not None
            there.stdin.write(b"thanks\0\n")
            there.stdin.close()
            assert here.wait(LIMIT_S) == Exit.OK, error(here)
            assert there.wait(LIMIT_S) == Exit.OK, error(there)
            assert here.stdout is not None
            assert here.stdout.read() == b"thanks\0\n"
    assert (
        hashlib.sha256((tmp_path / "got").read_bytes()).digest() == hashlib.sha256(given).digest()
    )
    assert shell("fetch", "--json", home=center).out == ""


def test_talk_in_turns(homes: tuple[Path, Path]) -> None:
    lab, center = homes
    with pipe("FL-LAB", "--listen", home=center) as there, pipe("CA-RC", home=lab) as here:
        assert here.stdin is not None
        assert here.stdout is not None
        assert there.stdin is not None
        assert there.stdout is not None
        for number in range(3):
            here.stdin.write(b"question %d\n" % number)
            here.stdin.flush()
            assert there.stdout.readline() == b"question %d\n" % number
            there.stdin.write(b"answer %d\n" % number)
            there.stdin.flush()
            assert here.stdout.readline() == b"answer %d\n" % number
        here.stdin.close()
        assert there.stdout.read() == b"", "the end of the input is carried"
        there.stdin.write(b"last word")
        there.stdin.close()
        assert here.stdout.read() == b"last word"
        assert here.wait(LIMIT_S) == there.wait(LIMIT_S) == Exit.OK


def test_hq_killed_in_the_middle(tmp_path: Path, patient: Wait) -> None:
    directory, admin = make_hq(tmp_path, joined=True)
    given, half = random.Random(2).randbytes(20_000_000), 10_000_000
    got = tmp_path / "got"
    with serving(directory) as process, got.open("wb") as target:
        hq = Hq(directory, admin, process)
        lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
        with (
            pipe(
                "FL-LAB", "--listen", home=center, stdin=subprocess.DEVNULL, stdout=target
            ) as there,
            pipe("CA-RC", home=lab, stdout=subprocess.DEVNULL) as here,
        ):
            assert here.stdin is not None
            here.stdin.write(given[:half])
            here.stdin.flush()
            patient(lambda: got.stat().st_size > 2_000_000)
            process.kill()
            process.wait(LIMIT_S)
            with serving(directory):
                here.stdin.write(given[half:])
                here.stdin.close()
                assert here.wait(LIMIT_S) == Exit.OK, error(here)
                assert there.wait(LIMIT_S) == Exit.OK, error(there)
                assert "connected to HQ again" in error(here)
    assert got.read_bytes() == given


def test_an_end_that_is_killed(homes: tuple[Path, Path]) -> None:
    lab, center = homes
    with (
        pipe("FL-LAB", "--listen", "--idle", "10s", home=center) as there,
        pipe("CA-RC", "--idle", "10s", home=lab) as here,
    ):
        assert here.stdin is not None
        assert there.stdout is not None
        here.stdin.write(b"begun\n")
        here.stdin.flush()
        assert there.stdout.readline() == b"begun\n"
        here.send_signal(signal.SIGKILL)
        assert there.wait(LIMIT_S) == Exit.NETWORK
        said = error(there)
        assert (
            "Nothing came from FL-LAB for 10 s: its program, its machine or its line is gone"
            in said
        )
        assert "cipherbox manual tools" in said


def test_an_end_that_is_stopped_and_an_output_that_is_closed(homes: tuple[Path, Path]) -> None:
    lab, center = homes
    with pipe("FL-LAB", "--listen", home=center) as there, pipe("CA-RC", home=lab) as here:
        assert here.stdin is not None
        assert there.stdout is not None
        here.stdin.write(b"begun\n")
        here.stdin.flush()
        assert there.stdout.readline() == b"begun\n"
        here.send_signal(signal.SIGINT)
        assert here.wait(LIMIT_S) == Exit.INTERRUPTED
        assert there.wait(LIMIT_S) == Exit.NETWORK
        assert "FL-LAB broke off: it was stopped" in error(there)
    with (
        pipe("FL-LAB", "--listen", home=center) as there,
        pipe("CA-RC", home=lab, stdin=subprocess.DEVNULL) as here,
    ):
        assert here.stdout is not None
        assert there.stdin is not None
        here.stdout.close()
        there.stdin.write(b"nobody reads this")
        there.stdin.flush()
        assert here.wait(LIMIT_S) == Exit.OUTPUT
        assert "Standard output is no longer read" in error(here)
        assert there.wait(LIMIT_S) == Exit.NETWORK
        assert "FL-LAB broke off" in error(there)


def test_what_is_said_when_it_cannot_begin(homes: tuple[Path, Path]) -> None:
    lab, center = homes
    nobody = shell("pipe", "CA-RC", "--within", "1s", home=lab)
    assert nobody.code == Exit.NETWORK
    assert "CA-RC did not answer within 1 s; there it takes: " in nobody.err
    assert "cipherbox pipe FL-LAB --listen" in nobody.err
    assert shell("pipe", "XX-LAB", home=lab).code == Exit.REFUSED
    assert shell("pipe", "FL-LAB", home=lab).code == Exit.USAGE
    assert shell("pipe", "CA-RC", "--idle", "1s", home=lab).code == Exit.USAGE
    with pipe("FL-LAB", "--listen", home=center, stdin=subprocess.DEVNULL):
        for _ in range(100):
            beside = shell("receive", "--idle", "0.1s", home=center)
            if beside.code == Exit.STORE:
                break
            threading.Event().wait(0.2)  # it needs the home, too, to begin
        assert "in use by another CipherBox process" in beside.err
    strays = shell("fetch", home=center)
    assert strays.out.startswith("0 message(s)") or "\n0 message(s)" in strays.out, strays.out

"""Each command that writes, killed at any instant and run again: the second run succeeds, or says
that the first had done it; nothing is left over, and no secret ever lies open.  The others are run
to see that they write nothing.

A command that is in no table here fails the test: a new one needs a row.  `make test` plays some
instants of the commands that need no HQ, `make soak` all instants of all.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import re
import shlex
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import attrs
import click
import pytest

from cipherbox.cli.main import cli
from cipherbox.harness.stage import free_port
from tests import postgres, soak
from tests.client.real_hq import copy_hq
from tests.data.unpack import unpack

from .conftest import ENVIRONMENT, PROGRAM, line_with, make_hq, serving, shell
from .killing import in_the_open, killed_at, names, secrets_of

NEVER = 1 << 30
WORD = "correct horse battery staple 17"


@attrs.frozen
class Row:
    """A command, as `HOME: words`.  ``before``: what is run first, each time.  ``done``: what the
    second run may say instead of succeeding, because the first was killed after its last step.
    ``first``: what is run once, before HQ starts in the directory ``hq``.
    """

    command: str
    before: tuple[str, ...] = ()
    done: str = ""
    first: tuple[str, ...] = ()
    hq: str = "hq"


OFF = "admin: ca take-off {w}/hq {w}/stick --all --yes"
EXPORT = "admin: ca export {w}/requests --hq {w}/hq"
SIGN = "admin: ca sign {w}/requests {w}/signed --ca {w}/stick --yes"
# without HQ, each time on a fresh copy of `world`
ALONE: dict[str, Row] = {
    "init": Row("boss: init {w}/another --address 127.0.0.1:{port}", done="already has an HQ"),
    "backup": Row("admin: backup {w}/hq --to {w}/out/backup", done="already exists"),
    "restore": Row(
        "admin: restore {w}/backup {w}/again",
        ("admin: backup {w}/hq --to {w}/backup",),
        "cipherbox serve",
    ),
    "store copy": Row("admin: store copy {w}/hq sqlite:{w}/out/new.sqlite3 --switch"),
    "ca take-off": Row(OFF, done="taken off before"),
    "ca bring-back": Row("admin: ca bring-back {w}/hq {w}/stick --all", (OFF,)),
    "ca renew": Row("admin: ca renew {w}/hq"),
    "ca export": Row(EXPORT, (OFF,)),
    "ca sign": Row(SIGN, (OFF, EXPORT)),
    "ca import": Row("admin: ca import {w}/signed --hq {w}/hq", (OFF, EXPORT, SIGN), "nothing new"),
    "clock confirm": Row("FL-LAB: clock confirm --hq {w}/hq --yes"),
    "doctor": Row("FL-LAB: doctor {w}/hq --clean"),
    "keys password": Row(
        "FL-LAB: keys password --new-password-file {w}/word", done="--password-file"
    ),
    "keys export": Row("FL-LAB: keys export {w}/out/bundle"),
    "inbox export": Row("CA-RC: inbox export {w}/out/lines", done="exists"),
    "inbox save": Row("CA-RC: inbox save {file} {w}/out/saved", done="exists"),
    "inbox rotate": Row("CA-RC: inbox rotate"),
    "inbox lock": Row(
        "CA-RC: --password-file {w}/word inbox lock",
        ("CA-RC: keys password --new-password-file {w}/word",),
    ),
    "receipt export": Row("FL-LAB: receipt export {text} --output {w}/out/receipts"),
    "route allow": Row("FL-LAB: route allow results CA-RC"),
    "outbox cancel": Row("FL-LAB: outbox cancel {later} --yes", done="cancelled"),
    "audit accept": Row("FL-LAB: audit accept --yes"),
    "alerts test": Row("FL-LAB: alerts test"),
}
DEAD = ("FL-LAB: send --to CA-RC text-{n}", "admin: queue purge box.CA-RC --yes")
# with a running HQ, one after the other; {n} is new each time
SERVED: dict[str, Row] = {
    "enroll": Row("admin: enroll NEW-{n} --output {w}/out/token"),
    "join": Row(
        "K-{n}: join --token-file {w}/out/token-{n}",
        ("admin: enroll K-{n} --output {w}/out/token-{n}",),
        "already",
    ),
    "approve": Row(
        "admin: approve P-{n}",
        (
            "admin: enroll P-{n} --approve --output {w}/out/token-{n}",
            "P-{n}: join --token-file {w}/out/token-{n}",  # it waits, until it is killed
        ),
        "No enrolment",
    ),
    "audit restored": Row(
        "admin: audit restored --yes",
        first=("admin: backup {w}/hq --to {w}/backup", "admin: restore {w}/backup {w}/again"),
        hq="again",
    ),
    "revoke": Row(
        "admin: revoke R-{n} --yes",
        (
            "admin: enroll R-{n} --output {w}/out/token-{n}",
            "R-{n}: join --token-file {w}/out/token-{n}",
        ),
    ),
    "grant": Row("admin: grant FL-LAB publish default_exchange"),
    "exchange declare": Row("admin: exchange declare x{n}"),
    "exchange delete": Row(
        "admin: exchange delete x{n} --yes", ("admin: exchange declare x{n}",), "No exchange"
    ),
    "queue declare": Row("admin: queue declare q{n} --owner CA-RC"),
    "queue delete": Row(
        "admin: queue delete q{n} --yes", ("admin: queue declare q{n} --owner CA-RC",), "No queue"
    ),
    "queue purge": Row("admin: queue purge q --yes", ("admin: queue declare q --owner CA-RC",)),
    "binding declare": Row(
        "admin: binding declare default_exchange q k{n}", ("admin: queue declare q --owner CA-RC",)
    ),
    "binding delete": Row(
        "admin: binding delete default_exchange q k{n}",
        ("admin: queue declare q --owner CA-RC", "admin: binding declare default_exchange q k{n}"),
        "is not bound",
    ),
    "clients limit": Row("admin: clients limit FL-LAB bytes 1000000000"),
    "clients roles": Row("admin: clients roles FL-LAB client"),
    "clients kick": Row("admin: clients kick FL-LAB", done="No connection"),
    "contacts allow": Row("CA-RC: contacts allow FL-LAB"),
    "contacts block": Row("CA-RC: contacts block NY-LAB"),
    "dead drop": Row("admin: dead drop --queue box.CA-RC --yes", DEAD, "No dead letter"),
    "dead redrive": Row("admin: dead redrive --queue box.CA-RC", DEAD, "No dead letter"),
    "clock watermark": Row("admin: clock watermark --yes"),
    "drain": Row("admin: drain --undo --yes"),
    "reload": Row("admin: reload"),
    "audit verify": Row("admin: audit verify"),
    "witness": Row("FL-LAB: witness --once"),
    "send": Row("FL-LAB: send --to CA-RC --file {w}/large.bin --copy"),
    "fetch": Row("CA-RC: fetch", ("FL-LAB: send --to CA-RC --file {w}/large.bin",)),
    "receive": Row("CA-RC: receive --idle 0.2", ("FL-LAB: send --to CA-RC text-{n}",)),
    "outbox send": Row("FL-LAB: outbox send"),
    "outbox retry": Row("FL-LAB: outbox retry {waits} --seal-again"),
    "inbox retry": Row("CA-RC: inbox retry"),
    "outbox reseal": Row("FL-LAB: outbox reseal", ("FL-LAB: send --to CA-RC text-{n}",)),
    "keys rotate": Row("FL-LAB: keys rotate"),
    "keys renew": Row("FL-LAB: keys renew", ("admin: clients limit FL-LAB certificates 1000",)),
    "keys pin": Row("FL-LAB: keys pin CA-RC"),
    "keys generate": Row("FL-LAB: keys generate --rsa --bits 2048"),
    "keys verify": Row("FL-LAB: keys verify CA-RC --fingerprint '{digits}'"),
    "keys import": Row("FL-LAB: keys import {w}/out/b --yes", ("CA-RC: keys export {w}/out/b",)),
}
# tests of their own kill these, or what they do
ELSEWHERE = {
    "serve": "tests/e2e/test_kill.py",
    "agent": "tests/cases/moments.py",
    "page": "tests/cases/moments.py",  # runs the agent
    "chat": "tests/client/test_chat.py",
    "pipe": "tests/client/test_pipe.py",
    "store upgrade": "tests/e2e/test_killed.py",
    "install": "tests/e2e/test_killed.py",
    "uninstall": "tests/e2e/test_killed.py",
    # what they write is temporary, and theirs: `tests/cli/test_leftovers.py`
    "demo": "tests/e2e/test_demo.py",
    "prove": "tests/e2e/test_prove.py",
    "bench": "tests/cli/test_bench.py",
}
# with a running HQ: these write nothing but the newest head of HQ's log, as each connection does
READ = {
    name: f"{home}: {words or name}"
    for line in """
        FL-LAB: grants
        FL-LAB: config check =config check {w}/hq
        FL-LAB: config show =config show {w}/hq
        admin: dead list
        admin: dead show =dead show {dead}
        FL-LAB: audit evidence =audit evidence {w}/word
        admin: audit show
        admin: top =top --once
        admin: ca show
        admin: clock
        FL-LAB: status =status {text}
        CA-RC: inbox list
        CA-RC: inbox search =inbox search hello
        CA-RC: inbox show =inbox show {text}
        FL-LAB: outbox list
        FL-LAB: outbox show =outbox show {text}
        FL-LAB: receipt verify =receipt verify {w}/receipt
        FL-LAB: clients list
        FL-LAB: clients show =clients show CA-RC
        FL-LAB: alerts list
        FL-LAB: exchange list
        FL-LAB: exchange show =exchange show default_exchange
        FL-LAB: queue list
        CA-RC: queue show =queue show box.CA-RC
        FL-LAB: binding list
        admin: binding show =binding show default_exchange
        CA-RC: contacts list
        FL-LAB: route list
        FL-LAB: route resolve =route resolve default_exchange k
        FL-LAB: keys fingerprint
        FL-LAB: keys list
        FL-LAB: keys show =keys show CA-RC
        FL-LAB: manual =manual clocks
        FL-LAB: python =python {w}/empty.py
        FL-LAB: completion =completion bash
        FL-LAB: version
        """.strip().splitlines()
    for home, _, rest in [line.strip().partition(": ")]
    for name, _, words in [rest.partition(" =")]
}


def leaves(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[str]:
    if isinstance(command, click.Group):
        if command.invoke_without_command:
            yield " ".join(words)
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from leaves(inner, (*words, name))
    else:
        yield " ".join(words)


def test_every_command_is_in_one_table() -> None:
    tables = [set(ALONE), set(SERVED), set(ELSEWHERE), set(READ)]
    listed = [name for table in tables for name in table]
    assert sorted(listed) == sorted(leaves(cli))
    top = Path(__file__).resolve().parents[2]
    assert [path for path in ELSEWHERE.values() if not (top / path).exists()] == []


@functools.cache
def world() -> tuple[Path, dict[str, str]]:
    """An HQ at rest whose clients have sent and received, made once; and the ids of two messages
    that were received and signed for, a text and a file.  Homes name their files by their full
    paths, so it is kept beside the place where it was made, and played there.
    """
    base = Path(tempfile.mkdtemp(prefix="cipherbox-killed-"))
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    place, ids = base / "world", {}
    directory, _ = make_hq(place, joined=True)
    settings = directory / "cipherbox.toml"  # the reserve costs more than all the rest
    small = re.sub(r"(?m)^(disk_reserve_bytes) = \d+$", r"\1 = 65536", settings.read_text())
    settings.write_text(small)
    mine = place / "FL-LAB" / "client.toml"
    mine.write_text(re.sub(r'(?m)^(command) = ""', r'\1 = "true"', mine.read_text()))
    (place / "out").mkdir()
    (place / "large.bin").write_bytes(bytes(range(256)) * 1000)
    (place / "word").write_text(WORD)
    (place / "word").chmod(0o600)
    lab, center = place / "FL-LAB", place / "CA-RC"
    with serving(directory):
        for name, words in (("text", ["hello"]), ("file", ["--file", str(place / "large.bin")])):
            sent = shell("send", "--to", "CA-RC", *words, "--json", home=lab)
            assert sent.code == 0, sent.err
            ids[name] = json.loads(sent.out)["message_ids"][0]
        assert shell("receive", "--count", "2", "--idle", "20", home=center).code == 0
        sent = shell("send", "--to", "CA-RC", "waits", "--json", home=lab)
        ids["waits"] = json.loads(sent.out)["message_ids"][0]
        assert shell("status", ids["text"], home=lab).code == 0
        shown = re.search(r"\d{5}( \d{5}){5}", shell("keys", "fingerprint", home=center).out)
        assert shown
        ids["digits"] = shown[0]
    kept = shell("send", "--to", "CA-RC", "later", "--wait", "queued", "--json", home=lab)
    ids["later"] = json.loads(kept.out)["message_ids"][0]
    (place / "serve.log").unlink()
    place.rename(base / "kept")
    return place, ids


def fresh() -> dict[str, str]:
    """The world as it was made, and what rows may name."""
    place, ids = world()
    shutil.rmtree(place, ignore_errors=True)
    copy_hq(place.with_name("kept"), place, f"127.0.0.1:{free_port()}")
    return {"w": str(place), "port": str(free_port()), "n": "0", **ids}


def split(command: str, values: dict[str, str]) -> tuple[Path, list[str]]:
    home, _, words = command.format(**values).partition(": ")
    return Path(values["w"], home), shlex.split(words)


def run(command: str, values: dict[str, str], done: str = "") -> None:
    """Run a command, which succeeds, or says that it was done; a `join` that waits is killed."""
    home, words = split(command, values)
    if words[0] == "join" and home.name.startswith("P-"):
        waits = [*PROGRAM, "--home", str(home), *words]
        out, err = subprocess.PIPE, subprocess.STDOUT
        with subprocess.Popen(waits, stdout=out, stderr=err, env=ENVIRONMENT) as process:
            line_with(process, "Waiting until the admin")
            process.kill()
        return
    shown = shell(*words, home=home)
    good = (0, 5) if words[0] == "doctor" else (0,)
    assert shown.code in good or (done and done in shown.err), shown.err


def done(row: Row, values: dict[str, str]) -> set[str]:
    """Run a command undisturbed; what is there then."""
    for one in (*row.before, row.command):
        run(one, values)
    return names(Path(values["w"]))


def again(row: Row, values: dict[str, str], step: int, expected: set[str]) -> bool:
    """Kill a command at its ``step`` and run it again; whether it was killed."""
    top = Path(values["w"])
    for one in row.before:
        run(one, values)
    secrets = secrets_of(top)
    home, words = split(row.command, values)
    killed = killed_at(step, *words, home=home)
    if killed.code != -9:
        assert killed.code in (0, 5) if words[0] == "doctor" else killed.code == 0, killed.err
        return False
    assert [*in_the_open(top, secrets)] == []
    run(row.command, values, row.done)
    found = names(top)
    assert found == expected, (step, sorted(found ^ expected))
    return True


def steps(name: str) -> Iterator[int]:
    """All instants, or one that differs from command to command; the first where it has fewer."""
    yield from range(1, 1000) if soak.ON else (1 + 2 * (len(name) % 5), 1)


@soak.more
@pytest.mark.parametrize("name", ALONE)
def test_killed_without_hq(name: str) -> None:
    row = ALONE[name]
    expected = done(row, fresh())
    for step in steps(name):
        if again(row, fresh(), step, expected) != soak.ON:
            break


@soak.only
@pytest.mark.parametrize(
    "command", ["restore {w}/backup {w}/again --database {url}", "store copy {w}/hq {url} --switch"]
)
def test_a_copy_into_postgresql_killed(postgresql: postgres.Server, command: str) -> None:
    row = Row(f"admin: {command}", ("admin: backup {w}/hq --to {w}/backup",), "cipherbox serve")
    expected: set[str] = set()
    for step in (NEVER, *range(1, 1000)):
        url = f"{postgres.url(postgresql)}&schema={postgres.schema()}"
        values = {**fresh(), "url": shlex.quote(url)}
        expected = expected or done(row, values)
        if step != NEVER and not again(row, values, step, expected):
            break


# A program of one file, so that there are tens of instants and not thousands.
SMALL = """
import compileall
from cipherbox.cli.install import source
def copy_to(target):
    target.mkdir(parents=True)
    (target / "one.py").write_bytes(b"1")
compileall.compile_dir = lambda *_, **__: True
source.program_source = lambda *_: source.ProgramSource("0" * 64, copy_to)
"""


@soak.more
@pytest.mark.parametrize("words", ["install", "uninstall"])
def test_an_installation_killed(tmp_path: Path, words: str) -> None:
    def play(step: int, top: Path, words: str, says: str = "") -> bool:
        shown = killed_at(step, words, "--root", str(top), home=tmp_path / "home", first=SMALL)
        assert shown.code in (0, -9) or (says and says in shown.err), shown.err
        return shown.code == -9

    def prepared(name: str) -> Path:
        top = tmp_path / name
        top.mkdir()
        if words == "uninstall":
            play(NEVER, top, "install")
        return top

    whole = prepared("whole")
    play(NEVER, whole, words)
    for step in range(1 if soak.ON else 5, 1000, 1 if soak.ON else 25):
        top = prepared(f"killed-{step}")
        if not play(step, top, words):
            break
        assert not play(NEVER, top, words, "nothing is installed")
        assert names(top) == names(whole), step


@soak.more
def test_an_upgrade_killed(tmp_path: Path) -> None:
    unpack("0.5.0", tmp_path / "kept")
    expected: set[str] = set()
    for step in (NEVER, *(range(1, 1000) if soak.ON else (4, 9))):
        top = tmp_path / f"killed-{step}"
        shutil.copytree(tmp_path / "kept" / "hq", top)
        killed = killed_at(step, "store", "upgrade", str(top), home=tmp_path)
        assert killed.code in (0, -9), killed.err
        again = shell("store", "upgrade", str(top), home=tmp_path)
        assert again.code == 0, again.err
        expected = expected or names(top)
        assert names(top) == expected, step
        if killed.code == 0 and step != NEVER:
            break


@soak.only
@pytest.mark.parametrize("name", SERVED)
def test_killed_with_hq(name: str) -> None:
    row, values = SERVED[name], fresh()
    place = Path(values["w"])
    for one in row.first:
        run(one, values)
    with serving(place / row.hq):
        for one in row.before:
            run(one, values)
        run(row.command, values, row.done)
        expected = {name for name in names(place) if "issuing.crl" not in name}
        for step in range(1, 1000):
            values["n"] = str(step)
            for one in row.before:
                run(one, values)
            home, words = split(row.command, values)
            killed = killed_at(step, *words, home=home)
            if killed.code != -9:
                assert killed.code == 0 or row.done in killed.err, killed.err
                break
            run(row.command, values, row.done)
            found = {name for name in names(place) if "issuing.crl" not in name}
            assert found == expected, (step, sorted(found ^ expected))


# heads of HQ's log; receipts that arrived, and what waited and is sent
OF_A_CONNECTION = {"log.sqlite3", "outbox.sqlite3"}


def contents(top: Path) -> dict[str, str]:
    """What is in each file of HQ's and of the clients, and in the tables of each database."""
    found = {}
    for path in top.rglob("*"):
        if path.suffix == ".sqlite3":
            with closing(sqlite3.connect(path)) as database:
                data = "".join(database.iterdump()).encode()
        elif path.is_file() and not path.name.endswith(("-wal", "-shm", "lock", "serve.log")):
            data = path.read_bytes()
        else:
            continue
        found[str(path.relative_to(top))] = hashlib.sha256(data).hexdigest()
    return found


@soak.only
def test_what_reads_writes_nothing() -> None:
    values = fresh()
    place = Path(values["w"])
    (place / "empty.py").touch()
    with serving(place / "hq"):
        for one in (*DEAD, "admin: queue declare q --owner CA-RC"):
            run(one, values)
        run("admin: binding declare default_exchange q k", values)
        run("FL-LAB: receipt export {text} --output {w}/receipt", values)
        found = shell("dead", "list", "--json", home=place / "admin")
        values["dead"] = "{queue}/{seq}".format(**json.loads(found.out)[0])
        wrong = []
        for command in READ.values():
            before = contents(place)
            home, words = split(command, values)
            shown = shell(*words, home=home)
            after = contents(place)
            changed = {name for name in after | before if after.get(name) != before.get(name)}
            good = shown.code == (8 if words[:2] == ["audit", "evidence"] else 0)
            if not good or not {Path(name).name for name in changed} <= OF_A_CONNECTION:
                wrong.append((command, shown, changed))
    assert wrong == [], "\n".join(map(str, wrong))

"""The demo's own checks can fail: what they look for is put there, and they find it."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cipherbox.cli.demo import command as demo_module
from cipherbox.cli.demo import hostile as hostile_module
from cipherbox.cli.demo.blind import Plaintexts, blocks, search
from cipherbox.cli.demo.items import BINDINGS, QUEUES, make_items
from cipherbox.cli.demo.report import show_scenes
from cipherbox.ops.unpack import CACHE_VARIABLE
from tests import soak

from .conftest import ENVIRONMENT, PROGRAM


@pytest.mark.parametrize("built", [False, pytest.param(True, marks=soak.only)])
def test_the_scenario(request: pytest.FixtureRequest, tmp_path: Path, built: bool) -> None:
    """Nine deliveries by nine processes; in `make soak` each is a start of the built file."""
    command, environment = PROGRAM, ENVIRONMENT
    if built:
        pyz: Path = request.getfixturevalue("pyz")
        command = [sys.executable, "-I", str(pyz)]
        environment = {**ENVIRONMENT, CACHE_VARIABLE: str(pyz.parent / "cache")}
    command = [*command, "demo", "--json", "--directory", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
    report = json.loads(done.stdout)
    assert report["differences"] == []
    found = {(d["item"], d["recipient"]) for d in report["deliveries"]}
    assert len(report["deliveries"]) == 9
    assert found == {
        ("FL-LAB_DAT_20251008_001", "CA-RC"),
        ("FL-LAB_DAT_20251008_001", "SF-RC"),
        ("PA-LAB_RPT_20251008_125", "CA-RC"),
        ("PA-LAB_RPT_20251008_125", "NY-RC"),
        ("PA-LAB_RPT_20251008_125", "SF-RC"),
        ("MA-LAB_DAT_20251008_045", "NY-RC"),
        ("MA-LAB_DAT_20251008_045", "SF-RC"),
        ("IL-LAB_RPT_20251008_175", "CA-RC"),
        ("IL-LAB_RPT_20251008_175", "SF-RC"),
    }
    for delivery in report["deliveries"]:
        assert delivery["sha256"] == delivery["received_sha256"]
        assert delivery["sent_time"] <= delivery["delivered_time"] <= delivery["acknowledged_time"]
    assert report["searched_bytes"] > 3_000_000, "the sealed bodies were there to be searched"
    assert all(Path(file).stat().st_size for file in report["received_files"])
    log = (tmp_path / "demo" / "output" / "DC-HQ.log").read_text("utf-8")
    assert "Traceback" not in log


def test_the_bindings_lead_to_the_recipients_of_the_items() -> None:
    import fnmatch

    for item in make_items(1):
        readers = {
            center
            for center, queue in QUEUES.items()
            for bound, key in BINDINGS
            if bound == queue and fnmatch.fnmatch(item.key, key.replace("#", "*"))
        }
        assert readers == set(item.recipients)


items = functools.cache(functools.partial(make_items, 2))


@pytest.mark.parametrize("at", [0, 1, 15, 16, 1000])
@pytest.mark.parametrize("before", [0, 1, 7, 16, 4095, 65_500, 65_530, 131_072])
def test_a_run_of_plaintext_is_found_wherever_it_is(tmp_path: Path, at: int, before: int) -> None:
    item = items()[0]
    (tmp_path / "deep").mkdir()
    run = item.content[at : at + 31]
    (tmp_path / "deep" / "page").write_bytes(b"\x00" * before + run + b"\xff" * 40)
    searched = search(tmp_path, Plaintexts([(item.file, item.content)]))
    assert searched.found == [f"deep/page holds bytes of {item.file}"]
    assert searched.files == 1


def test_an_innocent_directory_is_innocent(tmp_path: Path) -> None:
    import random

    (tmp_path / "page").write_bytes(random.Random(3).randbytes(100_000) + bytes(50_000))
    plaintexts = Plaintexts((i.file, i.content) for i in items())
    assert search(tmp_path, plaintexts).found == []
    assert blocks(bytes(100)) == set()


def line(home: Path, message_id: str, content: bytes, sender: str) -> None:
    file = home / "data" / "received_messages.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "message_id": message_id,
        "sender_id": sender,
        "sent_timestamp": "2025-10-08T00:00:00.000Z",
        "content": content.decode("latin-1"),
    }
    with file.open("a") as lines:
        lines.write(json.dumps(record) + "\n")


def test_every_difference_is_named(tmp_path: Path) -> None:
    items = [i._replace(content=i.name.encode()) for i in make_items(4)]
    sent = {item.name: f"id-{number}" for number, item in enumerate(items)}
    for item in items:
        for center in item.recipients:
            if (item.sender, center) != ("FL-LAB", "SF-RC"):
                changed = (item.sender, center) == ("MA-LAB", "NY-RC")
                line(
                    tmp_path / center,
                    sent[item.name],
                    b"changed" if changed else item.content,
                    item.sender,
                )
    line(tmp_path / "CA-RC", sent[items[1].name], items[1].content, "PA-LAB")
    line(tmp_path / "NY-RC", "id-stranger", b"x", "IL-LAB")
    report = demo_module.Report(tmp_path)
    demo_module.compare(report, tmp_path, items, sent)
    assert len(report.deliveries) == 9
    text = "\n".join(report.differences)
    assert "SF-RC has FL-LAB_DAT_20251008_001 0 times" in text
    assert "NY-RC: MA-LAB_DAT_20251008_045 has other bytes" in text
    assert "CA-RC has PA-LAB_RPT_20251008_125 2 times" in text
    assert "NY-RC has message id-stranger, which is not for it" in text


def test_stopping_it_leaves_neither_processes_nor_its_directory(tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [*PROGRAM, "demo"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert "serves" in process.stdout.readline()
        process.terminate()
        assert process.wait(300) == 130
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
    assert list(tmp_path.iterdir()) == []
    left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _read(p)]
    assert left == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_hostile_hq_is_caught_in_three_scenes(tmp_path: Path) -> None:
    """A dropped message, a swapped key, a rolled-back log: each noticed by a command of every
    day, in its own words.
    """
    command = [*PROGRAM, "demo", "--hostile-hq", "--json", "--directory", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, env=ENVIRONMENT, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
    dropped, swapped, rolled_back = json.loads(done.stdout)
    assert [scene["missed"] for scene in (dropped, swapped, rolled_back)] == [[], [], []]
    assert "opened by CA-RC (receipt verified)" in dropped["shown"][-1]["output"]
    assert swapped["shown"][0]["code"] == 7
    assert "not signed by the keys before" in swapped["shown"][0]["output"]
    assert "HQ took its log back" in rolled_back["shown"][0]["output"]
    assert rolled_back["shown"][1]["output"].splitlines()[-1].startswith("Proven (rollback)")


def test_what_is_missed_is_said_and_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nobody_noticed(*_: object) -> list[hostile_module.Scene]:
        scene = hostile_module.Scene("A swapped key", "HQ swaps a key.", "Never shown.")
        scene.expect(False, "nobody noticed")
        scene.expect(True, "this one was noticed")
        return [scene]

    monkeypatch.setattr(demo_module, "play_hostile", nobody_noticed)
    done = CliRunner().invoke(demo_module.demo, ["--hostile-hq"], standalone_mode=False)
    assert done.return_value == 1
    assert "Missed: nobody noticed" in done.output
    assert "0 of 1 were caught" in done.output
    assert "Never shown" not in done.output


def test_what_is_told_fits_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    show_scenes(
        [hostile_module.Scene("A swapped key", "HQ swaps a key. " * 9, "Seen by all. " * 9)],
        False,
        None,
    )
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("   ")]
    assert len(told) > 4
    assert max(map(len, told)) < 60


def test_a_hostile_hq_needs_the_embedded_database() -> None:
    done = CliRunner().invoke(
        demo_module.demo, ["--hostile-hq", "--database", "postgresql://localhost/x"]
    )
    assert done.exit_code == 2
    assert "embedded database" in done.output

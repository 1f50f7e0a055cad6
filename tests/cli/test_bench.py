"""`bench` measures real processes: what it prints, and that it counts every message of every
shape.
"""

import json
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from cipherbox.cli.bench.command import measurements
from cipherbox.cli.bench.peers import PEERS, comparable, make_credentials
from cipherbox.cli.bench.play import Result, median_of
from cipherbox.cli.bench.work import STANDARD, Work
from tests import soak
from tests.bench.peers import documents, ratio

KEYS = {
    "work",
    "options",
    "messages",
    "seconds",
    "messages_per_s",
    "confirmed_per_s",
    "mb_per_s",
    "latency_ms",
    "hq_peak_rss_mb",
    "cpu_s_per_million",
    "peer",
    "conditions",
    "rounds",
}


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "cipherbox", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        pytest.param(["--messages", "500"], 500, marks=soak.only),
        pytest.param(["--messages", "40", "--size", "64KiB", "--batch", "3"], 40, marks=soak.only),
        pytest.param(["--messages", "31", "--presealed", "--receivers", "2"], 31, marks=soak.only),
        (
            [
                "--messages",
                "21",
                "--senders",
                "2",
                "--receivers",
                "4",
                "--recipients",
                "2",
                "--batch",
                "1",
            ],
            21,
        ),
        pytest.param(["--messages", "20", "--rate", "100"], 20, marks=soak.only),
        (["--messages", "40", "--files", "--size", "17"], 40),
    ],
)
def test_every_shape_counts_all_messages(arguments: list[str], messages: int) -> None:
    done = bench("--json", *arguments)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) == KEYS
    assert result["messages"] == messages
    rate = pytest.approx(messages / result["seconds"], rel=0.01, abs=0.06)  # both are rounded
    assert result["messages_per_s"] == rate
    assert set(result["latency_ms"]) == {"p50", "p99"}
    assert set(result["cpu_s_per_million"]) == {"sender", "hq", "receiver"}
    assert result["cpu_s_per_million"]["sender"] > 0
    if not {"--presealed", "--files"} & set(arguments):
        assert 0 < result["latency_ms"]["p50"] <= result["latency_ms"]["p99"]


def test_a_table_for_people() -> None:
    done = bench("--messages", "100")
    assert done.returncode == 0, done.stderr
    head, row = done.stdout.splitlines()
    assert head.split()[:2] == ["work", "messages/s"]
    assert row.startswith("100 B, automatic batches")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "0"], "1 byte to 16 GiB"),
        (["--size", "9MiB"], "A message has at most 8 MiB"),
        (["--size", "big"], "invalid size"),
        (["--batch", "0"], "auto, or 1 to 65536"),
        (["--receivers", "3", "--recipients", "2"], "multiple of --recipients"),
        (["--presealed", "--rate", "5"], "cannot be combined with --rate"),
        (["--files", "--rate", "5"], "cannot be combined with --presealed, --rate"),
        (["--rounds", "0"], "0 is not in the range"),
        (["--compare", "kafka"], "'nats', 'nats-sync', 'redis'"),
    ],
)
def test_what_cannot_be_measured(arguments: list[str], words: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())


def figures(rate: float, p50: float | None) -> Result:
    latency = {"p50": p50, "p99": p50}
    cpu: dict[str, float | None] = {"sender": 1.0, "hq": 2.0, "receiver": 3.0}
    return Result(Work(rate=10), 10, 1.0, rate, rate, rate, latency, None, cpu)


def test_rounds_give_the_median_of_each_figure() -> None:
    rounds = [figures(1.0, 30.0), figures(9.0, 20.0), figures(5.0, None)]
    median = median_of(rounds)
    assert (median.messages_per_s, median.latency_ms["p50"], median.hq_peak_rss_mb) == (5, 25, None)
    assert (median.rounds, median.messages, median.cpu_s_per_million["hq"]) == (3, 10, 2.0)


def test_the_ratio_is_ours_to_the_peers() -> None:
    ours, peer = figures(5.0, 30.0).as_json(), figures(10.0, 10.0).as_json()
    assert ratio(ours, peer) == "p50 3.0 times, 1.0 times the CPU, p99 3.0 times"
    two = json.dumps(ours) + "\n" + json.dumps(peer, indent=1) + "\n"
    assert [row["messages_per_s"] for row in documents(two)] == [5, 10]


def test_only_plain_messages_are_compared() -> None:
    assert [comparable(work) for work in STANDARD] == [True, True, True, True, False, True]
    assert not any(map(comparable, [Work(files=True), Work(recipients=2), Work(wrap="rsa")]))


def test_a_peer_that_is_not_installed_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert len(measurements((Work(), Work(presealed=True)), ("redis", "nats", "redis"), "")) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert shown.count("skipping redis: redis-server is not on PATH") == 1
    assert "skipping nats: nats-server is not on PATH" in shown


def test_each_work_is_followed_by_the_peers_that_can_do_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nats-server").touch(mode=0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert len(measurements((Work(), Work(presealed=True)), ("nats", "nats-sync"), "")) == 4
    assert "sealed beforehand, never opened: no peer does this" in capsys.readouterr().err


def test_the_certificates_of_a_run_are_accepted_by_both_ends(tmp_path: Path) -> None:
    files = make_credentials(tmp_path)
    assert files.key.stat().st_mode & 0o777 == 0o600
    contexts = ssl.create_default_context(cafile=files.ca), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    contexts[1].load_verify_locations(cafile=files.ca)
    contexts[1].verify_mode = ssl.CERT_REQUIRED
    bios = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = []
    for server, context in enumerate(contexts):
        context.load_cert_chain(files.certificate, files.key)
        name = None if server else "127.0.0.1"
        pair = bios if server else bios[::-1]
        ends.append(context.wrap_bio(*pair, server_side=bool(server), server_hostname=name))
    for end in ends * 3:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert ends[1].getpeercert()


@soak.only
@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("arguments", [["--size", "1KiB"], ["--size", "100", "--rate", "50"]])
def test_a_peer_gets_the_same_messages(name: str, arguments: list[str]) -> None:
    if PEERS[name].path() is None:
        pytest.skip(f"needs {PEERS[name].program}, which is not installed")
    done = bench("--json", "--messages", "40", "--compare", name, *arguments)
    assert done.returncode == 0, done.stderr
    ours, peer = documents(done.stdout)
    assert (ours["peer"], peer["peer"], peer["messages"]) == ("", name, 40)
    assert "mutual TLS 1.3, synced" in peer["conditions"]
    assert peer["latency_ms"]["p50"] > 0
    assert peer["cpu_s_per_million"]["hq"] is not None

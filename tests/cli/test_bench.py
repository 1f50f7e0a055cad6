"""`bench` measures real processes: what it prints, and that it counts every message of every
shape.
"""

import json
import subprocess
import sys

import pytest

from tests import soak

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
}


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "cipherbox", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["--messages", "500"], 500),
        pytest.param(["--messages", "40", "--size", "64KiB", "--batch", "3"], 40, marks=soak.only),
        (["--messages", "31", "--presealed", "--receivers", "2"], 31),
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
        (["--size", "0"], "1 byte to 8 MiB"),
        (["--size", "9MiB"], "1 byte to 8 MiB"),
        (["--size", "big"], "invalid size"),
        (["--batch", "0"], "auto, or 1 to 65536"),
        (["--receivers", "3", "--recipients", "2"], "multiple of --recipients"),
        (["--presealed", "--rate", "5"], "cannot be combined with --rate"),
        (["--files", "--rate", "5"], "cannot be combined with --presealed, --rate"),
    ],
)
def test_what_cannot_be_measured(arguments: list[str], words: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())

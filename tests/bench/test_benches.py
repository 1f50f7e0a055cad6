"""The benchmarks of parts of HQ run, with little to do: nothing else calls them."""

from __future__ import annotations

import sys

import pytest

from cipherbox.limits import LIMITS
from tests.bench import bench_core, bench_hq, bench_store


def test_they_measure_every_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench"])
    monkeypatch.setattr(bench_core, "ENVELOPES", 200)
    bench_core.main(rounds=1)
    bench_store.main(((40, 20, 300), (4, 2, LIMITS.spool_from_bytes)))
    bench_hq.main(12)
    out = capsys.readouterr().out
    assert out.count("us for publish, hand out and ack") == 10
    assert out.count("envelopes/s") == 2
    assert out.count("core ") == 2
    assert "commit " in out

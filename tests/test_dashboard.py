"""The dashboard and the alert rules name metrics that exist, with labels that they have."""

import json
import re
from pathlib import Path

import pytest

from cipherbox.ops.metrics import HISTOGRAM, METRICS

PACKAGING = Path(__file__).resolve().parent.parent / "packaging"
NAMES = re.compile(r"\b(?:cipherbox|process)_[a-z_]+")
KNOWN = set(METRICS) | {
    f"{name}{end}"
    for name, m in METRICS.items()
    if m.kind == HISTOGRAM
    for end in ("_bucket", "_count", "_sum")
}
ADDED = {"instance", "job", "le"}  # by Prometheus itself


def expressions(text: str, name: str) -> list[str]:
    if name.endswith(".json"):
        board = json.loads(text)
        assert len({p["id"] for p in board["panels"]}) == len(board["panels"])
        return [t["expr"] for p in board["panels"] for t in p["targets"]]
    return re.findall(r"^ +expr: (.+)$", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["cipherbox-dashboard.json", "cipherbox-alerts.yml"])
def test_every_metric_exists(name: str) -> None:
    found = expressions((PACKAGING / name).read_text("utf-8"), name)
    assert len(found) >= 15
    for expression in found:
        named = NAMES.findall(expression)
        assert set(named) <= KNOWN, expression
        assert named or "up{" in expression, expression
        base = {n if n in METRICS else re.sub(r"_(bucket|count|sum)$", "", n) for n in named}
        labels = {label for n in base for label in METRICS[n].labels} | ADDED
        for inside in re.findall(r"\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)\s*[=!]", inside)) <= labels, expression
        for inside in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
            assert {word.strip() for word in inside.split(",")} <= labels, expression


def test_each_alert_says_what_to_do() -> None:
    text = (PACKAGING / "cipherbox-alerts.yml").read_text("utf-8")
    alerts = text.split("- alert: ")[1:]
    assert len({a.splitlines()[0] for a in alerts}) == len(alerts)
    for alert in alerts:
        for part in ("expr:", "severity:", "summary:", "description:"):
            assert alert.count(part) == 1, alert
        assert "\t" not in alert


def test_every_metric_is_on_the_dashboard_or_explained_elsewhere() -> None:
    shown = set(NAMES.findall((PACKAGING / "cipherbox-dashboard.json").read_text("utf-8")))
    shown = {re.sub(r"_(bucket|count|sum)$", "", n) if n not in METRICS else n for n in shown}
    rest = set(METRICS) - shown
    assert rest <= {
        "cipherbox_build_info",
        "cipherbox_clock_doubted",
        "cipherbox_draining",
        "cipherbox_queues",
        "cipherbox_queue_consumers",
        "cipherbox_engine_commands",
        "cipherbox_memory_short",
        "cipherbox_standbys",
        "cipherbox_standby_waiting_seconds",
        "process_start_time_seconds",
    }, rest

"""Every act that HQ logs has words of its own for people."""

from __future__ import annotations

from typing import Any

import attrs
import orjson
import pytest

from cipherbox.broker import broker as core
from cipherbox.broker import model as m
from cipherbox.cli.audit_lines import ACTS, events, lines
from cipherbox.envelope import transparency_log as log

_NOTED = (core._note, core._replace_client, core._set_watermark)
LOGGED = {*core.ACTS, *(kind for kind, handler in core.HANDLERS.items() if handler in _NOTED)}
BY_HAND = {"SettleDead", "Retain", "TellContacts"}  # where the broker writes the act itself
VALUES: dict[str, Any] = {
    "type": m.ExchangeType.TOPIC,
    "readers": ("FL-LAB",),
    "ttl_s": 60,
    "max_length": m.KEEP,
    "give": True,
    "role": "client",
    "replaces": True,
    "sequence": 2,
    "most": 7,
    "what": "bytes",
    "target": "FL-LAB",
    "right": "publish",
    "reason": "lost",
    "count": 1,
    "at": 1_700_000_000_000,
    "expected": 1_700_000_000_000,
    "watermark": 1_700_000_000_000,
    "before": 1_700_000_000_000,
}
DETAILS: dict[str, dict[str, Any]] = {
    "SettleDead": {"queue": "q", "ranges": [[3, 4], [9, 1]], "drop": True},
    "Retain": m.Cutoffs(1_700_000_000_000, 0, 0)._asdict(),
    "TellContacts": {"allowed": 2, "blocked": 1},
}


def acts(name: str, detail: dict[str, Any]) -> log.Group:
    return log.Group(log.ACTS, orjson.dumps([["admin", name, detail]]))


def test_every_act_is_known() -> None:
    assert set(ACTS) == {kind.__name__ for kind in LOGGED} | BY_HAND


@pytest.mark.parametrize("kind", sorted(LOGGED, key=lambda kind: kind.__name__))
def test_an_act_is_a_sentence(kind: type[m.Command]) -> None:
    names = [
        one.name
        for one in attrs.fields(kind)
        if one.name not in ("connection", "client", "correlation")
    ]
    ((who, what),) = lines(
        acts(kind.__name__, {name: VALUES.get(name, f"the-{name}") for name in names})
    )
    assert who == "admin"
    assert what[0].islower()
    assert not set(what) & set("={}[]")
    assert kind.__name__ not in what


def test_acts_that_the_broker_writes_itself() -> None:
    assert set(DETAILS) == BY_HAND
    said = {name: lines(acts(name, detail))[0][1] for name, detail in DETAILS.items()}
    assert said["SettleDead"] == "dropped the dead letters 3 to 6, 9 of q"
    assert "messages' records before 2023-11-1" in said["Retain"]
    assert said["TellContacts"] == "allows 2 and blocks 1 clients by name"


def test_an_act_of_a_newer_hq_is_shown_as_it_is() -> None:
    assert lines(acts("Frobnicate", {"target": "FL-LAB"})) == [
        ("admin", "Frobnicate target FL-LAB")
    ]


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("SettleDead", {"queue": "q", "ranges": [[1, 2]], "drop": True, "which": "all"}),
        ("SettleDead", {"queue": "q", "ranges": [1]}),
        ("Purge", {}),
        ("DeclareExchange", {"name": "x", "type": 99}),
    ],
)
def test_other_details_than_ours_are_shown_as_they_are(name: str, detail: dict[str, Any]) -> None:
    ((who, what),) = lines(acts(name, detail))
    assert (who, what.split(" ")[0]) == ("admin", name)


def test_a_detail_does_not_take_the_place_of_what_an_event_is() -> None:
    """The limit's ``what`` wrote over the event's."""
    (event,) = events(acts("LimitClient", {"target": "FL-LAB", "what": "bytes", "most": 1}))
    assert (event["what"], event["limit"]) == ("acts", "bytes")
    assert lines(acts("LimitClient", {"target": "A", "what": "bytes", "most": -1})) == [
        ("admin", "gave A the limit of bytes that the settings say")
    ]


def test_every_kind_of_group_has_a_line() -> None:
    """Those whose payload is JSON; bundles and envelopes are read by the tests over a real HQ."""
    rows: dict[int, Any] = {
        log.DELIVERED: [["q", 1, 3, "CA-RC"]],
        log.ACKNOWLEDGED: [["q", 4, 4, "CA-RC"]],
        log.DEAD: [["q", 5, 17, "expired", ""]],
        log.DROPPED: [["q", 5, 17, "admin"]],
        log.REVOKED: {"client": "FL-LAB", "serials": ["ab", "cd"]},
        log.BEGUN: {"incarnation": "0123"},
        log.RESTORED: {"statement": "head\nHQ was restored\nby admin"},
    }
    assert set(rows) | {log.ACCEPTED, log.AGAIN, log.BUNDLE, log.ACTS} == set(log.KIND_NAMES)
    assert [lines(log.Group(kind, orjson.dumps(row)))[0] for kind, row in rows.items()] == [
        ("HQ", "delivered 1 to 3 of q to CA-RC"),
        ("CA-RC", "acknowledged 4 of q"),
        ("HQ", "made q/5 a dead letter: expired"),
        ("admin", "dropped q/5"),
        ("HQ", "revoked certificates of FL-LAB: ab, cd"),
        ("HQ", "began the store incarnation 0123"),
        ("HQ", "was restored from a backup, as an admin signed: HQ was restored / by admin"),
    ]

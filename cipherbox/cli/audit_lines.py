"""Entries of HQ's signed log, as lines for people and as events for programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson

from cipherbox.broker.model import KEEP, ExchangeType
from cipherbox.cli.output import time_text
from cipherbox.envelope import transparency_log as log
from cipherbox.envelope.ids import message_id

if TYPE_CHECKING:
    from cipherbox.envelope.transparency_log import Group

HQ = "HQ"
_KEYS = {
    log.DEAD: ("queue", "seq", "number", "reason", "by"),
    log.DROPPED: ("queue", "seq", "number", "by"),
    log.DELIVERED: ("queue", "first", "last", "client"),
    log.ACKNOWLEDGED: ("queue", "first", "last", "client"),
}


def events(group: Group) -> list[dict[str, Any]]:
    """Return the group's events, with the fields of the page `log`; ``what`` is its kind."""
    name = log.KIND_NAMES[group.kind]
    if group.kind in (log.BEGUN, log.RESTORED, log.REVOKED):
        return [{"what": name, **orjson.loads(group.payload)}]
    if group.kind == log.BUNDLE:
        one = log.read_bundle(group.payload)
        return [
            {
                "what": name,
                "client": one.client_id,
                "sequence": one.sequence,
                "hash": one.bundle_hash.hex(),
            }
        ]
    if group.kind in (log.ACCEPTED, log.AGAIN):
        sender, _, envelopes = log.read_accepted(group.payload)
        return [
            {
                "what": name,
                "sender": sender,
                "message_id": str(message_id(e.envelope_id, 0)),
                "generation": e.generation,
                "envelope_sha256": e.envelope_hash.hex(),
            }
            for e in envelopes
        ]
    rows = orjson.loads(group.payload)
    if group.kind == log.ACTS:
        return [
            {"what": name, "by": by or HQ, "act": act, **_detail(detail)}
            for by, act, detail in rows
        ]
    return [{"what": name, **dict(zip(_KEYS[group.kind], row, strict=False))} for row in rows]


def _detail(detail: dict[str, Any]) -> dict[str, Any]:
    """Return an act's details, renamed where they would collide with an event's own fields."""
    return {"limit" if key == "what" else key: value for key, value in detail.items()}


def lines(group: Group) -> list[tuple[str, str]]:
    """Return (actor, action) for each event; a batch of envelopes is one line."""
    found = events(group)
    if group.kind in (log.ACCEPTED, log.AGAIN):
        return [_sent(found)]
    return [_LINES[group.kind](event) for event in found]


def _sent(found: list[dict[str, Any]]) -> tuple[str, str]:
    more = f" and {len(found) - 1} more envelopes" if len(found) > 1 else ""
    again = " again, which HQ had already" if found[0]["what"] == log.KIND_NAMES[log.AGAIN] else ""
    return found[0]["sender"], f"sent {found[0]['message_id']}{more}{again}"


def _act(event: dict[str, Any]) -> tuple[str, str]:
    words = ACTS.get(event["act"])
    if words is None:  # of a newer HQ
        detail = {
            k: v for k, v in event.items() if k not in ("what", "by", "act") and v not in ("", None)
        }
        return event["by"], f"{event['act']} {', '.join(f'{k} {v}' for k, v in detail.items())}"
    return event["by"], words(event) if callable(words) else words.format_map(event)


def _restored(event: dict[str, Any]) -> tuple[str, str]:
    statement = " / ".join(str(event["statement"]).splitlines()[1:])
    return HQ, f"was restored from a backup, as an admin signed: {statement}"


def _numbers(first: int, last: int) -> str:
    return f"{first} to {last}" if last > first else str(first)


_LINES: dict[int, Callable[[dict[str, Any]], tuple[str, str]]] = {
    log.BEGUN: lambda e: (HQ, f"began the store incarnation {e['incarnation']}"),
    log.RESTORED: _restored,
    log.REVOKED: lambda e: (
        HQ,
        f"revoked certificates of {e['client']}: {', '.join(e['serials'])}",
    ),
    log.BUNDLE: lambda e: (e["client"], f"has key bundle {e['sequence']}, SHA-256 {e['hash']}"),
    log.DELIVERED: lambda e: (
        HQ,
        f"delivered {_numbers(e['first'], e['last'])} of {e['queue']} to {e['client']}",
    ),
    log.ACKNOWLEDGED: lambda e: (
        e["client"],
        f"acknowledged {_numbers(e['first'], e['last'])} of {e['queue']}",
    ),
    log.DEAD: lambda e: (
        e["by"] or HQ,
        f"made {e['queue']}/{e['seq']} a dead letter: {e['reason']}",
    ),
    log.DROPPED: lambda e: (e["by"] or HQ, f"dropped {e['queue']}/{e['seq']}"),
    log.ACTS: _act,
}


def _declared_queue(e: dict[str, Any]) -> str:
    parts = [f"read by {', '.join(e['readers'])}"] if e["readers"] else []
    parts += [
        f"{name} {e[key]}"
        for name, key in (("ttl s", "ttl_s"), ("max length", "max_length"))
        if e[key] != KEEP
    ]
    return ", ".join([f"declared queue {e['name']} of {e['owner'] or e['by']}", *parts])


def _settled(e: dict[str, Any]) -> str:
    which = ", ".join(_numbers(first, first + count - 1) for first, count in e["ranges"])
    return f"{'dropped' if e['drop'] else 'sent again'} the dead letters {which} of {e['queue']}"


def _limited(e: dict[str, Any]) -> str:
    if e["most"] < 0:
        return f"gave {e['target']} the limit of {e['limit']} that the settings say"
    return f"limited {e['target']} to {e['most']} {e['limit']}"


def _retained(e: dict[str, Any]) -> str:
    kinds = (
        ("messages' records", "metadata"),
        ("dead letters", "dead_letters"),
        ("the log", "log"),
    )
    dropped = [f"{name} before {time_text(e[key])}" for name, key in kinds if e.get(key)]
    return f"dropped what is too old: {', '.join(dropped) or 'nothing'}"


# The line for each act; a test compares the names with the commands that the broker logs.
ACTS: dict[str, str | Callable[[dict[str, Any]], str]] = {
    "DeclareExchange": lambda e: (
        f"declared exchange {e['name']}, {ExchangeType(e['type']).name.lower()}"
    ),
    "DeleteExchange": "deleted exchange {name}",
    "DeclareQueue": _declared_queue,
    "DeleteQueue": "deleted queue {name}",
    "Bind": "bound queue {queue} to {exchange} with key {routing_key!r}",
    "Unbind": "unbound queue {queue} from {exchange} with key {routing_key!r}",
    "Purge": "purged queue {queue}",
    "Grant": lambda e: f"{'gave' if e['give'] else 'took'} the right {_right(e)}",
    "AddClient": "enrolled {target} as {role}",
    "RevokeClient": "revoked {target}: {reason}",
    "LimitClient": _limited,
    "SettleDead": _settled,
    "Retain": _retained,
    "TellContacts": "allows {allowed} and blocks {blocked} clients by name",
    "ConfirmClock": lambda e: (
        f"confirmed that HQ's clock is right at {time_text(e['at'])}, when HQ expected "
        f"{time_text(e['expected'])}"
    ),
    "SetWatermark": lambda e: (
        f"set the time before which ids are refused from {time_text(e['before'])} to "
        f"{time_text(e['watermark'])}"
    ),
    "EnrolHere": "made a token for {target} as {role}, on HQ's own machine",
    "Enrol": lambda e: (
        f"made a token for {e['target']} as {e['role']}{', in place of its home' * e['replaces']}"
    ),
    "ReplaceClient": "let another home be {target} from now on",
    "KeysAnew": "let {target} begin with new keys, bundle {sequence}, SHA-256 {bundle}",
}


def _right(e: dict[str, Any]) -> str:
    resource = f" on {e['resource']}" if e["resource"] else ""
    return f"{e['right']}{resource} {'to' if e['give'] else 'from'} {e['target']}"

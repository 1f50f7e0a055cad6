"""Entries of HQ's signed log, as lines for people and as events for programs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import orjson

from cipherbox.broker.model import KEEP, ExchangeType
from cipherbox.broker.usage import SETTINGS
from cipherbox.cli.output import time_text
from cipherbox.envelope import transparency_log as log
from cipherbox.envelope.ids import message_id
from cipherbox.readable import Sentence

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
    """Return (actor, action) for each event; a batch of envelopes is one line.  Actions are
    `Sentence`s, unless a newer HQ knows more of them.
    """
    found = events(group)
    if group.kind in (log.ACCEPTED, log.AGAIN):
        return [_sent(found)]
    return [_LINES[group.kind](event) for event in found]


def _sent(found: list[dict[str, Any]]) -> tuple[str, Sentence]:
    first, more = found[0], len(found) - 1
    text = Sentence("sent {message_id}", message_id=first["message_id"])
    if more:
        text = Sentence("{sent} and {count} more envelope(s)", sent=text, count=more)
    if first["what"] == log.KIND_NAMES[log.AGAIN]:
        text = Sentence("{sent} again, which HQ had already", sent=text)
    return first["sender"], text


def _act(event: dict[str, Any]) -> tuple[str, str]:
    words = ACTS.get(event["act"])
    if words is not None:
        with suppress(LookupError, TypeError, ValueError):  # other details than ours
            return event["by"], words(event) if callable(words) else Sentence(words, **event)
    detail = {  # of a newer HQ, or one that does as it likes
        k: v for k, v in event.items() if k not in ("what", "by", "act") and v not in ("", None)
    }
    return event["by"], f"{event['act']} {', '.join(f'{k} {v}' for k, v in detail.items())}"


def _restored(event: dict[str, Any]) -> tuple[str, Sentence]:
    statement = " / ".join(str(event["statement"]).splitlines()[1:])
    return HQ, Sentence(
        "was restored from a backup, as an admin signed: {statement}", statement=statement
    )


def _numbers(first: int, last: int) -> str:
    return Sentence("{first} to {last}", first=first, last=last) if last > first else str(first)


def _some(e: dict[str, Any]) -> str:
    return _numbers(e["first"], e["last"])


_LINES: dict[int, Callable[[dict[str, Any]], tuple[str, str]]] = {
    log.BEGUN: lambda e: (HQ, Sentence("began the store incarnation {incarnation}", **e)),
    log.RESTORED: _restored,
    log.REVOKED: lambda e: (HQ, Sentence("revoked certificates of {client}: {serials}", **e)),
    log.BUNDLE: lambda e: (
        e["client"],
        Sentence("has key bundle {sequence}, SHA-256 {hash}", **e),
    ),
    log.DELIVERED: lambda e: (
        HQ,
        Sentence("delivered {numbers} of {queue} to {client}", numbers=_some(e), **e),
    ),
    log.ACKNOWLEDGED: lambda e: (
        e["client"],
        Sentence("acknowledged {numbers} of {queue}", numbers=_some(e), **e),
    ),
    log.DEAD: lambda e: (
        e["by"] or HQ,
        Sentence("made {queue}/{seq} a dead letter: {reason}", **e),
    ),
    log.DROPPED: lambda e: (e["by"] or HQ, Sentence("dropped {queue}/{seq}", **e)),
    log.ACTS: _act,
}


def _declared_queue(e: dict[str, Any]) -> str:
    parts = [
        Sentence("declared queue {name} of {owner}", name=e["name"], owner=e["owner"] or e["by"])
    ]
    if e["readers"]:
        parts.append(Sentence("read by {readers}", readers=e["readers"]))
    if e["ttl_s"] != KEEP:
        parts.append(Sentence("ttl s {ttl_s}", ttl_s=e["ttl_s"]))
    if e["max_length"] != KEEP:
        parts.append(Sentence("max length {max_length}", max_length=e["max_length"]))
    return Sentence("{parts}", parts=parts)


def _settled(e: dict[str, Any]) -> str:
    which = [_numbers(first, first + count - 1) for first, count in e["ranges"]]
    if e["drop"]:
        return Sentence("dropped the dead letters {which} of {queue}", which=which, **e)
    return Sentence("sent again the dead letters {which} of {queue}", which=which, **e)


def _limited(e: dict[str, Any]) -> str:
    of = e["limit"]
    limit = Sentence(of) if of in SETTINGS else of  # of a newer HQ
    if e["most"] < 0:
        return Sentence(
            "gave {target} the limit of {limit} that the settings say",
            target=e["target"],
            limit=limit,
        )
    return Sentence(
        "limited {target} to {most} {limit}", target=e["target"], most=e["most"], limit=limit
    )


def _retained(e: dict[str, Any]) -> str:
    kinds = (
        (Sentence("messages' records"), "metadata"),
        (Sentence("dead letters"), "dead_letters"),
        (Sentence("the log"), "log"),
    )
    dropped = [
        Sentence("{name} before {time}", name=name, time=time_text(e[key]))
        for name, key in kinds
        if e.get(key)
    ]
    return Sentence("dropped what is too old: {dropped}", dropped=dropped or [Sentence("nothing")])


def _granted(e: dict[str, Any]) -> str:
    right = (
        Sentence("{right} on {resource}", right=e["right"], resource=e["resource"])
        if e["resource"]
        else e["right"]
    )
    if e["give"]:
        return Sentence("gave the right {right} to {target}", right=right, target=e["target"])
    return Sentence("took the right {right} from {target}", right=right, target=e["target"])


def _token(e: dict[str, Any]) -> str:
    if e["replaces"]:
        return Sentence("made a token for {target} as {role}, in place of its home", **e)
    return Sentence("made a token for {target} as {role}", **e)


def _declared_exchange(e: dict[str, Any]) -> str:
    kind = ExchangeType(e["type"]).name.lower()
    return Sentence("declared exchange {name}, {kind}", name=e["name"], kind=kind)


# The line for each act; a test compares the names with the commands that the broker logs.
ACTS: dict[str, str | Callable[[dict[str, Any]], str]] = {
    "DeclareExchange": _declared_exchange,
    "DeleteExchange": "deleted exchange {name}",
    "DeclareQueue": _declared_queue,
    "DeleteQueue": "deleted queue {name}",
    "Bind": "bound queue {queue} to {exchange} with key {routing_key!r}",
    "Unbind": "unbound queue {queue} from {exchange} with key {routing_key!r}",
    "Purge": "purged queue {queue}",
    "Grant": _granted,
    "AddClient": "enrolled {target} as {role}",
    "RevokeClient": "revoked {target}: {reason}",
    "LimitClient": _limited,
    "SettleDead": _settled,
    "Retain": _retained,
    "TellContacts": "allows {allowed} and blocks {blocked} clients by name",
    "ConfirmClock": lambda e: Sentence(
        "confirmed that HQ's clock is right at {at}, when HQ expected {expected}",
        at=time_text(e["at"]),
        expected=time_text(e["expected"]),
    ),
    "SetWatermark": lambda e: Sentence(
        "set the time before which ids are refused from {before} to {watermark}",
        before=time_text(e["before"]),
        watermark=time_text(e["watermark"]),
    ),
    "EnrolHere": "made a token for {target} as {role}, on HQ's own machine",
    "Enrol": _token,
    "ReplaceClient": "let another home be {target} from now on",
    "KickClient": "closed {count} connection(s) of {target}: {reason}",
    "KeysAnew": "let {target} begin with new keys, bundle {sequence}, SHA-256 {bundle}",
}

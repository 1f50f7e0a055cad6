"""Encode the broker's answers as frames.  Confirms of one batch become ranges, in one CONFIRM if
they fit.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from cipherbox.broker.model import (
    Acked,
    Answer,
    Confirmed,
    Done,
    Failed,
    FetchedEntries,
    ListedRows,
    Routed,
)
from cipherbox.broker.routes import RouteDetail
from cipherbox.errors import (
    CipherBoxError,
    DiskFull,
    Fenced,
    GoingAway,
    StoreError,
    StoreUnavailable,
)
from cipherbox.wire import codec, frames
from cipherbox.wire.codec import DeliveredItem

STORES = (StoreError, StoreUnavailable, DiskFull)
# queues and clients, at most 128 bytes each; this bounds the ranges, too
_NAMES_PER_CONFIRM = 4096


def error_frame(correlation: int, error: CipherBoxError) -> frames.Error:
    """Return the ERROR for an error; route-changed carries the current route.

    A takeover by another HQ ends this HQ and says nothing about the request: the client asks the
    other one.  Why the store failed is only logged at HQ: hosts, paths and statements must not
    reach clients.
    """
    if isinstance(error, Fenced):
        error = GoingAway(str(error))
    elif type(error) in STORES:
        error = DiskFull() if isinstance(error, DiskFull) else StoreUnavailable()
    detail = error.detail
    if isinstance(error.__cause__, RouteDetail):
        detail = codec.encode_body(_route(error.__cause__.routed))
    text = str(error).encode()[:65_000].decode("utf-8", "ignore")
    return frames.Error(correlation, error.code, error.retryable, text, detail)


def _route(answer: Routed) -> frames.Route:
    queues = [frames.RouteQueue(queue, list(readers)) for queue, readers in answer.queues]
    return frames.Route(answer.correlation, answer.version, queues)


def confirm(answers: Sequence[Confirmed], proof: tuple[int, bytes] = (0, b"")) -> bytes:
    """Return one CONFIRM for answers of one acceptance time; consecutive ids with the same outcome
    and queues are one range.
    """
    places: dict[tuple[tuple[str, ...], tuple[str, ...]], int] = {}
    ranges: list[frames.ConfirmRange] = []
    first = last = -1
    outcome = place = -1
    for correlation, duplicate, queues, unrouted, _ in answers:
        index = places.setdefault((queues, unrouted), len(places))
        if correlation == last + 1 and index == place and int(duplicate) == outcome:
            last = correlation
            continue
        if first >= 0:
            ranges.append(frames.ConfirmRange(first, last - first + 1, outcome, place))
        first = last = correlation
        outcome, place = int(duplicate), index
    ranges.append(frames.ConfirmRange(first, last - first + 1, outcome, place))
    where_list = [frames.Place(list(queues), list(unrouted)) for queues, unrouted in places]
    return codec.encode(frames.Confirm(answers[0].accepted_at, *proof, where_list, ranges))


def confirm_groups(confirmed: Sequence[Confirmed]) -> list[Sequence[Confirmed]]:
    """Return the answers in as few groups as possible, one CONFIRM each: a group has one acceptance
    time, one outcome and a bounded list of places.

    Each is a group of the log's entry, and so has a proof.
    """
    groups: list[Sequence[Confirmed]] = []
    if not confirmed:
        return groups
    at = names = 0
    place: object = None
    for end, answer in enumerate(confirmed):
        if (answer.queues, answer.unrouted) != place:
            place = (answer.queues, answer.unrouted)
            names += 1 + len(answer.queues) + len(answer.unrouted)
        first = confirmed[at]
        same = answer.accepted_at == first.accepted_at and answer.duplicate == first.duplicate
        if end > at and (names > _NAMES_PER_CONFIRM or not same):
            groups.append(confirmed[at:end])
            at, names = end, 1 + len(answer.queues) + len(answer.unrouted)
    groups.append(confirmed[at:])
    return groups


def encode(answers: Sequence[Answer], proof: tuple[int, list[bytes]] | None = None) -> list[bytes]:
    """Return the frames of one batch's answers, confirms first; ``proof``: the log's entry and a
    proof for each CONFIRM.
    """
    groups = confirm_groups([a for a in answers if type(a) is Confirmed])
    entry, proofs = proof if proof is not None else (0, [b""] * len(groups))
    out = [confirm(group, (entry, one)) for group, one in zip(groups, proofs, strict=True)]
    for answer in answers:
        if type(answer) is Confirmed:
            continue
        if isinstance(answer, Failed):
            out.append(codec.encode(error_frame(answer.correlation, answer.error)))
        elif isinstance(answer, Done):
            out.append(codec.encode(frames.Ok(answer.correlation, answer.count)))
        elif isinstance(answer, Acked):
            out.append(
                codec.encode(frames.AckConfirmed(answer.correlation, answer.count, answer.unknown))
            )
        elif isinstance(answer, Routed):
            out.append(codec.encode(_route(answer)))
        elif isinstance(answer, ListedRows):
            out.append(
                codec.encode(
                    frames.Listing(answer.correlation, answer.after, orjson.dumps(answer.rows))
                )
            )
    return out


def fetched(answer: FetchedEntries, items: list[DeliveredItem]) -> bytes:
    """Return the FETCHED frame."""
    entries = [
        frames.Delivered(seq, min(attempt, 0xFFFF), at, entry, bytes(raw))
        for seq, attempt, at, entry, raw in items
    ]
    return codec.encode(frames.Fetched(answer.correlation, answer.waiting, entries))

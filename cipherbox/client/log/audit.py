"""Read HQ's whole log and verify every entry, the tree over them, and consistency with earlier
reads.

Verified entries are recorded in the home, so that an entry that is later missing or changed can be
named.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import attrs
import orjson

from cipherbox.classes import define
from cipherbox.client.log.verifier import LogProofVerifier
from cipherbox.envelope import chained_log as oldlog
from cipherbox.envelope import merkle_tree as tree
from cipherbox.envelope import transparency_log as log
from cipherbox.envelope.checkpoint import Checkpoint, verify_checkpoint
from cipherbox.errors import CipherBoxError, EnvelopeError, LogContradiction
from cipherbox.wire import frames

_MAX_FAULTS = 20
Progress = Callable[[int, int], None]


class LogReader(Protocol):
    """An admin's client."""

    log: LogProofVerifier

    @property
    def connection(self) -> Any: ...

    async def read_log(
        self, after: int = 0, count: int = 1000, *, old: bool = False
    ) -> frames.LogEntries: ...


@define
class Audit:
    """The result of reading the log."""

    key: str
    entries: int = 0
    first: int = 0
    last: int = 0
    root: str = ""
    origin: str = ""
    old_entries: int = 0  # of the log before 0.6
    remembered: int = 0  # entries that an earlier read recorded, unchanged
    wrong: list[dict[str, Any]] = attrs.Factory(list)

    def fault(self, entry: int, reason: str) -> None:
        if len(self.wrong) < _MAX_FAULTS:
            self.wrong.append({"entry": entry, "reason": reason})


async def verify_log(client: LogReader, key: bytes, progress: Progress) -> Audit:
    """Read and verify everything; the result lists the faults."""
    found = Audit(key.hex())
    old = await _old_log(client, key, found)
    page = await client.read_log(0)
    try:
        head = verify_checkpoint(page.head, key)
    except EnvelopeError as error:
        found.fault(page.last, f"the newest head is invalid: {error}")
        return found
    found.origin, found.root, found.last = head.origin, head.root.hex(), head.size
    await _entries(client, page, head, found, old, progress)
    last_read = client.log.heads.last_read()
    if last_read > head.size:
        found.fault(
            head.size + 1,
            f"entries {head.size + 1} to {last_read} were read and verified here before, and are "
            "missing",
        )
    try:
        client.log.observe(page.head)
        await client.log.check(client.connection)
    except LogContradiction as error:
        found.fault(head.size, str(error))
    except EnvelopeError as error:
        found.fault(head.size, f"the log's key is not the one pinned in this home: {error}")
    return found


async def _entries(
    client: LogReader,
    page: frames.LogEntries,
    head: Checkpoint,
    found: Audit,
    old: tuple[int, str],
    progress: Progress,
) -> None:
    bundles: dict[tuple[str, int], bytes] = {}
    edge: tree.RightEdge | None = None
    roots_right = True
    while page.entries and (edge is None or edge.size < head.size):
        first = _index(page.entries[0])
        if edge is None:
            edge, roots_right = _begin(first, page, found)
            found.first = first
        before = client.log.heads.read_hashes(edge.size, len(page.entries))
        fresh: list[tuple[int, bytes]] = []
        for entry in page.entries[: head.size - edge.size]:
            number = edge.size + 1
            while number < _index(entry) <= head.size:
                found.fault(number, "it is missing")
                edge.append(bytes(32))
                number, roots_right = number + 1, False
            digest = tree.leaf_hash(entry.record)
            edge.append(digest)
            found.entries += 1
            try:
                record = log.verify_entry(entry.record, entry.body, number)
                _contents(entry, number, found, bundles, old)
            except EnvelopeError as error:
                found.fault(number, str(error))
                continue
            if number in before and before[number] != digest:
                found.fault(number, "it differs from the entry read and verified here before")
            found.remembered += number in before
            fresh.append((record.index, digest))
        if not found.wrong:
            client.log.heads.keep_read(fresh)
        progress(edge.size, head.size)
        page = await client.read_log(edge.size)
    size = edge.size if edge is not None else 0
    if size != head.size:
        found.fault(
            size + 1, f"it is missing: HQ signed a head of {head.size} entries and serves {size}"
        )
    elif roots_right and (edge is not None and edge.root() != head.root):
        found.fault(head.size, "the entries do not lead to the root that HQ signed")


def _begin(first: int, page: frames.LogEntries, found: Audit) -> tuple[tree.RightEdge, bool]:
    try:
        return tree.RightEdge(first - 1, page.edge), True
    except CipherBoxError:
        found.fault(first, "HQ does not serve the hashes of the entries before it")
        return tree.RightEdge(first - 1, [bytes(32)] * (first - 1).bit_count()), False


def _index(entry: frames.LogEntry) -> int:
    try:
        return log.decode_record(entry.record).index
    except EnvelopeError:
        return 1  # reported as damaged at its position


def _contents(
    entry: frames.LogEntry,
    number: int,
    found: Audit,
    bundles: dict[tuple[str, int], bytes],
    old: tuple[int, str],
) -> None:
    for group in log.decode_groups(entry.body):
        if group.kind == log.BUNDLE:
            one = log.read_bundle(group.payload)
            if (
                bundles.setdefault((one.client_id, one.sequence), one.bundle_hash)
                != one.bundle_hash
            ):
                found.fault(
                    number,
                    f"key bundle {one.sequence} of {one.client_id} differs from an earlier entry's",
                )
        if group.kind == log.BEGUN and number == 1:
            named = orjson.loads(group.payload).get("old_log", {})
            if old[0] and (named.get("entries"), named.get("head")) != old:
                found.fault(number, "it does not continue the log before 0.6")


async def _old_log(client: LogReader, key: bytes, found: Audit) -> tuple[int, str]:
    """Return the newest entry of the log before 0.6, and the hash of its head."""
    before: tuple[int, bytes] | None = None
    async for number, entry in _old_entries(client):
        try:
            head = oldlog.verify_entry(entry.record, entry.signature, entry.body, key, before)
            before = (head.index, oldlog.head_hash(entry.record, entry.signature))
        except EnvelopeError as error:
            found.fault(number, f"of the log before 0.6: {error}")
            before = (number, oldlog.head_hash(entry.record, entry.signature))
        found.old_entries += 1
    return (before[0], before[1].hex()) if before is not None else (0, "")


async def _old_entries(client: LogReader) -> AsyncIterator[tuple[int, frames.LogEntry]]:
    after = 0
    while True:
        page = await client.read_log(after, old=True)
        for entry in page.entries:
            try:
                after = max(after + 1, oldlog.decode_head(entry.record).index)
            except EnvelopeError:
                after += 1
            yield after, entry
        if not page.entries:
            return

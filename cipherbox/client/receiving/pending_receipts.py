"""Pending receipts: signed acknowledgements due to each sender.

A receipt is due for every recorded envelope, and for every refusal that is final or that the sender
can resolve.  Pending receipts are in the inbox's database, so a crash loses none; a duplicate does
no harm.  One signature covers all pending receipts of all senders; each sender gets a group with
its own leaves, sealed, in its mailbox `.sys`, and an envelope is marked when HQ has confirmed that
group.  No receipt is due for a receipt.

A group costs each end and HQ as much as a message: an envelope, two commits, a sync at both ends.
So signatures are `EVERY_S` apart, and only `PAUSE_S` when somebody waits: a sender that says so in
the envelope, one that can resolve a refusal or sends a file, or this program, which is to end.
After a pause the first receipt is signed immediately, and a group that is full does not wait.

With the group goes an empty message of the session with that sender, if one exists, so that traffic
in one direction heals the session, too.  The group is not sealed in the session: a receipt opens
even if the session was lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import orjson
import trio

from cipherbox import clock
from cipherbox.client.connection.confirm_window import set_by_outcome
from cipherbox.client.connection.reconnecting import TimeLimit
from cipherbox.client.events import RECEIVER
from cipherbox.client.inbox.schema import DATABASE, open_inbox
from cipherbox.client.local_database import transaction, translated
from cipherbox.client.options import PublishOptions
from cipherbox.client.outbox.resealing import waits
from cipherbox.client.receiving.opening import NEVER
from cipherbox.client.receiving.receipts import RESEALABLE
from cipherbox.client.sessions.sessions import STEP_TYPE
from cipherbox.concurrency import Backoff, Flag, KeyedBackoff
from cipherbox.envelope.group import TYPE, USE, Unsigned
from cipherbox.envelope.outcomes import Outcome
from cipherbox.envelope.receipt import NO_COMMITMENT, Leaf
from cipherbox.errors import BundleError, CipherBoxError, EnvelopeError, TimedOut
from cipherbox.sealing.body import Message, pack

if TYPE_CHECKING:
    from cipherbox.client.receiving.delivery import Delivery
    from cipherbox.client.receiving.ports import ReceiptSender

MOST_LEAVES = 4096  # of one signature: 300 KB of a group
EVERY_S = 1.0  # between signatures, so that a busy inbox signs for many envelopes together
PAUSE_S = 0.1  # the same while somebody waits for a receipt
RETRY_MAX_S = 60.0
FLUSH_S = 5.0
END_S = 1.0  # for what is pending when `run` is cancelled
REFUSALS = 1000  # of each sender, in the record
_GIVEN_UP = 0
# refusals that the sender gets a receipt for
REFUSALS_SIGNED = (NEVER | RESEALABLE) - {Outcome.MALFORMED}
MOST_MS = (1 << 62) - 1  # the largest time or number of HQ's that is stored in SQLite


class PendingReceipt(NamedTuple):
    """One envelope to sign for; ``number`` is its row, None for a refusal."""

    number: int | None
    leaf: Leaf


class PendingReceipts:
    """The pending receipts of one home. It opens the inbox's database separately from the inbox."""

    def __init__(self, client: ReceiptSender) -> None:
        self._client = client
        self._path = client.home.path / DATABASE
        self._db = open_inbox(client.home.path)
        self._news = Flag()
        self._prompt = Flag()  # somebody waits for a receipt that is pending
        self._flushing = 0  # calls of `flush`
        self._idle = Flag()
        # of senders whose receipts cannot be sent now
        self._backoff: KeyedBackoff[str] = KeyedBackoff(lambda: Backoff(PAUSE_S, RETRY_MAX_S))
        self._told: set[str] = set()  # senders whose keys were reported as not usable
        self.signed = 0  # envelopes signed for

    def close(self) -> None:
        self._db.close()

    def notify(self, *, prompt: bool) -> None:
        """Look for pending receipts: something was recorded.  ``prompt``: somebody waits."""
        self._idle.clear()
        self._news.set()
        if prompt:
            self._prompt.set()

    def refuse(self, refused: Sequence[tuple[Delivery, Outcome, str]]) -> None:
        """Record refusals, bounded per sender, with a receipt pending wherever the sender is known.

        Of what is no envelope at all, the newest is remembered.
        """
        now = clock.now_ms()
        rows = []
        for delivery, outcome, reason in refused:
            at, entry = min(delivery.accepted_at, MOST_MS), min(delivery.log_entry, MOST_MS)
            try:
                digest, prefix = (
                    delivery.parsed.hashes.envelope_hash,
                    delivery.parsed.layout.prefix,
                )
                named = prefix.sender, prefix.envelope_id, prefix.generation
            except EnvelopeError:
                named, digest = ("", bytes(16), 0), bytes(32)
            rows.append(
                (
                    *named,
                    outcome,
                    digest,
                    at,
                    reason,
                    now,
                    None if outcome in REFUSALS_SIGNED else _GIVEN_UP,
                    entry,
                )
            )
        with transaction(self._db, self._path):
            self._db.executemany(
                "INSERT OR IGNORE INTO refusals (sender, envelope_id, generation, outcome, "
                "envelope_hash, accepted_at, reason, refused_at, receipt, log_entry) VALUES (?, "
                "?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            for sender in {row[0] for row in rows}:  # the newest of each stay, as a record
                self._db.execute(
                    "DELETE FROM refusals WHERE sender = ?1 AND refused_at < (SELECT refused_at "
                    "FROM refusals WHERE sender = ?1 ORDER BY refused_at DESC LIMIT 1 OFFSET ?2)",
                    (sender, REFUSALS),
                )
        self.notify(prompt=True)

    async def run(self) -> None:
        """Sign and send pending receipts until cancelled, with a back-off for each sender; then
        send what is still pending, if HQ takes it within a moment.
        """
        try:
            while True:
                self._news.clear()
                self._prompt.clear()
                pending = self._pending(self._backoff.waiting())
                if pending:
                    await self._sign(pending)
                    await self._pause(full=len(pending) >= MOST_LEAVES)
                    continue
                self._idle.set()
                with trio.move_on_at(self._backoff.next_due()):
                    await self._news.wait()
        except trio.Cancelled:
            await self._client.connection.last_call(self._finish, END_S)
            raise
        finally:
            self._idle.set()  # nobody waits for a task that has ended

    async def flush(self) -> None:
        """Wait briefly until no receipt is pending; the next command sends the rest."""
        self._flushing += 1
        self._prompt.set()
        try:
            with trio.move_on_after(FLUSH_S):
                await self._idle.wait()
        finally:
            self._flushing -= 1

    # -- inside ------------------------------------------------------------------------------------

    async def _pause(self, *, full: bool) -> None:
        await trio.sleep(PAUSE_S)
        if not (full or self._flushing):
            with trio.move_on_after(EVERY_S - PAUSE_S):
                await self._prompt.wait()

    async def _finish(self) -> None:
        if pending := self._pending(self._backoff.waiting()):
            await self._sign(pending)

    def _pending(self, without: Sequence[str]) -> list[PendingReceipt]:
        names = orjson.dumps(without).decode()
        with translated(self._path):
            rows = self._db.execute(
                "SELECT number, sender, envelope_id, generation, envelope_hash, accepted_at, "
                "outcome, outcomes, commitment, log_entry FROM envelopes WHERE receipt IS NULL "
                "AND sender NOT IN (SELECT value FROM json_each(?)) ORDER BY number LIMIT ?",
                (names, MOST_LEAVES),
            ).fetchall()
            rows += self._db.execute(
                "SELECT NULL, sender, envelope_id, generation, envelope_hash, accepted_at, "
                "outcome, NULL, NULL, log_entry FROM refusals WHERE receipt IS NULL AND sender "
                "NOT IN (SELECT value FROM json_each(?)) LIMIT ?",
                (names, MOST_LEAVES - len(rows)),
            ).fetchall()
        return [
            PendingReceipt(
                number,
                Leaf(
                    sender,
                    envelope_id,
                    generation,
                    digest or bytes(32),
                    at,
                    Outcome(outcome),
                    tuple(map(Outcome, outcomes or b"")),
                    commitment or NO_COMMITMENT,
                    entry,
                ),
            )
            for (
                number,
                sender,
                envelope_id,
                generation,
                digest,
                at,
                outcome,
                outcomes,
                commitment,
                entry,
            ) in rows
        ]

    async def _sign(self, pending: Sequence[PendingReceipt]) -> None:
        identity = self._client.home.identity
        assert identity is not None
        assert identity.bundle is not None
        at = clock.now_ms()
        newest = self._client.log.newest
        unsigned = Unsigned.over(
            identity.client_id,
            at,
            identity.bundle.hash,
            identity.suite,
            [one.leaf for one in pending],
            newest.note if newest is not None else b"",
        )
        signatures = identity.sign(USE, unsigned.digest)
        senders = list(dict.fromkeys(unsigned.senders))
        sent: dict[str, int] = {}

        async def one(sender: str) -> None:
            try:
                await self._send(sender, unsigned.group(signatures, sender))
                sent[sender] = 1
                self._backoff.succeeded(sender)
                self._told.discard(sender)
            except CipherBoxError as error:
                # keys that are not trusted may be compared, renewed, or restored if damaged here
                if waits(error) or isinstance(error, BundleError):
                    self._backoff.failed(sender)
                    self._tell(sender, error)
                else:  # the sender is gone: nobody could read it
                    sent[sender] = _GIVEN_UP
                    self._backoff.succeeded(sender)

        async with trio.open_nursery() as nursery:
            for sender in senders:
                nursery.start_soon(one, sender)
        if sent:
            self._mark(pending, sent, at)

    def _tell(self, sender: str, error: CipherBoxError) -> None:
        """Report once why receipts for a sender wait for a person."""
        if isinstance(error, BundleError) and sender not in self._told:
            self._told.add(sender)
            self._client.events.emit(RECEIVER, f"Receipts for {sender} wait: {error}")

    async def _send(self, sender: str, group: bytes) -> None:
        client = self._client
        options = PublishOptions.make(to=sender, box="sys", allow_mixed=True)
        route = await client.sealer.resolve_route(options)
        outcome, outbox = trio.Event(), client.outbox()
        messages = [Message(group, TYPE), *await self._session_step(sender)]
        item = client.sealer.seal(
            options, route, pack(messages), len(messages), set_by_outcome(outcome), keep=False
        )
        outbox.add(item)
        if not await outbox.confirmed(item, outcome, TimeLimit(client.connection)):
            raise TimedOut("HQ did not confirm a receipt in time")

    async def _session_step(self, sender: str) -> list[Message]:
        """Return the session's empty message, or none if that fails."""
        sessions = self._client.sessions
        with suppress(CipherBoxError):
            made = sessions.make_step(sender) if sessions is not None else None
            if made is not None:
                raw, step = made
                await self._client.outbox().keep_step(step)
                return [Message(raw, STEP_TYPE)]
        return []

    def _mark(self, pending: Sequence[PendingReceipt], sent: dict[str, int], at: int) -> None:
        # After a power cut here a second receipt is sent, as after a crash before the mark.
        with transaction(self._db, self._path, synced=False):
            db = self._db
            numbers, refusals = [], []
            for one in pending:
                state = sent.get(one.leaf.sender)
                if state is None:
                    continue
                mark = at if state else _GIVEN_UP
                self.signed += bool(state)
                leaf = one.leaf
                if one.number is not None:
                    numbers.append((mark, one.number))
                else:
                    refusals.append(
                        (mark, leaf.sender, leaf.envelope_id, leaf.generation, leaf.outcome)
                    )
            db.executemany("UPDATE envelopes SET receipt = ? WHERE number = ?", numbers)
            db.executemany(
                "UPDATE refusals SET receipt = ? WHERE sender = ? AND envelope_id = ? AND "
                "generation = ? AND outcome = ?",
                refusals,
            )

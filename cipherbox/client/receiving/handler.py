"""Handlers: a program's own function runs once for each message, in one transaction with its
result.

Messages are first recorded with their content and acknowledged, so HQ need not wait for the
program.  Then, for each message, a transaction of the inbox's database begins, the handler runs and
may write into it, the message is marked done, and everything is committed.  A crash leaves either
all of that or nothing, and then the handler runs again: what it wrote with ``tx`` exists exactly
once.  Its other effects can be repeated.

A message that the handler does not accept waits or is bad; see `attempts`.  Messages are handled in
the order in which they were recorded.  Others overtake those that wait for a retry, unless
``ordered``: then the oldest message of a sender blocks that sender's later ones until it is
accepted or parked.  The receipt is signed when every message of an envelope is done or parked.
"""

from __future__ import annotations

import inspect
import sqlite3
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import orjson
import trio

from cipherbox import clock
from cipherbox.classes import frozen
from cipherbox.client.events import RECEIVER
from cipherbox.client.inbox.decrypted_files import forget_opened, opened_file
from cipherbox.client.inbox.handler_contents import DONE, NOT_WHOLE, PARKED, WAITING, opened
from cipherbox.client.inbox.schema import DATABASE, open_inbox
from cipherbox.client.local_database import transaction, translated
from cipherbox.client.receiving.attempts import Failure, HandlerBackoff, is_later
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.concurrency import background
from cipherbox.envelope.ids import message_id
from cipherbox.envelope.outcomes import Outcome
from cipherbox.errors import Bad, Later
from cipherbox.sealing.body import Message, Messages

if TYPE_CHECKING:
    from cipherbox.client.receiving.ports import ReceivingClient, Reporter

TRIES = 5
LOOK_S = 1.0


@frozen
class Handled:
    """One message or file as a handler gets it; ``sealed_at`` is ms since 1970, ``attempt`` counts
    from 1.

    A file is at ``file``; its sender named it ``filename``. Its message's ``content`` is empty if
    it arrived in parts. With a password and without ``[inbox] plain``, ``file`` is in clear only
    during this call.
    """

    message_id: uuid.UUID
    sender_id: str
    sealed_at: int
    message: Message
    attempt: int
    file: Path | None = None
    filename: str = ""
    _stored_name: str = attrs.field(default="", repr=False)
    _size: int = attrs.field(default=0, repr=False)
    _files: list[dict[str, Any]] = attrs.field(factory=list, repr=False)
    _prompt: bool = attrs.field(default=False, repr=False)  # the sender waits for the receipt


@frozen
class Parked:
    """A message whose handler failed permanently."""

    message_id: uuid.UUID
    sender_id: str
    attempts: int
    reason: str


Handler = Callable[[Handled, sqlite3.Connection], Awaitable[None] | None]


class Handlers:
    """The messages of one home's inbox that wait for a handler, over its own connection."""

    def __init__(self, client: Reporter, *, tries: int = TRIES, ordered: bool = False) -> None:
        self._client = client
        self._path = client.home.path / DATABASE
        self._db = open_inbox(client.home.path)
        self._tries, self._ordered = tries, ordered
        self._backoff = HandlerBackoff(lambda text: client.events.emit(RECEIVER, text))
        self._read: tuple[int, Messages] | None = None  # the last envelope read
        self.done = 0
        self.parked_count = 0

    def close(self) -> None:
        self._db.close()

    def next(self) -> tuple[int, int, Handled] | None:
        """Return the oldest message that is due: (row, index, message)."""
        if self._backoff.waits:
            return None
        found = self._due()
        return None if found is None else self._handled(*found)

    def _due(self) -> tuple[int, int, Failure] | None:
        """Return (row, index, attempts) of the next message."""
        now = clock.now_ms()
        tried: tuple[int, int, Failure] | None = None
        blocked: set[str] = set()
        with translated(self._path):
            failures = {
                (number, index): Failure(attempts, later, next_at)
                for number, index, attempts, next_at, later in self._db.execute(
                    "SELECT number, message, attempts, next_at, later FROM failures"
                )
            }
            for number, sender, states in self._db.execute(
                "SELECT c.number, e.sender, c.states FROM contents c JOIN envelopes e ON "
                "e.number = c.number ORDER BY c.number"
            ):
                for index, state in enumerate(states):
                    if state not in (WAITING, NOT_WHOLE) or sender in blocked:
                        continue
                    failure = failures.get((number, index), Failure())
                    if self._ordered:
                        blocked.add(sender)
                    if state == NOT_WHOLE or failure.next_at > now:
                        continue
                    if not failure.next_at or not self._backoff.is_failing:
                        return number, index, failure
                    tried = tried or (number, index, failure)
        return tried

    def _handled(
        self, number: int, index: int, failure: Failure
    ) -> tuple[int, int, Handled] | None:
        with translated(self._path):
            row = self._db.execute(
                "SELECT e.sender, e.envelope_id, e.messages, c.sealed_at, c.plain, c.locked, "
                "c.files, e.prompt FROM contents c JOIN envelopes e ON e.number = c.number WHERE "
                "c.number = ?",
                (number,),
            ).fetchone()
        if row is None:
            return None
        sender, envelope_id, count, sealed_at, plain, locked, files, prompt = row
        if self._read is None or self._read[0] != number:
            read = opened(
                self._client.home.secret_box.content_box,
                plain,
                locked,
                sender,
                envelope_id,
                count,
                sealed_at,
            )
            self._read = number, read
        about = orjson.loads(files or "{}").get(str(index), {})
        return (
            number,
            index,
            Handled(
                message_id(envelope_id, index),
                sender,
                sealed_at,
                self._read[1][index],
                failure.attempts + failure.later + 1,
                Path(about["file"]) if about.get("file") else None,
                about.get("filename", ""),
                about.get("kept", ""),
                about.get("size", 0),
                about.get("files", []),
                bool(prompt or about),
            ),
        )

    async def run(self, handler: Handler, number: int, index: int, handled: Handled) -> None:
        """Run the handler on one message."""
        db = self._db
        try:
            with translated(self._path):
                # A coroutine takes the lock only when it first writes, so that recording does not
                # wait for it.
                db.execute("BEGIN" if inspect.iscoroutinefunction(handler) else "BEGIN IMMEDIATE")
            try:
                async with self._in_clear(handled) as given:
                    found = handler(given, db)
                    if inspect.isawaitable(found):
                        await found
                db.execute("DELETE FROM failures WHERE number = ? AND message = ?", (number, index))
                # after a write, which took the lock, this reads the newest state
                self._mark(number, index, DONE)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            self.done += 1
            self._backoff.over(number, index)
        except Exception as error:
            if getattr(error, "sqlite_errorname", "") == "SQLITE_BUSY_SNAPSHOT":
                # it had read before something else was recorded: run it again from the start
                return
            self._failed(number, index, handled, error)

    @asynccontextmanager
    async def _in_clear(self, handled: Handled) -> AsyncIterator[Handled]:
        """Provide the message with its file decrypted."""
        if not handled._stored_name:
            yield handled
            return
        home = self._client.home
        with opened_file(
            home.path,
            home.secret_box.content_box,
            handled._stored_name,
            handled._size,
            handled.filename,
            handled._files,
        ) as path:
            yield attrs.evolve(handled, file=path)

    def _failed(self, number: int, index: int, handled: Handled, error: Exception) -> None:
        later = is_later(error)
        name = "" if isinstance(error, Later | Bad) else f"{type(error).__name__}: "
        reason = f"{name}{error}"[:1000]
        with transaction(self._db, self._path):
            before = self._db.execute(
                "SELECT attempts, later FROM failures WHERE number = ? AND message = ?",
                (number, index),
            ).fetchone()
            failure = Failure(*(before or (0, 0))).after(later)
            self._db.execute(
                "INSERT OR REPLACE INTO failures (number, message, attempts, next_at, reason, "
                "later) VALUES (?, ?, ?, ?, ?, ?)",
                (number, index, failure.attempts, failure.next_at, reason, failure.later),
            )
            over = not later and failure.attempts >= self._tries
            if over:
                self._mark(number, index, PARKED)
        self.parked_count += over
        if later:
            self._backoff.later(number, index, reason)
            return
        self._backoff.over(number, index)
        what = "parked" if over else f"tried again in {failure.pause_s:.0f} s"
        attempt = f"attempt {failure.attempts} of {self._tries}"
        text = (
            f"The handler failed at message {handled.message_id} ({attempt}): {reason}; it is "
            f"{what}"
        )
        self._client.events.emit(RECEIVER, text)

    def _mark(self, number: int, index: int, state: int) -> None:
        """Mark a message done or parked inside a transaction; with the last, its envelope."""
        db = self._db
        states = self._set_state(number, index, state)
        if WAITING in states or NOT_WHOLE in states:
            return
        failed = PARKED in states
        outcomes = (
            bytes(Outcome.HANDLER_FAILED if s == PARKED else Outcome.OPENED for s in states)
            if failed
            else None
        )
        db.execute(
            "UPDATE envelopes SET receipt = NULL, outcomes = ? WHERE number = ?", (outcomes, number)
        )
        if not failed:
            db.execute("DELETE FROM contents WHERE number = ?", (number,))

    def _set_state(self, number: int, index: int, state: int) -> bytes:
        (before,) = self._db.execute(
            "SELECT states FROM contents WHERE number = ?", (number,)
        ).fetchone()
        states = bytearray(before)
        states[index] = state
        self._db.execute("UPDATE contents SET states = ? WHERE number = ?", (bytes(states), number))
        return bytes(states)

    async def work(self, handler: Handler, receiver: Receiver, idle_s: float | None = None) -> None:
        """Run the handler on what ``receiver`` keeps for it in another task; see `process`."""
        forget_opened(self._client.home.path)
        idle_since = trio.current_time()
        while True:
            found = self.next()
            if found is not None:
                await self.run(handler, *found)
                receiver.receipts_due(prompt=found[2]._prompt)
                idle_since = trio.current_time()
                await trio.lowlevel.checkpoint()
                continue
            if (
                idle_s is not None
                and trio.current_time() - idle_since >= idle_s
                and not receiver.busy
            ):
                await receiver.flush()
                return
            with trio.move_on_after(min(LOOK_S, idle_s or LOOK_S)):
                await receiver.wait_for_more()

    def parked(self) -> list[Parked]:
        """Return the parked messages, oldest first."""
        with translated(self._path):
            rows = self._db.execute(
                "SELECT e.envelope_id, f.message, e.sender, f.attempts, f.reason, c.states FROM "
                "failures f JOIN envelopes e ON e.number = f.number JOIN contents c ON c.number "
                "= f.number ORDER BY f.number, f.message"
            ).fetchall()
        return [
            Parked(message_id(envelope_id, index), sender, attempts, reason)
            for envelope_id, index, sender, attempts, reason, states in rows
            if states[index] == PARKED
        ]

    def retry(self, wanted: uuid.UUID | None = None) -> int:
        """Requeue one parked message, or all; return the number."""
        count = 0
        with transaction(self._db, self._path):
            for number, index, envelope_id, states in self._db.execute(
                "SELECT f.number, f.message, e.envelope_id, c.states FROM failures f "
                "JOIN envelopes e ON e.number = f.number JOIN contents c ON c.number = f.number"
            ).fetchall():
                if states[index] == PARKED and wanted in (None, message_id(envelope_id, index)):
                    self._db.execute(
                        "DELETE FROM failures WHERE number = ? AND message = ?", (number, index)
                    )
                    self._set_state(number, index, WAITING)
                    count += 1
        return count


async def process(
    client: ReceivingClient,
    handler: Handler,
    queues: list[str] | None = None,
    tries: int = TRIES,
    idle_s: float | None = None,
    incoming: Path | None = None,
    ordered: bool = False,
) -> Handlers:
    """Receive and run the handler on each message, until cancelled or idle for ``idle_s``."""
    handlers = Handlers(client, tries=tries, ordered=ordered)
    receiver = Receiver(client, keep_contents=True, incoming=incoming)
    try:
        async with background() as nursery:
            await nursery.start(receiver.keep if idle_s is None else receiver.run, queues)
            await handlers.work(handler, receiver, idle_s)
            return handlers
    finally:
        handlers.close()

"""The desk behind the page: an open client, what its home holds, and a wake-up when that changes.

Everything shown is read from the home's two databases and from HQ, by the client's public calls;
the page keeps nothing of its own but `page-settings.json`.  Another program of the same home may
receive or send meanwhile: the desk notices each commit by the databases' own marks.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import orjson
import trio

from cipherbox.apps.page.history import SAMPLE_S, History
from cipherbox.classes import define, frozen
from cipherbox.client.client import Client
from cipherbox.client.inbox.inspect import InboxInspection, RefusedEntry
from cipherbox.client.outbox.transfers import Transfer, Transfers
from cipherbox.client.publishing.files import FileSender
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.concurrency import Backoff, Signal, background, only, supervise
from cipherbox.errors import (
    BundleDiscontinuous,
    BundleError,
    CipherBoxError,
    StoreError,
    StoreLocked,
    UnknownRecipient,
)
from cipherbox.limits import CLIENT_ID
from cipherbox.portable import write_atomic

SETTINGS = "page-settings.json"
LOOK_S = 0.5  # between looks for commits, while a browser listens
OTHER_S = 1.0  # between looks whether another receiver of this home has ended
HQ_S = 4.0  # how long a page waits for HQ before it shows what is known here
ACT_S = 20.0  # the same for what a person asked for, and cannot be shown otherwise
PEOPLE_S = 20.0  # for which the list of people is shown again without asking
UNKNOWN_S = 1.0  # the same while HQ does not answer
ALARM_S = 60.0  # after which it is asked for while a browser listens: changed keys raise an alarm
MOST_ASKED = 200  # clients whose keys are looked at before anything is sent to them
REFUSALS = 200  # the newest
# What only a forger, a damaged disk or a false key explains; the rest of the outcomes are faults.
FORGED = frozenset(
    [
        "signature-invalid",
        "decryption-failed",
        "commitment-mismatch",
        "commitment-changed",
        "plaintext-mismatch",
        "sender-not-valid",
    ]
)

P = ParamSpec("P")
T = TypeVar("T")


@define
class PageChoices:
    """What the user set in the page; kept in the home."""

    language: str = ""  # empty: the browser's
    shown: bool = False  # texts of messages without a click
    theme: str = ""  # light or dark; empty: the system's
    seen_at: int = 0  # refusals up to this time were seen, in ms since 1970


@frozen
class Person:
    """One client of this HQ as this home knows it."""

    name: str
    pinned: bool
    compared_at: int  # ms since 1970; 0: never
    reachable: bool
    alarm: str  # why its keys must not be trusted, or empty
    trouble: CipherBoxError | None  # why it cannot be written to


class Desk:
    """See the module."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.changed = Signal()
        self.listeners = 0
        self.failure: CipherBoxError | None = None  # which ended receiving
        self.trouble: CipherBoxError | None = None  # why nobody's keys can be verified now
        self.history = History()  # of HQ, for an admin
        self.keyless = client.home.identity is None  # an admin's home: no messages
        self.choices = _read_choices(client.home.path / SETTINGS)
        self._inbox: InboxInspection | None = None
        self._turn = trio.Lock()
        self._people: tuple[float, list[Person]] = (float("-inf"), [])  # shown until then
        self._sending: set[int] = set()  # numbers of transfers
        self._own_alarm = ""

    # -- tasks -------------------------------------------------------------------------------------

    async def receive(self) -> None:
        """Receive into this home for as long as the page runs, and continue the files that an
        earlier program left half sent; unless another program of this home does.  An error that
        ends receiving does not end the page, which shows it.
        """
        try:
            await supervise(self._receive, Backoff(OTHER_S, OTHER_S), transient=only(StoreLocked))
        except CipherBoxError as error:
            self.failure = error
            self.changed.notify()

    async def _receive(self) -> None:
        receiver = Receiver(self.client)
        async with background() as nursery:
            await nursery.start(partial(receiver.keep, own_trouble=True))
            outbox = self.client.outbox()
            for transfer in await outbox.store(Transfers(outbox.outbox).unfinished):
                nursery.start_soon(self.send, transfer)
            await trio.sleep_forever()

    async def send(self, transfer: Transfer) -> None:
        """Send a file, once at a time; what stops it is kept with the transfer, and shown."""
        if transfer.number in self._sending:
            return
        self._sending.add(transfer.number)
        try:
            with suppress(CipherBoxError):
                await FileSender(self.client, transfer, patient=True).run()
        finally:
            self._sending.discard(transfer.number)

    async def sample(self, report: Callable[[Client], Awaitable[dict[str, Any]]]) -> None:
        """Keep a history of HQ for its admin, until cancelled."""
        while True:
            # the next sample comes soon; a report of another version's HQ, or a hostile one's, may
            # have another form
            with suppress(CipherBoxError, LookupError, TypeError, ValueError):
                found = await self.at_hq(lambda: report(self.client), None)
                if found is not None:
                    self.history.add(found)
                    self.changed.notify()
            await trio.sleep(SAMPLE_S)

    async def watch(self) -> None:
        """Wake the browsers that listen after each change, until cancelled."""
        await self._wake(LOOK_S, self._mark, None, StoreError)

    async def watch_keys(self) -> None:
        """Wake the browsers that listen when somebody's keys raise an alarm, until cancelled."""
        await self._wake(ALARM_S, self.key_alarms, [], CipherBoxError)

    async def _wake(
        self,
        every_s: float,
        look: Callable[[], Awaitable[object]],
        now: object,
        passing: type[CipherBoxError],
    ) -> None:
        """Look until cancelled; after an error that passes, look again."""
        while True:
            await trio.sleep(every_s)
            if not self.listeners:
                continue
            before = now
            with suppress(passing):
                now = await look()
            if now != before:
                self.changed.notify()

    async def _mark(self) -> object:
        connected = self.client.connection.current is not None
        if self.keyless:
            return connected
        outbox = self.client.outbox()
        return (
            connected,
            await self.inbox(InboxInspection.version),
            await outbox.store(outbox.outbox.version),
        )

    def close(self) -> None:
        """Close what was opened to read."""
        if self._inbox is not None:
            self._inbox.close()

    # -- reading -----------------------------------------------------------------------------------

    async def inbox(
        self, call: Callable[Concatenate[InboxInspection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return what a call on the inbox returns; calls run in a thread, one at a time."""

        def read() -> T:
            if self._inbox is None:
                self._inbox = InboxInspection(self.client.home)
            return call(self._inbox, *args, **kwargs)

        async with self._turn:
            return await trio.to_thread.run_sync(read)

    async def outbox(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what a call on the outbox returns."""
        return await self.client.outbox().store(call, *args, **kwargs)

    async def at_hq(
        self, call: Callable[[], Awaitable[T]], otherwise: T, most_s: float | None = None
    ) -> T:
        """Return HQ's answer, or ``otherwise`` if HQ does not answer soon, or is busy."""
        if self.client.connection.current is None:
            return otherwise
        with trio.move_on_after(HQ_S if most_s is None else most_s):
            try:
                return await call()
            except CipherBoxError as error:
                if not error.retryable:
                    raise
        return otherwise

    async def listed(self, what: str) -> list[dict[str, Any]]:
        """Return what HQ lists, or nothing if it does not answer soon.  Each row has a name; the
        rest is as HQ says.
        """
        nothing: list[dict[str, Any]] = []
        rows = await self.at_hq(lambda: self.client.list(what), nothing)
        return [row for row in rows if isinstance(row, dict) and type(row.get("name")) is str]

    # -- people ------------------------------------------------------------------------------------

    async def people(self, *, anew: bool = False, most: int = MOST_ASKED) -> list[Person]:
        """Return everybody this client may know, and what is wrong with their keys.  If there are
        more than ``most``, only those whose keys are here: those of others come with the first
        message to them.
        """
        now = trio.current_time()
        if not anew and now < self._people[0]:
            return self._people[1]
        pins = {pin.bundle.client_id: pin for pin in self.client.directory.pins.entries()}
        rows = await self.listed("clients")
        named = {row["name"] for row in rows if CLIENT_ID.fullmatch(row["name"])}
        names = sorted((named | set(pins)) - {self.client.client_id})
        if len(names) > most:
            names = [name for name in names if name in pins]
        reached, reasons = await self._reachable(names)
        pins = {pin.bundle.client_id: pin for pin in self.client.directory.pins.entries()}
        found = []
        for name in names:
            pin, error = pins.get(name), reasons.get(name)
            if pin is None and isinstance(error, UnknownRecipient):
                continue  # an admin's home, or one that has not connected yet: it has no keys
            found.append(
                Person(
                    name,
                    pin is not None,
                    pin.compared_at if pin is not None else 0,
                    name in reached or (not rows and pin is not None),
                    str(error) if isinstance(error, BundleDiscontinuous) else "",
                    error,
                )
            )
        if rows:
            self._own_alarm = await self._own_keys()
        if most == MOST_ASKED:
            self._people = now + (PEOPLE_S if rows else UNKNOWN_S), found
        return found

    async def everybody(self) -> list[str]:
        """Return all who can be written to now, however many they are."""
        return [one.name for one in await self.people(anew=True, most=sys.maxsize) if one.reachable]

    async def _reachable(self, names: Sequence[str]) -> tuple[list[str], dict[str, CipherBoxError]]:
        """Return who can be written to now, and why others cannot.  An error that concerns all of
        them, such as a revocation list that cannot be verified, is shown, and what is here can
        still be read.
        """
        nothing: tuple[list[str], dict[str, CipherBoxError]] = ([], {})
        try:
            found = await self.at_hq(lambda: self.client.directory.reachable(names), nothing)
        except CipherBoxError as error:
            self.trouble = error
            return nothing
        self.trouble = None
        return found

    async def _own_keys(self) -> str:
        try:
            await self.at_hq(self.client.key_lifecycle.check_own, None)
        except BundleError as error:
            return str(error)
        return ""

    # -- alarms ------------------------------------------------------------------------------------

    async def refused(self) -> list[RefusedEntry]:
        """Return what this home refused, newest first."""
        if self.keyless:
            return []
        return (await self.inbox(InboxInspection.refused, REFUSALS))[::-1]

    async def unseen(self) -> list[RefusedEntry]:
        """Return forged or damaged messages that nobody has seen yet, newest first."""
        return [
            one
            for one in await self.refused()
            if one.outcome in FORGED and one.at > self.choices.seen_at
        ]

    async def key_alarms(self) -> list[tuple[str, str]]:
        """Return (client id, what happened) for keys that changed and must be compared."""
        if self.keyless:
            return []
        people = await self.people()
        own = [(self.client.client_id, self._own_alarm)] if self._own_alarm else []
        return own + [(one.name, one.alarm) for one in people if one.alarm]

    async def choose(self, **values: Any) -> None:
        """Change what the user set, and keep it."""
        for name, value in values.items():
            setattr(self.choices, name, value)
        kept = {name: getattr(self.choices, name) for name in _FIELDS}
        path = self.client.home.path / SETTINGS
        await trio.to_thread.run_sync(partial(write_atomic, path, orjson.dumps(kept), 0o600))
        self.changed.notify()


_FIELDS: Sequence[str] = ("language", "shown", "theme", "seen_at")


def _read_choices(path: Path) -> PageChoices:
    choices = PageChoices()
    with suppress(OSError, ValueError):
        found = orjson.loads(path.read_bytes())
        for name in _FIELDS:
            value = found.get(name) if isinstance(found, dict) else None
            if type(value) is type(getattr(choices, name)):
                setattr(choices, name, value)
    return choices

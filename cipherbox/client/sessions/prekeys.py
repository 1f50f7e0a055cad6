"""Prekeys over the line: this client's, kept up at HQ; others', to begin sessions with.

A client that receives looks after its prekeys: once an hour, and at once when they are due to be
replaced.  HQ says how many one-time prekeys are left; below half they are filled up.  The signed
part goes with every question, so an HQ that was restored from an older backup has it again within
the hour.

A session that is due (there is none, or it is old) is begun anew before something is sealed, once
for all who wait for it.  When that cannot be done, an old session is used on: what was agreed is
still better than nothing sent.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from cipherbox.client.connection.reconnecting import ReconnectingConnection
from cipherbox.client.events import KEYS, Events
from cipherbox.client.sessions.sessions import Sessions
from cipherbox.envelope.bundle import KeyBundle
from cipherbox.errors import BundleError, CipherBoxError, NetworkError, UnknownRecipient
from cipherbox.sealing.ratchet.prekeys import verified_prekeys
from cipherbox.wire import frames

if TYPE_CHECKING:
    from cipherbox.client.keys.directory import Directory

CHECK_S = 3600.0
RETRY_S = 60.0
LOOK_S = 5.0
REST_S = 1.0  # between replacements that somebody else can cause


class Prekeys:
    """See the module."""

    def __init__(
        self, sessions: Sessions, connection: ReconnectingConnection, events: Events
    ) -> None:
        self.sessions = sessions
        self._connection, self._events = connection, events
        self._beginning: dict[str, trio.Event] = {}  # a session with this client is being begun
        self._looked = trio.Event()
        self._unknown = trio.Event()

    # -- others' -----------------------------------------------------------------------------------

    async def ensured(self, bundles: list[KeyBundle], directory: Directory) -> list[KeyBundle]:
        """As `ensure`; the bundles, newer ones where those known here have not signed the
        prekeys.
        """
        try:
            await self.ensure(bundles)
        except BundleError:
            for bundle in bundles:
                directory.refresh(bundle.client_id)
            bundles = await directory.recipients([bundle.client_id for bundle in bundles])
            await self.ensure(bundles)
        return bundles

    async def ensure(self, bundles: Sequence[KeyBundle]) -> None:
        """A session with each owner of these believed bundles.  UnknownRecipient: it left no
        prekeys at HQ.
        """
        for begun in [
            self._beginning[b.client_id] for b in bundles if b.client_id in self._beginning
        ]:
            await begun.wait()
        due = {b.client_id: b for b in bundles if self.sessions.due(b.client_id)}
        if not due:
            return
        begun = trio.Event()
        self._beginning.update(dict.fromkeys(due, begun))
        try:
            await self._begin_with(due)
        finally:
            begun.set()
            self._beginning = {
                name: event for name, event in self._beginning.items() if event is not begun
            }

    async def _begin_with(self, due: dict[str, KeyBundle]) -> None:
        lacking = [name for name in due if not self.sessions.speaks_with(name)]
        try:
            if not await self._supported():
                raise UnknownRecipient(
                    "this HQ keeps no prekeys", remedy="its admin must bring it up to date"
                )
            answer: frames.Prekeys = await self._connection.request(
                frames.GetPrekeys, clients=list(due)
            )
        except CipherBoxError:
            if lacking:
                raise
            return
        for found, bundle in zip(answer.answers, due.values(), strict=True):
            self._begin(bundle, found, lacking)

    def _begin(self, bundle: KeyBundle, found: frames.PrekeyAnswer, lacking: Sequence[str]) -> None:
        name = bundle.client_id
        if not found.signed:
            if name in lacking:
                raise UnknownRecipient(
                    f"{name} has left no prekeys at HQ, so no session can be begun with it: it "
                    "must receive once with this version of the program; until then send "
                    "without stanza 'ratchet'"
                )
            return
        try:
            self.sessions.begin(
                name, verified_prekeys(name, bundle.sign_keys, found.signed, found.once)
            )
        except BundleError as error:
            if name in lacking:
                raise
            self._events.emit(
                KEYS, f"No fresh session with {name}: {error}; the old one is used on"
            )
            return
        last = "" if found.once else " (its one-time prekeys are used up)"
        self._events.emit(KEYS, f"Began a session with {name}{last}")

    # -- this client's -----------------------------------------------------------------------------

    async def looked(self) -> None:
        """Waits a little until `keep` has looked once: a short command would end before it."""
        with trio.move_on_after(LOOK_S):
            await self._looked.wait()

    async def keep(self) -> None:
        """Until cancelled; trouble is tried again later."""
        while True:
            pause = CHECK_S
            try:
                now = time.time_ns() // 1_000_000
                keys = self.sessions.keys
                self._unknown = keys.unknown.next()
                supported = await self._supported()
                due = not 0 <= now - keys.checked_at < CHECK_S * 1000
                if supported and (due or keys.must_replace(self._history)):
                    await self.offer()
            except CipherBoxError as error:
                pause = RETRY_S
                if not isinstance(error, NetworkError):
                    self._events.emit(KEYS, f"Prekeys could not be left at HQ: {error}")
            self._looked.set()
            with trio.move_on_after(pause):
                await self._unknown.wait()
                await trio.sleep(REST_S)

    async def offer(self) -> int:
        """Leaves prekeys at HQ as they are due; how many one-time prekeys it has then, of this
        client.
        """
        if not await self._supported():
            raise UnknownRecipient(
                "this HQ keeps no prekeys", remedy="its admin must bring it up to date"
            )
        keys = self.sessions.keys
        history = self._history
        if keys.must_replace(history):
            offer = keys.fresh()
        else:
            first = keys.more(1 << 30)
            answer = await self._send(first.signed, (), replace=False)
            offer = keys.more(answer)
            if not offer.once:
                keys.offered(offer, history)
                return answer
        left = await self._send(offer.signed, offer.once, replace=offer.replace)
        keys.offered(offer, history)
        return left

    async def follow(self) -> None:
        """This client's keys were rotated: prekeys that the keys before had signed are replaced,
        if there are any.
        """
        if (
            self.sessions.exists
            and self.sessions.keys.checked_at
            and self.sessions.keys.must_replace(self._history)
        ):
            with suppress(CipherBoxError):  # `keep` does it later
                await self.offer()

    async def _send(self, signed: bytes, once: Sequence[bytes], *, replace: bool) -> int:
        answer: frames.Ok = await self._connection.request(
            frames.OfferPrekeys, replace=replace, signed=signed, once=list(once)
        )
        return answer.count

    @property
    def _history(self) -> bytes:
        current = self._connection.current
        return current.welcome.history if current is not None else b""

    async def _supported(self) -> bool:
        """Whether HQ keeps prekeys: an older one would end the connection at a frame it does not
        know.
        """
        await self._connection.ready(self._connection.tries)
        current = self._connection.current
        return current is not None and bool(current.welcome.features & frames.PREKEYS)

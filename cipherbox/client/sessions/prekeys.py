"""Exchange prekeys with HQ: keep this client's in supply there, and begin sessions with others'.

A client that receives checks its prekeys once an hour, and immediately when they are due for
replacement. HQ reports the number of one-time prekeys left; below half they are refilled. Each
check sends the signed part, so an HQ restored from an older backup has it again within the hour.

A session that is due (missing or old) is begun before sealing, once for all tasks that wait for it.
If that fails, an old session stays in use, which is better than not sending.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from cipherbox import clock
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
PAUSE_S = 1.0  # between replacements that a peer can cause


class Prekeys:
    """Keeps prekeys at HQ, and begins sessions."""

    def __init__(
        self, sessions: Sessions, connection: ReconnectingConnection, events: Events
    ) -> None:
        self.sessions = sessions
        self._connection, self._events = connection, events
        self._beginning: dict[str, trio.Event] = {}  # clients with which a session is being begun
        self._checked = trio.Event()
        self._unknown = trio.Event()

    # -- others' -----------------------------------------------------------------------------------

    async def ensured(self, bundles: list[KeyBundle], directory: Directory) -> list[KeyBundle]:
        """Run `ensure` and return the bundles: newer ones if those known here have not signed the
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
        """Make sure that there is a session with each owner of these trusted bundles. Raise
        UnknownRecipient if one has no prekeys at HQ.
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
        lacking = [name for name in due if not self.sessions.can_send(name)]
        try:
            if not await self._supported():
                raise UnknownRecipient(
                    "this HQ does not store prekeys", remedy="ask its admin to update HQ"
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
                    f"cannot begin a session with {name}: it has no prekeys at HQ. It must "
                    "receive once with this version of the program; until then send without "
                    "stanza 'ratchet'"
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
                KEYS, f"No new session with {name}: {error}; the old one stays in use"
            )
            return
        last = "" if found.once else " (its one-time prekeys are exhausted)"
        self._events.emit(KEYS, f"Began a session with {name}{last}")

    # -- this client's -----------------------------------------------------------------------------

    async def wait_checked(self) -> None:
        """Wait briefly until `keep` has checked once: a short command would otherwise end before
        it.
        """
        with trio.move_on_after(LOOK_S):
            await self._checked.wait()

    async def keep(self) -> None:
        """Check and replace prekeys until cancelled, retrying after errors."""
        while True:
            pause = CHECK_S
            try:
                now = clock.now_ms()
                keys = self.sessions.keys
                self._unknown = keys.unknown.next()
                supported = await self._supported()
                due = not 0 <= now - keys.checked_at < CHECK_S * 1000
                if supported and (due or keys.must_replace(self._history)):
                    await self.offer()
            except CipherBoxError as error:
                pause = RETRY_S
                if not isinstance(error, NetworkError):
                    self._events.emit(KEYS, f"Offering prekeys to HQ failed: {error}")
            self._checked.set()
            with trio.move_on_after(pause):
                await self._unknown.wait()
                await trio.sleep(PAUSE_S)

    async def offer(self) -> int:
        """Offer the prekeys that are due, and return the number of this client's one-time prekeys
        at HQ.
        """
        if not await self._supported():
            raise UnknownRecipient(
                "this HQ does not store prekeys", remedy="ask its admin to update HQ"
            )
        keys = self.sessions.keys
        history = self._history
        if keys.must_replace(history):
            offer = keys.replacement()
        else:
            first = keys.refill(1 << 30)
            answer = await self._send(first.signed, (), replace=False)
            offer = keys.refill(answer)
            if not offer.once:
                keys.offered(offer, history)
                return answer
        left = await self._send(offer.signed, offer.once, replace=offer.replace)
        keys.offered(offer, history)
        return left

    async def replace_if_rotated(self) -> None:
        """Replace prekeys signed by former keys after a rotation, if there are any."""
        if (
            self.sessions.exists
            and self.sessions.keys.checked_at
            and self.sessions.keys.must_replace(self._history)
        ):
            with suppress(CipherBoxError):  # `keep` retries
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
        """Return whether HQ stores prekeys: an older one would end the connection on an unknown
        frame.
        """
        await self._connection.ready(self._connection.tries)
        current = self._connection.current
        return current is not None and bool(current.welcome.features & frames.PREKEYS)

"""Seal an envelope of the outbox again, in the next generation, from the copy that is kept.

That is for recipients whose keys have changed, for the remaining recipients when one was revoked,
and for the current readers of a changed route.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress

import trio

from cipherbox.client.connection.confirm_window import OnOutcome, PendingPublish
from cipherbox.client.events import SENDER, Events
from cipherbox.client.outbox.access import OutboxAccess
from cipherbox.client.outbox.rows import PARKED, Row
from cipherbox.errors import (
    CipherBoxError,
    ClockSkew,
    CredentialsError,
    LogError,
    NetworkError,
    ProtocolError,
    StoreError,
    TooOld,
    refused_recipients,
)

PAGE = 256
Reseal = Callable[[Row, bytes, Collection[str], OnOutcome | None], Awaitable[PendingPublish]]
Revoked = Callable[[], Awaitable[list[str]]]


class Resealing(OutboxAccess):
    """The half of `OutboxSender` that seals again; the other half sets the attributes below."""

    _events: Events
    _reseal: Reseal
    _revoked: Revoked
    add: Callable[[PendingPublish], None]
    kept: Callable[[PendingPublish], Awaitable[None]]
    park: Callable[[PendingPublish | Row, CipherBoxError], None]
    _one_at_a_time: trio.Lock

    async def mend(
        self,
        envelope_id: bytes,
        generation: int,
        refused: CipherBoxError | None = None,
        on_outcome: OnOutcome | None = None,
    ) -> bool:
        """Seal again what HQ refused in that generation, and return whether that was possible: then
        ``on_outcome`` is called once, with the next generation.

        ``refused``: HQ's error, if it names recipients that it refuses.
        """
        names, reason = (
            (None, "") if refused is None else (refused_recipients(refused), str(refused))
        )
        # on an error it is parked, or waits and is tried again
        with suppress(CipherBoxError):
            if await self.seal_again(
                envelope_id, names, generation=generation, reason=reason, on_outcome=on_outcome
            ):
                if refused is not None:
                    self._events.messages(
                        SENDER, f"{refused}: {{}} is sealed again for the others", envelope_id, 1
                    )
                return True
        return False

    async def seal_for_others(self, item: PendingPublish, error: CipherBoxError) -> None:
        """Seal again for the recipients that HQ did not refuse; the owner gets the error when their
        generation is settled.
        """

        def on_outcome(new: PendingPublish | None) -> None:
            text = f"{error.what}; the others get it: {', '.join(item.others)}"
            if new is not None and new.error is not None:
                text, item.others = f"{error.what}; {new.error}", new.others
            item.error = error.copy(text)
            item.tell_owner()

        if not await self.mend(item.envelope_id, item.generation, error, on_outcome):
            on_outcome(None)

    async def seal_again_all(
        self, client_id: str | None = None
    ) -> tuple[int, list[CipherBoxError]]:
        """Seal again what ``client_id`` (None: any recipient) has not opened; return the number of
        envelopes, and the errors of those that could not be sealed.
        """
        done = 0
        errors: list[CipherBoxError] = []
        without = await self._revoked()
        for row in await self._unopened(client_id):
            try:
                done += await self.seal_again(row.envelope_id, without)
            except CipherBoxError as error:
                if waits(error):
                    raise
                errors.append(error)
        return done, errors

    async def without_revoked(self) -> None:
        """Seal again, without a revoked recipient, what it has not opened; idempotent."""
        for name in await self._revoked():
            count = 0
            for row in await self._unopened(name):
                if len(row.recipients) > 1:
                    # on an error it is parked, or waits and is tried again
                    with suppress(CipherBoxError):
                        count += await self.seal_again(
                            row.envelope_id,
                            [name],
                            generation=row.generation,
                            reason=f"{name} was revoked",
                        )
            if count:
                self._events.emit(
                    SENDER, f"{name} was revoked: {count} envelopes are sealed again for the others"
                )

    async def _unopened(self, client_id: str | None) -> list[Row]:
        found: list[Row] = []
        while True:
            page = await self.store(
                self.outbox.unopened_by, client_id, PAGE, found[-1].number if found else 0
            )
            if not page:
                return found
            found += page

    async def seal_again(
        self,
        envelope_id: bytes,
        without: Collection[str] | None = None,
        *,
        generation: int | None = None,
        reason: str = "",
        on_outcome: OnOutcome | None = None,
    ) -> bool:
        """Seal an envelope in the next generation, with its recipients' current keys; keep and send
        it.

        ``without`` names recipients to leave out; None: the revoked ones.  An envelope that cannot
        be sealed is parked.  Return False if its bytes or its key were deleted, or if it is no
        longer of that ``generation``: HQ may refuse one envelope in several ways at a time.
        """
        async with self._one_at_a_time:
            row = await self.store(self.outbox.find, envelope_id)
            if row is None or generation not in (None, row.generation):
                return False
            return await self._seal_again(row, without, reason, on_outcome)

    async def _seal_again(
        self, row: Row, without: Collection[str] | None, reason: str, on_outcome: OnOutcome | None
    ) -> bool:
        raw = await self.store(self.outbox.bytes_of, row)
        if raw is None or row.content_key is None:
            return False
        try:
            item = await self._reseal(
                row, raw, await self._revoked() if without is None else without, on_outcome
            )
            if item.entry is not None:
                item.entry = item.entry._replace(
                    reason="; ".join(dict.fromkeys(filter(None, [_kept(row), reason])))
                )
            self.add(item)
        except CipherBoxError as error:
            if not waits(error):
                self.park(row, error)
            raise
        await self.kept(item)
        return True


def _kept(row: Row) -> str:
    """Return why it has fewer recipients than at first, which is not why it was parked."""
    return "" if row.state == PARKED else row.reason


def waits(error: CipherBoxError) -> bool:
    """Return whether an envelope waits and is sent automatically when the cause is gone."""
    return error.retryable or isinstance(
        error,
        ClockSkew
        | CredentialsError
        | LogError
        | NetworkError
        | ProtocolError
        | StoreError
        | TooOld,
    )

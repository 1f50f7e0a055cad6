"""Refuse envelopes that are signed by keys which have ended, when they are published.

Recipients rely on it: they decide by the order of HQ's log, where an end has no entry. HQ decides
by the time that it trusts (`clock_guard`). It looks up each bundle once per connection.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from cipherbox.envelope.prefix import BUNDLE_HASH
from cipherbox.errors import EnvelopeRefused


class SenderKeys:
    """When the bundles end that one connection's envelopes name; ``ends_at`` looks one up: ms since
    1970, 0 if it is unknown.  ``most``: bundles that HQ keeps of one client.
    """

    def __init__(self, ends_at: Callable[[str, bytes], Awaitable[int]], most: int) -> None:
        self._look_up, self._most = ends_at, most
        self._ends: dict[bytes, int] = {}

    def valid(self, raw: bytes | memoryview, now_ms: int) -> bool:
        """Return whether `check` would find, without a look-up, that the keys have not ended."""
        ends_at = self._ends.get(bytes(raw[BUNDLE_HASH]))
        return ends_at is not None and not 0 < ends_at < now_ms

    async def check(self, raw: bytes | memoryview, client: str, now_ms: int) -> None:
        """Raise EnvelopeRefused if the keys that signed a well-formed envelope of this client have
        ended.
        """
        name = bytes(raw[BUNDLE_HASH])
        ends_at = self._ends.get(name)
        if ends_at is None:
            if len(self._ends) >= self._most:
                raise EnvelopeRefused(
                    f"this connection has named more than {self._most} key bundles"
                )
            ends_at = self._ends[name] = await self._look_up(client, name)
        if 0 < ends_at < now_ms:
            end = datetime.fromtimestamp(ends_at / 1000, UTC)
            raise EnvelopeRefused(
                f"the envelope is signed by keys that ended on {end:%Y-%m-%d %H:%M} UTC",
                remedy="seal it with the new ones: cipherbox outbox retry MESSAGE_ID --seal-again",
            )

"""Usage of each client at HQ, in bytes and envelopes: waiting, delivered, or kept as a dead letter.

An envelope counts for its sender, once for each queue it is in.  Each queue has its part
(`Queue.used`), which the store keeps; `Totals` is the sum over all queues.  The settings limit a
client's usage, unless an admin has set a limit for this client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from heapq import nlargest
from typing import NamedTuple

from cipherbox.errors import QuotaExceeded
from cipherbox.limits import Limits

BYTES, ENVELOPES, QUEUES, BUNDLES, CERTIFICATES, PREKEYS = (
    "bytes",
    "envelopes",
    "queues",
    "bundles",
    "certificates",
    "prekeys",
)
# what is limited for each client, and the setting with its default
SETTINGS: dict[str, Callable[[Limits], int]] = {
    BYTES: lambda x: x.bytes_per_client,
    ENVELOPES: lambda x: x.envelopes_per_client,
    QUEUES: lambda x: x.queues_per_client,
    BUNDLES: lambda x: x.bundles_per_client,
    CERTIFICATES: lambda x: x.certificates_per_client,
    PREKEYS: lambda x: x.prekeys_per_client,
}


class Usage(NamedTuple):
    """Usage of one sender, in one queue or in all."""

    size: int  # bytes
    envelopes: int


NONE = Usage(0, 0)


class Totals:
    """The usage of all clients; ``overrides`` are limits set by admins, (client, what) -> limit."""

    def __init__(self, limits: Limits, overrides: Mapping[tuple[str, str], int]) -> None:
        self._limits = limits
        self._of: dict[str, Usage] = {}
        self.overrides = dict(overrides)

    def of(self, client: str) -> Usage:
        return self._of.get(client, NONE)

    def largest(self, count: int) -> list[tuple[str, Usage]]:
        """Return the clients with the most bytes at HQ."""
        return nlargest(count, self._of.items(), key=lambda item: (item[1].size, item[0]))

    def limit_of(self, client: str, what: str) -> int:
        """Return this client's limit of something."""
        own = self.overrides.get((client, what)) if self.overrides else None
        return own if own is not None else SETTINGS[what](self._limits)

    def add(self, client: str, size: int, envelopes: int) -> None:
        """Add to a client's usage; negative numbers subtract."""
        had = self._of.get(client, NONE)
        now = Usage(had.size + size, had.envelopes + envelopes)
        if now.envelopes > 0:
            self._of[client] = now
        else:
            self._of.pop(client, None)

    def left(self, client: str) -> tuple[int, int]:
        """Return the bytes and envelopes that this client may add."""
        had = self._of.get(client, NONE)
        size, envelopes = self.limit_of(client, BYTES), self.limit_of(client, ENVELOPES)
        return size - had.size, envelopes - had.envelopes

    def check(self, client: str, size: int, envelopes: int) -> None:
        """Raise QuotaExceeded, with the numbers, if this addition would exceed a limit."""
        had = self._of.get(client, NONE)
        if had.size + size > (most := self.limit_of(client, BYTES)):
            raise QuotaExceeded(
                f"{client} has {had.size} bytes at HQ, in all queues and dead letters, of at most "
                f"{most}"
            )
        if had.envelopes + envelopes > (most := self.limit_of(client, ENVELOPES)):
            raise QuotaExceeded(
                f"{client} has {had.envelopes} envelopes at HQ, in all queues and dead letters, "
                f"of at most {most}"
            )

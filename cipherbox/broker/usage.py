"""What each client has at HQ, in bytes and envelopes: waiting, delivered, or kept as a dead letter.

An envelope counts once for each queue it is in, for its sender.  A queue knows its part of it
(`Queue.used`), which the store keeps; `Totals` is the sum over all queues.  A client may have as
much as the settings say, or as an admin said of this one client.
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
# what is bounded for each client, and the setting that says how much
SETTINGS: dict[str, Callable[[Limits], int]] = {
    BYTES: lambda x: x.bytes_per_client,
    ENVELOPES: lambda x: x.envelopes_per_client,
    QUEUES: lambda x: x.queues_per_client,
    BUNDLES: lambda x: x.bundles_per_client,
    CERTIFICATES: lambda x: x.certificates_per_client,
    PREKEYS: lambda x: x.prekeys_per_client,
}


class Used(NamedTuple):
    """Of one sender, in one queue or in all."""

    size: int  # bytes
    envelopes: int


NONE = Used(0, 0)


class Totals:
    """See the module.  ``own``: what an admin said of one client, (client, what) -> how much."""

    def __init__(self, limits: Limits, own: Mapping[tuple[str, str], int]) -> None:
        self._limits = limits
        self._of: dict[str, Used] = {}
        self.own = dict(own)

    def of(self, client: str) -> Used:
        return self._of.get(client, NONE)

    def largest(self, count: int) -> list[tuple[str, Used]]:
        """The clients that have the most bytes here."""
        return nlargest(count, self._of.items(), key=lambda item: (item[1].size, item[0]))

    def most(self, client: str, what: str) -> int:
        """How much of something this client may have."""
        own = self.own.get((client, what)) if self.own else None
        return own if own is not None else SETTINGS[what](self._limits)

    def add(self, client: str, size: int, envelopes: int) -> None:
        """So much more; less when it is negative."""
        had = self._of.get(client, NONE)
        now = Used(had.size + size, had.envelopes + envelopes)
        if now.envelopes > 0:
            self._of[client] = now
        else:
            self._of.pop(client, None)

    def check(self, client: str, size: int, envelopes: int) -> None:
        """QuotaExceeded, with the numbers, if so much more is more than this client may have."""
        had = self._of.get(client, NONE)
        if had.size + size > (most := self.most(client, BYTES)):
            raise QuotaExceeded(
                f"{client} has {had.size} bytes at HQ, in all queues and dead letters; at most "
                f"{most}"
            )
        if had.envelopes + envelopes > (most := self.most(client, ENVELOPES)):
            raise QuotaExceeded(
                f"{client} has {had.envelopes} envelopes at HQ, in all queues and dead letters; "
                f"at most {most}"
            )

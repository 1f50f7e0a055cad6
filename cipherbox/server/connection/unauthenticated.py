"""Unauthenticated connections: bounded by address and in total, before any TLS.

An address is an IPv4 address or an IPv6 /64: one who has an address of a /64 usually has all of
them.  If the limit is reached, the oldest connection without a byte received is closed: a client
sends as soon as it is connected, so idle connections keep nobody out.
"""

from __future__ import annotations

import ipaddress
from collections import Counter

import trio

_V6_PREFIX = 64


def group_of(host: str) -> str:
    """Return the address group of a host; an IPv4-mapped IPv6 address counts as IPv4."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.ip_network((address, _V6_PREFIX), strict=False))
        address = address.ipv4_mapped
    return str(address)


class Place:
    """One unauthenticated connection; cancelling ``scope`` ends it."""

    __slots__ = ("address", "scope", "silent")

    def __init__(self, address: str) -> None:
        self.address = address
        self.scope = trio.CancelScope()
        self.silent = True


class UnauthenticatedConnections:
    """The unauthenticated connections."""

    def __init__(self, per_address: int, most: int) -> None:
        self.per_address, self.most = per_address, most
        self.turned_away = 0  # connections that were closed for lack of room
        self._places: dict[Place, None] = {}  # oldest first
        self._of: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._places)

    def enter(self, address: str) -> Place | None:
        """Return a place for a connection from ``address``; None if there is no room."""
        crowded = self._of[address] >= self.per_address
        if crowded or len(self._places) >= self.most:
            self.turned_away += 1
            oldest = next(
                (p for p in self._places if p.silent and (p.address == address or not crowded)),
                None,
            )
            if oldest is None:
                return None
            oldest.scope.cancel()
            self.leave(oldest)
        place = Place(address)
        self._places[place] = None
        self._of[address] += 1
        return place

    def leave(self, place: Place) -> None:
        """Free the place of a connection that authenticated or ended; idempotent."""
        if self._places.pop(place, place) is None:
            self._of[place.address] -= 1
            if not self._of[place.address]:
                del self._of[place.address]

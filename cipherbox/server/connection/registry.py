"""The registry of open connections: limits by client, and notifications to all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from cipherbox.concurrency import Signal
from cipherbox.errors import CipherBoxError, GoingAway, Revoked
from cipherbox.limits import Limits
from cipherbox.server.connection.backpressure import BackPressure
from cipherbox.server.connection.peer import Peer
from cipherbox.server.engine import Engine

_ANONYMOUS_SHARE = 4  # at most a quarter of all connections may be without a certificate


class RegisteredConnection(Peer, Protocol):
    """The rest of HQ's view of a connection."""

    serial: str
    role: str
    remote: str
    address: str
    connection: int
    connected_at: int
    asked_at: int

    def notify(self, news: str, crl_number: int) -> None: ...

    def log(self, message: str, **more: object) -> None: ...


class Connections(Protocol):
    """The registry, as requests and operations use it."""

    def __iter__(self) -> Iterator[RegisteredConnection]: ...

    def __len__(self) -> int: ...

    def rows(self) -> list[dict[str, object]]: ...

    def notify_revoked(self, news: str, crl_number: int) -> None: ...

    def end_certificates(self, serials: Mapping[str, str]) -> None: ...

    def end_expired(self, require: Callable[[str], None]) -> None: ...

    def end_all(self, why: CipherBoxError) -> None: ...


C = TypeVar("C", bound=RegisteredConnection)


class ConnectionRegistry(Generic[C]):
    """The open connections."""

    def __init__(self, limits: Limits, engine: Engine, memory: BackPressure) -> None:
        self._limits, self._engine, self._memory = limits, engine, memory
        self._open: set[C] = set()
        self._per_client: Counter[str] = Counter()
        self._closed = Signal()

    def __iter__(self) -> Iterator[C]:
        """Iterate over a copy: connections may end meanwhile."""
        return iter(list(self._open))

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, connection: object) -> bool:
        return connection in self._open

    def enter(self, connection: C) -> bool:
        """Register a connection; return False if a limit is reached."""
        limits = self._limits
        if len(self._open) >= limits.connections:
            return False
        most = (
            limits.connections_per_client
            if connection.client
            else max(1, limits.connections // _ANONYMOUS_SHARE)
        )
        if self._per_client[connection.client] >= most:
            return False
        if not connection.client:
            here = sum(not c.client and c.address == connection.address for c in self._open)
            if here >= limits.anonymous_per_address:
                return False
        connection.connection = self._engine.attach(connection)
        self._open.add(connection)
        self._engine.counts.connections_opened += 1
        self._per_client[connection.client] += 1
        return True

    def leave(self, connection: C) -> None:
        """Remove a connection that ended, if it was registered."""
        if connection not in self._open:
            return
        self._open.discard(connection)
        self._per_client[connection.client] -= 1
        if not self._per_client[connection.client]:
            del self._per_client[connection.client]
            self._memory.forget(connection.client)
        self._engine.detach(connection.connection)
        self._closed.notify()

    async def all_closed(self) -> None:
        """Wait until all connections are closed."""
        while self._open:
            await self._closed.wait()

    def end_certificates(self, serials: Mapping[str, str]) -> None:
        """Close the connections of these certificates (serial -> client)."""
        for one in self:
            if one.serial in serials:
                one.end(Revoked(f"the certificate of {one.client} was revoked"))

    def end_expired(self, require: Callable[[str], None]) -> None:
        """Close the connections whose certificates ``require`` refuses.  Their clients reconnect,
        with a renewed certificate if they have one; else they are told why they are refused.
        """
        for one in self:
            try:
                if one.serial:
                    require(one.serial)
            except CipherBoxError as error:
                one.end(GoingAway(str(error)))

    def end_all(self, why: CipherBoxError) -> None:
        """Close the connections of all clients for this reason."""
        for one in self:
            if one.client:
                one.end(why)

    def notify_revoked(self, news: str, crl_number: int) -> None:
        """Notify all clients of a revocation and the number of the list that contains it."""
        for one in self:
            one.notify(news, crl_number)

    def rows(self) -> list[dict[str, object]]:
        """Return the rows of LIST connections."""
        return [
            {
                "name": c.client,
                "connection": c.connection,
                "role": c.role,
                "remote": c.remote,
                "connected_at": c.connected_at,
                "asked_at": c.asked_at,
            }
            for c in sorted(self._open, key=lambda c: c.connection)
        ]

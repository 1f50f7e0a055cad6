"""Who can ask HQ about its log, and what a connection shows of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from cipherbox.errors import CipherBoxError
from cipherbox.sealing.open import ParsedEnvelope
from cipherbox.wire import frames


class Asks(Protocol):
    """Who can ask HQ."""

    async def request(self, kind: Callable[..., Any], **fields: Any) -> Any: ...


class AcceptedEnvelope(Protocol):
    """An envelope that HQ delivered, and what HQ says of its acceptance."""

    @property
    def parsed(self) -> ParsedEnvelope: ...

    accepted_at: int
    log_entry: int


class ShownLog(Protocol):
    """What a connection shows of HQ's log."""

    welcome: frames.Welcome
    log_key: bytes
    certificate: Any

    def end(self, error: CipherBoxError) -> None: ...

    async def ask(self, kind: Callable[..., Any], timeout_s: float, **fields: Any) -> Any: ...


class Over:
    """Asks over one connection, before it counts as open."""

    def __init__(self, connection: ShownLog, timeout_s: float) -> None:
        self._connection, self._timeout_s = connection, timeout_s

    async def request(self, kind: Callable[..., Any], **fields: Any) -> Any:
        return await self._connection.ask(kind, self._timeout_s, **fields)

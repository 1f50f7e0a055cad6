"""Protocols of the log's verification: requests to HQ, and what a connection and a delivery
show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from cipherbox.errors import CipherBoxError
from cipherbox.sealing.open import ParsedEnvelope
from cipherbox.wire import frames


class Requester(Protocol):
    """Sends requests to HQ."""

    async def request(self, kind: Callable[..., Any], **fields: Any) -> Any: ...


class AcceptedEnvelope(Protocol):
    """An envelope that HQ delivered, with HQ's statement of its acceptance."""

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


class ConnectionRequester:
    """Sends requests over one connection, before it is announced as open."""

    def __init__(self, connection: ShownLog, timeout_s: float) -> None:
        self._connection, self._timeout_s = connection, timeout_s

    async def request(self, kind: Callable[..., Any], **fields: Any) -> Any:
        return await self._connection.ask(kind, self._timeout_s, **fields)

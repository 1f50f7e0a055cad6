"""The engine's view of a connection, and the notifications that all connections get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cipherbox.broker.model import Answer, Entry, FetchedEntries
from cipherbox.errors import CipherBoxError

# entry of the signed log, and the proof for each CONFIRM of one connection
Proof = tuple[int, list[bytes]]
MEMORY_SHORT, MEMORY_FREE = (
    "HQ is low on memory; publishers wait",
    "HQ has enough memory; publishers resume",
)
STORE_UNAVAILABLE = "HQ's database is not available: what you send waits for its confirm"
STORE_AVAILABLE = "HQ's database is available again"


class Peer(Protocol):
    """The engine's view of a connection; none of these calls blocks."""

    client: str

    @property
    def lags(self) -> bool:
        """Whether something waits to be sent."""
        ...

    def answer(self, answers: Sequence[Answer], proof: Proof | None) -> None: ...

    def deliver(self, tag: int, queue: str, entries: list[Entry]) -> None: ...

    def fetched(self, answer: FetchedEntries) -> None: ...

    def end(self, error: CipherBoxError) -> None: ...

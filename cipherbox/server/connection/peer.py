"""A connection as the engine sees it, and what all connections are told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cipherbox.broker.model import Answer, Entry, FetchedEntries
from cipherbox.errors import CipherBoxError

# entry of the signed log, and the proof for each CONFIRM of one connection
Proof = tuple[int, list[bytes]]
MEMORY_SHORT, MEMORY_FREE = (
    "HQ is short of memory; publishers wait",
    "HQ has memory again; publishers go on",
)
STORE_AWAY = "HQ's database does not answer: what you send waits and is not confirmed"
STORE_BACK = "HQ's database answers again"


class Peer(Protocol):
    """A connection as the engine sees it; none of these calls blocks."""

    client: str

    def answer(self, answers: Sequence[Answer], proof: Proof | None) -> None: ...

    def deliver(self, tag: int, queue: str, entries: list[Entry]) -> None: ...

    def fetched(self, answer: FetchedEntries) -> None: ...

    def end(self, error: CipherBoxError) -> None: ...

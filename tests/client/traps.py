"""Errors that nobody thought of, raised where something of the dishonest sender is taken in.

The rule says that these, too, end with what was taken in; what is known today raises none of them.
"""

from __future__ import annotations

import errno
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from cipherbox.client.inbox import inbox
from cipherbox.client.inbox import incoming_files as arriving
from cipherbox.client.publishing.parts import read_manifest
from cipherbox.client.receiving import opening, receipts
from cipherbox.envelope.receipt import read_receipt

SENDER = "BAD-LAB"
ERRORS: dict[str, Callable[[], Exception]] = {
    "OverflowError": lambda: OverflowError("too large"),
    "RecursionError": lambda: RecursionError("too deep"),
    "KeyError": lambda: KeyError("nothing"),
    "ENAMETOOLONG": lambda: OSError(errno.ENAMETOOLONG, "File name too long"),
    "DataError": lambda: sqlite3.DataError("string or blob too big"),
}
# Where -> the function, and what its arguments are about: the sender's id, or a transfer's.
PLACES: dict[str, tuple[Any, str, Callable[..., object]]] = {
    "lines_of": (inbox, "lines_of", lambda received: received.sender),
    "open_envelope": (opening, "open_envelope", lambda parsed, identity, sender: sender.client_id),
    "decode_group": (receipts, "decode_group", lambda raw: read_receipt(raw)[0].recipient),
    "read_part": (
        arriving,
        "read_part",
        lambda message, content: bytes.fromhex(message.headers["transfer"]),
    ),
    "read_manifest": (arriving, "read_manifest", lambda content: read_manifest(content).transfer),
    "free_place": (arriving, "free_place", lambda top, place, taken: place.parts[0]),
}
OF_TRANSFERS = frozenset(["read_part", "read_manifest"])


class Traps:
    """What is set; ``sprung`` counts how often each place has raised each error."""

    def __init__(self) -> None:
        self._set: dict[tuple[str, object], str] = {}
        self.sprung: Counter[tuple[str, str]] = Counter()

    @property
    def places(self) -> set[str]:
        """Those where an error was raised, ever."""
        return {place for place, _ in self.sprung}

    def put(self, place: str, about: object, error: str) -> None:
        self._set[place, about] = error

    def take_away(self, place: str, about: object) -> None:
        self._set.pop((place, about), None)

    @contextmanager
    def laid(self) -> Iterator[None]:
        """The places raise what is set."""
        with ExitStack() as stack:
            for where, name, about in PLACES.values():
                stack.enter_context(
                    mock.patch.object(where, name, self._wrapped(name, getattr(where, name), about))
                )
            yield

    def _wrapped(
        self, place: str, real: Callable[..., Any], about: Callable[..., object]
    ) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            error = self._set.get((place, self._about(about, arguments))) if self._set else None
            if error is not None:
                self.sprung[place, error] += 1
                raise ERRORS[error]()
            return real(*arguments)

        return call

    @staticmethod
    def _about(about: Callable[..., object], arguments: Any) -> object:
        try:
            return about(*arguments)
        except Exception:  # what is wrong with it, the real one says
            return None

"""Rate limit of log lines: a flood becomes one line with a count, even if no line follows it."""

from __future__ import annotations

import logging
import time

MOST = 50  # lines of one kind in a second: more than a person reads
OF_ONE = 10  # of these, for one client: its flood leaves room for what others do
HOLD_S = 10.0  # while a flood continues, one line with a count per this interval
_KINDS = 1000  # remembered
_OF_CLIENTS = 10_000  # kinds by client
Key = tuple[str, ...]  # logger, text, and client


class _Kind:
    """The lines of one kind since ``start``."""

    __slots__ = ("left", "length", "level", "most", "passed", "start")

    def __init__(self, start: float, most: int) -> None:
        self.start, self.length, self.most = start, 1.0, most
        self.passed = self.left = self.level = 0

    def begin(self, now: float, most: int) -> None:
        """Begin the next interval: a short one with room, or, while the flood continues, a long one
        for a single line.
        """
        flood = self.left > 0
        self.start, self.length, self.most = now, HOLD_S if flood else 1.0, 1 if flood else most
        self.passed = self.left = 0


class Flood(logging.Filter):
    """Pass at most ``most`` lines a second of one kind (one text before its values are filled in);
    DEBUG always passes.

    The limit for lines caused by one client is lower, so that a client that floods the log does not
    hide the lines of others.

    A line that stands for others has their number as ``left_out``.  `settle` returns such lines if
    no other of their kind followed.
    """

    def __init__(self, most: int = MOST) -> None:
        super().__init__()
        self._most, self._of_one = most, max(1, min(OF_ONE, most // 2))
        self._kinds: dict[Key, _Kind] = {}
        self._of_clients: dict[Key, _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.INFO or hasattr(record, "left_out"):
            return True
        key = (record.name, str(record.msg))
        client = str(getattr(record, "client", "")).strip("-")
        if client and not self._passes(
            self._of_clients, (*key, client), record, self._of_one, _OF_CLIENTS
        ):
            return False
        return self._passes(self._kinds, key, record, self._most, _KINDS)

    def _passes(
        self,
        kinds: dict[Key, _Kind],
        key: Key,
        record: logging.LogRecord,
        most: int,
        remembered: int,
    ) -> bool:
        now = record.created
        kind = kinds.get(key)
        if kind is None:
            if len(kinds) >= remembered:
                kinds.clear()
            kind = kinds[key] = _Kind(now, most)
        elif not 0 <= now - kind.start < kind.length:
            if kind.left:
                record.left_out = kind.left
            kind.begin(now, most)
        if kind.passed < kind.most:
            kind.passed += 1
            return True
        kind.left += 1
        kind.level = max(kind.level, record.levelno)
        return False

    def settle(self, now: float) -> list[logging.LogRecord]:
        """Return the summaries of floods whose interval has ended, and forget the kinds that are
        quiet.
        """
        found: list[logging.LogRecord] = []
        for kinds, most in ((self._kinds, self._most), (self._of_clients, self._of_one)):
            for key, kind in list(kinds.items()):
                if 0 <= now - kind.start < kind.length:
                    continue
                if not kind.left:
                    del kinds[key]
                    continue
                found.append(_summary(key, kind))
                kind.begin(now, most)
        return found


def _summary(key: Key, kind: _Kind) -> logging.LogRecord:
    name, text, *client = key
    record = logging.LogRecord(
        name,
        kind.level,
        "",
        0,
        "%d more lines of one kind were left out: %s",
        (kind.left, text),
        None,
    )
    record.left_out = kind.left
    if client:
        record.client = client[0]
    return record


def settle(logger: logging.Logger) -> None:
    """Log the floods that have ended, at every handler of ``logger``; call it every second."""
    now = time.time()
    for handler in logger.handlers:
        for one in handler.filters:
            if isinstance(one, Flood):
                for record in one.settle(now):
                    handler.handle(record)

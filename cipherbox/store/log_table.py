"""The table of the signed log: the same statements for all stores, as in `registry`.

An entry's row holds its record, its body, and the hashes of the perfect subtrees it completes.  So
node (level, index) of the tree is in one known row, and a proof reads O(log n) rows by their key.
Retention empties records and bodies and keeps the hashes: a proof of an old head may need them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cipherbox.broker.model import LogRow, OldLogRow
from cipherbox.errors import Damaged
from cipherbox.store.rows import number_of

T = TypeVar("T")
Run = Callable[[str, Sequence[Any]], list[Any]]
FIRST = "log_first"  # a setting: the oldest entry that still has its record and body
_PAGE = 50
_HASH = 32
_NODES = "SELECT entry, nodes FROM log WHERE entry IN ({})".format(", ".join("?" * _PAGE))  # noqa: S608  # marks only
_ENTRIES = "SELECT * FROM log WHERE entry > ? ORDER BY entry LIMIT ?"
_OLD_ENTRIES = "SELECT * FROM old_log WHERE entry > ? ORDER BY entry LIMIT ?"


class LogTable(ABC):
    """The log's part of the port."""

    @abstractmethod
    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Run a statement and return its rows; raise our errors."""

    def last_log(self) -> LogRow | None:
        rows = self._rows("SELECT * FROM log ORDER BY entry DESC LIMIT 1")
        return _log_row(rows[0]) if rows else None

    def log(self, after: int, most: int, size_bytes: int) -> list[LogRow]:
        after = max(after, first_kept(self._rows) - 1)
        rows: list[LogRow] = self._paged(_ENTRIES, _log_row, after, most, size_bytes)
        return rows

    def log_nodes(self, nodes: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the hashes of perfect subtrees (level, index); raise Damaged if one is missing."""
        wanted = sorted({(index + 1) << level for level, index in nodes})
        found: dict[int, bytes] = {}
        for at in range(0, len(wanted), _PAGE):
            part = wanted[at : at + _PAGE]
            part += part[-1:] * (_PAGE - len(part))  # one statement, prepared once
            found.update((row[0], bytes(row[1])) for row in self._rows(_NODES, part))
        hashes = [
            found.get((i + 1) << level, b"")[_HASH * level : _HASH * (level + 1)]
            for level, i in nodes
        ]
        if any(len(one) != _HASH for one in hashes):
            raise Damaged(
                "an entry of the signed log is missing from the store", remedy="restore a backup"
            )
        return hashes

    def first_of(self, incarnation: bytes) -> int:
        """Return the first entry of this incarnation of the store, if it is the newest
        one; else 0.
        """
        last = self.last_log()
        if last is None or last.incarnation != incarnation:
            return 0
        # binary search for the beginning of the last incarnation
        low, high = 1, last.index
        while low < high:
            middle = (low + high) // 2
            (found,) = self._rows("SELECT incarnation FROM log WHERE entry = ?", (middle,))[0]
            low, high = (low, middle) if bytes(found) == incarnation else (middle + 1, high)
        return low

    def last_old_log(self) -> OldLogRow | None:
        rows = self._rows("SELECT * FROM old_log ORDER BY entry DESC LIMIT 1")
        return _old_row(rows[0]) if rows else None

    def old_log(self, after: int, most: int, size_bytes: int) -> list[OldLogRow]:
        rows: list[OldLogRow] = self._paged(_OLD_ENTRIES, _old_row, after, most, size_bytes)
        return rows

    def _paged(
        self,
        query: str,
        made: Callable[[Sequence[Any]], Any],
        after: int,
        most: int,
        size_bytes: int,
    ) -> Any:
        found: list[Any] = []
        while most > 0:
            rows = self._rows(query, (after, min(most, _PAGE)))
            for row in rows:
                found.append(made(row))
                most, after = most - 1, found[-1].index
                size_bytes -= len(found[-1].body)
                if size_bytes <= 0:
                    return found
            if not rows:
                break
        return found


def first_kept(run: Run) -> int:
    """Return the oldest entry that still has its record and body."""
    rows = run("SELECT value FROM settings WHERE name = ?", (FIRST,))
    return number_of(FIRST, bytes(rows[0][0]) if rows else None, 1)


def drop_old(run: Run, cutoff: int, most: int) -> int:
    """Empty at most ``most`` entries older than the cutoff, delete as many of the old log, and
    return the first entry that is kept.

    The newest entry is always kept.
    """
    first = first_kept(run)
    rows = run(
        "SELECT entry, at FROM log WHERE entry >= ? ORDER BY entry LIMIT ?", (first, most + 1)
    )
    old = [entry for entry, at in rows[: len(rows) - 1] if at < cutoff]
    if old:
        run(
            "UPDATE log SET record = ?, body = ? WHERE entry BETWEEN ? AND ?",
            (b"", b"", old[0], old[-1]),
        )
        first = old[-1] + 1
    rows = run("SELECT entry, at FROM old_log ORDER BY entry LIMIT ?", (most + 1,))
    gone = [entry for entry, at in rows[: len(rows) - 1] if at < cutoff]
    if gone:
        run("DELETE FROM old_log WHERE entry BETWEEN ? AND ?", (gone[0], gone[-1]))
    return first


def oldest(run: Run, cutoff: int) -> int:
    """Return the time of the oldest entry that `drop_old` would find; 0: none."""
    first, found = first_kept(run), []
    for query, values in (
        ("SELECT at FROM log WHERE entry >= ? ORDER BY entry LIMIT 2", (first,)),
        ("SELECT at FROM old_log ORDER BY entry LIMIT 2", ()),
    ):
        rows = run(query, values)
        if len(rows) == 2 and rows[0][0] < cutoff:
            found.append(rows[0][0])
    return min(found, default=0)


def _log_row(row: Sequence[Any]) -> LogRow:
    return LogRow(row[0], row[1], *map(bytes, row[2:]))


def _old_row(row: Sequence[Any]) -> OldLogRow:
    return OldLogRow(row[0], row[1], *map(bytes, row[2:]))

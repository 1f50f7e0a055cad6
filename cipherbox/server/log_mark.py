"""A file beside HQ's store that names the newest entry of the signed log, so that a start notices a
store that lost commits which HQ had confirmed.

SQLite takes its write-ahead log up to the first frame with a wrong checksum and drops the rest
without a word (https://www.sqlite.org/fileformat2.html#walformat); a PostgreSQL standby that lags
behind may be promoted while HQ is down; somebody may put an old database file in place.

The file is written after the commit and never synced.  So it is never ahead of what was durable: a
power cut can only make it older, and then it hides a loss but claims none.  What it does not hold,
or holds damaged, counts as unknown.  Only commits with an entry count: others (acknowledgements)
may be lost and are repeated.
"""

from __future__ import annotations

import os
import zlib
from contextlib import suppress
from pathlib import Path

from cipherbox import portable
from cipherbox.broker.model import LogRow
from cipherbox.errors import Damaged
from cipherbox.store.port import Store

FILE = "newest_entry"
_NUMBER, _HASH, _CHECK = 8, 32, 4  # bytes: the entry, the hash of its leaf, CRC-32 of both
_SIZE = _NUMBER + _HASH + _CHECK


class LogMark:
    """The mark in this file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, row: LogRow) -> None:
        """Remember a committed entry; an error of the disk leaves the mark as it was."""
        data = row.index.to_bytes(_NUMBER, "big") + row.nodes[:_HASH]
        with suppress(OSError):
            made = not self._path.exists()
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | portable.O_BINARY, 0o600)
            try:
                if made:
                    portable.give_to_owner_of_folder(self._path)
                portable.write_all(fd, data + zlib.crc32(data).to_bytes(_CHECK, "big"))
            finally:
                os.close(fd)

    def lost(self, store: Store) -> bool:
        """Return whether the store lacks the remembered entry, or has another one in its place."""
        found = self._read()
        if found is None:
            return False
        index, leaf = found
        try:
            return store.log_nodes([(0, index - 1)]) != [leaf]
        except Damaged:  # it is not there
            return True

    def _read(self) -> tuple[int, bytes] | None:
        try:
            raw = self._path.read_bytes()
        except OSError:
            return None
        data = raw[:-_CHECK]
        if len(raw) != _SIZE or zlib.crc32(data).to_bytes(_CHECK, "big") != raw[-_CHECK:]:
            return None
        return int.from_bytes(data[:_NUMBER], "big"), data[_NUMBER:]

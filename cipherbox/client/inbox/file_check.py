"""Verify a file against its manifest before it gets its name: every part is read back from disk and
hashed, except for those that were hashed as they arrived (`arriving_hashes`).

Reading back also computes the whole file's SHA-256, for its line, and in a second thread, since
nothing else of the transfer is left to do. Hashing needs neither the database nor the inbox's lock,
so it does not delay other senders' messages.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

from cipherbox.client.inbox.arriving_hashes import ArrivingHashes
from cipherbox.client.inbox.unpacking import unpack
from cipherbox.client.publishing.parts import Manifest
from cipherbox.errors import DecryptionFailed
from cipherbox.sealing.encrypted_file import RandomAccessFile

STEP_S = 0.5  # of unpacking in one step
SYNCS = 8  # concurrent syncs: a disk makes many files durable in the time of one
_BESIDE_BYTES = 256 * 1024  # a smaller part is hashed faster than a thread begins
STEP_BYTES = 32 * 1024 * 1024  # hashed in one step, which delays a cancelled receiver
Opens = Callable[[], RandomAccessFile]


class Check:
    """The check of one file; call `step` until `done`. Afterwards ``reason`` says why the file is
    invalid, and ``trouble`` is any other error: one of the disk is retried (`faults`).
    """

    def __init__(
        self,
        sender: str,
        transfer: bytes,
        manifest: Manifest,
        stored: Opens,
        hidden: Path | None = None,
        *,
        synced: bool = False,
        at: int = 0,
        copy: Opens | None = None,
        hashes: ArrivingHashes | None = None,
    ) -> None:
        """Check ``stored``; ``hidden`` is the directory to unpack to once it is valid. ``at`` is
        the offset in what is stored; with ``copy`` it is copied there, and `sync_all` must follow.
        Parts with the right ``hashes`` are not read back.
        """
        self.sender, self.transfer, self.manifest = sender, transfer, manifest
        self.reason = ""
        self.trouble: Exception | None = None
        self.done = False
        self._opens, self._synced, self._at, self._copies = stored, synced, at, copy
        self._stored: RandomAccessFile | None = None
        self._copy: RandomAccessFile | None = None
        self._whole, self._part = hashlib.sha256(), 0
        self._hashes = hashes
        self._hidden = hidden
        self._unpacking: Iterator[None] | None = None

    @property
    def copied(self) -> bool:
        """Whether there is a copy that is not synced."""
        return self._copy is not None

    @property
    def sha256(self) -> bytes:
        """The SHA-256 of the whole file."""
        return self._whole.digest()

    def step(self) -> None:
        """Hash the next piece."""
        with ThreadPoolExecutor(1) as beside:  # which begins its thread when it is first used
            self._step(beside)

    def _step(self, beside: Executor) -> None:
        manifest = self.manifest
        room = STEP_BYTES
        try:
            stored = self._stored = self._stored or self._opened()
            if self._copies is not None and self._copy is None:
                self._copy = self._copies()
            while self._part < len(manifest.hashes) and room > 0 and not self.reason:
                at = self._part * manifest.part_bytes
                size = min(manifest.part_bytes, manifest.size - at)
                data = stored.read(size, self._at + at)
                room -= max(size, 1)
                if size < _BESIDE_BYTES:
                    self._whole.update(data)
                    found = hashlib.sha256(data)
                else:
                    whole = beside.submit(self._whole.update, data)
                    found = hashlib.sha256(data)
                    whole.result()
                if found.digest() != manifest.hashes[self._part]:
                    self.reason = f"part {self._part} is not what the manifest says"
                    break
                if self._copy is not None:
                    self._copy.write(data, at)
                self._part += 1
            else:
                if self._part < len(manifest.hashes):
                    return
                if not self._synced:
                    stored.sync(manifest.size)
                    self._synced = True
                if self._unpacking is None:
                    hidden = self._hidden
                    self._unpacking = (
                        unpack(stored, manifest.entries, hidden) if hidden is not None else iter(())
                    )
                began = time.monotonic()
                for _ in self._unpacking:
                    if time.monotonic() - began > STEP_S:
                        return
        except DecryptionFailed as error:
            self.reason = str(error)
        except Exception as error:
            self.trouble = error
        self._end()

    def _opened(self) -> RandomAccessFile:
        """Open what is stored, and skip the parts that were hashed as they arrived."""
        stored, hashes = self._opens(), self._hashes
        if hashes is not None and hashes.stamp == stored.stamp():
            whole = hashes.whole_of(self.manifest)
            if whole is not None:
                self._whole, self._part = whole, hashes.count
        return stored

    def sync(self) -> None:
        """Sync the copy."""
        copy, self._copy = self._copy, None
        if copy is None:
            return
        try:
            if not self.reason and self.trouble is None:
                copy.sync(self.manifest.size)
        except OSError as error:
            self.trouble = error
        finally:
            copy.close()

    def close(self) -> None:
        """End the check in its present state."""
        self._end()
        copy, self._copy = self._copy, None
        if copy is not None:
            copy.close()

    def _end(self) -> None:
        self.done = True
        stored, self._stored = self._stored, None
        if stored is not None:
            stored.close()


def sync_all(checks: Sequence[Check]) -> None:
    """Sync all copies, several concurrently; an error becomes the ``trouble`` of its file."""
    copied = [check for check in checks if check.copied]
    with ThreadPoolExecutor(SYNCS) as pool:
        for _ in pool.map(Check.sync, copied):
            pass

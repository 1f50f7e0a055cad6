"""Whether a file is what its manifest says: every part is hashed as it lies on the disk, before the
file gets its name.

That is the only check that counts.  What was hashed when it came may have been written over since,
by a part of another size, by this disk.  The whole file's own SHA-256 comes out beside, for its
line.  Hashing needs neither the database nor the inbox's turn, so other senders' messages do not
wait for it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cipherbox.client.inbox.unpacking import unpack
from cipherbox.client.publishing.parts import Manifest
from cipherbox.errors import DecryptionFailed
from cipherbox.sealing.encrypted_file import RandomAccessFile

STEP_S = 0.5  # of unpacking, likewise
SYNCS = 8  # files side by side: the disk makes many durable in the time of one
STEP_BYTES = 32 * 1024 * 1024  # hashed in one go: a cancelled receiver waits for no more
Opens = Callable[[], RandomAccessFile]


class Check:
    """One file to be checked; call `step` until `done`.  ``reason`` says afterwards why it is
    not whole, ``trouble`` what came up meanwhile, and whose fault that is decides `faults`: the
    disk's is looked at again.
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
    ) -> None:
        """``hidden``: where a directory is unpacked, once it was found to be whole.  ``at``:
        where it begins in what is stored, ``copy``: then it is copied to there, and `sync_all`
        has to follow.
        """
        self.sender, self.transfer, self.manifest = sender, transfer, manifest
        self.reason = ""
        self.trouble: Exception | None = None
        self.done = False
        self._opens, self._synced, self._at, self._copies = stored, synced, at, copy
        self._stored: RandomAccessFile | None = None
        self._copy: RandomAccessFile | None = None
        self._whole = hashlib.sha256()
        self._part = 0
        self._hidden = hidden
        self._unpacking: Iterator[None] | None = None

    @property
    def copied(self) -> bool:
        """Whether there is a copy that `sync` has not seen."""
        return self._copy is not None

    @property
    def sha256(self) -> bytes:
        """Of the whole file."""
        return self._whole.digest()

    def step(self) -> None:
        """Hashes some more."""
        manifest = self.manifest
        room = STEP_BYTES
        try:
            stored = self._stored = self._stored or self._opens()
            if self._copies is not None and self._copy is None:
                self._copy = self._copies()
            while self._part < len(manifest.hashes) and room > 0 and not self.reason:
                at = self._part * manifest.part_bytes
                size = min(manifest.part_bytes, manifest.size - at)
                data = stored.read(size, self._at + at)
                room -= max(size, 1)
                if hashlib.sha256(data).digest() != manifest.hashes[self._part]:
                    self.reason = f"part {self._part} is not what the manifest says"
                    break
                self._whole.update(data)
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

    def sync(self) -> None:
        """Puts the copy on stable storage."""
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
        """Whatever is known by now."""
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
    """Puts all copies on stable storage, several at a time; what fails is the trouble of its
    file.
    """
    copied = [check for check in checks if check.copied]
    with ThreadPoolExecutor(SYNCS) as pool:
        for _ in pool.map(Check.sync, copied):
            pass

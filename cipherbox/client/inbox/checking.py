"""Whether a file is what its manifest says: every part is hashed as it lies on the disk, before the file gets its name.

That is the only check that counts.  What was hashed when it came may have been written over since, by a part of another
size, by this disk.  The whole file's own SHA-256 comes out beside, for its line.  Hashing needs neither the database
nor the inbox's turn, so other senders' messages do not wait for it.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from cipherbox.client.inbox.unpacking import unpack
from cipherbox.client.parts import Manifest
from cipherbox.errors import DecryptionFailed
from cipherbox.sealing.lockedfile import Places

STEP_S = 0.5  # of unpacking, likewise
STEP_BYTES = 32 * 1024 * 1024  # hashed in one go: a cancelled receiver waits for no more


class Check:
    """One file to be checked; call `step` until `done`.  ``reason`` says afterwards why it is not whole, ``trouble``
    that the disk did not say: it is to be checked again."""

    def __init__(
        self, sender: str, transfer: bytes, manifest: Manifest, stored: Places, hidden: Path | None = None, *,
        synced: bool = False,
    ) -> None:  # fmt: skip
        """``hidden``: where a directory is unpacked, once it was found to be whole."""
        self.sender, self.transfer, self.manifest = sender, transfer, manifest
        self.reason = ""
        self.trouble: OSError | None = None
        self.done = False
        self._stored, self._synced = stored, synced
        self._whole = hashlib.sha256()
        self._part = 0
        self._unpacking = unpack(stored, manifest.entries, hidden) if hidden is not None else iter(())

    @property
    def sha256(self) -> bytes:
        """Of the whole file."""
        return self._whole.digest()

    def step(self) -> None:
        """Hashes some more."""
        manifest = self.manifest
        room = STEP_BYTES
        try:
            while self._part < len(manifest.hashes) and room > 0 and not self.reason:
                at = self._part * manifest.part_bytes
                size = min(manifest.part_bytes, manifest.size - at)
                data = self._stored.read(size, at)
                room -= max(size, 1)
                if hashlib.sha256(data).digest() != manifest.hashes[self._part]:
                    self.reason = f"part {self._part} is not what the manifest says"
                    break
                self._whole.update(data)
                self._part += 1
            else:
                if self._part < len(manifest.hashes):
                    return
                if not self._synced:
                    self._stored.sync(manifest.size)
                    self._synced = True
                began = time.monotonic()
                for _ in self._unpacking:
                    if time.monotonic() - began > STEP_S:
                        return
        except DecryptionFailed as error:
            self.reason = str(error)
        except OSError as error:
            self.trouble = error
        self.close()

    def close(self) -> None:
        """Whatever is known by now."""
        if not self.done:
            self.done = True
            self._stored.close()

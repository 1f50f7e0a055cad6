"""Hash a file's parts as they arrive, so that a complete file need not be read back.

While parts arrive in order, their hashes and that of the whole file are computed from the bytes
that are written to the hidden file.  Each part is synced before it is recorded, so reading it back
would show what the kernel still has in memory, and cost a tenth of the receiver's CPU time.  What
has no hash here is read back by `file_check`, and so is everything on any doubt:

1. These hashes are in memory only.  A process that opens the inbox has none: whatever was received
   before it, before a crash or a power cut at any instant, is read back from the disk.
2. They describe what this process wrote, in this order.  A part that is written again or has
   another size may lie over one that was hashed; then they are dropped.  So they are after an error
   of the disk: the batch is not recorded, and its parts come again.
3. The hidden file is closed between batches.  If another program deleted, replaced or changed it,
   its `stamp` is another one, and they are dropped.
4. A file is valid by them only if they are those of its manifest; else the disk decides.
"""

from __future__ import annotations

import hashlib

from cipherbox.client.publishing.parts import Manifest, Part
from cipherbox.sealing.encrypted_file import Stamp


class ArrivingHashes:
    """The hashes of the first ``count`` parts of one file, whose ``stamp`` was this after the last
    write.
    """

    stamp: Stamp

    def __init__(self, part_bytes: int) -> None:
        self.count = 0
        self._part_bytes, self._size = part_bytes, 0
        self._whole, self._parts = hashlib.sha256(), hashlib.sha256()

    def add(self, part: Part) -> bool:
        """Add a part that was written; return False if these hashes may no longer be right.  One
        that came too early is left out, and so is all that follows it.
        """
        if part.part_bytes != self._part_bytes or part.number < self.count:
            return False
        if part.number == self.count:
            self._whole.update(part.data)
            self._parts.update(hashlib.sha256(part.data).digest())
            self._size += len(part.data)
            self.count += 1
        return True

    def whole_of(self, manifest: Manifest) -> hashlib._Hash | None:
        """Return the hash of the first `count` parts, if they are the manifest's; else None."""
        expected = b"".join(manifest.hashes[: self.count])
        if (
            self._part_bytes != manifest.part_bytes
            or self._size != min(self.count * manifest.part_bytes, manifest.size)
            or self._parts.digest() != hashlib.sha256(expected).digest()
        ):
            return None
        return self._whole

"""The parameters of a measurement, and its title."""

from __future__ import annotations

from cipherbox.classes import frozen

LARGEST, LARGEST_FILE = 8 * 1024 * 1024, 16 * 1024**3
SECONDS = 5  # about what one measurement lasts without --messages


@frozen
class Work:
    """The parameters of one measurement.  ``batch`` 0: automatic; ``rate`` 0: as fast as possible;
    sizes in bytes, counts per run.
    """

    size: int = 100
    messages: int = 0
    batch: int = 0
    senders: int = 1
    receivers: int = 1
    recipients: int = 1
    presealed: bool = False
    rate: float = 0.0
    wrap: str = ""  # how the content key is wrapped; "": as each recipient prefers
    files: bool = False  # from an agent's folder to files at the receiver

    @property
    def title(self) -> str:
        """Return a description of the measurement."""
        size = size_words(self.size)
        how = (
            "sealed beforehand, never opened" if self.presealed else f"{self.batch} in an envelope"
        )
        how = "automatic batches" if not self.batch and not self.presealed else how
        how = "files from folder to folder" if self.files else how
        parts = [f"{size}, {how}"]
        if self.wrap:
            parts.append(f"wrapped by {self.wrap}")
        if self.rate:
            parts.append(f"{self.rate:g}/s")
        if self.senders > 1:
            parts.append(f"{self.senders} senders")
        if self.receivers > 1:
            parts.append(f"{self.receivers} receivers")
        if self.recipients > 1:
            parts.append(f"{self.recipients} recipients each")
        return ", ".join(parts)

    @property
    def count(self) -> int:
        """Return the number of messages of all senders together: as given, or as many as an
        ordinary machine handles in a few seconds.
        """
        if self.messages:
            return self.messages
        if self.files:
            return max(1 if self.size > LARGEST else 20, min(3000, 500_000_000 // self.size))
        if self.rate:
            return max(1, int(self.rate * SECONDS))
        if self.presealed:
            return 30_000
        if self.batch:
            return max(100, min(20_000 * self.batch, 1_000_000_000 // self.size, 2_000_000))
        return max(100, min(2_000_000, 1_000_000_000 // max(self.size, 500)))


STANDARD = (
    Work(100),
    Work(1024),
    Work(1024 * 1024),
    Work(100, batch=1),
    Work(100, presealed=True, batch=1),
    Work(100, batch=1, rate=200),
)


def size_words(size: int) -> str:
    for unit, name in ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"

"""Witnesses whose cosignatures this client requires: `[log] witnesses` and `quorum` in client.toml.

A head counts for a witness once its cosignature verifies with the configured key and this client
has verified that the head is consistent with its own. HQ cannot show a different log to anyone who
relies on the same witnesses for entries that a quorum has covered.
"""

from __future__ import annotations

from collections.abc import Sequence

from cipherbox.client.log.heads import Head
from cipherbox.envelope.checkpoint import (
    VerifierKey,
    cosigned_at,
    decode_note,
    read_verifier_key,
    verify_checkpoint,
)
from cipherbox.errors import ConfigError, EnvelopeError, InvalidRequest


class Quorum:
    """The configured witnesses, and the number of entries that each has covered."""

    def __init__(self, witnesses: Sequence[str] = (), quorum: int = 0) -> None:
        try:
            self._keys = {key.name: key for key in map(read_verifier_key, witnesses)}
        except InvalidRequest as error:
            raise ConfigError(f"[log] witnesses: {error}") from None
        if quorum > len(self._keys):
            raise ConfigError(
                f"[log] quorum: {quorum} of {len(self._keys)} different witnesses can never be "
                "reached"
            )
        self._quorum = quorum
        self._covered: dict[str, int] = {}
        # witness -> when it cosigned last, in seconds since 1970
        self.newest_s: dict[str, int] = {}

    @property
    def demanded(self) -> bool:
        """Whether a confirm only counts once witnesses have cosigned a head that covers it."""
        return self._quorum > 0

    @property
    def covered(self) -> int:
        """The number of entries covered by a quorum of witnesses."""
        found = sorted((self._covered.get(name, 0) for name in self._keys), reverse=True)
        return found[self._quorum - 1] if self._quorum else 0

    @property
    def description(self) -> str:
        """The quorum and its witnesses, as text."""
        return f"{self._quorum} of the witnesses {', '.join(sorted(self._keys))}"

    def key_of(self, name: str) -> VerifierKey | None:
        """Return the configured key of a witness, or None."""
        return self._keys.get(name)

    def read(self, notes: Sequence[bytes], log_key: bytes) -> list[tuple[VerifierKey, Head]]:
        """Return the heads that configured witnesses have cosigned; the caller checks their
        consistency.
        """
        found = []
        for raw in notes if self._keys else ():
            try:
                head, note = verify_checkpoint(raw, log_key), decode_note(raw)
            except EnvelopeError:
                continue
            for key in self._keys.values():
                at_s = cosigned_at(note, key)
                if at_s is not None:
                    self.newest_s[key.name] = max(at_s, self.newest_s.get(key.name, 0))
                    found.append((key, Head(head, raw)))
        return found

    def cover(self, key: VerifierKey, head: Head) -> None:
        """Record that a cosigned head was verified."""
        self._covered[key.name] = max(head.checkpoint.size, self._covered.get(key.name, 0))

"""Whether HQ stands behind the keys it hands out: each bundle must be in HQ's signed log, and HQ proves it.

A bundle comes with the head of a log entry, HQ's signature on it and the path that leads from the bundle to it.  So HQ
cannot hand out a key and deny it: the head, kept beside the pin, either is in the log that admins verify, or proves
that HQ keeps two.  It does not say that the key is its owner's: pins, succession and people's comparison do.

The log's key is certified by the connection's certificate and remembered when it is first seen; another one later is
an error, since who holds HQ's CA could stand up another HQ with another log.
"""

from __future__ import annotations

from collections.abc import Sequence

from cipherbox.client.keys.pins import LOG_KEY, Pins
from cipherbox.client.line import Line
from cipherbox.envelope.bundle import KeyBundle, decode_bundle
from cipherbox.envelope.log import decode_head, verify_bundle_proof
from cipherbox.errors import BundleUnlogged, EnvelopeError

HEAD_BYTES = 89
_PROOFS = 4096  # in memory, until a bundle is pinned


class Witness:
    """See the module."""

    def __init__(self, pins: Pins, line: Line) -> None:
        self._pins, self._line = pins, line
        self._key = pins.log_key()
        self._proofs: dict[bytes, bytes] = {}

    def check(self, bundles: Sequence[bytes], proofs: Sequence[bytes]) -> None:
        """BundleUnlogged unless HQ proves for each of these that its log names it."""
        key = self._known_key()
        if not key:
            return
        for raw, proof in zip(bundles, [*proofs, *[b""] * len(bundles)], strict=False):
            self._check_one(decode_bundle(raw), proof, key)

    def proof(self, bundle: KeyBundle) -> bytes:
        """HQ's proof for a bundle it handed out lately; empty if there is none."""
        return self._proofs.get(bundle.hash, b"")

    def entry(self, bundle: KeyBundle) -> int:
        """The entry of HQ's log that names it; 0: not known."""
        return entry_of(self.proof(bundle))

    def _check_one(self, bundle: KeyBundle, proof: bytes, key: bytes) -> None:
        what = f"key bundle {bundle.sequence} of {bundle.client_id}"
        if not proof:
            raise BundleUnlogged(
                f"HQ handed out {what} without a proof that its signed log names it. Either HQ is older than this "
                "program, or it shows you a key that it hides from its log; ask its admin, and send nothing till then"
            )
        try:
            verify_bundle_proof(proof, bundle.client_id, bundle.sequence, bundle.hash, key)
        except EnvelopeError as error:
            raise BundleUnlogged(
                f"HQ's proof that its signed log names {what} does not hold: {error}. Send nothing and tell the admin"
            ) from None
        if len(self._proofs) >= _PROOFS:
            self._proofs.pop(next(iter(self._proofs)))
        self._proofs[bundle.hash] = proof

    def _known_key(self) -> bytes:
        """The key of HQ's log, pinned when it is first seen."""
        link = self._line.link
        shown = link.log_key if link is not None else b""
        if shown and not self._key:
            self._pins.remember_log_key(shown)
            self._key = shown
        elif link is not None and shown != self._key:
            raise BundleUnlogged(
                f"HQ's signed log has the key {shown.hex() or '(none)'}, and {self._key.hex()} was seen here before. "
                "Either the admin replaced it, or this is another HQ with the same CA. Ask the admin by a way HQ has "
                f"no part in; if it was replaced, delete certs/{LOG_KEY} in this client's directory"
            )
        return self._key


def entry_of(proof: bytes) -> int:
    """The entry of HQ's log a proof leads to; 0 for none."""
    try:
        return decode_head(proof[:HEAD_BYTES]).index
    except EnvelopeError:
        return 0

"""HQ's proofs that its signed log names the key bundles it delivers.

The log makes keys visible to their owners: a bundle that HQ shows to one client and hides from its
log is refused, whoever signed it.
"""

from __future__ import annotations

from cipherbox.client.log.heads import Head
from cipherbox.envelope import transparency_log as log
from cipherbox.envelope.bundle import KeyBundle
from cipherbox.errors import BundleUnlogged, EnvelopeError

_MOST = 4096  # proofs in memory, until their bundles are pinned


class BundleProofs:
    """The proofs of the bundles that HQ delivered last, by bundle hash."""

    def __init__(self) -> None:
        self._proofs: dict[bytes, bytes] = {}

    def check(self, bundle: KeyBundle, proof: bytes, log_key: bytes) -> Head:
        """Verify and keep a proof; return the head of the log that it leads to.

        Raise BundleUnlogged for a proof that is missing or does not hold.  ``log_key`` is the
        32-byte Ed25519 key of HQ's log.
        """
        what = f"key bundle {bundle.sequence} of {bundle.client_id}"
        if not proof:
            raise BundleUnlogged(
                f"HQ handed out {what} without a proof that its signed log names it. Either "
                "HQ is older than this program, or it shows you a key that it hides from "
                "its log",
                remedy="ask its admin, and send nothing till then",
            )
        try:
            proven = log.verify_bundle_proof(
                proof, bundle.client_id, bundle.sequence, bundle.hash, log_key
            )
        except EnvelopeError as error:
            raise BundleUnlogged(
                f"HQ's proof that its signed log names {what} does not hold: {error}. Send "
                "nothing and tell the admin"
            ) from None
        if len(self._proofs) >= _MOST:
            self._proofs.pop(next(iter(self._proofs)))
        self._proofs[bundle.hash] = proof
        return Head(proven.head, log.proof_checkpoint(proof))

    def proof(self, bundle: KeyBundle) -> bytes:
        """Return HQ's proof for a bundle it delivered lately; empty if there is none."""
        return self._proofs.get(bundle.hash, b"")

    def entry(self, bundle: KeyBundle) -> int:
        """Return the entry of HQ's log that names this bundle; 0 if it is not known."""
        return entry_of(self.proof(bundle))


def entry_of(proof: bytes) -> int:
    """Return the entry of HQ's log that a proof leads to; 0 for no proof."""
    try:
        return log.proof_record(proof).index
    except EnvelopeError:
        return 0

"""HQ's proofs that its signed log names the key bundles it delivers.

The log makes keys visible to their owners: a bundle that HQ shows to one client and hides from its
log is refused, whoever signed it.
"""

from __future__ import annotations

from cipherbox.client.log.heads import Head
from cipherbox.envelope import transparency_log as log
from cipherbox.envelope.bundle import KeyBundle
from cipherbox.errors import BundleUnlogged, EnvelopeError

_MAX_PROOFS = 4096  # in memory, until their bundles are pinned


class BundleProofs:
    """Proofs of the bundles that HQ delivered recently, by bundle hash."""

    def __init__(self) -> None:
        self._proofs: dict[bytes, bytes] = {}

    def check(self, bundle: KeyBundle, proof: bytes, log_key: bytes) -> Head:
        """Verify and store a proof; return the head of the log that it leads to.

        Raise BundleUnlogged for a missing or invalid proof. ``log_key`` is the 32-byte Ed25519 key
        of HQ's log.
        """
        what = f"key bundle {bundle.sequence} of {bundle.client_id}"
        if not proof:
            raise BundleUnlogged(
                f"HQ delivered {what} without a proof that its signed log names it. Either HQ is "
                "older than this program, or it shows you a key that it hides from its log",
                remedy="ask its admin, and send nothing until then",
            )
        try:
            proven = log.verify_bundle_proof(
                proof, bundle.client_id, bundle.sequence, bundle.hash, log_key
            )
        except EnvelopeError as error:
            raise BundleUnlogged(
                f"HQ's proof that its signed log names {what} is invalid: {error}. Send nothing "
                "and tell the admin"
            ) from None
        if len(self._proofs) >= _MAX_PROOFS:
            self._proofs.pop(next(iter(self._proofs)))
        self._proofs[bundle.hash] = proof
        return Head(proven.head, proven.note)

    def proof(self, bundle: KeyBundle) -> bytes:
        """Return HQ's proof for a recently delivered bundle, or nothing."""
        return self._proofs.get(bundle.hash, b"")

    def entry(self, bundle: KeyBundle) -> int:
        """Return the entry of HQ's log that names this bundle, or 0 if unknown."""
        return entry_of(self.proof(bundle))


def entry_of(proof: bytes) -> int:
    """Return the entry of HQ's log that a proof leads to, or 0 for no proof."""
    try:
        return log.proof_record(proof).index
    except EnvelopeError:
        return 0

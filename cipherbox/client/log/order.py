"""Whether an envelope was accepted before its sender was revoked, by the order of HQ's log and not by HQ's clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from cipherbox.client.bucket import Bucket
from cipherbox.client.log.asking import Asks
from cipherbox.client.log.verifier import LogProofVerifier
from cipherbox.envelope import log
from cipherbox.envelope.bundle import KeyBundle
from cipherbox.errors import EnvelopeError, SenderNotValid, Throttled
from cipherbox.wire import frames

if TYPE_CHECKING:
    from cipherbox.client.consume import Delivery
    from cipherbox.client.keys.revocations import Revocations


ASKED = 240  # envelopes of revoked senders a minute: two thirds of what HQ allows a client, the rest is for others


class LogOrder:
    """See the module."""

    def __init__(self, revocations: Revocations, line: Asks, verifier: LogProofVerifier) -> None:
        self._revocations, self._line, self._verifier = revocations, line, verifier
        self._bucket = Bucket(ASKED)

    async def check(self, bundle: KeyBundle, delivery: Delivery) -> None:
        """SenderNotValid unless HQ proves that it accepted this before the sender's certificate was revoked."""
        serial = bundle.serial
        if not self._revocations.revoked_at(serial):
            return
        prefix = delivery.sighted.layout.prefix
        if self._bucket.take():
            raise SenderNotValid(f"the certificate of {prefix.sender} was revoked, and HQ is asked too much about it")
        try:
            answer: frames.Proven = await self._line.request(
                frames.Prove, envelopes=[frames.EnvelopeName(prefix.sender, prefix.envelope_id)], serials=[serial],
                incarnation=False,
            )  # fmt: skip
        except Throttled as error:  # by what else this client asks: that one envelope is looked at later
            raise SenderNotValid(f"the certificate of {prefix.sender} was revoked, and {error}") from None
        revoked = self._revocation(serial, answer.revocations)
        one = log.Accepted(prefix.envelope_id, prefix.generation, delivery.sighted.hashes.envelope_hash)
        try:
            proof = answer.envelopes[0] if answer.envelopes else b""
            proven = log.verify_acceptance(proof, prefix.sender, one, self._verifier.key, delivery.accepted_at)
            self._verifier.meet(log.proof_checkpoint(proof))
        except EnvelopeError as error:
            raise SenderNotValid(
                f"the certificate of {prefix.sender} was revoked, and HQ does not prove that it accepted this before "
                f"({error})"
            ) from None
        if proven.record.index != delivery.log_entry:
            self._verifier.contradicted(
                f"HQ delivered an envelope of {prefix.sender} as accepted in entry {delivery.log_entry} of its log, "
                f"and proves now that it was entry {proven.record.index}"
            )
        if proven.record.index >= revoked:
            raise SenderNotValid(
                f"HQ accepted it in entry {proven.record.index} of its log, after entry {revoked}, in which the "
                f"certificate of {prefix.sender} was revoked"
            )

    def _revocation(self, serial: str, statements: list[frames.LogStatement]) -> int:
        """The earliest entry that was ever proven to revoke it; 0 if none was: then nothing lies before."""
        for one in statements:
            try:
                serials = orjson.loads(one.payload)["serials"] if one.kind == log.REVOKED else []
                if serial.lower() not in [str(known).lower() for known in serials]:
                    continue
                proven = log.verify_group_proof(one.proof, log.Group(one.kind, one.payload), self._verifier.key)
                self._verifier.meet(log.proof_checkpoint(one.proof))
            except (EnvelopeError, ValueError, KeyError, TypeError):
                continue
            return self._verifier.heads.keep_revoked(serial, proven.record.index)
        return self._verifier.heads.revoked_entry(serial)

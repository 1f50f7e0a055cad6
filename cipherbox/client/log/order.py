"""Verify that an envelope was accepted before its sender was revoked, by the order of HQ's log
rather than by HQ's clock.

A revoked sender's backlog is proven in few requests: together with the envelope being opened, HQ is
asked about the next ones (`expect`) of the same certificate. Their proofs are kept until they are
opened.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice

import orjson

from cipherbox.client.connection.rate_limit import Bucket
from cipherbox.client.log.ports import AcceptedEnvelope, Requester
from cipherbox.client.log.verifier import LogProofVerifier
from cipherbox.envelope import transparency_log as log
from cipherbox.envelope.bundle import KeyBundle
from cipherbox.errors import EnvelopeError, SenderNotValid, Throttled
from cipherbox.wire import frames

# per minute (page broker): two thirds of a client's rate limit, the rest is for other requests
POINTS = 4000
# points of a PROVE for one serial number, and for each envelope it names
_REQUEST, _ENVELOPE = 6, 3
TOGETHER = 64  # envelopes per request
_KEPT = 2 * TOGETHER  # proofs of envelopes that are opened soon
Name = tuple[str, bytes]  # sender, envelope id


class LogOrder:
    """Checks envelopes of revoked senders, and caches HQ's proofs."""

    def __init__(
        self,
        revoked: Callable[[KeyBundle, int], bool],
        connection: Requester,
        verifier: LogProofVerifier,
    ) -> None:
        """``revoked`` says whether a bundle's certificate was ever revoked, for an envelope of that
        entry.
        """
        self._revoked, self._connection, self._verifier = revoked, connection, verifier
        self._bucket = Bucket(POINTS)
        self._next: Sequence[AcceptedEnvelope] = ()
        self._proofs: OrderedDict[Name, bytes] = OrderedDict()

    def expect(self, deliveries: Sequence[AcceptedEnvelope]) -> None:
        """Set the envelopes that are opened next, in order."""
        self._next = deliveries

    async def check(self, bundle: KeyBundle, delivery: AcceptedEnvelope) -> None:
        """Raise SenderNotValid unless HQ proves that it accepted this before the sender's
        certificate was revoked.
        """
        serial = bundle.serial
        if not self._revoked(bundle, delivery.log_entry):
            return
        prefix = delivery.parsed.layout.prefix
        proof = self._proofs.pop((prefix.sender, prefix.envelope_id), b"")
        statements: list[frames.LogStatement] = []
        if not proof:
            proof, statements = await self._request_proof(delivery, serial)
        revoked = self._revocation(serial, statements)
        one = log.Accepted(
            prefix.envelope_id, prefix.generation, delivery.parsed.hashes.envelope_hash
        )
        try:
            proven = log.verify_acceptance(
                proof, prefix.sender, one, self._verifier.key, delivery.accepted_at
            )
            self._verifier.observe(log.proof_checkpoint(proof))
        except EnvelopeError as error:
            raise SenderNotValid(
                f"the certificate of {prefix.sender} was revoked, and HQ does not prove that it "
                f"accepted this before ({error})"
            ) from None
        if proven.record.index != delivery.log_entry:
            self._verifier.report_contradiction(
                f"HQ delivered an envelope of {prefix.sender} as accepted in entry "
                f"{delivery.log_entry} of its log, and now proves entry {proven.record.index}"
            )
        if not revoked:
            raise SenderNotValid(
                f"the certificate of {prefix.sender} was revoked, and HQ does not prove when"
            )
        if proven.record.index >= revoked:
            raise SenderNotValid(
                f"HQ accepted it in entry {proven.record.index} of its log, after entry "
                f"{revoked}, in which the certificate of {prefix.sender} was revoked"
            )

    async def _request_proof(
        self, delivery: AcceptedEnvelope, serial: str
    ) -> tuple[bytes, list[frames.LogStatement]]:
        """Return HQ's proof for this envelope; cache those of the next ones."""
        prefix = delivery.parsed.layout.prefix
        if self._bucket.take(_REQUEST + _ENVELOPE):
            raise SenderNotValid(
                f"the certificate of {prefix.sender} was revoked, and the rate limit for proofs "
                "about it is reached"
            )
        names = self._together(delivery)
        if self._bucket.take((len(names) - 1) * _ENVELOPE):
            del names[1:]
        try:
            answer: frames.Proven = await self._connection.request(
                frames.Prove,
                envelopes=[frames.EnvelopeName(*name) for name in names],
                serials=[serial],
                incarnation=False,
            )
        except Throttled as error:
            # by this client's other requests: check that one envelope later
            raise SenderNotValid(
                f"the certificate of {prefix.sender} was revoked, and {error}"
            ) from None
        first, *more = answer.envelopes or [b""]
        self._proofs.update(
            (name, proof) for name, proof in zip(names[1:], more, strict=False) if proof
        )
        while len(self._proofs) > _KEPT:
            self._proofs.popitem(last=False)
        return first, answer.revocations

    def _together(self, delivery: AcceptedEnvelope) -> list[Name]:
        """Return this envelope, and the next ones of the same sender and keys."""
        prefix = delivery.parsed.layout.prefix
        names = {(prefix.sender, prefix.envelope_id): None}
        at = next(
            (number for number, one in enumerate(self._next) if one is delivery), len(self._next)
        )
        for one in islice(self._next, at + 1, None):
            if len(names) == TOGETHER:
                break
            with suppress(EnvelopeError):
                other = one.parsed.layout.prefix
                name = other.sender, other.envelope_id
                same = name[0] == prefix.sender and other.bundle_hash == prefix.bundle_hash
                if same and name not in self._proofs:
                    names[name] = None
        return list(names)

    def _revocation(self, serial: str, statements: list[frames.LogStatement]) -> int:
        """Return the earliest entry ever proven to revoke it, or 0 if none: then no envelope
        precedes it.
        """
        for one in statements:
            try:
                serials = orjson.loads(one.payload)["serials"] if one.kind == log.REVOKED else []
                if serial.lower() not in [str(known).lower() for known in serials]:
                    continue
                proven = log.verify_group_proof(
                    one.proof, log.Group(one.kind, one.payload), self._verifier.key
                )
                self._verifier.observe(log.proof_checkpoint(one.proof))
            except (EnvelopeError, ValueError, KeyError, TypeError):
                continue
            return self._verifier.heads.keep_revoked(serial, proven.record.index)
        return self._verifier.heads.revoked_entry(serial)

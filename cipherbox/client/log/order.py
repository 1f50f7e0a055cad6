"""Whether an envelope was accepted before its sender was revoked, by the order of HQ's log and not
by HQ's clock.

A revoked sender's backlog is proven in few requests: with the envelope that is opened now, HQ is
asked about those of the same certificate that are `expected` next.  What it proves of them is kept
until they are opened.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

import orjson

from cipherbox.client.connection.rate_limit import Bucket
from cipherbox.client.log.ports import AcceptedEnvelope, Asks
from cipherbox.client.log.verifier import LogProofVerifier
from cipherbox.envelope import transparency_log as log
from cipherbox.envelope.bundle import KeyBundle
from cipherbox.errors import EnvelopeError, SenderNotValid, Throttled
from cipherbox.wire import frames

if TYPE_CHECKING:
    from cipherbox.client.keys.revocations import Revocations


# a minute (page broker): two thirds of what HQ allows a client, the rest is for others
POINTS = 4000
# points of a PROVE for one serial number, and of each envelope that it names
_REQUEST, _ENVELOPE = 6, 3
TOGETHER = 64  # envelopes of one request
_KEPT = 2 * TOGETHER  # proofs of what is opened soon
Name = tuple[str, bytes]  # sender, envelope id


class LogOrder:
    """See the module."""

    def __init__(
        self, revocations: Revocations, connection: Asks, verifier: LogProofVerifier
    ) -> None:
        self._revocations, self._connection, self._verifier = revocations, connection, verifier
        self._bucket = Bucket(POINTS)
        self._next: Sequence[AcceptedEnvelope] = ()
        self._proofs: OrderedDict[Name, bytes] = OrderedDict()

    def expect(self, deliveries: Sequence[AcceptedEnvelope]) -> None:
        """These are opened next, one after the other."""
        self._next = deliveries

    async def check(self, bundle: KeyBundle, delivery: AcceptedEnvelope) -> None:
        """SenderNotValid unless HQ proves that it accepted this before the sender's certificate
        was revoked.
        """
        serial = bundle.serial
        if not self._revocations.revoked_at(serial):
            return
        prefix = delivery.parsed.layout.prefix
        proof = self._proofs.pop((prefix.sender, prefix.envelope_id), b"")
        statements: list[frames.LogStatement] = []
        if not proof:
            proof, statements = await self._asked(delivery, serial)
        revoked = self._revocation(serial, statements)
        one = log.Accepted(
            prefix.envelope_id, prefix.generation, delivery.parsed.hashes.envelope_hash
        )
        try:
            proven = log.verify_acceptance(
                proof, prefix.sender, one, self._verifier.key, delivery.accepted_at
            )
            self._verifier.meet(log.proof_checkpoint(proof))
        except EnvelopeError as error:
            raise SenderNotValid(
                f"the certificate of {prefix.sender} was revoked, and HQ does not prove that it "
                f"accepted this before ({error})"
            ) from None
        if proven.record.index != delivery.log_entry:
            self._verifier.contradicted(
                f"HQ delivered an envelope of {prefix.sender} as accepted in entry "
                f"{delivery.log_entry} of its log, and proves now that it was entry "
                f"{proven.record.index}"
            )
        if proven.record.index >= revoked:
            raise SenderNotValid(
                f"HQ accepted it in entry {proven.record.index} of its log, after entry "
                f"{revoked}, in which the certificate of {prefix.sender} was revoked"
            )

    async def _asked(
        self, delivery: AcceptedEnvelope, serial: str
    ) -> tuple[bytes, list[frames.LogStatement]]:
        """HQ's proof of this one; those of the ones expected next are kept."""
        prefix = delivery.parsed.layout.prefix
        if self._bucket.take(_REQUEST + _ENVELOPE):
            raise SenderNotValid(
                f"the certificate of {prefix.sender} was revoked, and HQ is asked too much about it"
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
            # by what else this client asks: that one envelope is looked at later
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
        """This one, and what is expected next of the same sender and keys."""
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
        """The earliest entry that was ever proven to revoke it; 0 if none was: then nothing lies
        before.
        """
        for one in statements:
            try:
                serials = orjson.loads(one.payload)["serials"] if one.kind == log.REVOKED else []
                if serial.lower() not in [str(known).lower() for known in serials]:
                    continue
                proven = log.verify_group_proof(
                    one.proof, log.Group(one.kind, one.payload), self._verifier.key
                )
                self._verifier.meet(log.proof_checkpoint(one.proof))
            except (EnvelopeError, ValueError, KeyError, TypeError):
                continue
            return self._verifier.heads.keep_revoked(serial, proven.record.index)
        return self._verifier.heads.revoked_entry(serial)

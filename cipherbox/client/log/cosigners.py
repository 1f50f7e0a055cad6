"""Show the state of HQ's log: its newest verified head, and how far each witness has cosigned it.

Anybody may become a witness, so a name alone proves nothing: a cosignature counts for those who
have the witness's key, here in `[log] witnesses`.
"""

from __future__ import annotations

from typing import Protocol

from cipherbox.classes import frozen
from cipherbox.client.connection.reconnecting import ReconnectingConnection
from cipherbox.client.log.verifier import LogProofVerifier
from cipherbox.envelope.checkpoint import (
    COSIGNATURE_BYTES,
    Checkpoint,
    cosigned_at,
    decode_note,
    verify_checkpoint,
)
from cipherbox.errors import EnvelopeError, LogMissing
from cipherbox.wire import frames


@frozen
class Cosigner:
    """A witness and the head that it cosigned last."""

    name: str
    head: Checkpoint
    at: int  # when, as the witness states, ms since 1970
    verified: bool | None  # by a key in `[log] witnesses`; None: there is none for this name


@frozen
class LogState:
    """The newest head, verified as consistent with all that this home has seen; and the witnesses,
    those first that have cosigned most.
    """

    head: Checkpoint
    key: bytes
    cosigners: tuple[Cosigner, ...]


class LogReader(Protocol):
    """What is needed of a client."""

    @property
    def connection(self) -> ReconnectingConnection: ...

    @property
    def log(self) -> LogProofVerifier: ...


async def log_state(client: LogReader) -> LogState:
    """Ask HQ and verify its answer. Raise LogContradiction if it contradicts what was seen here."""
    await client.log.check(client.connection)
    answer: frames.Heads = await client.connection.request(frames.GetHeads, sizes=[])
    key = client.log.key
    try:
        head = verify_checkpoint(answer.head, key)
    except EnvelopeError as error:
        raise LogMissing(f"HQ's newest head is invalid: {error}", remedy="tell the admin") from None
    found = [one for raw in answer.cosigned for one in _cosigners(raw, key, client.log)]
    return LogState(head, key, tuple(sorted(found, key=lambda one: (-one.head.size, one.name))))


def _cosigners(raw: bytes, key: bytes, log: LogProofVerifier) -> list[Cosigner]:
    """Return those who cosigned a note; nobody if HQ did not sign it."""
    try:
        head, note = verify_checkpoint(raw, key), decode_note(raw)
    except EnvelopeError:
        return []
    found = []
    for one in note.signatures:
        if one.name == head.origin or len(one.signature) != COSIGNATURE_BYTES:
            continue
        known = log.quorum.key_of(one.name)
        at_s = int.from_bytes(one.signature[:8], "big")
        verified = None if known is None else cosigned_at(note, known) is not None
        found.append(Cosigner(one.name, head, at_s * 1000, verified))
    return found

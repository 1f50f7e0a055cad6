"""A witness: verify heads of HQ's log and cosign them as C2SP's tlog-cosignature specifies.

A head is cosigned only once HQ has proven that it is consistent with the one signed last, and its
record is durable before it is signed: so two contradicting heads are never cosigned, whatever
crashes and however many witnesses run in one home.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import nacl.signing

from cipherbox import clock
from cipherbox.client.connection.reconnecting import ReconnectingConnection
from cipherbox.client.home import Home
from cipherbox.client.log.heads import Head
from cipherbox.client.log.verifier import LogProofVerifier
from cipherbox.concurrency import repeat
from cipherbox.envelope.checkpoint import (
    COSIGNATURE,
    Note,
    VerifierKey,
    cosign,
    decode_note,
    verify_checkpoint,
)
from cipherbox.envelope.merkle_tree import is_consistent, split_hashes
from cipherbox.errors import LogContradiction, LogUnproven
from cipherbox.portable import read_private, write_private
from cipherbox.wire import frames

KEY_FILE = "witness.key"
EVERY_S = 2.0
_PLACE = b"witness-key"


def load_key(home: Home) -> nacl.signing.SigningKey:
    """Return the home's key for cosignatures, created if missing, and encrypted like its other
    keys.
    """
    path = home.path / KEY_FILE
    part = path.with_name(f"{KEY_FILE}.next")
    if not path.exists():
        seed = bytes(nacl.signing.SigningKey.generate())
        write_private(part, home.secret_box.session_box.encrypt(seed, _PLACE))
        # never replaces a key that another program created, and may have finished meanwhile
        with suppress(FileExistsError, FileNotFoundError):
            os.link(part, path)
    part.unlink(missing_ok=True)
    return nacl.signing.SigningKey(home.secret_box.session_box.decrypt(read_private(path), _PLACE))


def verifier_key(client_id: str, key: nacl.signing.SigningKey) -> VerifierKey:
    """Return the public key, under the witness's name."""
    return VerifierKey(client_id, COSIGNATURE, bytes(key.verify_key))


class WitnessSource(Protocol):
    """What a witness needs of a client."""

    @property
    def client_id(self) -> str: ...

    @property
    def connection(self) -> ReconnectingConnection: ...

    @property
    def log(self) -> LogProofVerifier: ...


class Witness:
    """Cosigns heads of HQ's log for a client."""

    def __init__(self, client: WitnessSource, key: nacl.signing.SigningKey) -> None:
        self._client, self._key = client, key

    async def run(self, cosigned: Callable[[Head], None]) -> None:
        """Cosign every new head until cancelled. Raise LogContradiction if HQ shows one that must
        not be signed.
        """

        async def cosign() -> None:
            head = await self.once()
            if head is not None:
                cosigned(head)

        await repeat(
            cosign,
            EVERY_S,
            transient=lambda error: error.retryable and not isinstance(error, LogContradiction),
        )

    async def once(self) -> Head | None:
        """Cosign HQ's newest head, submit it and return it; None if it is unchanged."""
        client, log = self._client, self._client.log
        await log.check(client.connection)  # including all heads that this home has observed
        before = log.heads.cosigned()
        same_log = before is not None and before.checkpoint.origin not in log.heads.ended()
        sizes = (
            [before.checkpoint.size]
            if before is not None and same_log and before.checkpoint.size
            else []
        )
        answer: frames.Heads = await client.connection.request(frames.GetHeads, sizes=sizes)
        head = Head(verify_checkpoint(answer.head, log.key), answer.head)
        if before is not None and same_log:
            old, new = before.checkpoint, head.checkpoint
            if (old.size, old.root, old.origin) == (
                new.size,
                new.root,
                new.origin,
            ) and self._submitted(answer):
                return None
            raw = answer.proofs[0] if sizes and answer.proofs else b""
            if not is_consistent(old.size, old.root, new.size, new.root, split_hashes(raw)):
                what = "HQ's log is not consistent with the head that this witness cosigned last"
                log.heads.keep_contradiction(what, "", (before, head))
                raise LogContradiction(
                    f"HQ's head of {new.size} entries is not consistent with the one of {old.size} "
                    "cosigned here; it is not cosigned"
                )
        if not log.heads.keep_cosigned(before, head):
            raise LogUnproven("another program of this home cosigned meanwhile")
        note = decode_note(head.note)
        signature = cosign(note.text, client.client_id, self._key, int(clock.now_s()))
        await client.connection.request(
            frames.Cosign, note=Note(note.text, (*note.signatures, signature)).encode()
        )
        return head

    def _submitted(self, answer: frames.Heads) -> bool:
        name = self._client.client_id
        return any(
            one.name == name for raw in answer.cosigned for one in decode_note(raw).signatures
        )

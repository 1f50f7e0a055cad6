"""An admin's signed word that HQ was restored from a backup: what tells an honest restore from a rollback.

A restored store has a new incarnation, and the log's first entry of it names the head it goes on from.  Clients that
saw later heads stop.  The admin who restored it signs that with the key of their certificate
(`cipherbox audit restored`), and HQ puts it into the new log: then the clients continue, and say who signed it.  A
rollback that nobody owns up to stays a contradiction; one that HQ's CA forges stands in the log in the admin's name.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, Protocol

import orjson
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cipherbox import pki
from cipherbox.client.home import Home
from cipherbox.client.link import open_link
from cipherbox.envelope import log
from cipherbox.envelope.checkpoint import Checkpoint, verify_checkpoint
from cipherbox.envelope.kinds import label
from cipherbox.errors import CipherBoxError, EnvelopeError, NotFound, SignatureInvalid
from cipherbox.wire import frames

_USE = label("log-restored")
_FIRST = "restored from a backup"


class Asks(Protocol):
    """Who can ask HQ."""

    async def request(self, kind: Callable[..., Any], **fields: Any) -> Any: ...


def make_statement(old: str, size: int, root: bytes, new: str, chain: list[x509.Certificate], key: Any) -> bytes:
    """Return an admin's word: the log of origin ``old`` ended, and ``new`` goes on from its first ``size`` entries."""
    text = f"{_FIRST}\n{old} {size} {base64.b64encode(root).decode()}\n{new}\n"
    signature = key.sign(_USE + text.encode(), ec.ECDSA(hashes.SHA384()))
    return orjson.dumps({
        "statement": text, "signature": base64.b64encode(signature).decode(),
        "chain": [base64.b64encode(pki.der(one)).decode() for one in chain],
    })  # fmt: skip


def read_statement(payload: bytes, root: x509.Certificate) -> tuple[str, str, str]:
    """Return (who signed, the origin that ended, the origin that goes on); SignatureInvalid if it does not hold."""
    try:
        document = orjson.loads(payload)
        text = str(document["statement"])
        first, old, new, rest = text.split("\n")
        if first != _FIRST or rest:
            raise ValueError
        chain = [base64.b64decode(one, validate=True) for one in document["chain"]]
        leaf = pki.verify_chain(chain, root)
        public = leaf.public_key()
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise ValueError
        public.verify(base64.b64decode(document["signature"]), _USE + text.encode(), ec.ECDSA(hashes.SHA384()))
        return pki.common_name(leaf), old.split(" ")[0], new
    except (ValueError, KeyError, TypeError, InvalidSignature, CipherBoxError):
        raise SignatureInvalid("the word that HQ was restored is not signed as it must be") from None


async def ended_origins(line: Asks, key: bytes, root: x509.Certificate, newest: Checkpoint) -> dict[str, str]:
    """Origins that ended with a backup, by the word of whom, as HQ's log proves it under ``newest``'s incarnation."""
    answer: frames.Proven = await line.request(frames.Prove, envelopes=[], serials=[], incarnation=True)
    found = {}
    for one in answer.statements:
        if one.kind != log.RESTORED:
            continue
        try:
            log.verify_group_proof(one.proof, log.Group(one.kind, one.payload), key)
            by, old, new = read_statement(one.payload, root)
        except EnvelopeError:
            continue
        if old not in (new, newest.origin):
            found[old] = by
    return found


async def attest_restored(files: Home, ask: Callable[[str], None]) -> None:
    """Signs that HQ was restored, as the admin of this home; ``ask`` shows what, and raises unless it is right.

    Over a connection of its own: an admin's home may itself have stopped for the rollback.
    """
    timeout_s = files.config.timeout_s
    async with open_link(files.config.address, files.context(), timeout_s=timeout_s, line=files.config.line) as link:
        newest = verify_checkpoint(link.welcome.log_head, link.log_key)
        answer: frames.Proven = await link.ask(frames.Prove, timeout_s, envelopes=[], serials=[], incarnation=True)
        begun = next((one for one in answer.statements if one.kind == log.BEGUN), None)
        after = orjson.loads(begun.payload).get("after") if begun is not None else None
        if begun is None or after is None:
            raise NotFound("HQ's log does not say that this store goes on from another: it was not restored")
        log.verify_group_proof(begun.proof, log.Group(begun.kind, begun.payload), link.log_key)
        old, size, root = str(after["origin"]), int(after["size"]), bytes.fromhex(after["root"])
        ask(
            f"HQ's store {newest.origin.rsplit('/', 1)[1][:8]} goes on from the first {size} entries of the log of "
            f"store {old.rsplit('/', 1)[1][:8]}, root {root.hex()[:16]}. Later entries of that log are lost."
        )
        statement = make_statement(old, size, root, newest.origin, list(files.chain), files.key)
        await link.ask(frames.AttestRestore, timeout_s, statement=statement)

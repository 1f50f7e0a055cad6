"""Signed statements by admins that HQ was restored from a backup, which distinguish a restore from
a rollback.

A restored store has a new incarnation, and its first log entry names the head it continues from.
Clients that saw later heads stop. The admin who restored HQ signs a statement with their
certificate's key (`cipherbox audit restored`), and HQ adds it to the new log: then the clients
continue, and report who signed it. A rollback without a statement stays a contradiction; a
statement forged by HQ's CA is in the log in the admin's name.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import orjson
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cipherbox import pki
from cipherbox.client.connection.connection import open_connection
from cipherbox.client.home import Home
from cipherbox.client.log.heads import Heads
from cipherbox.client.log.ports import Requester
from cipherbox.envelope import transparency_log as log
from cipherbox.envelope.checkpoint import Checkpoint, verify_checkpoint
from cipherbox.envelope.labels import label
from cipherbox.envelope.merkle_tree import is_consistent, split_hashes
from cipherbox.errors import CipherBoxError, EnvelopeError, NotFound, SignatureInvalid
from cipherbox.wire import frames

_USE = label("log-restored")
_FIRST = "restored from a backup"
_DIGITS = 18  # of a number of entries


class RestoreStatement(NamedTuple):
    """An admin's statement: the logs of origins ``old`` ended, and ``new`` continues from their
    first ``size`` entries.
    """

    by: str
    old: tuple[str, ...]
    size: int
    root: bytes
    new: str


class Ended(NamedTuple):
    """The admin who signed that an incarnation ended, and the number of its entries that remain."""

    by: str
    size: int


def make_statement(statement: RestoreStatement, chain: list[x509.Certificate], key: Any) -> bytes:
    """Return an admin's statement, signed."""
    left = f"{statement.size} {base64.b64encode(statement.root).decode()}"
    text = "".join(
        f"{line}\n" for line in (_FIRST, *(f"{old} {left}" for old in statement.old), statement.new)
    )
    signature = key.sign(_USE + text.encode(), ec.ECDSA(hashes.SHA384()))
    return orjson.dumps(
        {
            "statement": text,
            "signature": base64.b64encode(signature).decode(),
            "chain": [base64.b64encode(pki.der(one)).decode() for one in chain],
        }
    )


def read_statement(payload: bytes, root: x509.Certificate) -> RestoreStatement:
    """Return the statement and its signer. Raise SignatureInvalid if it is invalid."""
    try:
        document = orjson.loads(payload)
        text = str(document["statement"])
        first, *lines, new, rest = text.split("\n")
        (left,) = {line.split(" ", 1)[1] for line in lines}
        size, hashed = left.split(" ")
        if (
            first != _FIRST
            or rest
            or not size.isascii()
            or not size.isdigit()
            or len(size) > _DIGITS
        ):
            raise ValueError
        chain = [base64.b64decode(one, validate=True) for one in document["chain"]]
        leaf = pki.verify_chain(chain, root)
        pki.verify_signature(leaf, base64.b64decode(document["signature"]), _USE + text.encode())
        old = tuple(line.split(" ", 1)[0] for line in lines)
        return RestoreStatement(
            pki.common_name(leaf), old, int(size), base64.b64decode(hashed, validate=True), new
        )
    except (ValueError, KeyError, TypeError, IndexError, InvalidSignature, CipherBoxError):
        raise SignatureInvalid("the statement that HQ was restored is not validly signed") from None


async def ended_origins(
    connection: Requester, key: bytes, root: x509.Certificate, newest: Checkpoint
) -> dict[str, Ended]:
    """Return the origins that ended with a backup, as HQ's log proves.

    A statement counts if it leads, directly or through other statements, to HQ's present
    incarnation, and if HQ's log begins with the entries that the admin named.
    """
    answer: frames.Proven = await connection.request(
        frames.Prove, envelopes=[], serials=[], incarnation=True
    )
    statements = []
    for one in answer.statements:
        if one.kind != log.RESTORED:
            continue
        try:
            log.verify_group_proof(one.proof, log.Group(one.kind, one.payload), key)
            statements.append(read_statement(one.payload, root))
        except EnvelopeError:
            continue
    found: dict[str, Ended] = {}
    reached = {newest.origin}
    while fresh := [statement for statement in statements if statement.new in reached]:
        statements = [statement for statement in statements if statement not in fresh]
        for statement in fresh:
            if await _begins_with(connection, statement, newest):
                for old in {*statement.old} - {statement.new, newest.origin}:
                    found[old] = min(
                        Ended(statement.by, statement.size),
                        found.get(old, Ended(statement.by, statement.size)),
                        key=_left,
                    )
                    reached.add(old)
    return found


def left_of(ended: Mapping[str, Ended]) -> dict[str, int]:
    """Return the number of entries that remain of each origin."""
    return {origin: one.size for origin, one in ended.items()}


def _left(one: Ended) -> int:
    return one.size


async def _begins_with(
    connection: Requester, statement: RestoreStatement, newest: Checkpoint
) -> bool:
    sizes = sorted({statement.size, newest.size})
    answer: frames.Heads = await connection.request(frames.GetHeads, sizes=sizes)
    raw = answer.proofs[0] if len(sizes) > 1 and answer.proofs else b""
    return is_consistent(
        statement.size, statement.root, newest.size, newest.root, split_hashes(raw)
    )


async def attest_restored(files: Home, ask: Callable[[str], None]) -> None:
    """Sign, as the admin of this home, that HQ was restored. ``ask`` shows the details, and raises
    unless they are right.

    This uses a connection of its own: an admin's home may itself have stopped because of the
    rollback.
    """
    timeout_s = files.config.timeout_s
    async with open_connection(
        files.config.address, files.context(), timeout_s=timeout_s, line=files.config.line
    ) as connection:
        newest = verify_checkpoint(connection.welcome.log_head, connection.log_key)
        answer: frames.Proven = await connection.ask(
            frames.Prove, timeout_s, envelopes=[], serials=[], incarnation=True
        )
        begun = next((one for one in answer.statements if one.kind == log.BEGUN), None)
        after = orjson.loads(begun.payload).get("after") if begun is not None else None
        if begun is None or after is None:
            raise NotFound(
                "HQ's log does not state that this store continues another: it was not restored"
            )
        log.verify_group_proof(
            begun.proof, log.Group(begun.kind, begun.payload), connection.log_key
        )
        old, size, root = str(after["origin"]), int(after["size"]), bytes.fromhex(after["root"])
        ask(
            f"HQ's store {newest.origin.rsplit('/', 1)[1][:8]} continues from the first {size} "
            f"entries of the log of store {old.rsplit('/', 1)[1][:8]}, root {root.hex()[:16]}. "
            "Later entries of that log are lost."
        )
        origins = tuple(dict.fromkeys([old, *_seen(files, newest)]))
        statement = make_statement(
            RestoreStatement("", origins, size, root, newest.origin), list(files.chain), files.key
        )
        await connection.ask(frames.AttestRestore, timeout_s, statement=statement)


def _seen(files: Home, newest: Checkpoint) -> list[str]:
    """Return other incarnations that this home has observed: a store that was restored twice does
    not know the one between.
    """
    heads = Heads(files.path)
    try:
        stored = heads.newest()
        observed = [
            head.checkpoint.origin
            for head in (
                *([stored] if stored else []),
                *heads.unproven(),
                *heads.contradicting_heads(),
            )
        ]
        log_name = newest.origin.rsplit("/", 1)[0]
        return [
            one
            for one in (*observed, *heads.ended())
            if one != newest.origin and one.rsplit("/", 1)[0] == log_name
        ]
    finally:
        heads.close()

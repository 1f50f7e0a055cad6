"""Tokens and certificates for new clients, renewals, and the requests of an offline CA.

A token works once, for one id, until it ends; HQ keeps SHA-256 of its secret.  What is taken from a request is its key.
The same secret with the same key again gets the same answer, so a lost answer costs nothing; with another key it is
refused.  A request waits when the token asks for an admin's approval, or when the CA is offline.  One lock makes two
requests at once take turns.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence

import attrs
import orjson
import trio

from cipherbox import pki
from cipherbox.broker import model as m
from cipherbox.crl import check_crl
from cipherbox.errors import CipherBoxError, Conflict, EnrolmentRefused, Forbidden, InvalidRequest, NotFound, TokenError
from cipherbox.limits import Limits, check_client_id
from cipherbox.ops.logs import get_logger
from cipherbox.server.engine import Engine
from cipherbox.server.trust import Trust
from cipherbox.store.port import CertificateRow, Enrolment, Store
from cipherbox.wire.token import Token, encode_token, secret_hash

log = get_logger(__name__)
REQUESTS_FORMAT, CERTIFICATES_FORMAT = "cipherbox-requests-1", "cipherbox-certificates-1"
ISSUED, WAITS_FOR_ADMIN, WAITS_FOR_CA = 0, 1, 2
OPEN, WAITING, APPROVED, REFUSED, DONE = "open", "waiting", "approved", "refused", "issued"
_RENEWAL_MS = 90 * 24 * 3600 * 1000  # how long a request to renew waits for the offline CA
_LONGEST_TOKEN_S = 90 * 24 * 3600


@attrs.frozen
class Outcome:
    """The answer to a request: state, short number, and the chain when there is one."""

    state: int
    number: str
    chain: tuple[bytes, ...] = ()


class Enrolments:
    """See the module."""

    def __init__(self, store: Store, engine: Engine, trust: Trust, limits: Limits, address: str) -> None:
        self._store = store
        self._engine = engine
        self._trust = trust
        self._limits = limits
        self.address = address  # where clients find HQ; goes into tokens
        self._lock = trio.Lock()

    async def token(self, client_id: str, role: str, *, approve: bool, valid_s: int) -> str:
        """A new token as text: the only time its secret is said."""
        check_client_id(client_id)
        if role not in (m.CLIENT, m.ADMIN):
            raise InvalidRequest(f"a role is {m.CLIENT} or {m.ADMIN}, not {role!r}")
        rights = self._engine.broker.rights
        twin = rights.twin(client_id)
        if twin is not None and twin != client_id:
            raise Conflict(f"a client {twin!r} exists; ids differ in more than upper and lower case")
        waiting = await self._engine.in_store(self._store.enrolments, (OPEN, WAITING, APPROVED))
        now = pki.ms(pki.now())
        if len([e for e in waiting if e.expires_at > now]) >= self._limits.pending_requests:
            raise InvalidRequest(f"{self._limits.pending_requests} enrolments are open already")
        secret = os.urandom(16)
        expires_at = now + 1000 * min(valid_s or self._limits.token_s, _LONGEST_TOKEN_S)
        row = Enrolment(secret_hash(secret), client_id, role, approve, now, expires_at)
        await self._engine.in_store(self._store.put_enrolment, row)
        return encode_token(Token(client_id, self.address, self._trust.root_fingerprint, expires_at, secret))

    async def request(self, client_id: str, secret: bytes, csr: bytes) -> Outcome:
        """What a machine without a certificate asks; TokenError, EnrolmentRefused, or where its request stands."""
        async with self._lock:
            row = await self._engine.in_store(self._store.enrolment, secret_hash(secret))
            if row is None or row.client != client_id:
                raise TokenError("HQ does not know this token; ask the admin for a new one")
            key = pki.spki(pki.key_of_csr(csr))
            if row.csr and pki.spki(pki.key_of_csr(row.csr)) != key:
                raise EnrolmentRefused("this token was used already, with another key; ask the admin for a new one")
            if row.state == REFUSED:
                raise EnrolmentRefused("HQ's admin refused this enrolment")
            if row.state == DONE:
                await self._welcome(row)
                return Outcome(ISSUED, row.number, row.chain)
            if row.expires_at <= pki.ms(pki.now()):
                raise TokenError("this token has ended; ask the admin for a new one")
            if row.state == OPEN:
                row.csr = csr
                row.number = pki.enrol_number(self._trust.root_fingerprint, key)
                row.state = WAITING if row.approve else APPROVED
                await self._engine.in_store(self._store.put_enrolment, row)
                log.info("An enrolment asks for its certificate", extra={"client": client_id, "number": row.number})
            return await self._advance(row)

    async def _advance(self, row: Enrolment) -> Outcome:
        if row.state == WAITING:
            return Outcome(WAITS_FOR_ADMIN, row.number)
        if self._trust.authority is None:
            return Outcome(WAITS_FOR_CA, row.number)
        certificate = self._trust.issue(pki.key_of_csr(row.csr), row.client)
        await self._issued(row, (pki.der(certificate), pki.der(self._trust.issuing)))
        return Outcome(ISSUED, row.number, row.chain)

    async def _issued(self, row: Enrolment, chain: tuple[bytes, ...]) -> None:
        await self._welcome(row)  # first: a client that cannot be gets no certificate
        await self._record(chain[0])
        row.chain = chain
        row.state = DONE
        await self._engine.in_store(self._store.put_enrolment, row)
        log.info("Certificate issued", extra={"client": row.client})

    async def _welcome(self, row: Enrolment) -> None:
        """The client exists from here on, with its mailboxes; again is harmless."""
        known = self._engine.broker.rights.clients.get(row.client)
        if known is None or known.revoked_at < row.created_at:
            await self._engine.call(lambda n: m.AddClient(0, "", n, row.client, row.role))

    async def _record(self, der: bytes) -> None:
        certificate = self._trust.record(pki.load_der(der))
        await self._engine.in_store(self._store.put_certificate, certificate)
        self._trust.put(certificate)

    async def approve(self, client_id: str, *, accept: bool) -> int:
        """An admin's word on what waits for a client; how many requests it touched."""
        async with self._lock:
            rows = await self._engine.in_store(self._store.enrolments, (WAITING,))
            rows = [r for r in rows if r.client == client_id]
            if not rows:
                raise NotFound(f"no enrolment of {client_id!r} waits for approval")
            for row in rows:
                row.state = APPROVED if accept else REFUSED
                await self._engine.in_store(self._store.put_enrolment, row)
            return len(rows)

    async def renew(self, client_id: str, csr: bytes) -> Outcome:
        """A new certificate for a connected client.  With an offline CA the request waits for it; asked again with
        the same key it gets what came of it."""
        key = pki.key_of_csr(csr)
        number = pki.enrol_number(self._trust.root_fingerprint, pki.spki(key))
        if self._trust.authority is None:
            return await self._renew_later(client_id, csr, number)
        certificate = self._trust.issue(key, client_id)
        await self._record(pki.der(certificate))
        return Outcome(ISSUED, number, (pki.der(certificate), pki.der(self._trust.issuing)))

    async def _renew_later(self, client_id: str, csr: bytes, number: str) -> Outcome:
        """A request like an enrolment's, under a name of its own."""
        known = self._engine.broker.rights.clients[client_id]
        name = renewal_name(client_id, csr)
        async with self._lock:
            row = await self._engine.in_store(self._store.enrolment, name)
            if row is None:
                now = pki.ms(pki.now())
                row = Enrolment(name, client_id, known.role, False, now, now + _RENEWAL_MS, APPROVED, csr, number)
                await self._engine.in_store(self._store.put_enrolment, row)
            return Outcome(ISSUED if row.state == DONE else WAITS_FOR_CA, number, row.chain)

    async def revoke(self, client_id: str, reason: str, *, by: str = "") -> int:
        """Revokes every certificate of a client, in this order: records, connections, the published list."""
        if client_id not in self._engine.broker.rights.clients:
            raise NotFound(f"there is no client {client_id!r}")
        if self._engine.broker.rights.admins() == {client_id}:
            raise Conflict(
                f"{client_id!r} is the last admin of this HQ; enrol another first: "
                "cipherbox enroll CLIENT_ID --role admin"
            )
        at = pki.ms(pki.now())
        rows: list[CertificateRow] = await self._engine.in_store(self._store.revoke_certificates, client_id, at)
        self._trust.put_revoked(rows)
        await self._engine.call(lambda n: m.RevokeClient(0, by, n, client_id, reason))
        await self._engine.in_store(self._trust.new_crl)
        log.warning("Certificates revoked", extra={"client": client_id, "reason": reason})
        return len(rows)

    async def pending(self) -> list[dict[str, object]]:
        """Rows for LIST pending."""
        rows = await self._engine.in_store(self._store.enrolments, (OPEN, WAITING, APPROVED))
        now = pki.ms(pki.now())
        return [
            {"name": r.client, "state": r.state, "role": r.role, "number": r.number, "expires_at": r.expires_at}
            for r in rows
            if r.expires_at > now
        ]

    async def export(self) -> bytes:
        """The requests that wait for an offline CA, and what its next revocation list must hold."""
        rows = await self._engine.in_store(self._store.enrolments, (APPROVED,))
        number = await self._engine.in_store(self._trust.crl_number)
        document = {
            "format": REQUESTS_FORMAT,
            "root": self._trust.root_fingerprint.hex(),
            "requests": [_request(r) for r in rows if r.csr],
            "revoked": [[serial, pki.ms(when)] for serial, when in self._trust.revoked()],
            "crl_number": number + 1,
        }
        return orjson.dumps(document, option=orjson.OPT_INDENT_2)

    async def take_signed(self, document: bytes) -> int:
        """What the offline CA signed; each certificate is checked before it is believed."""
        if self._trust.authority is not None:
            raise Forbidden("the CA of this HQ is here; nothing is carried")
        chains, crl = read_signed(document)
        async with self._lock:
            rows = await self._engine.in_store(self._store.enrolments, (APPROVED,))
            issued = 0
            for chain in chains:
                leaf = pki.verify_chain(chain, self._trust.root, pki.now())
                name, key = pki.common_name(leaf), leaf.public_key()
                row = next((r for r in rows if r.client == name and r.csr and pki.key_of_csr(r.csr) == key), None)
                if row is not None:
                    await self._issued(row, tuple(chain))
                    issued += 1
            checked = check_crl(crl, self._trust.issuing, pki.now())
            await self._engine.in_store(self._trust.put_crl, crl, checked.number)
            return issued


def renewal_name(client_id: str, csr: bytes) -> bytes:
    """What stands for the secret's hash in the row of a renewal; no token's secret is that long."""
    return secret_hash(b"renew" + client_id.encode() + pki.spki(pki.key_of_csr(csr)))


def _request(row: Enrolment) -> dict[str, str]:
    return {"client_id": row.client, "number": row.number, "csr": base64.b64encode(row.csr).decode()}


def read_signed(document: bytes) -> tuple[Sequence[list[bytes]], bytes]:
    """(chains, revocation list) of a document the offline CA made; InvalidRequest if it is none."""
    try:
        data = orjson.loads(document)
        if data["format"] != CERTIFICATES_FORMAT:
            raise InvalidRequest(f"this file is not of the format {CERTIFICATES_FORMAT}")
        chains = [[base64.b64decode(c, validate=True) for c in item["chain"]] for item in data["certificates"]]
        return chains, base64.b64decode(data["crl"], validate=True)
    except CipherBoxError:
        raise
    except (ValueError, KeyError, TypeError):
        raise InvalidRequest("this file is not what the offline CA signed") from None

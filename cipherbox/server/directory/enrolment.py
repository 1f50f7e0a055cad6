"""Tokens and certificates for new clients, and renewals.

A token works once, for one id, until it expires; HQ keeps the SHA-256 of its secret.  Only the key
is used of a signing request.  A retry with the same secret and key gets the same answer, so a lost
answer does no harm; another key is refused.  A request waits if the token requires an admin's
approval, or if the CA is offline.

Rules:

1. One lock serializes tokens, requests, renewals, revocations and answers of a CA.
2. `revoke` cancels every enrolment and renewal of the id, in whatever state: only a later enrolment
   can issue anything to a revoked id.  No clock is involved.
3. One home has an id.  A token for an id in use must be marked as replacing; before its certificate
   is issued, the other home's certificates, connections, enrolments and renewals end.
4. A row is written as issued before the certificate becomes valid; a retry completes the rest.
5. A certificate that was made while HQ's clock was ahead, by a time that an admin confirmed by
   mistake, is made again when its client asks again: it would begin long after.
"""

from __future__ import annotations

import os

import attrs
import trio

from cipherbox import pki
from cipherbox.broker import model as m
from cipherbox.broker.usage import CERTIFICATES
from cipherbox.errors import (
    Conflict,
    EnrolmentRefused,
    InvalidRequest,
    LimitReached,
    NotFound,
    Revoked,
    TokenError,
)
from cipherbox.limits import Limits, check_client_id
from cipherbox.ops.logs import get_logger
from cipherbox.pki.profile import CLOCK_LAG
from cipherbox.server.directory.certificate_records import CertificateRecords
from cipherbox.server.directory.trust import Trust
from cipherbox.server.engine import Engine
from cipherbox.store.port import Enrolment, Store
from cipherbox.wire.token import Token, encode_token, secret_hash

log = get_logger(__name__)
ISSUED, WAITS_FOR_ADMIN, WAITS_FOR_CA = 0, 1, 2
OPEN, WAITING, APPROVED, REFUSED, DONE, ENDED = (
    "open",
    "waiting",
    "approved",
    "refused",
    "issued",
    "ended",
)
UNDER_WAY = (OPEN, WAITING, APPROVED)
_RENEWAL_MS = 90 * 24 * 3600 * 1000  # how long a request to renew waits for the offline CA
_A = {m.CLIENT: "a client", m.ADMIN: "an admin"}
_LONGEST_TOKEN_S = 90 * 24 * 3600


@attrs.frozen
class Outcome:
    """The answer to a request: state, short number, and the chain once it is issued."""

    state: int
    number: str
    chain: tuple[bytes, ...] = ()


class Enrolments:
    """The enrolments and renewals of all clients."""

    def __init__(
        self, store: Store, engine: Engine, trust: Trust, limits: Limits, address: str
    ) -> None:
        self._store = store
        self._engine = engine
        self._trust = trust
        self._limits = limits
        self._records = CertificateRecords(store, engine, trust)
        self.address = address  # of HQ, in tokens
        self.lock = trio.Lock()

    async def token(
        self,
        client_id: str,
        role: str,
        *,
        approve: bool,
        valid_s: int,
        replaces: bool = False,
        by: str = "",
    ) -> str:
        """Make a token and return its text, the only time its secret is shown; ``by`` is the admin,
        for the log.
        """
        check_client_id(client_id)
        if role not in (m.CLIENT, m.ADMIN):
            raise InvalidRequest(f"invalid role {role!r}: must be {m.CLIENT} or {m.ADMIN}")
        async with self.lock:
            self._check_free(client_id, role, replaces)
            waiting = await self._engine.in_store(self._store.enrolments, UNDER_WAY)
            now = self._trust.clock.now_ms()
            if len([e for e in waiting if e.expires_at > now]) >= self._limits.pending_requests:
                raise InvalidRequest(f"{self._limits.pending_requests} enrolments are already open")
            secret = os.urandom(16)
            expires_at = now + 1000 * min(valid_s or self._limits.token_s, _LONGEST_TOKEN_S)
            row = Enrolment(
                secret_hash(secret), client_id, role, approve, now, expires_at, replaces=replaces
            )
            await self._engine.call(lambda n: m.Enrol(0, by, n, client_id, role, replaces))
            await self._engine.in_store(self._store.put_enrolment, row)
        return encode_token(
            Token(client_id, self.address, self._trust.root_fingerprint, expires_at, secret)
        )

    def _check_free(self, client_id: str, role: str, replaces: bool) -> None:
        """Raise Conflict if another home has the id and is not to be replaced."""
        rights = self._engine.broker.state.rights
        twin = rights.case_twin(client_id)
        if twin is not None and twin != client_id:
            raise Conflict(f"a client {twin!r} exists, and ids must differ in more than case")
        known = rights.clients.get(client_id)
        if known is None or known.revoked_at:
            return
        if known.role != role:
            other = f"revoke {client_id}" if role == m.CLIENT else f"grant {client_id} admin"
            raise Conflict(
                f"{client_id!r} is {_A[known.role]}, and its role cannot be changed",
                remedy=f"choose another name, or: cipherbox {other}",
            )
        if not replaces:
            raise Conflict(
                f"{client_id!r} is enrolled. Another home with this id replaces the one it has: "
                "that one is cut off, the keys begin anew, and whoever pinned them must compare "
                f"again. If you mean that: cipherbox enroll {client_id} --replace"
            )

    async def known(self, client_id: str, secret: bytes) -> bool:
        """Return whether HQ made this token."""
        row = await self._engine.in_store(self._store.enrolment, secret_hash(secret))
        return row is not None and row.client == client_id

    async def request(self, client_id: str, secret: bytes, csr: bytes) -> Outcome:
        """Enrol a machine without a certificate and return the state of its request; raise
        TokenError or EnrolmentRefused.
        """
        async with self.lock:
            row = await self._engine.in_store(self._store.enrolment, secret_hash(secret))
            if row is None or row.client != client_id:
                raise TokenError(
                    "HQ does not know this token", remedy="ask the admin for a new one"
                )
            key = pki.spki(pki.key_of_csr(csr))
            if row.csr and pki.spki(pki.key_of_csr(row.csr)) != key:
                raise EnrolmentRefused(
                    "this token was already used with another key",
                    remedy="ask the admin for a new one",
                )
            if row.state == REFUSED:
                raise EnrolmentRefused("an admin rejected this enrolment")
            if row.state == ENDED:
                raise EnrolmentRefused(
                    f"this token was cancelled when {client_id} was revoked or replaced",
                    remedy="ask the admin for a new one",
                )
            if row.state == DONE and not self._is_early(row):
                await self._complete(row)
                return Outcome(ISSUED, row.number, row.chain)
            if row.state == DONE:
                row.state = APPROVED
                await self._engine.in_store(self._store.put_enrolment, row)
                return await self._advance(row)
            if row.expires_at <= self._trust.clock.now_ms():
                raise TokenError("this token has expired", remedy="ask the admin for a new one")
            self._refuse_taken(row)
            if row.state == OPEN:
                row.csr = csr
                row.number = pki.enrol_number(self._trust.root_fingerprint, key)
                row.state = WAITING if row.approve else APPROVED
                await self._engine.in_store(self._store.put_enrolment, row)
                log.info(
                    "An enrolment asks for its certificate",
                    extra={"client": client_id, "number": row.number},
                )
            return await self._advance(row)

    def _is_early(self, row: Enrolment) -> bool:
        """Return whether a certificate begins later: it was made while HQ's clock was ahead."""
        begins = pki.load_der(row.chain[0]).not_valid_before_utc
        return begins > self._trust.clock.now() + CLOCK_LAG

    def _refuse_taken(self, row: Enrolment) -> None:
        """Raise EnrolmentRefused if another home was enrolled with this id since the token was
        made.
        """
        rights = self._engine.broker.state.rights
        twin = rights.case_twin(row.client)
        if twin is not None and twin != row.client:
            raise Conflict(f"a client {twin!r} exists, and ids must differ in more than case")
        known = rights.clients.get(row.client)
        if known is None or known.revoked_at or row.replaces:
            return
        raise EnrolmentRefused(
            f"another home was enrolled as {row.client}, with the role {known.role}, "
            "since this token was made",
            remedy=(
                "if this one is to replace it, ask the admin for: cipherbox enroll "
                f"{row.client} --replace"
            ),
        )

    async def _advance(self, row: Enrolment) -> Outcome:
        if row.state == WAITING:
            return Outcome(WAITS_FOR_ADMIN, row.number)
        if self._trust.authority is None:
            return Outcome(WAITS_FOR_CA, row.number)
        certificate = self._trust.issue(pki.key_of_csr(row.csr), row.client)
        await self._issued(row, (pki.der(certificate), *self._trust.chain))
        return Outcome(ISSUED, row.number, row.chain)

    async def take(self, row: Enrolment, chain: tuple[bytes, ...]) -> bool:
        """Accept the certificate of an offline CA for this request; the client gets it when it asks
        again.  The caller holds the lock.

        Return False, and revoke the certificate, if the request was cancelled meanwhile or another
        home has the id.
        """
        now = await self._engine.in_store(self._store.enrolment, row.secret_hash)
        row = now if now is not None else row  # an earlier one may have cancelled it
        try:
            if row.state != APPROVED:
                raise EnrolmentRefused(f"the request's state is {row.state}")
            if not self._is_renewal(row):
                self._refuse_taken(row)
            elif not self.has_client(row.client):
                raise EnrolmentRefused("the client was revoked")
        except (EnrolmentRefused, Conflict) as error:
            await self._records.withdraw(pki.load_der(chain[0]))
            log.warning(
                "A certificate arrived too late and was revoked",
                extra={"client": row.client, "reason": str(error)},
            )
            if row.state in UNDER_WAY:
                await self._end([row])
            return False
        await self._issued(row, chain)
        return True

    async def _issued(self, row: Enrolment, chain: tuple[bytes, ...]) -> None:
        """Record a request's certificate; the client gets it when it asks again."""
        if row.replaces:
            await self._replace(row)
        row.chain = chain
        row.state = DONE
        await self._engine.in_store(self._store.put_enrolment, row)
        await self._complete(row)
        log.info("Certificate issued", extra={"client": row.client})

    async def _complete(self, row: Enrolment) -> None:
        """Create the client with its mailboxes and make its certificate valid; idempotent."""
        if not self.has_client(row.client):
            await self._engine.call(lambda n: m.AddClient(0, "", n, row.client, row.role))
        if not self._trust.knows(pki.serial(pki.load_der(row.chain[0]))):
            await self._records.add(row.chain[0])

    async def _replace(self, row: Enrolment) -> None:
        """End the home that has this id: enrolments and renewals, certificates, connections."""
        if not self.has_client(row.client):
            return
        others = await self._engine.in_store(self._store.enrolments, (*UNDER_WAY, DONE), row.client)
        await self._end([one for one in others if one.secret_hash != row.secret_hash])
        await self._records.revoke_all(row.client)
        await self._engine.call(lambda n: m.ReplaceClient(0, "", n, row.client))
        await self._engine.in_store(self._trust.new_crl)
        log.warning("A home was replaced by another one", extra={"client": row.client})

    async def _end(self, rows: list[Enrolment]) -> None:
        for row in rows:
            row.state = ENDED
            await self._engine.in_store(self._store.put_enrolment, row)

    async def approve(self, client_id: str, *, accept: bool) -> int:
        """Approve or reject the pending requests of a client and return their number."""
        async with self.lock:
            rows = await self._engine.in_store(self._store.enrolments, (WAITING,))
            rows = [r for r in rows if r.client == client_id]
            if not rows:
                raise NotFound(f"no enrolment of {client_id!r} waits for approval")
            for row in rows:
                row.state = APPROVED if accept else REFUSED
                await self._engine.in_store(self._store.put_enrolment, row)
            return len(rows)

    async def renew(self, client_id: str, csr: bytes, serial: str = "") -> Outcome:
        """Issue a new certificate to a connected client, whose current one (``serial``) must be
        valid.

        With an offline CA the request waits; a retry with the same key gets the result.
        """
        key = pki.key_of_csr(csr)
        most = self._engine.broker.state.totals.limit_of(client_id, CERTIFICATES)
        if (count := self._trust.valid_count(client_id)) >= most:
            raise LimitReached(f"{client_id} has {count} valid certificates, of at most {most}")
        number = pki.enrol_number(self._trust.root_fingerprint, pki.spki(key))
        async with self.lock:
            known = self._engine.broker.state.rights.clients.get(client_id)
            if known is None or known.revoked_at:
                raise Revoked(f"{client_id} was revoked")
            self._trust.require(serial)
            if self._trust.authority is None:
                return await self._renew_later(known, csr, number)
            certificate = self._trust.issue(key, client_id)
            await self._records.add(pki.der(certificate))
        return Outcome(ISSUED, number, (pki.der(certificate), *self._trust.chain))

    async def _renew_later(self, known: m.ClientRow, csr: bytes, number: str) -> Outcome:
        """Queue a renewal like an enrolment, under a name of its own."""
        name = renewal_name(known.name, csr)
        row = await self._engine.in_store(self._store.enrolment, name)
        if row is not None and row.state in (REFUSED, ENDED):
            raise EnrolmentRefused(
                f"this renewal was cancelled when {known.name} was revoked or given to another home"
            )
        if row is None:
            await self._check_waiting(known.name)
            now = self._trust.clock.now_ms()
            row = Enrolment(
                name, known.name, known.role, False, now, now + _RENEWAL_MS, APPROVED, csr, number
            )
            await self._engine.in_store(self._store.put_enrolment, row)
        return Outcome(ISSUED if row.state == DONE else WAITS_FOR_CA, number, row.chain)

    async def _check_waiting(self, client_id: str) -> None:
        most = self._engine.broker.state.totals.limit_of(client_id, CERTIFICATES)
        rows = await self._engine.in_store(self._store.enrolments, (APPROVED,), client_id)
        if len(rows) >= most:
            raise LimitReached(
                f"{client_id} has {len(rows)} requests waiting for the CA, of at most {most}"
            )

    def has_client(self, client_id: str) -> bool:
        """Return whether HQ has a client of this id that is not revoked."""
        known = self._engine.broker.state.rights.clients.get(client_id)
        return known is not None and not known.revoked_at

    async def revoke(self, client_id: str, reason: str, *, by: str = "") -> int:
        """Revoke all certificates of a client and return their number; in this order: enrolments,
        records, connections, the list.
        """
        async with self.lock:
            if client_id not in self._engine.broker.state.rights.clients:
                raise NotFound(
                    f"no client {client_id!r}",
                    remedy="see: cipherbox clients list",
                )
            if self._engine.broker.state.rights.admins() == {client_id}:
                raise Conflict(
                    f"{client_id!r} is the last admin of this HQ",
                    remedy="enrol another one first: cipherbox enroll CLIENT_ID --role admin",
                )
            await self._end_all_of(client_id)
            rows = await self._records.revoke_all(client_id)
            await self._engine.call(lambda n: m.RevokeClient(0, by, n, client_id, reason))
            await self._engine.in_store(self._trust.new_crl)
        log.warning("Certificates revoked", extra={"client": client_id, "reason": reason})
        return len(rows)

    async def _end_all_of(self, client_id: str) -> None:
        """Cancel all tokens and requests of this id, in whatever state."""
        await self._end(
            await self._engine.in_store(self._store.enrolments, (*UNDER_WAY, DONE), client_id)
        )

    async def revoke_without_certificate(self, client_id: str, reason: str) -> None:
        """Revoke a client that has no valid certificate left, except the last admin.

        The caller holds the lock.
        """
        if self._engine.broker.state.rights.admins() == {client_id}:
            log.error(
                "The last admin has no valid certificate any more", extra={"client": client_id}
            )
            return
        await self._end_all_of(client_id)
        await self._engine.call(lambda n: m.RevokeClient(0, "", n, client_id, reason))
        log.warning("Certificates revoked", extra={"client": client_id, "reason": reason})

    async def finish_revocation(self, client_id: str) -> None:
        """Revoke a client if `revoke` was interrupted after its certificates were revoked.

        The caller holds the lock.
        """
        # `revoke` ends all of them first; one left is of a new home, whose retry completes it
        states = (*UNDER_WAY, DONE)
        rows = await self._engine.in_store(self._store.enrolments, states, client_id)
        if not rows:
            await self.revoke_without_certificate(client_id, "all its certificates were revoked")

    async def pending(self) -> list[dict[str, object]]:
        """Return the rows of LIST pending."""
        rows = await self._engine.in_store(self._store.enrolments, UNDER_WAY)
        now = self._trust.clock.now_ms()
        return [
            {
                "name": r.client,
                "state": r.state,
                "role": r.role,
                "number": r.number,
                "expires_at": r.expires_at,
                "replaces": r.replaces,
            }
            for r in rows
            if r.expires_at > now
        ]

    @staticmethod
    def _is_renewal(row: Enrolment) -> bool:
        return bool(row.csr) and row.secret_hash == renewal_name(row.client, row.csr)


def renewal_name(client_id: str, csr: bytes) -> bytes:
    """Return what replaces the secret's hash in the row of a renewal; no secret is that long."""
    return secret_hash(b"renew" + client_id.encode() + pki.spki(pki.key_of_csr(csr)))

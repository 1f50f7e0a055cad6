"""Exchange with an offline CA: requests of clients, of HQ and of the issuing CA, and its answers.

`export` writes the document for the CA.  `take` verifies its answer against the root and assigns
each certificate only to the request with the same name and key.  Everything is checked, HQ's own
certificate in a handshake as a client would perform it, before anything takes effect.
"""

from __future__ import annotations

from datetime import datetime

import attrs
from cryptography import x509

from cipherbox import pki
from cipherbox.config.settings import secret_key
from cipherbox.errors import Forbidden, InvalidRequest
from cipherbox.ops.logs import get_logger
from cipherbox.pki.revocation_lists import check_crl
from cipherbox.portable import write_atomic
from cipherbox.server.ca.credentials import put_server, server_key
from cipherbox.server.ca.own_certificate import OwnCertificate
from cipherbox.server.ca.requests_document import HQ_NAME, HQ_ROLE, requests_document
from cipherbox.server.ca.signed_responses import (
    Signed,
    for_hq,
    issuing_chain,
    read_signed,
)
from cipherbox.server.directory.enrolment import APPROVED, DONE, ENDED, REFUSED, Enrolments
from cipherbox.server.directory.revocation_enforcer import RevocationEnforcer
from cipherbox.server.directory.trust import Trust
from cipherbox.server.engine import Engine
from cipherbox.server.live_config import LiveConfig
from cipherbox.store.port import Enrolment, Store

log = get_logger(__name__)


class CaExchange:
    """The exchange with an offline CA."""

    def __init__(
        self,
        live: LiveConfig,
        store: Store,
        engine: Engine,
        trust: Trust,
        enrolments: Enrolments,
        certificate: OwnCertificate,
        revocations: RevocationEnforcer,
    ) -> None:
        self._live, self._store, self._engine, self._trust = live, store, engine, trust
        self._enrolments, self._certificate = enrolments, certificate
        self._revocations = revocations

    async def export(self, own: Enrolment | None = None) -> bytes:
        """Return the document with pending requests and the contents of the next revocation list;
        ``own`` adds HQ's request even if it is not due.
        """
        rows = await self._engine.in_store(self._store.enrolments, (APPROVED,))
        if own is not None:
            rows = [own, *(row for row in rows if row.role != HQ_ROLE)]
        number = await self._engine.in_store(self._trust.crl_number)
        return requests_document(
            rows,
            self._live.now.server.name,
            self._trust.root_fingerprint,
            self._trust.revoked(),
            number + 1,
        )

    async def take(self, document: bytes) -> int:
        """Import what the CA signed; return the number of new certificates and lists."""
        signed = read_signed(document)
        if self._trust.authority is not None and (signed.leaves or signed.lists):
            raise Forbidden(
                "the issuing CA's key is at HQ, which signs its clients' requests itself"
            )
        async with self._enrolments.lock:
            return await self._take(signed)

    async def _take(self, signed: Signed) -> int:
        trust = self._trust
        chain = issuing_chain(signed, pki.spki_of(trust.issuing), trust.root)
        if signed.cas and not chain and not {*signed.cas} <= {*trust.material.chain, trust.root}:
            raise InvalidRequest("none of the CAs in this file has the key of HQ's issuing CA")
        fresh = bool(chain) and tuple(chain) != trust.material.chain
        fresh = fresh and chain[0].not_valid_before_utc >= trust.issuing.not_valid_before_utc
        above = chain if fresh else list(trust.material.chain)
        own, others = _sorted(signed, above, trust.root, trust.clock.now())
        least = await self._engine.in_store(self._trust.crl_number)
        lists = [
            (check_crl(der, trust.issuing, trust.clock.now(), least), der) for der in signed.lists
        ]
        rows = await self._engine.in_store(self._store.enrolments, (APPROVED, ENDED, REFUSED))
        # of two with the same key, the one that is still pending
        rows.sort(key=lambda row: row.state != APPROVED)
        key = secret_key(self._live.now.encryption.service_key_file)
        for leaf in own or [trust.server]:
            if any(_row_of(rows, row.client, leaf) for row in rows if row.role != HQ_ROLE):
                raise InvalidRequest(
                    "a client's request was signed as a server's",
                    remedy="sign it with the extensions of a client (cipherbox manual pki)",
                )
            its_key = server_key(self._live.now, key, leaf, settle=False)
            attrs.evolve(
                trust.material, chain=tuple(above), server=leaf, server_key=its_key
            ).try_out()
        count = 0
        if fresh:
            write_atomic(self._live.now.tls.issuing, pki.pem(*chain))
            self._certificate.adopt()
            log.info(
                "The issuing CA's certificate was renewed",
                extra={"until": str(chain[0].not_valid_after_utc)},
            )
            count += 1
        for leaf in own:
            count += await self._take_own(leaf, rows)
        found = [
            (row, leaf)
            for leaf in others
            if (row := _row_of(rows, pki.common_name(leaf), leaf)) is not None
        ]
        # of two homes with the same id, the later one
        for row, leaf in sorted(found, key=lambda one: -one[0].created_at):
            if row.role != HQ_ROLE:
                count += await self._enrolments.take(
                    row, (pki.der(leaf), *(pki.der(c) for c in above))
                )
        for crl, der in lists:
            await self._revocations.apply_list(crl, der)
            count += crl.number > least
        return count

    async def _take_own(self, leaf: x509.Certificate, rows: list[Enrolment]) -> bool:
        row = _row_of(rows, HQ_NAME, leaf)
        if row is not None:
            row.state = DONE
            await self._engine.in_store(self._store.put_enrolment, row)
        if leaf == self._trust.server:
            return False
        put_server(self._live.now, leaf)
        self._certificate.adopt()
        await self._certificate.renew_if_due()
        log.info("HQ's certificate was renewed", extra={"serial": pki.serial(leaf)})
        return True


def _sorted(
    signed: Signed, above: list[x509.Certificate], root: x509.Certificate, at: datetime
) -> tuple[list[x509.Certificate], list[x509.Certificate]]:
    """Return HQ's own certificates and the others, all verified up to the root."""
    own: list[x509.Certificate] = []
    others: list[x509.Certificate] = []
    for leaf in signed.leaves:
        mine = for_hq(leaf)
        pki.verify_chain([leaf, *above], root, at, pki.SERVER if mine else pki.CLIENT)
        (own if mine else others).append(leaf)
    return own, others


def _row_of(rows: list[Enrolment], name: str, leaf: x509.Certificate) -> Enrolment | None:
    key = pki.spki_of(leaf)
    return next(
        (r for r in rows if r.client == name and r.csr and pki.spki(pki.key_of_csr(r.csr)) == key),
        None,
    )

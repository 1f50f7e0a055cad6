"""Requests for a CA that is elsewhere, and what comes back: of clients, of HQ itself, of the
issuing CA.

`export` is the document that is carried there; `take` believes nothing of what comes back before it
is checked against the root, and then hands each certificate only to the request with the same name
and the same key.  All is checked, HQ's own in a handshake as a client would make it, before
anything is taken.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import attrs
import orjson
from cryptography import x509

from cipherbox import clock, pki
from cipherbox.config.settings import secret_key
from cipherbox.errors import Forbidden, InvalidRequest
from cipherbox.ops.logs import get_logger
from cipherbox.pki.revocation_lists import check_crl
from cipherbox.portable import write_atomic
from cipherbox.server.ca.credentials import put_server, server_key
from cipherbox.server.ca.signed_responses import (
    REQUESTS_FORMAT,
    Signed,
    for_hq,
    issuing_chain,
    read_signed,
)
from cipherbox.server.directory.enrolment import APPROVED, DONE, ENDED, REFUSED, renewal_name
from cipherbox.server.directory.revocation_lists import obey_list
from cipherbox.store.port import Enrolment

if TYPE_CHECKING:
    from cipherbox.server.hq import HQ

log = get_logger(__name__)
HQ_ROLE, HQ_NAME = "hq", "HQ"  # of the row with HQ's own request
_YEAR_MS = 365 * 24 * 3600 * 1000


class CaExchange:
    """See the module."""

    def __init__(self, hq: HQ) -> None:
        self._hq = hq

    async def ask_for_hq(self, csr: bytes) -> str:
        """HQ's request waits with those of the clients; its short number."""
        hq, name = self._hq, renewal_name(HQ_NAME, csr)
        row = request_row(HQ_NAME, HQ_ROLE, csr, hq.trust.root_fingerprint)
        if await hq.engine.in_store(hq.store.enrolment, name) is None:
            await hq.engine.in_store(hq.store.put_enrolment, row)
        return row.number

    async def export(self, own: Enrolment | None = None) -> bytes:
        """The requests that wait for the CA, and what its next revocation list must hold;
        ``own``: HQ's, if not due.
        """
        hq = self._hq
        rows = await hq.engine.in_store(hq.store.enrolments, (APPROVED,))
        if own is not None:
            rows = [own, *(row for row in rows if row.role != HQ_ROLE)]
        number = await hq.engine.in_store(hq.trust.crl_number)
        return requests_document(
            rows, hq.config.server.name, hq.trust.root_fingerprint, hq.trust.revoked(), number + 1
        )

    async def take(self, document: bytes) -> int:
        """What the CA signed; how many certificates and lists of it were new here."""
        hq = self._hq
        signed = read_signed(document)
        if hq.trust.authority is not None and (signed.leaves or signed.lists):
            raise Forbidden(
                "the issuing CA's key is at HQ, which signs by itself; nothing is carried"
            )
        async with hq.enrolments.lock:
            return await self._take(signed)

    async def _take(self, signed: Signed) -> int:
        hq, trust = self._hq, self._hq.trust
        chain = issuing_chain(signed, pki.spki_of(trust.issuing), trust.root)
        if signed.cas and not chain and not {*signed.cas} <= {*trust.material.chain, trust.root}:
            raise InvalidRequest("none of the CAs in this file has the key of HQ's issuing CA")
        fresh = bool(chain) and tuple(chain) != trust.material.chain
        fresh = fresh and chain[0].not_valid_before_utc >= trust.issuing.not_valid_before_utc
        above = chain if fresh else list(trust.material.chain)
        own, others = _sorted(signed, above, trust.root)
        least = await hq.engine.in_store(hq.trust.crl_number)
        lists = [(check_crl(der, trust.issuing, clock.now(), least), der) for der in signed.lists]
        rows = await hq.engine.in_store(hq.store.enrolments, (APPROVED, ENDED, REFUSED))
        # of two with one key the one that still counts
        rows.sort(key=lambda row: row.state != APPROVED)
        key = secret_key(hq.config.encryption.service_key_file)
        for leaf in own or [trust.server]:
            if any(_row_of(rows, row.client, leaf) for row in rows if row.role != HQ_ROLE):
                raise InvalidRequest(
                    "a client's request was signed as a server's; sign it with the extensions of a "
                    "client (cipherbox manual pki)"
                )
            its_key = server_key(hq.config, key, leaf, settle=False)
            attrs.evolve(
                trust.material, chain=tuple(above), server=leaf, server_key=its_key
            ).try_out()
        count = 0
        if fresh:
            write_atomic(hq.config.tls.issuing, pki.pem(*chain))
            hq.certificate.adopt()
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
        # of two homes of one id the later one
        for row, leaf in sorted(found, key=lambda one: -one[0].created_at):
            if row.role != HQ_ROLE:
                count += await hq.enrolments.take(
                    row, (pki.der(leaf), *(pki.der(c) for c in above))
                )
        for says, der in lists:
            await obey_list(hq, says, der)
            count += says.number > least
        return count

    async def _take_own(self, leaf: x509.Certificate, rows: list[Enrolment]) -> bool:
        hq = self._hq
        row = _row_of(rows, HQ_NAME, leaf)
        if row is not None:
            row.state = DONE
            await hq.engine.in_store(hq.store.put_enrolment, row)
        if leaf == hq.trust.server:
            return False
        put_server(hq.config, leaf)
        hq.certificate.adopt()
        await hq.certificate.look()
        log.info("HQ's certificate was renewed", extra={"serial": pki.serial(leaf)})
        return True


def _sorted(
    signed: Signed, above: list[x509.Certificate], root: x509.Certificate
) -> tuple[list[x509.Certificate], list[x509.Certificate]]:
    """HQ's own certificates and the others, all proven under the root."""
    own: list[x509.Certificate] = []
    others: list[x509.Certificate] = []
    for leaf in signed.leaves:
        mine = for_hq(leaf)
        pki.verify_chain([leaf, *above], root, clock.now(), pki.SERVER if mine else pki.CLIENT)
        (own if mine else others).append(leaf)
    return own, others


def _row_of(rows: list[Enrolment], name: str, leaf: x509.Certificate) -> Enrolment | None:
    key = pki.spki_of(leaf)
    return next(
        (r for r in rows if r.client == name and r.csr and pki.spki(pki.key_of_csr(r.csr)) == key),
        None,
    )


def request_row(client_id: str, role: str, csr: bytes, root_fingerprint: bytes) -> Enrolment:
    """A request that nobody has to let go."""
    now, number = (
        pki.ms(clock.now()),
        pki.enrol_number(root_fingerprint, pki.spki(pki.key_of_csr(csr))),
    )
    name = renewal_name(client_id, csr)
    return Enrolment(name, client_id, role, False, now, now + _YEAR_MS, APPROVED, csr, number)


def requests_document(
    rows: Sequence[Enrolment],
    name: str,
    root_fingerprint: bytes,
    revoked: Sequence[tuple[str, datetime]],
    crl_number: int,
) -> bytes:
    """What is carried to the CA; ``crl_number`` 0: no list is asked for."""
    document = {
        "format": REQUESTS_FORMAT,
        "root": root_fingerprint.hex(),
        "requests": [_request(r, name) for r in rows if r.csr],
        "revoked": [[serial, pki.ms(when)] for serial, when in revoked],
        "crl_number": crl_number,
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2)


def _request(row: Enrolment, name: str) -> dict[str, str]:
    found = {
        "client_id": row.client,
        "number": row.number,
        "csr": base64.b64encode(row.csr).decode(),
    }
    return {**found, "hq": name} if row.role == HQ_ROLE else found

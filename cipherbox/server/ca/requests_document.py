"""Requests for an offline CA, as rows of the store and as the document for the CA."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime

import orjson

from cipherbox import pki
from cipherbox.server.ca.signed_responses import REQUESTS_FORMAT
from cipherbox.server.directory.enrolment import APPROVED, renewal_name
from cipherbox.store.port import Enrolment

HQ_ROLE, HQ_NAME = "hq", "HQ"  # of the row with HQ's own request
_YEAR_MS = 365 * 24 * 3600 * 1000


def request_row(
    client_id: str, role: str, csr: bytes, root_fingerprint: bytes, now: int
) -> Enrolment:
    """Return a request, made ``now`` (ms since 1970), that needs no approval."""
    number = pki.enrol_number(root_fingerprint, pki.spki(pki.key_of_csr(csr)))
    name = renewal_name(client_id, csr)
    return Enrolment(name, client_id, role, False, now, now + _YEAR_MS, APPROVED, csr, number)


def requests_document(
    rows: Sequence[Enrolment],
    name: str,
    root_fingerprint: bytes,
    revoked: Sequence[tuple[str, datetime]],
    crl_number: int,
) -> bytes:
    """Return the document for the CA; with ``crl_number`` 0 it asks for no list."""
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

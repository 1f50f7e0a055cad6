"""The rows of LIST certificates (`cipherbox ca`), which the manual page `pki` describes."""

from __future__ import annotations

from cryptography import x509

from cipherbox import clock, pki
from cipherbox.server.directory.enrolment import APPROVED, OPEN, WAITING
from cipherbox.server.operations.status import HqStatus

HERE, ELSEWHERE, OFFLINE, ORGANIZATION = "here", "taken off", "offline", "the organization's"
_DAY_MS = 86_400_000
Rows = list[dict[str, object]]


async def inventory(hq: HqStatus) -> Rows:
    """Return a row for each certificate and list of HQ, one for all clients, and one for pending
    requests.
    """
    trust, ca, material = hq.trust, hq.config.ca, hq.trust.material
    above = ORGANIZATION if ca.organization else ""
    root_key = HERE if ca.root_key.exists() else above or (OFFLINE if ca.offline else ELSEWHERE)
    issuing_key = HERE if trust.authority is not None else OFFLINE
    found = [_certificate("root", material.root, root_key)]
    found += [_certificate("CA between", c, ORGANIZATION) for c in reversed(material.chain[1:])]
    found += [
        _certificate("issuing", trust.issuing, issuing_key),
        _certificate("server", trust.server, HERE),
    ]
    found.append(await _own_list(hq))
    for one in hq.lists.found.values():
        ends_at = pki.ms(one.crl.next_update)
        found.append(
            {
                "name": "list",
                "subject": one.ca.subject.rfc4514_string(),
                "file": str(one.file),
                "number": one.crl.number,
                "count": len(one.crl.revoked),
                "ends_at": ends_at,
                "days": _days(ends_at),
            }
        )
    if hq.lists.trouble:
        found.append({"name": "refused lists", "why": hq.lists.trouble})
    count, ending = trust.count()
    ends: Rows = [
        {"client": r.client, "ends_at": r.expires_at, "days": _days(r.expires_at)} for r in ending
    ]
    found.append({"name": "clients", "count": count, "ending": ends})
    rows = await hq.engine.in_store(hq.store.enrolments, (OPEN, WAITING, APPROVED))
    now = pki.ms(clock.now())
    waiting = [
        {"client": r.client, "state": r.state, "number": r.number}
        for r in rows
        if r.csr and r.expires_at > now
    ]
    found.append({"name": "requests", "count": len(waiting), "waiting": waiting})
    return found


def _certificate(name: str, certificate: x509.Certificate, key: str) -> dict[str, object]:
    ends_at = pki.ms(certificate.not_valid_after_utc)
    return {
        "name": name,
        "subject": certificate.subject.rfc4514_string(),
        "serial": pki.serial(certificate),
        "sha256": pki.fingerprint(certificate).hex(),
        "begins_at": pki.ms(certificate.not_valid_before_utc),
        "ends_at": ends_at,
        "days": _days(ends_at),
        "key": key,
    }


async def _own_list(hq: HqStatus) -> dict[str, object]:
    await hq.engine.in_store(hq.trust.crl)
    number = await hq.engine.in_store(hq.trust.crl_number)
    ends_at = pki.ms(hq.trust.crl_ends) if hq.trust.crl_ends is not None else 0
    return {
        "name": "revocations",
        "number": number,
        "count": len(hq.trust.revoked()),
        "ends_at": ends_at,
        "days": _days(ends_at),
    }


def _days(ends_at: int) -> float:
    return round((ends_at - pki.ms(clock.now())) / _DAY_MS, 1)
